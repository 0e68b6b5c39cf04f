"""A Mask R-CNN for tests that train: 16 channels, images of 96 pixels, the classes of the textured shapes, two iterations.

Who inherits it sets ``data_root`` of the loaders and the evaluators' ``ann_file``; here they are ``data/`` in the working directory.
"""

_base_ = '../configs/small/mask-rcnn_fca-r18_fpn_small-heads.py'

classes = ('coarse-disc', 'fine-disc', 'cross')
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=len(classes)),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32, num_classes=len(classes)),
    ),
    test_cfg=dict(rpn=dict(max_per_img=20)),
)
load = dict(type='LoadImageFromFile')
annotate = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
resize = dict(type='Resize', scale=(96, 96), keep_ratio=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
data = dict(data_root='data/', metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[load, annotate, resize, dict(type='PackDetInputs')], **data),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[load, resize, annotate, dict(type='PackDetInputs', meta_keys=meta_keys)], **data),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))

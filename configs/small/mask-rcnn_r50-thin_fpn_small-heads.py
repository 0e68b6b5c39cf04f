# The small Mask R-CNN with a plain ResNet-50 of a quarter of the width, on images of random sizes: the baseline for attentions.
_base_ = './mask-rcnn_fca-r18_fpn_small-heads.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        base_channels=16,
        stem_channels=16,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(256, 256), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
# If it is killed and resumed, it ends as if it had not been (docs/faults).
train_dataloader = dict(sampler=dict(_delete_=True, type='ResumableInfiniteSampler'), dataset=dict(pipeline=train_pipeline))
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

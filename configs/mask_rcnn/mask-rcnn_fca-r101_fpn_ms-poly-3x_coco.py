# mmdet's Mask R-CNN ms-poly-3x recipe with one change: FcaNet's backbone and its ImageNet weights.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; short side 640 to 800; an epoch is the data three times, 12 x 21,988 = 263,856 iterations.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type='FcaResNet',
        init_cfg=dict(type='Pretrained', checkpoint='https://github.com/cfzd/FcaNet/releases/download/v1.0/fca101.pth'),
    )
)

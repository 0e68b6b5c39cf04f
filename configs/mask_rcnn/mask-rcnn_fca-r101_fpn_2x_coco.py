# mmdet's Mask R-CNN 2x recipe with one change: FcaNet's backbone and its ImageNet weights.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 24 epochs = 175,920.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type='FcaResNet',
        init_cfg=dict(type='Pretrained', checkpoint='https://github.com/cfzd/FcaNet/releases/download/v1.0/fca101.pth'),
    )
)

# mmdet's Mask R-CNN 1x recipe with one change: ECA in every block, untrained, beside a plain ResNet's weights.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './mask-rcnn_r101_fpn_1x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(plugins=[dict(cfg=dict(type='EfficientChannelAttention'), position='after_conv3')]))

# The thin ResNet-50 with one change: efficient channel attention in every block.
_base_ = './mask-rcnn_r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(plugins=[dict(cfg=dict(type='EfficientChannelAttention'), position='after_conv3')]))

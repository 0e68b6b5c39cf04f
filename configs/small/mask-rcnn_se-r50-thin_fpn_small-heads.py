# The thin ResNet-50 with one change: squeeze-and-excitation in every block, without biases, like FcaNet's gates.
_base_ = './mask-rcnn_r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(plugins=[dict(cfg=dict(type='SqueezeExcitation', bias=False), position='after_conv3')]))

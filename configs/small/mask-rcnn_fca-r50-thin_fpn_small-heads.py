# The thin ResNet-50 with one change: frequency channel attention in every block.
_base_ = './mask-rcnn_r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(type='FcaResNet'))

# The thin FCA-ResNet-50 with one change: every frequency on every channel, combined with learned weights.
_base_ = './mask-rcnn_fca-r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(basis='combined'))

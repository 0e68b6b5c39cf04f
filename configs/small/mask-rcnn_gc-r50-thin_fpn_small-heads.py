# The thin ResNet-50 with one change: global context blocks in stages 2 to 4, as in GCNet.
_base_ = './mask-rcnn_r50-thin_fpn_small-heads.py'

model = dict(
    backbone=dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), stages=(False, True, True, True), position='after_conv3')])
)

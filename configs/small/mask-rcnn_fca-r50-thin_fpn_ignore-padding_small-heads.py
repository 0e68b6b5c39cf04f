# Frequency channel attention in the thin ResNet-50 with one change: it pools over each image's own part of the batch.
_base_ = './mask-rcnn_fca-r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(ignore_padding=True))

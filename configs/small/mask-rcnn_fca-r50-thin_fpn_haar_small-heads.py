# Frequency channel attention in the thin ResNet-50 with one change: the maps that squeeze are two-dimensional Haar functions.
_base_ = './mask-rcnn_fca-r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(basis='haar', dct_size=(64, 32, 16, 8)))

# Frequency channel attention in the thin ResNet-50 with one change: the maps that squeeze are outer products of random orthonormal vectors.
_base_ = './mask-rcnn_fca-r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(basis='orthogonal_separable'))

# Frequency channel attention in the thin ResNet-50 with one change: the tensors that squeeze are random, fixed and orthonormal within each
# group of channels (OrthoNets).
_base_ = './mask-rcnn_fca-r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(basis='orthogonal'))

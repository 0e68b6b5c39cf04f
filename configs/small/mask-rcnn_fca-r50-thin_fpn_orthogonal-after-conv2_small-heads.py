# The thin ResNet-50 with one change: OrthoNets' variant, random orthonormal filters after the second convolution of every block.
_base_ = './mask-rcnn_r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(plugins=__import__('fca_mmdet').stage_plugins(position='after_conv2', basis='orthogonal')))

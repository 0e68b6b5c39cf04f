# FcaNet-101 as an mmpretrain classifier, with the recipe of fca-resnet50_8xb32-100e_in1k.py.
# 8 GPUs x 32 images = 256 per iteration, lr 0.1; 1,281,167 images / 256 = 5,005 iterations an epoch, 100 epochs = 500,500.
_base_ = './fca-resnet50_8xb32-100e_in1k.py'

model = dict(backbone=dict(depth=101))

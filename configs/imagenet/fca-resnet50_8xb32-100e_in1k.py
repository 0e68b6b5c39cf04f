# FcaNet-50 as an mmpretrain classifier, with the recipe of FcaNet's authors: 100 epochs, 5 of them warm-up, cosine, label smoothing 0.1.
# 8 GPUs x 32 images = 256 per iteration, lr 0.1; 1,281,167 images / 256 = 5,005 iterations an epoch, 100 epochs = 500,500.
_base_ = [
    'mmpretrain::_base_/models/resnet50_label_smooth.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256_coslr.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type='mmdet.FcaResNet', depth=50, out_indices=(3,), norm_eval=False))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=95, by_epoch=True, begin=5, end=100),
]

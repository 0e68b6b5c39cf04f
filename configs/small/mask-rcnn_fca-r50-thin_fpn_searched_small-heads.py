# Frequency channel attention in the thin ResNet-50 with one change: its frequencies are learned and written to frequencies.json.
_base_ = './mask-rcnn_fca-r50-thin_fpn_small-heads.py'

model = dict(backbone=dict(basis='searched'))
custom_hooks = [dict(type='FrequencySearchHook')]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(selection=dict(lr_mult=30, decay_mult=0))))

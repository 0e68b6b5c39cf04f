# Ablation of top16's config: the frequencies of the 16 groups are learned and written to frequencies.json in the work directory.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './faster-rcnn_fca-r50_fpn_1x_coco_top16.py'

model = dict(backbone=dict(basis='searched'))
custom_hooks = [dict(type='FrequencySearchHook')]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(selection=dict(lr_mult=100, decay_mult=0))))

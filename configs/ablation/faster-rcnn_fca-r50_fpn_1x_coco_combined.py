# Ablation of top16's config: every frequency on every channel, combined with learned weights that start as a fixed selection.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './faster-rcnn_fca-r50_fpn_1x_coco_top16.py'

model = dict(backbone=dict(basis='combined'))

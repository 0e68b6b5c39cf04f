# FcaNet's recipe for Mask R-CNN with the plain ResNet-50 to compare with: one image per GPU, lr 0.01, OHEM in the R-CNN head, only
# the stem frozen, the backbone's BN weights and biases not trained. All else is mmdet's 1x recipe.
# 8 GPUs x 1 image = 8 per iteration, lr 0.01; 117,266 images / 8 = 14,659 iterations an epoch, 12 epochs = 175,908.
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(frozen_stages=0, norm_cfg=dict(requires_grad=False)),
    train_cfg=dict(rcnn=dict(sampler=dict(type='OHEMSampler'))),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)

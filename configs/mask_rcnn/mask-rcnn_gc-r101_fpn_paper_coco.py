# FcaNet's recipe for Mask R-CNN with GCNet's context block in stages 2 to 4, untrained, as in mmdet's configs/gcnet.
# 8 GPUs x 1 image = 8 per iteration, lr 0.01; 117,266 images / 8 = 14,659 iterations an epoch, 12 epochs = 175,908.
_base_ = './mask-rcnn_r101_fpn_paper_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), stages=(False, True, True, True), position='after_conv3')])
)

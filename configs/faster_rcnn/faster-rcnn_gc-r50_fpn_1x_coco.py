# mmdet's Faster R-CNN 1x recipe with one change: GCNet's context block in stages 2 to 4, untrained, as in mmdet's configs/gcnet.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), stages=(False, True, True, True), position='after_conv3')])
)

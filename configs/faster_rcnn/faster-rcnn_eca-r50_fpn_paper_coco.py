# FcaNet's recipe for Faster R-CNN with ECA in every block, untrained, beside a plain ResNet's weights.
# 8 GPUs x 2 images = 16 per iteration, lr 0.01; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './faster-rcnn_r50_fpn_paper_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(plugins=[dict(cfg=dict(type='EfficientChannelAttention'), position='after_conv3')]))

# The baseline of the ablations: FcaNet-TS under mmdet's Faster R-CNN 1x recipe. All start from a plain ResNet-50's weights with
# untrained attention, since FcaNet's weights are published for this variant only.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = '../faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(backbone=dict(type='FcaResNet'))

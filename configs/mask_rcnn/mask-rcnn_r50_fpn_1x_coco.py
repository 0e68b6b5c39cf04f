# mmdet's Mask R-CNN 1x recipe unchanged: the plain ResNet-50 to compare with.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

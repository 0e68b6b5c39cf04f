# FcaNet's recipe for Faster R-CNN with the plain ResNet-50 to compare with: lr 0.01, and every image padded to 1333 x 800
# (800 x 1333 if portrait) in training and test. All else is mmdet's 1x recipe.
# 8 GPUs x 2 images = 16 per iteration, lr 0.01; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(data_preprocessor=dict(type='CanvasDetDataPreprocessor', canvas=(800, 1333), pad_size_divisor=1))
optim_wrapper = dict(optimizer=dict(lr=0.01))

# mmdet's Mask R-CNN 1x recipe with one change: squeeze-and-excitation in every block.
# 8 GPUs x 2 images = 16 per iteration, lr 0.02; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs = 87,960.
_base_ = './mask-rcnn_r101_fpn_1x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='SqueezeExcitation'), position='after_conv3')],
        # mmpretrain's SE-ResNet-101, ImageNet.
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/se-resnet/se-resnet101_batch256_imagenet_20200804-ba5b51d4.pth',
        ),
    )
)

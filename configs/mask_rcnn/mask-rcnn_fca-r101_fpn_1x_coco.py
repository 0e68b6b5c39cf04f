_base_ = './mask-rcnn_fca-r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='https://github.com/cfzd/FcaNet/releases/download/v1.0/fca101.pth'),
    )
)

"""The attention in mmdet's other backbones, and the backbone in other detectors."""

import pytest
import torch
from helpers import frozen
from mmdet.models.backbones import RegNet, Res2Net, ResNeSt, ResNet, ResNeXt
from mmdet.models.backbones.detectors_resnet import DetectoRS_ResNet
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from fca_mmdet import FcaResNet, FcaResNeXt, FcaResNeXtBottleneck, MultiSpectralAttention, stage_plugins

IMAGE = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))

BACKBONES = {
    'ResNet': lambda **options: ResNet(50, **options),
    'ResNeXt': lambda **options: ResNeXt(depth=50, groups=32, base_width=4, **options),
    'Res2Net': lambda **options: Res2Net(depth=50, scales=4, base_width=26, **options),
    'ResNeSt': lambda **options: ResNeSt(depth=50, **options),
    'RegNet': lambda **options: RegNet('regnetx_3.2gf', **options),
    'DetectoRS': lambda **options: DetectoRS_ResNet(depth=50, **options),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_every_stage_of_a_backbone_has_its_grid(name):
    backbone = BACKBONES[name](plugins=stage_plugins(frequencies='top8'))
    plain = BACKBONES[name]()
    frozen(backbone), frozen(plain)
    grids = [{block.att.grid for block in getattr(backbone, layer)} for layer in backbone.res_layers]
    assert grids == [{(56, 56)}, {(28, 28)}, {(14, 14)}, {(7, 7)}]
    features, theirs = backbone(IMAGE), plain(IMAGE)
    assert [feature.shape for feature in features] == [feature.shape for feature in theirs]
    features[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.layer4[0].att.parameters())


def test_resnext_is_mmdets_with_the_attention_and_folds_exactly():
    options = dict(depth=50, groups=32, base_width=4)
    ours, theirs = FcaResNeXt(**options), ResNeXt(**options, plugins=stage_plugins())
    theirs.load_state_dict(ours.state_dict())
    frozen(ours), frozen(theirs)
    assert all(isinstance(block, FcaResNeXtBottleneck) for block in ours.layer3)
    with torch.no_grad():
        for folded, readable in zip(ours(IMAGE), theirs(IMAGE), strict=True):
            torch.testing.assert_close(folded, readable, rtol=1e-4, atol=1e-5)


DETECTORS = {
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'atss/atss_r50_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'SOLOv2': 'solov2/solov2_r50_fpn_1x_coco.py',
}


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_takes_the_backbone_in_two_lines(name):
    model = get_config(f'mmdet::{DETECTORS[name]}').model
    # mmdet starts each block's last normalisation at zero, which stops the gradient to the attention.
    model.backbone.update(type='FcaResNet', init_cfg=None, zero_init_residual=False)
    init_default_scope('mmdet')
    detector = MODELS.build(model)
    detector.init_weights()  # Deformable DETR's level embedding has no value before
    assert isinstance(detector.backbone, FcaResNet)
    shape = (3, 256, 256) if name == 'DINO' else (3, 96, 128)  # DINO takes 900 proposals from its features
    batch = demo_mm_inputs(1, image_shapes=[shape], num_items=[3], num_classes=80, with_mask=True)
    data = detector.data_preprocessor(batch, True)
    loss, _ = detector.parse_losses(detector.train()(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    attention = detector.backbone.layer4[-1].att
    assert isinstance(attention, MultiSpectralAttention)
    assert attention.fc[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        (prediction,) = detector.eval()(**detector.data_preprocessor(batch, False), mode='predict')
    assert 'scores' in prediction.pred_instances

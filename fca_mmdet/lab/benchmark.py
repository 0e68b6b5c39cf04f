"""Benchmark backbones with their attentions, a detector with each of them, the layer alone, and both forms of a folded block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from mmcv.cnn.bricks import ContextBlock
from mmdet.models.backbones import ResNet
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from torch import Tensor, nn

from .. import EfficientChannelAttention, FcaBottleneck, FcaResNet, MultiSpectralAttention, SqueezeExcitation, folding
from ..detector import build_detector
from . import cost
from .cost import describe_setting
from .timing import Setting, in_turns, workers


def fused_resnet(**arguments: Any) -> ResNet:
    """Build mmdet's ResNet with mmengine's ``efficient_conv_bn_eval``, which folds frozen normalisations into the convolutions too."""
    backbone = ResNet(**arguments)
    turn_on_efficient_conv_bn_eval_for_single_model(backbone)
    return backbone


BACKBONES: dict[str, Callable[..., ResNet]] = {
    'ResNet': ResNet,
    'ResNet, efficient eval': fused_resnet,
    '+ SE': partial(ResNet, plugins=[dict(cfg=dict(type=SqueezeExcitation), position='after_conv3')]),
    '+ ECA': partial(ResNet, plugins=[dict(cfg=dict(type=EfficientChannelAttention), position='after_conv3')]),
    '+ GC': partial(ResNet, plugins=[dict(cfg=dict(type=ContextBlock, ratio=1 / 16), position='after_conv3')]),
    '+ FCA, readable': partial(FcaResNet, fold=False),
    '+ FCA, folded': FcaResNet,
    '+ FCA, ignoring padding': partial(FcaResNet, ignore_padding=True),
}
"""The backbones to compare. ResNet is the first: ratios are to it."""
RECORDED = [name for name in BACKBONES if 'ignoring' not in name]
COMPARED = ['ResNet', '+ SE', '+ FCA, readable', '+ FCA, folded']


class Subject(cost.Subject):
    """One of ``BACKBONES`` under one setting."""

    def build(self, name: str) -> nn.Module:
        """Build the backbone, with the first stage frozen."""
        MMLogger.get_instance('mmengine', log_level='ERROR')
        return BACKBONES[name](depth=self.setting.depth, frozen_stages=1, norm_eval=True)


class Detector(Subject):
    """Mask R-CNN with one of the backbones. A training step computes its losses on random images with ten objects each."""

    def __init__(self, name: str, setting: Setting):
        super().__init__(name, setting)
        detector: Any = build_detector(get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'))
        detector.backbone = self.model
        self.model = detector.to(setting.device).train()
        shapes = [(3, *setting.size)] * setting.batch
        data = demo_mm_inputs(setting.batch, shapes, num_items=[10] * setting.batch, num_classes=80, with_mask=True, device=setting.device)
        self.data = detector.data_preprocessor(data, training=True)
        self.run = lambda _: [detector.parse_losses(detector(**self.data, mode='loss'))[0]]


def measure_operators(setting: Setting, names: Sequence[str]) -> list[dict]:
    """Measure a training step's time by operator, which shows what bounds a setting."""
    with workers(names, setting, Subject) as ask:
        ask('training')
        answers = ask('operators')
    print(f'\n{describe_setting(asdict(setting))}: ms of a training step by operator')
    for name, operators in answers.items():
        slowest = sorted(operators, key=operators.__getitem__, reverse=True)[:9]
        print(f'  {name:16} ' + ', '.join(f'{key.removeprefix("aten::")} {operators[key] * 1e3:.0f}' for key in slowest), flush=True)
    return [{'setting': asdict(setting), 'seconds': answers}]


def time_layers(layers: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, mode: str, repeats: int, label: str) -> dict[str, dict]:
    """Time layers in turns on a feature map: inference, or (``mode`` 'training') forward and backward to the input."""

    def run(layer: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(mode == 'inference'):
            leaf = x.detach().requires_grad_(mode == 'training')
            out = layer(leaf)
            if mode == 'training':
                torch.autograd.grad(out, leaf, torch.ones_like(out))

    return in_turns({name: partial(run, layer) for name, layer in layers.items()}, repeats, x.device, label)


def measure_attention(setting: Setting, repeats: int) -> list[dict]:
    """Time the layer alone on each stage's feature map, beside SE and a global average, which is the limit set by memory."""
    found = []
    for stage, (stride, grid) in enumerate(((4, 56), (8, 28), (16, 14), (32, 7)), 1):
        channels = 64 * stride
        layers: dict[str, Callable[[Tensor], Tensor]] = {
            'SE': SqueezeExcitation(channels).to(setting.device),
            'FCA': MultiSpectralAttention(channels, grid).to(setting.device),
            'mean': lambda x: x.mean((2, 3)),
        }
        x = torch.randn(setting.batch, channels, *(side // stride for side in setting.size), device=setting.device)
        for mode in ('inference', 'training'):
            rows = time_layers(layers, x, mode, repeats, f'stage{stage}')
            found.append({'shape': list(x.shape), 'mode': mode, 'rows': rows})
            cells = (f'{name} {row["median"] * 1e3:6.2f} ms {row["ratio"]:.2f}' for name, row in rows.items())
            print(f'stage{stage} {"x".join(map(str, x.shape)):16} {mode:9}  ' + '   '.join(cells), flush=True)
    return found


def measure_forms(setting: Setting, repeats: int) -> list[dict]:
    """Time the product form against the gate form of a folded bottleneck, at map sizes around ``PRODUCT_PIXELS``."""
    found = []
    for planes, grid in ((128, 28), (256, 14), (512, 7)):
        block = FcaBottleneck(4 * planes, planes, dct_size=grid).to(setting.device, memory_format=setting.memory_format).eval()

        def fold(x: Tensor, threshold: float, block: nn.Module = block) -> Tensor:
            with patch.object(folding, 'PRODUCT_PIXELS', threshold):
                return block(x)

        forms = {'gate': partial(fold, threshold=1e9), 'product': partial(fold, threshold=0)}
        for ratio in (1, 2, 4, 8, 16, 32):
            side = round((ratio * planes) ** 0.5)
            x = torch.randn(setting.batch, 4 * planes, side, side, device=setting.device).to(memory_format=setting.memory_format)
            rows = {mode: time_layers(forms, x, mode, repeats, 'forms')['product'] for mode in ('inference', 'training')}
            found.append({'planes': planes, 'pixels per channel': ratio, **rows})
            ratios = '   '.join(f'{mode} {row["ratio"]:.2f}' for mode, row in rows.items())
            print(f'z {planes} x {side} x {side}, {ratio:2} pixels per channel: product / gate   {ratios}', flush=True)
    return found

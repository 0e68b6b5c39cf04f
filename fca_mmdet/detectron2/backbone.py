"""Detectron2's ResNet with frequency channel attention.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879, section 4.1: the attention
follows the last normalisation of each residual branch. Detectron2's ``Conv2d`` calls its ``activation`` after its ``norm``, and the last
convolution of a block has none: the attention is that. So Detectron2's own forward runs a block module by module.
"""

import re
from collections.abc import MutableMapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import MultiSpectralAttention
from ..errors import UserError
from ..folding import add_attended, add_attended_product, convolve, is_foldable
from ..frequency import Frequencies
from ..padding import unpadded_sizes
from ..projection import ValidPart, within
from ..squeeze import check_selection
from ..weights import adopt_backbone, check_architecture


class _Attended(CNNBlockBase):
    """The common part of both blocks: it chooses how to run. The last child is the convolution with the attention."""

    fold: bool
    run_folded: Any  # (x) -> Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: ``[N, in_channels, H, W]`` to ``[N, out_channels, H / stride, W / stride]``."""
        return self.run_folded(x) if self.fold and self.is_foldable() else super().forward(x)

    def is_foldable(self) -> bool:
        """Check whether the folded run is exact (``folding.is_foldable``)."""
        *others, last = self.children()
        normalised = [(conv, getattr(conv, 'norm', None)) for conv in (*others, last)]
        return not any(getattr(conv, 'activation', None) for conv in others) and is_foldable(
            self, getattr(last, 'activation', None), normalised, convolution=Conv2d, frozen=(FrozenBatchNorm2d,)
        )

    def _shortcut(self, x: Tensor) -> Tensor:
        return x if self.shortcut is None else _convolve(self.shortcut, x)


class FcaBasicBlock(_Attended, BasicBlock):
    """Detectron2's BasicBlock, run folded where that is exact. ``FcaResNet`` turns its blocks into this."""

    def run_folded(self, x: Tensor) -> Tensor:
        """Compute the block folded."""
        y = _convolve(self.conv2, F.relu_(_convolve(self.conv1, x)))
        return add_attended(self.conv2.activation, self._shortcut(x), y)


class FcaBottleneckBlock(_Attended, BottleneckBlock):
    """Detectron2's BottleneckBlock, run folded where that is exact. ``FcaResNet`` turns its blocks into this."""

    def run_folded(self, x: Tensor) -> Tensor:
        """Compute the block folded."""
        z = F.relu_(_convolve(self.conv2, F.relu_(_convolve(self.conv1, x))))
        owned = self.shortcut is not None
        return add_attended_product(self.conv3.activation, self._shortcut(x), z, self.conv3, self.conv3.norm, owned)


def _convolve(conv: Conv2d, x: Tensor) -> Tensor:
    return convolve(conv, conv.norm, x)


class FcaResNet(ResNet):
    """Detectron2's ResNet with frequency channel attention in every block.

    Args:
        stem, stages, num_classes, out_features, freeze_at: as in Detectron2's ResNet. The blocks of ``stages`` are taken over. A block of
            another kind than Detectron2's BasicBlock and BottleneckBlock, such as its DeformBottleneckBlock, is never run folded.
        frequencies, reduction, basis: as in ``MultiSpectralAttention``.
        dct_size: the grid of each stage, a number or (height, width) per stage.
        fold: run each block folded (``fca_mmdet/folding.py``) wherever that is exact, as with FrozenBN. ``False`` always runs
            Detectron2's own forward.
        ignore_padding: let the attention pool only over each image's own part of a padded batch.

    Raises:
        TypeError: a block whose last convolution is not Detectron2's.
        ValueError: ``dct_size`` does not give a grid for each stage, ``basis='searched'``, or ``MultiSpectralAttention`` raises it.

    Example:
        >>> import torch
        >>> from detectron2.modeling.backbone.resnet import BasicStem
        >>> backbone = FcaResNet(BasicStem(norm='FrozenBN'), ResNet.make_default_stages(50, norm='FrozenBN'), freeze_at=2)
        >>> backbone(torch.rand(1, 3, 64, 96))['res5'].shape
        torch.Size([1, 2048, 2, 3])
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
        *,
        frequencies: Frequencies = 'top16',
        dct_size: Sequence[int | tuple[int, int]] = (56, 28, 14, 7),
        reduction: int = 16,
        basis: str = 'dct',
        fold: bool = True,
        ignore_padding: bool = False,
    ):
        super().__init__(stem, stages, num_classes, out_features, freeze_at)
        if not isinstance(dct_size, Sequence) or len(dct_size) < len(self.stages):
            raise ValueError(f'dct_size={dct_size!r} must give one grid for each of the {len(self.stages)} stages, such as (56, 28, 14, 7)')
        if basis == 'searched':
            raise ValueError("basis='searched' is trained with mmdet's FcaResNet: search there, and give the frequencies found here")
        self.ignore_padding = ignore_padding
        stride = stem.stride
        for stage, grid in zip(self.stages, dct_size, strict=False):
            for block in stage:
                stride *= block.stride
                size: Any = tuple(grid) if isinstance(grid, Sequence) else grid  # omegaconf has lists of its own
                attention = MultiSpectralAttention(block.out_channels, size, frequencies, reduction, basis)
                attention.stride = stride
                _attend(block, attention, fold)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps named in ``out_features`` from images ``[N, 3, H, W]``."""
        if not self.ignore_padding:
            return super().forward(x)
        with within(ValidPart(unpadded_sizes(x))):
            return super().forward(x)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Accept weights under their published names. Refuse those of another architecture, which Detectron2 would leave out."""
        if not prefix:
            adopt_backbone(state_dict)
        check_selection(state_dict, prefix, _last_convolution(self.stages[0][0]).activation.dct_layer)
        own = {published_name(name): value for name, value in self.named_parameters()}
        check_architecture(state_dict, own, prefix, type(self).__name__)
        modules = {prefix + published_name(name): (prefix + name, module) for name, module in self.named_modules() if name}
        for key in [key for key in state_dict if key.rpartition('.')[0] in modules]:
            published, _, leaf = key.rpartition('.')
            name, module = modules[published]
            value = state_dict.pop(key)
            if leaf != 'num_batches_tracked' or module.num_batches_tracked is not None:  # FrozenBN counts no batches
                state_dict[f'{name}.{leaf}'] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def _last_convolution(block: CNNBlockBase) -> Any:
    return getattr(block, 'conv3', getattr(block, 'conv2', None))


def _attend(block: CNNBlockBase, attention: MultiSpectralAttention, fold: bool) -> None:
    """Put the attention after the last normalisation of a block. Detectron2's builder fixes the blocks' classes: they are changed here."""
    last = _last_convolution(block)
    if not isinstance(last, Conv2d):
        raise TypeError(f"{type(block).__name__} has no conv2 or conv3 of Detectron2's Conv2d: the attention has no place in it")
    last.activation = attention
    if type(block) in (BasicBlock, BottleneckBlock):
        block.__class__ = FcaBasicBlock if type(block) is BasicBlock else FcaBottleneckBlock
        block.fold = fold


def published_name(name: str) -> str:
    """Return the name of a module or parameter of ``FcaResNet`` in FcaNet's checkpoints.

    Example:
        >>> published_name('res2.0.conv1.norm.weight'), published_name('res3.1.conv3.activation.fc.0.weight')
        ('layer1.0.bn1.weight', 'layer2.1.att.fc.0.weight')
    """
    name = re.sub(r'^res(\d)', lambda stage: f'layer{int(stage[1]) - 1}', name.removeprefix('stem.'))
    name = re.sub(r'conv\d\.activation', 'att', re.sub(r'conv(\d)\.norm', r'bn\1', re.sub('^linear', 'fc', name)))
    return name.replace('shortcut.norm', 'downsample.1').replace('shortcut', 'downsample.0')


def add_fca_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.FCA``, the options of ``FcaResNet``, to a config of Detectron2."""
    cfg.MODEL.FCA = CfgNode(dict(FREQUENCIES='top16', DCT_SIZE=[56, 28, 14, 7], REDUCTION=16, BASIS='dct', FOLD=True, IGNORE_PADDING=False))


def _with_attention(cfg: CfgNode, resnet: ResNet) -> FcaResNet:
    if 'FCA' not in cfg.MODEL:
        raise UserError('cfg.MODEL.FCA is missing: call fca_mmdet.detectron2.add_fca_config(cfg) before the config is read')
    options = {key.lower(): value for key, value in cfg.MODEL.FCA.items()}
    stages = [list(stage) for stage in resnet.stages]
    return FcaResNet(resnet.stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, **options)


@BACKBONE_REGISTRY.register()
def build_fca_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FcaResNet:
    """Build an ``FcaResNet`` from ``cfg.MODEL.RESNETS`` and ``cfg.MODEL.FCA``."""
    return _with_attention(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fca_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an ``FcaResNet`` under Detectron2's FPN."""
    fpn = build_resnet_fpn_backbone(cfg, input_shape)
    fpn.bottom_up = _with_attention(cfg, fpn.bottom_up)
    return fpn


@BACKBONE_REGISTRY.register()
def build_fca_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an ``FcaResNet`` under Detectron2's FPN for RetinaNet."""
    fpn = build_retinanet_resnet_fpn_backbone(cfg, input_shape)
    fpn.bottom_up = _with_attention(cfg, fpn.bottom_up)
    return fpn

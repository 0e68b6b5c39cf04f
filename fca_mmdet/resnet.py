"""ResNet with frequency channel attention in every block.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879, section 4.1: the
attention follows the last normalisation of each residual branch and precedes the addition, as SE's does.

The bottleneck is mmdet's own with the attention in its ``after_conv3`` plugin slot, so every option of mmdet's ResNet works.
Parameters are named as in the published weights (``layer1.0.att.fc.0.weight``).

Differs from the published detection code: depths 18 and 34 work (there the attention was built for four times the channels of a
basic block).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch.utils.checkpoint
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.registry import MODELS
from torch import Tensor, nn

from .attention import Basis, MultiSpectralAttention
from .checkpoint import adopt_backbone, check_architecture, checkpoints_as_data
from .dct import ValidPart
from .folding import foldable, run_folded
from .frequency import Frequencies, resolve_frequencies, whole_number
from .padding import unpadded_sizes
from .selection import FrequencySelection, check_selection


def _recomputed(block: 'FcaBasicBlock | _AttendedBottleneck', x: Tensor) -> Tensor:
    """The block's forward, computed again in the backward pass rather than kept; within the same valid part as now."""

    def run(x: Tensor, valid: ValidPart | None) -> Tensor:
        block.with_cp = False
        try:
            with block.att.within(valid):
                return block.forward(x)
        finally:
            block.with_cp = True

    return torch.utils.checkpoint.checkpoint(run, x, block.att.valid, use_reentrant=False)


class FcaBasicBlock(BasicBlock):
    """mmdet's BasicBlock with the attention ``att`` between its second normalisation and the addition.

    Args:
        inplanes: input channels.
        planes: output channels, which the frequencies must divide.
        frequencies, dct_size, reduction, basis: as in ``MultiSpectralAttention``.
        fold: run the folded execution (``fca_mmdet/folding.py``) wherever it is exact.
        block_kwargs: what mmdet's BasicBlock takes.

    Example:
        >>> FcaBasicBlock(64, 64, dct_size=56)(torch.rand(1, 64, 25, 42)).shape
        torch.Size([1, 64, 25, 42])
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        frequencies: Frequencies = 'top16',
        dct_size: int | tuple[int, int] = 7,
        reduction: int = 16,
        basis: Basis = 'dct',
        fold: bool = True,
        **block_kwargs: Any,
    ):
        super().__init__(whole_number('inplanes', inplanes), whole_number('planes', planes), **block_kwargs)
        self.fold = fold
        self.att = MultiSpectralAttention(planes * self.expansion, dct_size, frequencies, reduction, basis)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inplanes, H, W]`` to ``[N, planes, H / stride, W / stride]``. mmdet's BasicBlock has no plugin slot to use here."""
        if self.with_cp and x.requires_grad:
            return _recomputed(self, x)
        if self.fold and x.dim() == 4 and foldable(self):
            return run_folded(self, x)
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.att(self.norm2(self.conv2(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class _AttendedBottleneck(Bottleneck):
    """A bottleneck of mmdet's with the attention in its plugin slot, to be combined with one of its relatives."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        frequencies: Frequencies = 'top16',
        dct_size: int | tuple[int, int] = 7,
        reduction: int = 16,
        basis: Basis = 'dct',
        fold: bool = True,
        plugins: list[dict] | None = None,
        **block_kwargs: Any,
    ):
        attention = dict(type=MultiSpectralAttention, dct_size=dct_size, frequencies=frequencies, reduction=reduction, basis=basis)
        plugins = [dict(cfg=attention, position='after_conv3'), *(plugins or [])]
        super().__init__(whole_number('inplanes', inplanes), whole_number('planes', planes), plugins=plugins, **block_kwargs)
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inplanes, H, W]`` to ``[N, 4 planes, H / stride, W / stride]``."""
        if self.with_cp and x.requires_grad:
            return _recomputed(self, x)
        return run_folded(self, x) if self.fold and x.dim() == 4 and foldable(self) else super().forward(x)


class FcaBottleneck(_AttendedBottleneck):
    """mmdet's Bottleneck with the attention ``att`` as the first plugin after conv3 and its normalisation.

    Args:
        inplanes: input channels.
        planes: a quarter of the output channels, which the frequencies must divide.
        frequencies, dct_size, reduction, basis: as in ``MultiSpectralAttention``.
        fold: run the folded execution (``fca_mmdet/folding.py``) wherever it is exact.
        plugins: mmdet's plugins beside the attention.
        block_kwargs: what else mmdet's Bottleneck takes.

    Example:
        >>> FcaBottleneck(256, 64, dct_size=56)(torch.rand(1, 256, 25, 42)).shape
        torch.Size([1, 256, 25, 42])
    """


class FcaResNeXtBottleneck(_AttendedBottleneck, ResNeXtBottleneck):
    """``FcaBottleneck`` with the grouped 3x3 convolution of mmdet's ResNeXt: ``groups``, ``base_width`` and ``base_channels`` beside it.

    Example:
        >>> FcaResNeXtBottleneck(256, 64, dct_size=56, groups=32, base_width=4)(torch.rand(1, 256, 25, 42)).shape
        torch.Size([1, 256, 25, 42])
    """


@MODELS.register_module()
class FcaResNet(ResNet):
    """mmdet's ResNet with frequency channel attention: FcaNet as a detection backbone.

    Args:
        depth: 18, 34, 50, 101 or 152.
        frequencies: one set for all stages, as in ``MultiSpectralAttention``; FcaNet-TS is ``top16``, FcaNet-LF ``low2``.
        dct_size: the grid of each stage, a number or (height, width) per stage.
        reduction: of the excitation.
        basis: ``dct``, or a variant of the paper's ablation; with ``searched`` all blocks share ``selection``, a ``FrequencySelection``.
        fold: run each block folded (``fca_mmdet/folding.py``: the same function, faster and with less memory) wherever that is exact,
            as with frozen statistics; ``False`` always runs the readable path.
        ignore_padding: let the attention pool over each image's own part of a feature map. mmdet's data preprocessor pads an image with
            zeros to the size of the batch, so that without this an image's gates depend on its companions. Published weights were
            trained without.
        resnet_kwargs: everything that mmdet's ResNet takes: ``frozen_stages``, ``norm_eval``, ``plugins``, ``dcn``, ``with_cp``,
            ``deep_stem``, ``out_indices``, ``init_cfg``, ...

    Raises:
        ValueError: ``dct_size`` does not give a grid for each stage, and all that ``MultiSpectralAttention`` raises.

    Example:
        >>> backbone = FcaResNet(50, frozen_stages=1)
        >>> [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 256, 16, 24), (1, 512, 8, 12), (1, 1024, 4, 6), (1, 2048, 2, 3)]
    """

    arch_settings: ClassVar = {
        depth: ({BasicBlock: FcaBasicBlock, Bottleneck: FcaBottleneck}[block], stages)
        for depth, (block, stages) in ResNet.arch_settings.items()
    }

    def __init__(
        self,
        depth: int,
        frequencies: Frequencies = 'top16',
        dct_size: Sequence[int | tuple[int, int]] = (56, 28, 14, 7),
        reduction: int = 16,
        basis: Basis = 'dct',
        fold: bool = True,
        ignore_padding: bool = False,
        **resnet_kwargs: Any,
    ):
        stages = min(resnet_kwargs.get('num_stages', 4), 4)  # mmdet refuses more than 4
        if not isinstance(dct_size, Sequence) or len(dct_size) < stages:
            raise ValueError(f'dct_size={dct_size!r} must give one grid for each of the {stages} stages, such as (56, 28, 14, 7)')
        self.dct_size = tuple(dct_size)
        self.ignore_padding = ignore_padding
        self.attention: dict[str, Any] = dict(frequencies=frequencies, reduction=reduction, basis=basis, fold=fold)
        self.default_init = resnet_kwargs.get('init_cfg') is None and resnet_kwargs.get('pretrained') is None
        super().__init__(depth=whole_number('depth', depth), **resnet_kwargs)
        if basis == 'searched':
            # Registered here alone: in a block it would be frozen with the first stage, and be in the optimiser once for each block.
            self.selection = FrequencySelection(len(resolve_frequencies(frequencies)))
            self.selection.requires_grad_(self.frozen_stages < self.num_stages)
            for name in self.res_layers:
                for block in getattr(self, name):
                    block.att.share(self.selection)

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """A stage of blocks that know their grid. mmdet calls this once per stage, in order."""
        if self.default_init and self.zero_init_residual:
            # mmdet sets this where the block *is* its own BasicBlock or Bottleneck, which a subclass is not.
            last = 'norm3' if issubclass(self.block, Bottleneck) else 'norm2'
            kwargs['init_cfg'] = dict(type='Constant', val=0, override=dict(name=last))
        return super().make_res_layer(dct_size=self.dct_size[len(self.res_layers)], **self.attention, **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, 3, H, W]`` to the feature maps of the stages in ``out_indices``."""
        if not self.ignore_padding:
            return super().forward(x)
        sizes, stride = unpadded_sizes(x), 4  # of the stem
        blocks = []
        for name, stage_stride in zip(self.res_layers, self.strides, strict=False):
            stride *= stage_stride
            part = ValidPart((sizes + stride - 1) // stride)  # each of the strides rounds up, and so does their product
            for block in getattr(self, name):
                block.att.valid = part
                blocks.append(block)
        try:
            return super().forward(x)
        finally:
            for block in blocks:
                block.att.valid = None

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says. A pretrained checkpoint is read as data: nothing in it runs.

        Raises:
            CheckpointError: the checkpoint is unusable, of another architecture, or of another basis.
        """
        pretrained = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        with checkpoints_as_data(pretrained['checkpoint']) if pretrained.get('type') == 'Pretrained' else nullcontext():
            super().init_weights()

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:
        """Refuse weights of another architecture, which mmengine would leave out with a warning; find those of a detector's backbone."""
        if not prefix:
            adopt_backbone(state_dict)
        if self.attention['basis'] != 'searched':
            check_selection(state_dict, prefix, resolve_frequencies(self.attention['frequencies']), self.attention['basis'])
        check_architecture(state_dict, dict(self.named_parameters()), prefix, f'{type(self).__name__}-{self.depth}')
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class FcaResNetV1d(FcaResNet, ResNetV1d):
    """``FcaResNet`` with mmdet's ResNetV1d stem and shortcuts (https://arxiv.org/abs/1812.01187, figure 2c, 2d).

    Example:
        >>> FcaResNetV1d(depth=50)(torch.rand(1, 3, 64, 64))[3].shape
        torch.Size([1, 2048, 2, 2])
    """


@MODELS.register_module()
class FcaResNeXt(FcaResNet, ResNeXt):
    """``FcaResNet`` with mmdet's ResNeXt blocks (https://arxiv.org/abs/1611.05431): ``groups`` and ``base_width``; depths 50, 101, 152.

    Example:
        >>> FcaResNeXt(depth=50, groups=32, base_width=4)(torch.rand(1, 3, 64, 64))[3].shape
        torch.Size([1, 2048, 2, 2])
    """

    arch_settings: ClassVar = {depth: (FcaResNeXtBottleneck, stages) for depth, (_, stages) in ResNeXt.arch_settings.items()}

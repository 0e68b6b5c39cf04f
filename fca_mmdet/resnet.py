"""mmdet's ResNets with frequency channel attention: FcaNet as a detection backbone.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879, section 4.1. Every option
of mmdet's ResNet works, and parameters are named as in the published weights (``layer1.0.att.fc.0.weight``).

Unlike in the published detection code, depths 18 and 34 work (there the attention had four times the channels of a basic block).
"""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, ClassVar

from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.registry import MODELS
from torch import Tensor, nn

from .blocks import FcaBasicBlock, FcaBottleneck, FcaResNeXtBottleneck
from .checkpoint import data_only
from .errors import check_count
from .frequency import Frequencies
from .padding import unpadded_sizes
from .projection import ValidPart, within
from .squeeze import FrequencySelection, SearchedDct, check_selection
from .weights import adopt_backbone, check_architecture

STEM_STRIDE = 4


@MODELS.register_module()
class FcaResNet(ResNet):
    """mmdet's ResNet with frequency channel attention: FcaNet as a detection backbone.

    Args:
        depth: 18, 34, 50, 101 or 152.
        frequencies: one set for all stages, as in ``MultiSpectralAttention``; FcaNet-TS is ``top16``, FcaNet-LF ``low2``.
        dct_size: the grid of each stage, a number or (height, width) per stage.
        reduction: of the excitation.
        basis: ``dct``, or a variant of the paper's ablation; with ``searched`` all blocks share ``selection``, a ``FrequencySelection``.
        fold: run each block folded (``fca_mmdet/folding.py``: the same function, faster and with less memory) wherever that is exact, as
            with frozen statistics. ``False`` always runs mmdet's own forward.
        ignore_padding: let the attention pool only over each image's own part of a feature map, not over the zeros that pad it to the size
            of the batch. Without it, an image's gates depend on the other images of its batch. Published weights were trained without it.
        resnet_kwargs: all arguments of mmdet's ResNet: ``frozen_stages``, ``norm_eval``, ``plugins``, ``dcn``, ``with_cp``,
            ``deep_stem``, ``out_indices``, ``init_cfg``, ...

    Raises:
        ValueError: ``dct_size`` does not give a grid for each stage, or ``MultiSpectralAttention`` raises it.

    Example:
        >>> import torch
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
        basis: str = 'dct',
        fold: bool = True,
        ignore_padding: bool = False,
        **resnet_kwargs: Any,
    ):
        stages = min(resnet_kwargs.get('num_stages', 4), 4)  # mmdet refuses more than 4
        if not isinstance(dct_size, Sequence) or len(dct_size) < stages:
            raise ValueError(f'dct_size={dct_size!r} must give one grid for each of the {stages} stages, such as (56, 28, 14, 7)')
        self.dct_size = tuple(dct_size)
        self.ignore_padding = ignore_padding
        self.block_options: dict[str, Any] = dict(frequencies=frequencies, reduction=reduction, basis=basis, fold=fold)
        self.default_init = resnet_kwargs.get('init_cfg') is None and resnet_kwargs.get('pretrained') is None
        super().__init__(depth=check_count('depth', depth), **resnet_kwargs)
        stride = STEM_STRIDE
        for name, stage_stride in zip(self.res_layers, self.strides, strict=False):
            stride *= stage_stride
            for block in getattr(self, name):
                block.att.stride = stride
        searched = [(block.att.dct_layer, block.att.fc) for block in self.blocks() if isinstance(block.att.dct_layer, SearchedDct)]
        if searched:
            # Registered only here: in the blocks, it would be frozen with the first stage, and be in the optimiser once for each block.
            self.selection = FrequencySelection(len(searched[0][0].configured))
            self.selection.requires_grad_(self.frozen_stages < self.num_stages)
            for squeeze, excitation in searched:
                squeeze.share(self.selection, excitation)

    def blocks(self) -> Iterator[FcaBasicBlock | FcaBottleneck]:
        """Yield the residual blocks of all stages, in order."""
        for name in self.res_layers:
            yield from getattr(self, name)

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Make a stage of blocks that know their grid. mmdet calls this once per stage, in order."""
        if self.default_init and self.zero_init_residual:
            # mmdet sets this for its own BasicBlock and Bottleneck, but not for subclasses.
            last = 'norm3' if issubclass(self.block, Bottleneck) else 'norm2'
            kwargs['init_cfg'] = dict(type='Constant', val=0, override=dict(name=last))
        return super().make_res_layer(dct_size=self.dct_size[len(self.res_layers)], **self.block_options, **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices`` from images ``[N, 3, H, W]``."""
        if not self.ignore_padding:
            return super().forward(x)
        with within(ValidPart(unpadded_sizes(x))):
            return super().forward(x)

    def train(self, mode: bool = True) -> 'FcaResNet':
        """Switch to training as mmdet's ResNet does, but return the backbone, as torch's modules do."""
        super().train(mode)
        return self

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says. A pretrained checkpoint is read as data: no code in it runs.

        Raises:
            CheckpointError: the checkpoint is unusable, of another architecture, or of another basis.
        """
        with data_only():
            super().init_weights()

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse weights of another architecture, which mmengine would leave out with a warning; take a backbone out of a detector."""
        if not prefix:
            adopt_backbone(state_dict)
        if not hasattr(self, 'selection'):
            check_selection(state_dict, prefix, next(self.blocks()).att.dct_layer)
        check_architecture(state_dict, dict(self.named_parameters()), prefix, f'{type(self).__name__}-{self.depth}')
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class FcaResNetV1d(FcaResNet, ResNetV1d):
    """``FcaResNet`` with mmdet's ResNetV1d stem and shortcuts (https://arxiv.org/abs/1812.01187, figure 2c, 2d).

    Example:
        >>> import torch
        >>> FcaResNetV1d(depth=50)(torch.rand(1, 3, 64, 64))[3].shape
        torch.Size([1, 2048, 2, 2])
    """


@MODELS.register_module()
class FcaResNeXt(FcaResNet, ResNeXt):
    """``FcaResNet`` with mmdet's ResNeXt blocks (https://arxiv.org/abs/1611.05431): ``groups`` and ``base_width``; depths 50, 101, 152.

    Example:
        >>> import torch
        >>> FcaResNeXt(depth=50, groups=32, base_width=4)(torch.rand(1, 3, 64, 64))[3].shape
        torch.Size([1, 2048, 2, 2])
    """

    arch_settings: ClassVar = {depth: (FcaResNeXtBottleneck, stages) for depth, (_, stages) in ResNeXt.arch_settings.items()}

"""mmdet's residual blocks with the attention. They run folded (``folding.py``) wherever that is exact.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879, section 4.1: the
attention follows the last normalisation of each residual branch and precedes the addition, as SE's does. In mmdet's bottleneck that is
the ``after_conv3`` plugin slot.
"""

import threading
from collections.abc import Iterator
from typing import Any

import torch.utils.checkpoint
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import MultiSpectralAttention
from .errors import check_count
from .folding import add_attended, add_attended_product, convolve, is_foldable, is_plain
from .frequency import Frequencies
from .projection import ValidPart, current_valid_part, within

MODELS.register_module(module=MultiSpectralAttention)


class _Call(threading.local):
    """The state of the forward in this thread."""

    def __init__(self) -> None:
        self.checkpointed = False


_call = _Call()


class _Attended:
    """The common part of both blocks: it chooses how to run."""

    att: MultiSpectralAttention
    downsample: Any
    fold: bool
    is_foldable: Any  # () -> bool: whether the folded run is exact
    run_folded: Any  # (x) -> Tensor, in the memory format of x

    @property
    def with_cp(self) -> bool:
        """Whether to compute the block again in the backward pass. False within that, so that mmdet's forward does not start another."""
        return self._with_cp and not _call.checkpointed

    @with_cp.setter
    def with_cp(self, value: bool) -> None:
        self._with_cp = value

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: ``[N, inplanes, H, W]`` to ``[N, expansion * planes, H / stride, W / stride]``."""
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(self._recomputed, x, current_valid_part(), use_reentrant=False)
        return self.run_folded(x) if self.fold and x.dim() == 4 and self.is_foldable() else self.run_readable(x)

    def _recomputed(self, x: Tensor, valid: ValidPart | None) -> Tensor:
        """Run the forward with the valid part of its own batch: the backward pass may run in another thread."""
        before, _call.checkpointed = _call.checkpointed, True
        try:
            with within(valid):
                return self.forward(x)
        finally:
            _call.checkpointed = before

    def run_readable(self, x: Tensor) -> Tensor:
        """Compute the block module by module."""
        return super().forward(x)  # type: ignore[misc]

    def _shortcut_normalised(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield the shortcut's convolution with its normalisation, if there is a shortcut."""
        downsample = self.downsample
        if downsample is not None:
            known = isinstance(downsample, nn.Sequential) and len(downsample) >= 2
            yield (downsample[-2], downsample[-1]) if known else (downsample, downsample)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        *pool, conv, norm = self.downsample  # ResNet-D pools first
        for module in pool:
            x = module(x)
        return convolve(conv, norm, x)


class FcaBasicBlock(_Attended, BasicBlock):
    """mmdet's BasicBlock with the attention ``att`` between its second normalisation and the addition.

    Args:
        inplanes: input channels.
        planes: output channels, a multiple of the number of frequencies.
        frequencies, dct_size, reduction, basis: as in ``MultiSpectralAttention``.
        fold: run folded (``fca_mmdet/folding.py``) wherever that is exact.
        block_kwargs: other arguments of mmdet's BasicBlock.

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
        basis: str = 'dct',
        fold: bool = True,
        **block_kwargs: Any,
    ):
        super().__init__(check_count('inplanes', inplanes), check_count('planes', planes), **block_kwargs)
        self.fold = fold
        self.att = MultiSpectralAttention(planes * self.expansion, dct_size, frequencies, reduction, basis)

    def is_foldable(self) -> bool:
        """Check whether the folded run is exact (``folding.is_foldable``)."""
        normalised = [(self.conv1, self.norm1), (self.conv2, self.norm2), *self._shortcut_normalised()]
        return is_plain(self.relu, nn.ReLU) and is_foldable(self, self.att, normalised)

    def run_folded(self, x: Tensor) -> Tensor:
        """Compute the block folded, in the memory format of the input."""
        z = F.relu_(convolve(self.conv1, self.norm1, x))
        return add_attended(self.att, self._shortcut(x), convolve(self.conv2, self.norm2, z))

    def run_readable(self, x: Tensor) -> Tensor:
        """Compute the block module by module: mmdet's BasicBlock has no plugin slot."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.att(self.norm2(self.conv2(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class FcaBottleneck(_Attended, Bottleneck):
    """mmdet's Bottleneck with the attention ``att`` as the first plugin after conv3 and its normalisation.

    Args:
        inplanes: input channels.
        planes: a quarter of the output channels, which are a multiple of the number of frequencies.
        frequencies, dct_size, reduction, basis: as in ``MultiSpectralAttention``.
        fold: run folded (``fca_mmdet/folding.py``) wherever that is exact.
        plugins: other plugins.
        block_kwargs: other arguments of mmdet's Bottleneck.

    Example:
        >>> block, x = FcaBottleneck(256, 64, dct_size=56).eval(), torch.rand(1, 256, 25, 42)
        >>> torch.allclose(block.run_folded(x), block.run_readable(x), atol=1e-6)
        True
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        frequencies: Frequencies = 'top16',
        dct_size: int | tuple[int, int] = 7,
        reduction: int = 16,
        basis: str = 'dct',
        fold: bool = True,
        plugins: list[dict] | None = None,
        **block_kwargs: Any,
    ):
        attention = dict(type=MultiSpectralAttention, dct_size=dct_size, frequencies=frequencies, reduction=reduction, basis=basis)
        plugins = [dict(cfg=attention, position='after_conv3'), *(plugins or [])]
        super().__init__(check_count('inplanes', inplanes), check_count('planes', planes), plugins=plugins, **block_kwargs)
        self.fold = fold

    def is_foldable(self) -> bool:
        """Check whether the folded run is exact (``folding.is_foldable``)."""
        normalised = [(self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3), *self._shortcut_normalised()]
        return (
            self.after_conv3_plugin_names == ['att']
            and (self.conv3.kernel_size, self.conv3.stride, self.conv3.padding, self.conv3.groups) == ((1, 1), (1, 1), (0, 0), 1)
            and is_plain(self.relu, nn.ReLU)
            and is_foldable(self, self.att, normalised)
        )

    def run_folded(self, x: Tensor) -> Tensor:
        """Compute the block folded, in the memory format of the input."""
        z = F.relu_(convolve(self.conv1, self.norm1, x))
        z = self.forward_plugin(z, self.after_conv1_plugin_names)
        z = F.relu_(convolve(self.conv2, self.norm2, z))
        z = self.forward_plugin(z, self.after_conv2_plugin_names)
        return add_attended_product(self.att, self._shortcut(x), z, self.conv3, self.norm3, owned=self.downsample is not None)


class FcaResNeXtBottleneck(FcaBottleneck, ResNeXtBottleneck):
    """``FcaBottleneck`` with the grouped 3x3 convolution of mmdet's ResNeXt: it adds ``groups``, ``base_width`` and ``base_channels``.

    Example:
        >>> FcaResNeXtBottleneck(256, 64, dct_size=56, groups=32, base_width=4)(torch.rand(1, 256, 25, 42)).shape
        torch.Size([1, 256, 25, 42])
    """

"""Mixins for the residual blocks of torchvision and timm: the attention, and the folded run (``folding.py``) wherever that is exact.

Both frameworks call the parts of a block ``conv1``, ``bn1``, ..., ``downsample``. Neither is imported here: a class inherits from a mixin
and then from the framework's ``BasicBlock`` or ``Bottleneck``. A classifier trains with batch statistics, so it runs folded in eval mode.
"""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import MultiSpectralAttention
from .folding import add_attended, add_attended_product, convolve, is_foldable, is_plain


class FoldedBlock(nn.Module):
    """Run a block folded that has its attention already: timm's, whose ``attn_layer`` is the attention ``se``."""

    slot: ClassVar[str] = 'se'
    downsample: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: ``[N, inplanes, H, W]`` to ``[N, expansion * planes, H / stride, W / stride]``."""
        return self.run_folded(x) if x.dim() == 4 and self.is_foldable() else self.run_readable(x)

    def run_readable(self, x: Tensor) -> Tensor:
        """Compute the block module by module."""
        return super().forward(x)

    def is_foldable(self) -> bool:
        """Check whether the folded run is exact (``folding.is_foldable``) and skips no module."""
        shortcut = self._shortcut()
        if self.downsample is not None and len(shortcut) < 2:
            return False
        others = [(name, child) for name, child in self.named_children() if not name.startswith(('conv', 'bn', 'downsample', self.slot))]
        normalised = self._branch() + ([(shortcut[-2], shortcut[-1])] if shortcut else [])
        return is_foldable(self, getattr(self, self.slot), normalised) and all(
            is_plain(child, nn.ReLU if name.startswith(('act', 'relu')) else nn.Identity) for name, child in others
        )

    def run_folded(self, x: Tensor) -> Tensor:
        """Compute the block folded, in the memory format of the input."""
        *first, (conv, norm) = self._branch()
        attention, shortcut, identity, z = getattr(self, self.slot), self._shortcut(), x, x
        for before, after in first:
            z = F.relu_(convolve(before, after, z))
        for pool in shortcut[:-2]:  # ResNet-D's
            identity = pool(identity)
        if shortcut:
            identity = convolve(shortcut[-2], shortcut[-1], identity)
        if (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1):
            return add_attended_product(attention, identity, z, conv, norm, owned=bool(shortcut))
        return add_attended(attention, identity, convolve(conv, norm, z))

    def _branch(self) -> list[tuple[Any, Any]]:
        """List the convolutions of the residual branch, each with its normalisation."""
        return [(child, getattr(self, name.replace('conv', 'bn'))) for name, child in self.named_children() if name.startswith('conv')]

    def _shortcut(self) -> list[Any]:
        """List the modules of the shortcut: pools, a convolution and its normalisation; nothing for the identity."""
        return [*self.downsample] if isinstance(self.downsample, nn.Sequential) else []


class AttendedBlock(FoldedBlock):
    """Add the attention ``att`` to a block of torchvision, with the grid of its stage: 56, 28, 14, 7 for 64, 128, 256, 512 planes.

    Parameters have the names of torchvision's and FcaNet's published weights. A subclass gives other arguments of
    ``MultiSpectralAttention`` as ``options``.
    """

    slot = 'att'
    options: ClassVar[dict[str, Any]] = {}
    expansion: int
    relu: nn.Module

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any):
        super().__init__(inplanes, planes, *args, **kwargs)
        self.att = MultiSpectralAttention(planes * self.expansion, **{'dct_size': max(56 * 64 // planes, 7), **self.options})

    def run_readable(self, x: Tensor) -> Tensor:
        """Compute the block module by module: torchvision's block has no slot for an attention."""
        *first, (conv, norm) = self._branch()
        out = x
        for before, after in first:
            out = self.relu(after(before(out)))
        return self.relu(self.att(norm(conv(out))) + (x if self.downsample is None else self.downsample(x)))

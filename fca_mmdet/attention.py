"""Multi-spectral channel attention.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879.
With one frequency, (0, 0), it is squeeze-and-excitation (https://arxiv.org/abs/1709.01507) up to a constant (theorem 1).

Differences from the published code (https://github.com/cfzd/FcaNet): inputs of any size are squeezed without a pooled tensor,
``basis='dct'`` stores no basis in the state dict, the learnable variants train, and errors say what is wrong.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import CheckpointError, check_count
from .frequency import Frequencies, Frequency, resolve_frequencies
from .projection import ValidPart, current_valid_part, project_affine
from .squeeze import BASES, Projected


class PreciseLinear(nn.Linear):
    """A linear layer in the precision of its input: a frequency vector can overflow float16 where its gates do not."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[N, C_in]`` to ``[N, C_out]`` with weights of any precision."""
        return F.linear(input, self.weight.to(input.dtype))


class MultiSpectralAttention(nn.Module):
    """Multi-spectral channel attention (paper, equations 7 to 10).

    The C channels are split in order into F equal groups. ``freq[n, c]`` is the DCT component (u_f, v_f) of channel c of group f, pooled
    to the grid. Two bias-free linear layers turn the ``[N, C]`` vector into gates, ``g = sigmoid(W_2 relu(W_0 freq))``. The output is
    ``x * g``.

    It is also a plugin of mmdet's backbones: ``plugins=[dict(cfg=dict(type='MultiSpectralAttention', dct_size=14),
    position='after_conv3')]``, or ``stage_plugins()``, which gives each stage its grid.

    Args:
        in_channels: C.
        dct_size: the grid in cells, one number or (height, width). The stages of the published ImageNet models have 56, 28, 14 and 7.
        frequencies: ``top``, ``low`` or ``bot`` followed by 1, 2, 4, 8, 16 or 32, or (u, v) pairs of the 7x7 spectrum, u along the
            height. They are scaled by ``dct_size // 7``; on a grid below 7, pairs are the grid's own indices. With
            ``basis='searched'``, only their number counts.
        reduction: the hidden layer of the excitation has ``C // reduction`` channels.
        basis: ``dct``; a variant of the paper's ablation: ``learned_dct``, ``random``, ``learned_random``; orthonormal ones without
            frequencies: ``orthogonal``, ``orthogonal_separable``, ``haar``, for which pairs are the indices of vectors; ``combined``, every
            frequency on every channel with learned weights; or ``searched``, which learns the frequency of each group
            (``FrequencySelection``). ``squeeze.BASES`` has the class of each.
        init_cfg: mmengine's.

    Raises:
        TypeError: an argument of a wrong type; in ``forward``, an input that is sparse or not floating-point.
        ValueError: C not divisible by F, an unknown set or basis, a pair outside the spectrum or the grid, a named set or a search on a
            grid below 7, a reduction outside 1..C; in ``forward``, an input that is not ``[N, C, H, W]``.

    Example:
        >>> attention = MultiSpectralAttention(64, dct_size=7)
        >>> attention(torch.rand(2, 64, 25, 42)).shape
        torch.Size([2, 64, 25, 42])
    """

    _abbr_ = 'att'

    def __init__(
        self,
        in_channels: int,
        dct_size: int | tuple[int, int] = 7,
        frequencies: Frequencies = 'top16',
        reduction: int = 16,
        basis: str = 'dct',
        init_cfg: dict | None = None,
    ):
        super().__init__()
        self.in_channels = in_channels = check_count('in_channels', in_channels)
        pairs = resolve_frequencies(frequencies)
        if not isinstance(basis, str) or basis not in BASES:
            raise ValueError(f'unknown basis {basis!r}: use one of {", ".join(BASES)}')
        self.grid = _as_grid(dct_size)
        BASES[basis].check_grid(self.grid, frequencies if isinstance(frequencies, str) else pairs)
        self.reduction = reduction = check_count('reduction', reduction)
        groups = len(pairs)
        if in_channels < 1 or in_channels % groups:
            below = in_channels // groups * groups
            fitting = f'{below} or {below + groups}' if below else f'{groups}'
            raise ValueError(
                f'in_channels={in_channels} must be a positive multiple of {groups}, the number of frequencies: '
                f'use {fitting}, or fewer frequencies'
            )
        if not 1 <= reduction <= in_channels:
            raise ValueError(f'reduction={reduction} must be from 1 to in_channels={in_channels}')
        self.basis = basis
        self.init_cfg = init_cfg
        self.stride: int | None = None
        """The stride of its feature maps, which scales the valid part. With None it pools over whole maps."""
        self.dct_layer = BASES[basis](in_channels, self.grid, pairs)
        self.fc = nn.Sequential(
            PreciseLinear(in_channels, in_channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            PreciseLinear(in_channels // reduction, in_channels, bias=False),
            nn.Sigmoid(),
        )

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The (u, v) pair of each group; in a search, the most probable so far."""
        return self.dct_layer.frequencies

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says. mmengine calls this."""
        if self.init_cfg:
            from mmengine.model import initialize  # whoever gives an init_cfg has mmengine

            initialize(self, self.init_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``[N, C, H, W]`` by its gate."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'expected an input of shape [N, {self.in_channels}, H, W], got {list(x.shape)}')
        if not x.is_floating_point() or x.layout != torch.strided:
            raise TypeError(f'expected a dense floating-point input, got {x.dtype} with layout {x.layout}: convert it first')
        gate = self.excite(self.squeeze(x))
        return x * gate.to(x.dtype)[:, :, None, None]

    def squeeze(self, x: Tensor) -> Tensor:
        """Compute the frequency vector of a feature map, ``[N, C, H, W]`` to ``[N, C]``, in the precision that the squeeze works in."""
        with _without_autocast(x):
            return self.dct_layer(x.to(self.dct_layer.working_dtype(x.dtype)), self._valid_part())

    def gate_of_affine(self, z: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        """Compute the gates of ``y = weight z + shift`` without y, from ``[N, P, H, W]``, ``[C, P]`` and ``[C]`` to ``[N, C]``.

        The basis must be ``Projected``.
        """
        with _without_autocast(z):
            z = z.to(self.dct_layer.working_dtype(z.dtype))
            maps = cast(Projected, self.dct_layer).maps(z, self._valid_part())
            return self.excite(project_affine(z, weight, shift, maps))

    def excite(self, freq: Tensor) -> Tensor:
        """Compute gates in (0, 1) from the frequency vector, ``[N, C]`` to ``[N, C]``, in float32 at least, even under autocast."""
        with _without_autocast(freq):
            return self.fc(freq.to(torch.promote_types(self.fc[0].weight.dtype, torch.float32)))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Show the configuration in the repr of the module."""
        return f'in_channels={self.in_channels}, grid={self.grid}, frequencies={len(self.dct_layer.configured)}, basis={self.basis}'

    def _valid_part(self) -> ValidPart | None:
        """Scale the valid part to these feature maps; None means whole maps."""
        valid = current_valid_part()
        return None if valid is None or self.stride is None else valid.at(self.stride)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Accept a search stored by version 0.1, which kept the selection one level up. Refuse weights without the basis they need."""
        missing = [name for name in self.dct_layer.required if f'{prefix}dct_layer.{name}' not in state_dict]
        if missing and f'{prefix}fc.0.weight' in state_dict:
            raise CheckpointError(
                f'{prefix}dct_layer.{missing[0]} is not in the checkpoint, whose attention was trained with another basis than '
                f'basis={self.basis!r}: configure that, or start from weights without attention'
            )
        for name in ('selection.logits', 'selection.temperature'):
            if prefix + name in state_dict:
                state_dict[f'{prefix}dct_layer.{name}'] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def stage_plugins(
    dct_size: Sequence[int | tuple[int, int]] = (56, 28, 14, 7), position: str = 'after_conv3', **attention: Any
) -> list[dict]:
    """Write ``plugins=`` for a backbone of mmdet (ResNet, ResNeXt, Res2Net, ResNeSt, RegNet, DetectoRS), with a grid for each stage.

    Args:
        dct_size: the grid of each stage.
        position: the slot, ``after_conv1``, ``after_conv2`` or ``after_conv3``.
        attention: other arguments of ``MultiSpectralAttention``.

    Raises:
        TypeError: ``dct_size`` is not a sequence.
        ValueError: ``dct_size`` is empty, or there is no such slot.

    Example:
        >>> stage_plugins(frequencies='low2')[1]['stages']
        (False, True, False, False)
    """
    sequence = isinstance(dct_size, Sequence) and not isinstance(dct_size, (str, bytes))
    if not sequence or not dct_size:
        raise (ValueError if sequence else TypeError)(f'dct_size={dct_size!r} must give one grid for each stage, such as (56, 28, 14, 7)')
    if str(position) not in ('after_conv1', 'after_conv2', 'after_conv3'):
        raise ValueError(f'position={position!r} must be after_conv1, after_conv2 or after_conv3')
    return [
        dict(
            cfg=dict(type='mmdet.MultiSpectralAttention', dct_size=grid, **attention),
            stages=tuple(stage == other for other in range(len(dct_size))),
            position=position,
        )
        for stage, grid in enumerate(dct_size)
    ]


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Switch autocast off, only if it is on: entering the context costs time on small maps."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if device != 'meta' and torch.is_autocast_enabled(device) else nullcontext()


def _as_grid(dct_size: int | tuple[int, int]) -> tuple[int, int]:
    """Check ``dct_size``, and return it as (height, width)."""
    pair = dct_size if isinstance(dct_size, (tuple, list)) and len(dct_size) == 2 else (dct_size, dct_size)
    height, width = (check_count('dct_size', size, ', or a (height, width) pair of them') for size in pair)
    if min(height, width) < 1:
        raise ValueError(f'dct_size={dct_size} has no cells: use a positive number or a (height, width) pair')
    return height, width

"""Multi-spectral channel attention.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879.
With one frequency, (0, 0), it is squeeze-and-excitation (https://arxiv.org/abs/1709.01507) up to a constant (theorem 1).

Differs from the published code (https://github.com/cfzd/FcaNet): any input size without a pooled tensor, no basis in the
state dict for ``basis='dct'``, the learnable variants train, and errors say what is wrong.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import check_count
from .frequency import Frequencies, Frequency, resolve_frequencies
from .projection import ValidPart, current_valid_part, project_affine
from .squeeze import BASES, Projected


class PreciseLinear(nn.Linear):
    """A linear layer that computes in the precision of its input: where a frequency vector overflows float16, its gates need not."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply ``[N, C_in]`` to ``[N, C_out]`` with weights of whatever precision."""
        return F.linear(input, self.weight.to(input.dtype))


class MultiSpectralAttention(nn.Module):
    """Multi-spectral channel attention (paper, equations 7 to 10).

    The C channels are split into F equal groups in order. Group f is squeezed with the DCT component (u_f, v_f) of its feature map
    pooled to the grid, ``freq[n, c]``; two bias-free linear layers turn the ``[N, C]`` vector into gates,
    ``g = sigmoid(W_2 relu(W_0 freq))``; the output is ``x * g``.

    Usable as a plugin of mmdet's backbones:
    ``plugins=[dict(cfg=dict(type='MultiSpectralAttention', dct_size=14), position='after_conv3')]``, or ``stage_plugins()``, which gives
    every stage its grid.

    Args:
        in_channels: C.
        dct_size: the grid, in cells: one number or (height, width). A stage of the published ImageNet models has 56, 28, 14, 7.
        frequencies: ``top``, ``low`` or ``bot`` followed by 1, 2, 4, 8, 16 or 32, or (u, v) pairs of the 7x7 spectrum, u along the
            height. They are scaled by ``dct_size // 7``; on a grid below 7 pairs are the grid's own indices. With ``basis='searched'``
            only their number counts.
        reduction: the hidden layer of the excitation has ``C // reduction`` channels.
        basis: ``dct``, or a variant of the paper's ablation: ``learned_dct``, ``random``, ``learned_random``; ``searched`` learns which
            frequency each group should have (``FrequencySelection``). ``squeeze.BASES`` has the class of each.
        init_cfg: mmengine's.

    Raises:
        TypeError: an argument of another type; in ``forward``, an input of integers, of complex numbers, or sparse.
        ValueError: C not divisible by F, an unknown set or basis, a pair outside the spectrum or the grid, a named set or a search on a
            grid below 7, a reduction that leaves no channel; in ``forward``, an input that is not ``[N, C, H, W]``.

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
            fitting = f'{below} and {below + groups}' if below else f'{groups}'
            raise ValueError(
                f'in_channels={in_channels} cannot be split into {groups} equal groups, one per frequency: the nearest that can '
                f'are {fitting}; or choose a set with fewer frequencies'
            )
        if reduction < 1 or in_channels // reduction < 1:
            raise ValueError(
                f'reduction={reduction} leaves no channel of in_channels={in_channels} in the excitation: use 1 to {in_channels}'
            )
        self.basis = basis
        self.init_cfg = init_cfg
        self.stride: int | None = None
        """How many times smaller than the image its feature maps are, for the valid part; None: it pools over whole maps."""
        self.dct_layer = BASES[basis](in_channels, self.grid, pairs)
        self.fc = nn.Sequential(
            PreciseLinear(in_channels, in_channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            PreciseLinear(in_channels // reduction, in_channels, bias=False),
            nn.Sigmoid(),
        )

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The (u, v) pair of each group; of a search, the most probable so far."""
        return self.dct_layer.frequencies

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says. mmengine calls this."""
        if self.init_cfg:
            from mmengine.model import initialize  # an init_cfg is mmengine's, so who gives one has it

            initialize(self, self.init_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``[N, C, H, W]`` by its gate."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'expected an input of shape [N, {self.in_channels}, H, W], got {list(x.shape)}')
        if not x.is_floating_point() or x.layout != torch.strided:
            raise TypeError(f'expected a dense input of floating point, got {x.layout} of {x.dtype}: convert it first')
        gate = self.excite(self.squeeze(x))
        return x * gate.to(x.dtype)[:, :, None, None]

    def squeeze(self, x: Tensor) -> Tensor:
        """The frequency vector of a feature map, ``[N, C, H, W]`` to ``[N, C]``, in float32 at least.

        Half precision is raised to float32: a component is up to sqrt(h w) times the mean and would overflow float16.
        """
        with _without_autocast(x):
            return self.dct_layer(_raised(x), self._valid_part())

    def gate_of_affine(self, z: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        """The gates of ``y = weight z + shift`` without y, with a ``Projected`` basis: of ``[N, P, H, W]``, ``[C, P]`` and ``[C]``."""
        with _without_autocast(z):
            z = _raised(z)
            maps = cast(Projected, self.dct_layer).maps(z, self._valid_part())
            return self.excite(project_affine(z, weight, shift, maps))

    def excite(self, freq: Tensor) -> Tensor:
        """Gates in (0, 1) from the frequency vector, ``[N, C]`` to ``[N, C]``, in float32 at least, autocast or not."""
        with _without_autocast(freq):
            return self.fc(freq.to(torch.promote_types(self.fc[0].weight.dtype, torch.float32)))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The configuration, as the repr of the module shows it."""
        return f'in_channels={self.in_channels}, grid={self.grid}, frequencies={len(self.dct_layer.configured)}, basis={self.basis}'

    def _valid_part(self) -> ValidPart | None:
        """The part of the feature maps at hand to pool over."""
        valid = current_valid_part()
        return None if valid is None or self.stride is None else valid.at(self.stride)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Take a search that version 0.1 has stored: it kept the selection one level up."""
        for name in ('selection.logits', 'selection.temperature'):
            if prefix + name in state_dict:
                state_dict[f'{prefix}dct_layer.{name}'] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def stage_plugins(
    dct_size: Sequence[int | tuple[int, int]] = (56, 28, 14, 7), position: str = 'after_conv3', **attention: Any
) -> list[dict]:
    """Write ``plugins=`` for a backbone of mmdet's (ResNet, ResNeXt, Res2Net, ResNeSt, RegNet, DetectoRS): each stage with its grid.

    Args:
        dct_size: the grid of each stage.
        position: the slot, ``after_conv1``, ``after_conv2`` or ``after_conv3``.
        attention: what else ``MultiSpectralAttention`` takes.

    Raises:
        TypeError: ``dct_size`` is not a sequence, which would leave stages without attention.
        ValueError: it is empty, or there is no such slot.

    Example:
        >>> stage_plugins(frequencies='low2')[1]['stages']
        (False, True, False, False)
    """
    if not isinstance(dct_size, Sequence) or isinstance(dct_size, (str, bytes)):
        raise TypeError(f'dct_size={dct_size!r} must give one grid for each stage, such as (56, 28, 14, 7)')
    if not dct_size or str(position) not in ('after_conv1', 'after_conv2', 'after_conv3'):
        raise ValueError(f'dct_size={dct_size!r} must give one grid for each stage, and position={position!r} be after_conv1, 2 or 3')
    return [
        dict(
            cfg=dict(type='mmdet.MultiSpectralAttention', dct_size=grid, **attention),
            stages=tuple(stage == other for other in range(len(dct_size))),
            position=position,
        )
        for stage, grid in enumerate(dct_size)
    ]


def _raised(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast switched off where it is on; elsewhere nothing, since entering the context costs time on small maps."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if device != 'meta' and torch.is_autocast_enabled(device) else nullcontext()


def _as_grid(dct_size: int | tuple[int, int]) -> tuple[int, int]:
    """``dct_size`` as (height, width), checked."""
    pair = dct_size if isinstance(dct_size, (tuple, list)) and len(dct_size) == 2 else (dct_size, dct_size)
    height, width = (check_count('dct_size', size, ', or a (height, width) pair of them') for size in pair)
    if min(height, width) < 1:
        raise ValueError(f'dct_size={dct_size} has no cells: use a positive number or a (height, width) pair')
    return height, width

"""Multi-spectral channel attention.

FcaNet: Frequency Channel Attention Networks, Qin, Zhang, Wu, Li, ICCV 2021, https://arxiv.org/abs/2012.11879.
With one frequency, (0, 0), it is squeeze-and-excitation (https://arxiv.org/abs/1709.01507) up to a constant (theorem 1).

Differs from the published code (https://github.com/cfzd/FcaNet): any input size without a pooled tensor, no basis in the
state dict for ``basis='dct'``, the learnable variants train, and errors say what is wrong.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError, describe_basis, full_basis, same_basis
from .dct import ValidPart, cached_projection_maps, pooling_matrix, project, projection_maps
from .frequency import SPECTRUM, Frequencies, Frequency, resolve_frequencies, whole_number
from .selection import CANDIDATES, FrequencySelection, check_selection

Basis = Literal['dct', 'learned_dct', 'random', 'learned_random', 'searched']
"""The tensor that squeezes: fixed DCT, learned from the DCT, fixed random, learned from random (paper, table 1); a mixture of DCTs."""

PROJECTED = ('dct', 'searched')
"""The bases that squeeze each group with one map (``MultiSpectralAttention.projection_maps``)."""


class ChannelBasis(nn.Module):
    """One grid-sized tensor per channel, of the paper's ablation: ``freq[n, c] = sum_ij weight[c, i, j] pooled[n, c, i, j]``.

    ``weight`` is ``[C, h, w]``: a parameter if learned, else a buffer, under the name of the published checkpoints.
    """

    def __init__(self, weight: Tensor, learned: bool):
        super().__init__()
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer('weight', weight)

    def forward(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C]``."""
        h, w = self.weight.shape[1:]
        heights, widths = (None, None) if valid is None else valid.sizes.unbind(1)
        rows = pooling_matrix(x.shape[2], h, x.device, heights).to(x.dtype)
        columns = pooling_matrix(x.shape[3], w, x.device, widths).to(x.dtype)
        pooled = rows.unsqueeze(-3) @ x @ columns.unsqueeze(-3).mT
        return (pooled * self.weight.to(x.dtype)).sum((2, 3))


@MODELS.register_module()
class MultiSpectralAttention(BaseModule):
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
            frequency each group should have (``FrequencySelection``).

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
        basis: Basis = 'dct',
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.in_channels = in_channels = whole_number('in_channels', in_channels)
        self._frequencies = resolve_frequencies(frequencies)
        self.grid = _checked_grid(dct_size, frequencies, basis)
        self.reduction = reduction = whole_number('reduction', reduction)
        self.basis = basis
        self.valid: ValidPart | None = None  # a plugin is called with the feature map alone, so the backbone leaves the part here
        groups = len(self._frequencies)
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
        if not isinstance(basis, str) or basis not in get_args(Basis):
            raise ValueError(f'unknown basis {basis!r}: use one of {", ".join(get_args(Basis))}')
        if basis == 'searched':
            self.selection = FrequencySelection(groups)
        elif basis != 'dct':
            self.dct_layer = ChannelBasis(self._initial_basis(), learned=basis.startswith('learned'))
        self.fc = nn.Sequential(
            nn.Linear(in_channels, in_channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(in_channels // reduction, in_channels, bias=False),
            nn.Sigmoid(),
        )

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The (u, v) pair of each group; of a search, the most probable so far."""
        return tuple(self.selection.chosen()) if self.basis == 'searched' else self._frequencies

    def share(self, selection: FrequencySelection) -> None:
        """Take part in a search with others: squeeze with their selection, which is no part of this module's state or parameters."""
        del self.selection
        object.__setattr__(self, 'selection', selection)

    def _initial_basis(self) -> Tensor:
        """The ablation's tensor before training, ``[C, h, w]``: the fixed DCT, or uniform in [0, 1) as published."""
        if self.basis.endswith('random'):
            return torch.rand(self.in_channels, *self.grid)
        return full_basis(self._frequencies, self.grid, self.in_channels)

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:
        """Compare a stored basis with the configured one, and drop it where it is computed: torch calls this for each module.

        Raises:
            CheckpointError: the checkpoint holds another basis; mmengine would go on with a warning.
        """
        key = f'{prefix}dct_layer.weight'
        stored = state_dict.get(key)
        if self.basis != 'searched':
            check_selection(state_dict, prefix, self._frequencies, self.basis)
        elif stored is not None:
            raise CheckpointError(
                f"{key} of the checkpoint is {describe_basis(stored)}; configured is basis='searched', which starts from weights without "
                'attention, such as torchvision://resnet50, or from those of a search'
            )
        if stored is not None and self.basis == 'dct':
            configured = full_basis(self._frequencies, self.grid, self.in_channels)
            if not same_basis(stored, configured):
                raise CheckpointError(f'{key} of the checkpoint is {describe_basis(stored)}; configured is {describe_basis(configured)}')
            del state_dict[key]
        elif stored is not None and stored.shape != self.dct_layer.weight.shape:
            raise CheckpointError(
                f'{key} of the checkpoint is {list(stored.shape)}, configured is {list(self.dct_layer.weight.shape)}: give dct_size '
                "the checkpoint's grid"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def squeeze(self, x: Tensor) -> Tensor:
        """The frequency vector of a feature map, ``[N, C, H, W]`` to ``[N, C]``, in float32 at least.

        Half precision is raised to float32: a component is up to sqrt(h w) times the mean and would overflow float16.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with without_autocast(x.device.type):
            if self.basis not in PROJECTED:
                return self.dct_layer(x, self.valid)
            maps = self.projection_maps(x)
            if is_symbolic():
                return (x.unflatten(1, (maps.shape[-3], -1)) * maps.unsqueeze(-3)).sum((3, 4)).flatten(1)  # the compiler's to arrange
            return project(x, maps)

    def projection_maps(self, x: Tensor) -> Tensor:
        """The map of each group for the size, dtype and device of ``x``, ``[N, *, H, W]``. Not to be written to.

        ``[F, H, W]``, or ``[N, F, H, W]`` where a valid part is set; with a gradient to the selection in a search.
        """
        if self.basis != 'searched':
            return self._maps_of(self._frequencies, x)
        maps = self._maps_of(CANDIDATES, x).flatten(-2)
        weights = self.selection().to(maps.dtype)
        if not cast(nn.Linear, self.fc[0]).weight.requires_grad:
            weights = weights.detach()  # a frozen stage would otherwise be differentiated for the selection alone
        # Expanded by hand, since matmul would copy the maps of valid parts.
        return (weights.expand(*maps.shape[:-2], *weights.shape) @ maps).unflatten(-1, x.shape[2:])

    def _maps_of(self, frequencies: tuple[Frequency, ...], x: Tensor) -> Tensor:
        """``projection_maps`` of any frequencies."""
        if self.valid is not None:
            return self.valid.projection_maps(frequencies, self.grid, x)
        height, width = x.shape[2:]
        if is_symbolic():
            return projection_maps(frequencies, self.grid, height, width, x.device).to(x.dtype)
        return cached_projection_maps(frequencies, self.grid, height, width, x.dtype, x.device)

    def excite(self, freq: Tensor) -> Tensor:
        """Gates in (0, 1) from the frequency vector, ``[N, C]`` to ``[N, C]``, in float32 at least, autocast or not."""
        reduce, expand = (cast(nn.Linear, self.fc[index]).weight for index in (0, 2))
        precise = torch.promote_types(reduce.dtype, torch.float32)
        with without_autocast(freq.device.type):
            if reduce.dtype == precise:
                return self.fc(freq.to(precise))
            # With weights of half precision: a frequency vector that overflows float16 is no sign that its gates would.
            hidden = F.relu(F.linear(freq.to(precise), reduce.to(precise)))
            return F.linear(hidden, expand.to(precise)).sigmoid()

    @contextmanager
    def within(self, valid: ValidPart | None) -> Iterator[None]:
        """Squeeze only the valid part of feature maps, until the context ends; ``None`` for all of them.

        Example:
            >>> attention, x = MultiSpectralAttention(64), torch.rand(1, 64, 9, 12)
            >>> with attention.within(ValidPart(torch.tensor([[5, 8]]))):
            ...     gated = attention(x)
            >>> torch.allclose(gated[..., :5, :8], attention(x[..., :5, :8]))
            True
        """
        before, self.valid = self.valid, valid
        try:
            yield
        finally:
            self.valid = before

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``[N, C, H, W]`` by its gate."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'expected an input of shape [N, {self.in_channels}, H, W], got {list(x.shape)}')
        if not x.is_floating_point() or x.layout != torch.strided:
            raise TypeError(f'expected a dense input of floating point, got {x.layout} of {x.dtype}: convert it first')
        gate = self.excite(self.squeeze(x))
        return x * gate.to(x.dtype)[:, :, None, None]

    def extra_repr(self) -> str:
        """The configuration, as the repr of the module shows it."""
        return f'in_channels={self.in_channels}, grid={self.grid}, frequencies={len(self._frequencies)}, basis={self.basis}'


def stage_plugins(
    dct_size: Sequence[int | tuple[int, int]] = (56, 28, 14, 7), position: str = 'after_conv3', **attention: Any
) -> list[dict]:
    """``plugins=`` for a backbone of mmdet's (ResNet, ResNeXt, Res2Net, ResNeSt, RegNet, DetectoRS): each stage with its grid.

    Args:
        dct_size: the grid of each stage.
        position: the slot, ``after_conv1``, ``after_conv2`` or ``after_conv3``.
        attention: what else ``MultiSpectralAttention`` takes.

    Raises:
        TypeError: ``dct_size`` is no sequence, which would leave stages without attention.
        ValueError: it is empty, or no such slot.

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


def is_symbolic() -> bool:
    """Whether sizes may be symbols (compiling, exporting, tracing): then maps are part of the graph, and no branch asks for a size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def without_autocast(device: str) -> AbstractContextManager:
    """Autocast switched off where it is on; elsewhere nothing, since entering the context costs time on small maps."""
    return torch.autocast(device, enabled=False) if device != 'meta' and torch.is_autocast_enabled(device) else nullcontext()


def _checked_grid(dct_size: int | tuple[int, int], frequencies: Frequencies, basis: Basis) -> tuple[int, int]:
    """``dct_size`` as (height, width), checked against the frequencies."""
    pair = dct_size if isinstance(dct_size, (tuple, list)) and len(dct_size) == 2 else (dct_size, dct_size)
    height, width = (whole_number('dct_size', size, ', or a (height, width) pair of them') for size in pair)
    if min(height, width) < 1:
        raise ValueError(f'dct_size={dct_size} has no cells: use a positive number or a (height, width) pair')
    if isinstance(basis, str) and basis == 'searched' and min(height, width) < SPECTRUM:
        raise ValueError(
            f"dct_size={dct_size} is below {SPECTRUM}, the spectrum that basis='searched' selects from: use a grid of {SPECTRUM} or more "
            f'(multiples of {SPECTRUM} are usual)'
        )
    if isinstance(frequencies, str):
        if min(height, width) < SPECTRUM:
            raise ValueError(
                f'dct_size={dct_size} is below {SPECTRUM}, the spectrum of the set {frequencies!r}: use a grid of {SPECTRUM} or more '
                f'(multiples of {SPECTRUM} are usual), or (u, v) pairs below the grid'
            )
        return height, width
    for u, v in resolve_frequencies(frequencies):
        if u >= height or v >= width:
            raise ValueError(f'frequency ({u}, {v}) does not exist on a grid of {height} x {width} cells: use a larger dct_size')
    return height, width

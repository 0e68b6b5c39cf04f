"""From a feature map to a frequency vector: a class for each kind of basis, and the table of their names.

A ``Projected`` basis squeezes each group of channels with one map, and says which: that is all that the folded execution asks for. The
others squeeze each channel with a tensor of its own (FcaNet, ICCV 2021, https://arxiv.org/abs/2012.11879, table 1).

An attention holds its squeeze as ``dct_layer``, the name that published checkpoints use. What a squeeze keeps there, and what it refuses of
a checkpoint, is its own matter. To add a basis, write a class and enter it in ``BASES``.
"""

from collections.abc import MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .dct import describe_basis, full_basis, pooling_matrix, same_basis, show_grid
from .errors import CheckpointError, check_count
from .frequency import CANDIDATES, SPECTRUM, Frequencies, Frequency
from .projection import ValidPart, maps_for, project


class Squeeze(nn.Module):
    """A module whose ``forward(x, valid=None)`` squeezes ``[N, C, H, W]``, in float32 or float64, or the valid part of it, to ``[N, C]``.

    Args:
        channels: C.
        grid: (height, width) in cells, to which feature maps are pooled.
        frequencies: the (u, v) pair of each of the F groups of channels; F divides C.
    """

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__()
        self.channels = channels
        self.grid = grid
        self.configured = frequencies

    @classmethod
    def check_grid(cls, grid: tuple[int, int], frequencies: Frequencies) -> None:
        """Refuse, with a ``ValueError``, a named set on a grid below 7, and a pair outside the grid."""
        if isinstance(frequencies, str):
            if min(grid) < SPECTRUM:
                raise ValueError(
                    f'dct_size={show_grid(grid)} is below {SPECTRUM}, the spectrum of the set {frequencies!r}: use a grid of {SPECTRUM} or '
                    f'more (multiples of {SPECTRUM} are usual), or (u, v) pairs below the grid'
                )
            return
        for u, v in frequencies:
            if u >= grid[0] or v >= grid[1]:
                raise ValueError(f'frequency ({u}, {v}) does not exist on a grid of {grid[0]} x {grid[1]} cells: use a larger dct_size')

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The (u, v) pair of each group."""
        return self.configured

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse the selection of a search, unless it selects what is configured: torch and mmengine call this for each module."""
        check_selection(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Projected(Squeeze):
    """A squeeze of each group with one map."""

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """The map of each group for the size, dtype and device of ``x``: ``[F, H, W]``, or ``[N, F, H, W]`` with ``valid``. Read only."""
        raise NotImplementedError(f'{type(self).__name__} defines no maps')

    def forward(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Squeeze ``[N, C, H, W]``, or the valid part of it, to ``[N, C]``."""
        return project(x, self.maps(x, valid))


class FixedDct(Projected):
    """The DCT components of the configured frequencies. It has no state: a basis in a checkpoint is compared, and dropped.

    Example:
        >>> FixedDct(2, (7, 7), (Frequency(0, 0),))(torch.ones(1, 2, 9, 13))  # sqrt(7 * 7) times the mean
        tensor([[7.0000, 7.0000]])
    """

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """The DCT components' maps, ``[F, H, W]`` or ``[N, F, H, W]``."""
        return maps_for(self.configured, self.grid, x, valid)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse another basis, with which mmengine would go on after a warning."""
        stored = state_dict.pop(f'{prefix}weight', None)
        if stored is not None:
            computed = full_basis(self.configured, self.grid, self.channels)
            if not same_basis(stored, computed):
                raise CheckpointError(
                    f'{prefix}weight of the checkpoint is {describe_basis(stored)}; configured is {describe_basis(computed)}'
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class PerChannel(Squeeze):
    """One grid-sized tensor per channel, of the paper's ablation: ``freq[n, c] = sum_ij weight[c, i, j] pooled[n, c, i, j]``.

    ``weight`` is ``[C, h, w]``: a parameter if it is learned, else a buffer.
    """

    learned: ClassVar[bool] = False
    weight: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__(channels, grid, frequencies)
        if self.learned:
            self.weight = nn.Parameter(self.initial())
        else:
            self.register_buffer('weight', self.initial())

    def initial(self) -> Tensor:
        """The tensor before training, ``[C, h, w]``: uniform in [0, 1), as published."""
        return torch.rand(self.channels, *self.grid)

    def forward(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Squeeze ``[N, C, H, W]``, or the valid part of it, to ``[N, C]``."""
        heights, widths = (None, None) if valid is None else valid.sizes.unbind(1)
        rows = pooling_matrix(x.shape[2], self.grid[0], x.device, heights).to(x.dtype)
        columns = pooling_matrix(x.shape[3], self.grid[1], x.device, widths).to(x.dtype)
        pooled = rows.unsqueeze(-3) @ x @ columns.unsqueeze(-3).mT
        return (pooled * self.weight.to(x.dtype)).sum((2, 3))

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse a tensor of another grid."""
        check_shape(state_dict, f'{prefix}weight', self.weight, "give dct_size the checkpoint's grid")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Random(PerChannel):
    """A fixed random tensor."""


class LearnedRandom(PerChannel):
    """A tensor that is random at first and learned."""

    learned = True


class LearnedDct(PerChannel):
    """A tensor that is the fixed DCT at first and learned."""

    learned = True

    def initial(self) -> Tensor:
        """The fixed DCT, ``[C, h, w]``."""
        return full_basis(self.configured, self.grid, self.channels)


class FrequencySelection(nn.Module):
    """A distribution over the 49 frequencies for each group of channels.

    State: the parameter ``logits``, ``[F, 49]``, zeros at first, and the buffer ``temperature``, so that a checkpoint predicts as it did in
    training. ``FrequencySearchHook`` lowers the temperature.

    Args:
        groups: F.

    Raises:
        TypeError, ValueError: ``groups`` is not a number of groups.

    Example:
        >>> selection = FrequencySelection(2)
        >>> selection().shape
        torch.Size([2, 49])
        >>> with torch.no_grad():
        ...     selection.logits[1, 9] = 1
        >>> selection.chosen()
        [Frequency(u=0, v=0), Frequency(u=1, v=2)]
    """

    logits: nn.Parameter
    temperature: Tensor

    def __init__(self, groups: int):
        super().__init__()
        groups = check_count('groups', groups)
        if groups < 1:
            raise ValueError(f'groups={groups} leaves no group to select a frequency for: use 1 or more')
        self.logits = nn.Parameter(torch.zeros(groups, len(CANDIDATES)))
        self.register_buffer('temperature', torch.ones(()))

    def forward(self) -> Tensor:
        """The weights of the mixtures, ``softmax(logits / T)``: ``[F, 49]``, in float32 at least."""
        precise = torch.promote_types(self.logits.dtype, torch.float32)
        return (self.logits.to(precise) / self.temperature.to(precise)).softmax(1)

    def chosen(self) -> list[Frequency]:
        """The most probable frequency of each group, repetitions allowed: what ``frequencies=`` takes."""
        return [CANDIDATES[index] for index in self.logits.argmax(1).tolist()]

    def entropy(self) -> Tensor:
        """The mean entropy of the groups' weights in nats: ln 49 = 3.89 where all are equal, 0 where each group has one frequency."""
        return torch.special.entr(self()).sum(1).mean()

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse the selection of another number of groups."""
        check_shape(state_dict, f'{prefix}logits', self.logits, 'give frequencies as many entries as the checkpoint has groups')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The sizes, as the repr of the module shows them."""
        return 'groups={}, candidates={}'.format(*self.logits.shape)


class SearchedDct(Projected):
    """A mixture of the maps of all 49 frequencies for each group, with the weights of a ``FrequencySelection``.

    It is in the spirit of FcaNet's NAS variant, of which no code is published. Group f is squeezed with

        map_f = sum_k softmax(logits[f] / T)[k] map_k,    k over the 49 frequencies,

    and the temperature T falls until about one frequency per group is left. A projection is linear in its map, so the maps are mixed and
    not the components: a search keeps no feature map more than a fixed selection does. The logits are trained with the weights, on the
    same images. Only the number of the configured frequencies counts. A backbone lets all its blocks share one selection.
    """

    selection: FrequencySelection

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__(channels, grid, frequencies)
        self.selection = FrequencySelection(len(frequencies))
        self._excitation: nn.Module | None = None

    @classmethod
    def check_grid(cls, grid: tuple[int, int], frequencies: Frequencies) -> None:
        """Refuse a grid without the whole spectrum."""
        if min(grid) < SPECTRUM:
            raise ValueError(
                f"dct_size={show_grid(grid)} is below {SPECTRUM}, the spectrum that basis='searched' selects from: "
                f'use a grid of {SPECTRUM} or more (multiples of {SPECTRUM} are usual)'
            )

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The most probable (u, v) pair of each group so far."""
        return tuple(self.selection.chosen())

    def share(self, selection: FrequencySelection, excitation: nn.Module) -> None:
        """Squeeze with a selection that others use too; it is not part of this module's state or parameters.

        While ``excitation``, what this squeeze feeds, is frozen, the selection is not differentiated for it alone.
        """
        del self.selection, self._excitation
        for name, value in (('selection', selection), ('_excitation', excitation)):
            object.__setattr__(self, name, value)

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """The mixed maps, ``[F, H, W]`` or ``[N, F, H, W]``, with a gradient to the selection."""
        maps = maps_for(CANDIDATES, self.grid, x, valid).flatten(-2)
        weights = self.selection().to(maps.dtype)
        if self._excitation is not None and not any(parameter.requires_grad for parameter in self._excitation.parameters()):
            weights = weights.detach()
        # Expanded by hand, since matmul would copy the maps of valid parts.
        return (weights.expand(*maps.shape[:-2], *weights.shape) @ maps).unflatten(-1, x.shape[2:])

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse the basis of weights that were trained with one; its own selection loads as it is."""
        stored = state_dict.get(f'{prefix}weight')
        if stored is not None:
            raise CheckpointError(
                f"{prefix}weight of the checkpoint is {describe_basis(stored)}; configured is basis='searched', which starts from weights "
                'without attention, such as torchvision://resnet50, or from those of a search'
            )
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def check_shape(state_dict: MutableMapping[str, Tensor], key: str, own: Tensor, mend: str) -> None:
    """Refuse a stored tensor of another shape than a module's own; mmengine would leave it out with a warning."""
    stored = state_dict.get(key)
    if stored is not None and stored.shape != own.shape:
        raise CheckpointError(f'{key} of the checkpoint is {list(stored.shape)}, configured is {list(own.shape)}: {mend}')


def check_selection(state_dict: MutableMapping[str, Tensor], prefix: str, squeeze: Squeeze) -> None:
    """Drop the selection of a search, if a checkpoint holds one and it selects what ``squeeze`` is configured with; else refuse it."""
    stored = state_dict.get(f'{prefix}selection.logits')
    if stored is None:
        return
    chosen = [CANDIDATES[index] for index in stored.argmax(1).tolist()]
    if not isinstance(squeeze, FixedDct) or chosen != list(squeeze.frequencies):
        raise CheckpointError(
            f'{prefix}selection.logits of the checkpoint selects frequencies={[tuple(pair) for pair in chosen]}: configure these, or '
            'basis="searched" to search on'
        )
    for name in ('logits', 'temperature'):
        state_dict.pop(f'{prefix}selection.{name}', None)


BASES: dict[str, type[Squeeze]] = {
    'dct': FixedDct,
    'learned_dct': LearnedDct,
    'random': Random,
    'learned_random': LearnedRandom,
    'searched': SearchedDct,
}
"""What ``basis=`` names."""

"""Squeeze a feature map to a frequency vector: a class for each kind of basis, and the table of their names.

A ``Projected`` basis squeezes each group of channels with one map, and returns these maps; the folded execution needs nothing else. The
others squeeze each channel with a tensor of its own (FcaNet, ICCV 2021, https://arxiv.org/abs/2012.11879, table 1).

An attention holds its squeeze as ``dct_layer``, the name in published checkpoints. Each class decides what it stores there, and which
checkpoints it refuses. To add a basis, write a class and enter it in ``BASES``.
"""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .dct import describe_basis, full_basis, pooling_matrix, same_basis, show_grid
from .errors import CheckpointError, check_count
from .frequency import CANDIDATES, SPECTRUM, Frequencies, Frequency
from .projection import ValidPart, in_terms, maps_for, project


class Squeeze(nn.Module):
    """A module whose ``forward(x, valid=None)`` squeezes ``[N, C, H, W]``, in its working dtype, or the valid part of it, to ``[N, C]``.

    Args:
        channels: C.
        grid: (height, width) in cells, to which feature maps are pooled.
        frequencies: the (u, v) pair of each of the F groups of channels; F divides C.
    """

    required: ClassVar[tuple[str, ...]] = ()
    """What a checkpoint with an attention must store, since this basis cannot be computed."""

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__()
        self.channels = channels
        self.grid = grid
        self.configured = frequencies

    @classmethod
    def check_grid(cls, grid: tuple[int, int], frequencies: Frequencies) -> None:
        """Raise a ``ValueError`` for a named set on a grid below 7, or for a pair outside the grid."""
        if isinstance(frequencies, str):
            if min(grid) < SPECTRUM:
                raise ValueError(
                    f'dct_size={show_grid(grid)} is too small for the set {frequencies!r} of the 7x7 spectrum: use {SPECTRUM} or more '
                    f'(multiples of {SPECTRUM} are usual), or (u, v) pairs below the grid'
                )
            return
        for u, v in frequencies:
            if u >= grid[0] or v >= grid[1]:
                raise ValueError(f'frequency ({u}, {v}) does not exist on a grid of {grid[0]} x {grid[1]} cells: use a larger dct_size')

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The (u, v) pair of each group."""
        return self.configured

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype to which a feature map of ``dtype`` is converted: float32 at least."""
        return torch.promote_types(dtype, torch.float32)

    def settings(self) -> dict[str, str]:
        """Return the arguments that the weights after this squeeze are trained for, as texts, if the state does not show them."""
        return {}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Store the settings beside torch's version number: state dicts keep the keys of published weights."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        getattr(destination, '_metadata', {}).get(prefix[:-1], {}).update(self.settings())

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse weights of another grid or other frequencies than configured. torch and mmengine call this for each module."""
        check_selection(state_dict, prefix, self)
        check_settings(args[0], prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Projected(Squeeze):
    """A squeeze of each group with one map."""

    def settings(self) -> dict[str, str]:
        """Return the grid."""
        return {'dct_size': str(self.grid)}

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Return each group's map for the size, dtype and device of ``x``, in terms (``projection.in_terms``). Read only.

        Returns:
            ``[F, T, H, W]``, or ``[N, F, T, H, W]`` with ``valid``.
        """
        raise NotImplementedError(f'{type(self).__name__} defines no maps')

    def forward(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Squeeze ``[N, C, H, W]``, or the valid part of it, to ``[N, C]``."""
        return project(x, self.maps(x, valid))


class FixedDct(Projected):
    """The DCT components of the configured frequencies. It has no state: a basis in a checkpoint is compared and dropped.

    Example:
        >>> FixedDct(2, (7, 7), (Frequency(0, 0),))(torch.ones(1, 2, 9, 13))  # sqrt(7 * 7) times the mean
        tensor([[7.0000, 7.0000]])
    """

    def settings(self) -> dict[str, str]:
        """Return the grid and the frequencies."""
        return {**super().settings(), 'frequencies': str([tuple(pair) for pair in self.configured])}

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Keep bfloat16, since a converted copy of a feature map costs more than the squeeze.

        Its products are summed in float32, and a component is rounded once, as the published code's linear layers round it under autocast.
        float16 is converted: a component is up to sqrt(h w) times the mean and would overflow.
        """
        return dtype if dtype == torch.bfloat16 else super().working_dtype(dtype)

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Return the maps of the DCT components."""
        return maps_for(self.configured, self.grid, x, valid)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse another basis; mmengine would only warn."""
        if f'{prefix}rows' in state_dict:
            raise CheckpointError(
                f'{prefix}rows in the checkpoint belongs to another basis, haar or orthogonal_separable: configure it, or use other weights'
            )
        stored = state_dict.pop(f'{prefix}weight', None)
        if stored is not None:
            computed = full_basis(self.configured, self.grid, self.channels)
            if not same_basis(stored, computed):
                raise CheckpointError(
                    f'{prefix}weight is {describe_basis(stored)} in the checkpoint, but {describe_basis(computed)} in the configuration: '
                    'configure what the checkpoint has, or use other weights'
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class PerChannel(Squeeze):
    """One grid-sized tensor per channel, as in the paper's ablation: ``freq[n, c] = sum_ij weight[c, i, j] pooled[n, c, i, j]``.

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
        """Make the tensor before training, ``[C, h, w]``: uniform in [0, 1), as published."""
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
        check_shape(state_dict, f'{prefix}weight', self.weight, "set dct_size to the checkpoint's grid")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Random(PerChannel):
    """A fixed random tensor."""

    required = ('weight',)


class Orthogonal(PerChannel):
    """Fixed random filters, orthonormal within each group of channels (OrthoNets, https://arxiv.org/abs/2311.03071).

    A group of more channels than the grid has cells is split, in order, into parts of at most so many, each orthonormal.
    """

    required = ('weight',)

    def initial(self) -> Tensor:
        """Draw the filters, ``[C, h, w]``."""
        filters = [nn.init.orthogonal_(torch.empty(count, math.prod(self.grid))) for count in self._parts()]
        return torch.cat(filters).unflatten(1, self.grid)

    def _parts(self) -> list[int]:
        group = torch.arange(self.channels // len(self.configured))
        return [len(part) for _ in self.configured for part in group.split(math.prod(self.grid))]

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse filters that are not orthonormal, such as those of another basis."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        stored = state_dict.get(f'{prefix}weight')
        if stored is None:
            return
        parts = stored.detach().double().cpu().flatten(1).split(self._parts())
        if any((part @ part.T - torch.eye(len(part))).abs().max() > 1e-2 for part in parts):  # float16 rounds by 1e-3
            raise CheckpointError(
                f'{prefix}weight is {describe_basis(stored)} in the checkpoint, and not orthonormal within each group of channels: '
                'configure what the checkpoint has, or use other weights'
            )


class LearnedRandom(PerChannel):
    """A learned tensor that starts random."""

    learned = True
    required = ('weight',)


class LearnedDct(PerChannel):
    """A learned tensor that starts as the fixed DCT."""

    learned = True

    def initial(self) -> Tensor:
        """Compute the fixed DCT, ``[C, h, w]``."""
        return full_basis(self.configured, self.grid, self.channels)


class CombinedDct(Squeeze):
    """Every configured frequency on every channel: ``freq[n, c] = sum_f weight[c, f] component_f[n, c]``, with learned weights.

    The parameter ``weight``, ``[C, F]``, starts as a fixed DCT: 1 for the frequency of the channel's group, else 0. A squeeze reads the
    feature map once, with F products for one. Its blocks run readable.

    Example:
        >>> squeeze = CombinedDct(4, (7, 7), (Frequency(0, 0), Frequency(0, 1)))
        >>> squeeze.weight.tolist()
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """

    required = ('weight',)

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__(channels, grid, frequencies)
        groups = len(frequencies)
        self.weight = nn.Parameter(torch.eye(groups).repeat_interleave(channels // groups, 0))

    def settings(self) -> dict[str, str]:
        """Return the grid, the frequencies and the basis."""
        pairs = [tuple(pair) for pair in self.configured]
        return {'dct_size': str(self.grid), 'frequencies': str(pairs), 'basis': type(self).__name__}

    def forward(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Squeeze ``[N, C, H, W]``, or the valid part of it, to ``[N, C]``."""
        maps = maps_for(self.configured, self.grid, x, valid).flatten(-3)
        components = maps @ x.flatten(2).transpose(1, 2)  # [N, F, C]
        return (components * self.weight.mT.to(x.dtype)).sum(1)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse weights for another number of frequencies, and the tensors of other bases."""
        check_shape(state_dict, f'{prefix}weight', self.weight, 'configure the basis and as many frequencies as the checkpoint has')
        super()._load_from_state_dict(state_dict, prefix, *args)


class Separable(Projected):
    """Outer products of the vectors of two one-dimensional orthonormal bases: orthonormal too, and rank one, so that blocks run folded.

    The pair (u, v) of a group chooses vector u along the height and vector v along the width. State: the buffers ``rows``, ``[F, h]``, and
    ``columns``, ``[F, w]``.
    """

    required = ('rows', 'columns')
    rows: Tensor
    columns: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__(channels, grid, frequencies)
        for name, length, indices in zip(self.required, grid, zip(*frequencies, strict=True), strict=True):
            self.register_buffer(name, self.vectors(length)[list(indices)])

    @staticmethod
    def vectors(length: int) -> Tensor:
        """Return a one-dimensional orthonormal basis, ``[length, length]``, float32."""
        raise NotImplementedError('a subclass defines the vectors')

    def settings(self) -> dict[str, str]:
        """Return the grid and the basis."""
        return {**super().settings(), 'basis': type(self).__name__}

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Return the outer products of the pooled vectors."""
        heights, widths = (None, None) if valid is None else valid.sizes.unbind(1)
        rows = self.rows.double() @ pooling_matrix(x.shape[2], self.grid[0], x.device, heights)
        columns = self.columns.double() @ pooling_matrix(x.shape[3], self.grid[1], x.device, widths)
        return in_terms(rows[..., :, None] * columns[..., None, :], x.dtype)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse vectors of another grid or number of groups."""
        for name in self.required:
            check_shape(state_dict, prefix + name, getattr(self, name), 'use the grid and as many frequencies as the checkpoint has')
        super()._load_from_state_dict(state_dict, prefix, *args)


class OrthogonalSeparable(Separable):
    """Random orthonormal vectors: orthogonality without frequencies, at the cost of a DCT component."""

    @staticmethod
    def vectors(length: int) -> Tensor:
        """Draw an orthonormal basis."""
        return nn.init.orthogonal_(torch.empty(length, length))


class Haar(Separable):
    """Two-dimensional Haar functions (WaveNet-C, https://arxiv.org/abs/2211.02695), on a grid whose sides are powers of two.

    Example:
        >>> Haar.vectors(4)
        tensor([[ 0.5000,  0.5000,  0.5000,  0.5000],
                [ 0.5000,  0.5000, -0.5000, -0.5000],
                [ 0.7071, -0.7071,  0.0000, -0.0000],
                [ 0.0000, -0.0000,  0.7071, -0.7071]])
    """

    @classmethod
    def check_grid(cls, grid: tuple[int, int], frequencies: Frequencies) -> None:
        """Raise a ``ValueError`` for a side that is not a power of two too."""
        if any(size & (size - 1) for size in grid):
            raise ValueError(f"dct_size={show_grid(grid)}: basis='haar' needs powers of two, such as (64, 32, 16, 8) for the stages")
        super().check_grid(grid, frequencies)

    @staticmethod
    def vectors(length: int) -> Tensor:
        """Compute the Haar basis: the mean, then differences from the coarsest to the finest, from left to right."""
        basis, sides = torch.ones(1, 1), torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        while len(basis) < length:
            basis = torch.cat([torch.kron(basis, sides[:1]), torch.kron(torch.eye(len(basis)), sides[1:])])
        return basis


class FrequencySelection(nn.Module):
    """A distribution over the 49 frequencies for each of F = ``groups`` groups of channels.

    State: the parameter ``logits``, ``[F, 49]``, zeros at first, and the buffer ``temperature``, so that a checkpoint predicts as it did in
    training. ``FrequencySearchHook`` lowers the temperature.

    Raises:
        TypeError, ValueError: ``groups`` is not a positive integer.

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
            raise ValueError(f'groups={groups} must be 1 or more')
        self.logits = nn.Parameter(torch.zeros(groups, len(CANDIDATES)))
        self.register_buffer('temperature', torch.ones(()))

    def forward(self) -> Tensor:
        """Compute the weights of the mixtures, ``softmax(logits / T)``: ``[F, 49]``, in float32 at least."""
        precise = torch.promote_types(self.logits.dtype, torch.float32)
        return (self.logits.to(precise) / self.temperature.to(precise)).softmax(1)

    def chosen(self) -> list[Frequency]:
        """Return the most probable frequency of each group, with possible repetitions, for ``frequencies=``."""
        return [CANDIDATES[index] for index in self.logits.argmax(1).tolist()]

    def entropy(self) -> Tensor:
        """Compute the mean entropy of the groups' weights in nats: ln 49 = 3.89 if all are equal, 0 if each group has one frequency."""
        return torch.special.entr(self()).sum(1).mean()

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse a selection for another number of groups."""
        check_shape(state_dict, f'{prefix}logits', self.logits, 'use as many frequencies as the checkpoint has groups')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Show the sizes in the repr of the module."""
        return 'groups={}, candidates={}'.format(*self.logits.shape)


class SearchedDct(Projected):
    """A mixture of the maps of all 49 frequencies for each group, with the weights of a ``FrequencySelection``.

    It follows the idea of FcaNet's NAS variant, whose code is not published. Group f is squeezed with

        map_f = sum_k softmax(logits[f] / T)[k] map_k,    k over the 49 frequencies,

    and the temperature T falls until about one frequency per group is left. A projection is linear in its map, so the maps are mixed, not
    the components: a search keeps no more feature maps than a fixed selection. The logits are trained with the weights, on the same images.
    Only the number of the configured frequencies counts. All blocks of a backbone share one selection.
    """

    selection: FrequencySelection

    def __init__(self, channels: int, grid: tuple[int, int], frequencies: tuple[Frequency, ...]):
        super().__init__(channels, grid, frequencies)
        self.selection = FrequencySelection(len(frequencies))
        self._excitation: nn.Module | None = None

    @classmethod
    def check_grid(cls, grid: tuple[int, int], frequencies: Frequencies) -> None:
        """Raise a ``ValueError`` for a grid below 7."""
        if min(grid) < SPECTRUM:
            raise ValueError(
                f"dct_size={show_grid(grid)} is too small for basis='searched', which selects from the 7x7 spectrum: "
                f'use {SPECTRUM} or more (multiples of {SPECTRUM} are usual)'
            )

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The most probable (u, v) pair of each group so far."""
        return tuple(self.selection.chosen())

    def share(self, selection: FrequencySelection, excitation: nn.Module) -> None:
        """Squeeze with a selection that others use too. It is not part of this module's state or parameters.

        While ``excitation``, which this squeeze feeds, is frozen, the selection gets no gradient from here.
        """
        del self.selection, self._excitation
        for name, value in (('selection', selection), ('_excitation', excitation)):
            object.__setattr__(self, name, value)

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Mix the maps, with a gradient to the selection. There is one term."""
        maps = maps_for(CANDIDATES, self.grid, x, valid).flatten(-3)
        weights = self.selection().to(maps.dtype)
        if self._excitation is not None and not any(parameter.requires_grad for parameter in self._excitation.parameters()):
            weights = weights.detach()
        # Expanded by hand, since matmul would copy the maps of valid parts.
        return (weights.expand(*maps.shape[:-2], *weights.shape) @ maps).unflatten(-1, (1, *x.shape[2:]))

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse weights that were trained with a fixed or learned basis; load the selection of a search."""
        stored = state_dict.get(f'{prefix}weight')
        if stored is not None:
            raise CheckpointError(
                f"{prefix}weight is {describe_basis(stored)} in the checkpoint, but basis='searched' in the configuration: start from "
                'weights without attention, such as torchvision://resnet50, or from those of a search'
            )
        check_settings(args[0], prefix, self)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def check_shape(state_dict: MutableMapping[str, Tensor], key: str, own: Tensor, remedy: str) -> None:
    """Refuse a stored tensor of another shape than a module's own; mmengine would leave it out with a warning."""
    stored = state_dict.get(key)
    if stored is not None and stored.shape != own.shape:
        raise CheckpointError(f'{key} is {list(stored.shape)} in the checkpoint, but {list(own.shape)} in the configuration: {remedy}')


def check_selection(state_dict: MutableMapping[str, Tensor], prefix: str, squeeze: Squeeze) -> None:
    """Drop the selection of a search from a checkpoint if it selects the frequencies of ``squeeze``; else refuse it."""
    stored = state_dict.get(f'{prefix}selection.logits')
    if stored is None:
        return
    if not isinstance(stored, Tensor) or stored.dim() != 2 or stored.shape[1] != len(CANDIDATES):
        raise CheckpointError(
            f'{prefix}selection.logits in the checkpoint is not [F, {len(CANDIDATES)}], as a search stores it: fetch it again'
        )
    chosen = [CANDIDATES[index] for index in stored.argmax(1).tolist()]
    if not isinstance(squeeze, FixedDct) or chosen != list(squeeze.frequencies):
        raise CheckpointError(
            f'{prefix}selection.logits in the checkpoint selects frequencies={[tuple(pair) for pair in chosen]}: configure these, or '
            'basis="searched" to continue the search'
        )
    for name in ('logits', 'temperature'):
        state_dict.pop(f'{prefix}selection.{name}', None)


def check_settings(metadata: Mapping[str, Any], prefix: str, squeeze: Squeeze) -> None:
    """Refuse weights that were saved by a squeeze with other settings. Published ones have none."""
    for key, own in squeeze.settings().items():
        if metadata.get(key, own) != own:
            raise CheckpointError(
                f'{prefix[:-1]} has {key}={metadata[key]} in the checkpoint, but {own} in the configuration: configure what the checkpoint '
                'has, or use other weights'
            )


BASES: dict[str, type[Squeeze]] = {
    'dct': FixedDct,
    'learned_dct': LearnedDct,
    'random': Random,
    'learned_random': LearnedRandom,
    'orthogonal': Orthogonal,
    'orthogonal_separable': OrthogonalSeparable,
    'haar': Haar,
    'combined': CombinedDct,
    'searched': SearchedDct,
}
"""The class for each value of ``basis=``."""

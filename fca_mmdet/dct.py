"""The two-dimensional DCT of an adaptively pooled feature map as one linear map per frequency.

FcaNet (ICCV 2021, https://arxiv.org/abs/2012.11879, equations 3 to 6) squeezes a channel X of size H x W with a DCT component of
its pooled map. Adaptive average pooling to a grid of h x w cells is ``P_h X P_w^T`` and a component is ``a_u^T (.) b_v``, so

    freq = a_u^T (P_h X P_w^T) b_v = (P_h^T a_u)^T X (P_w^T b_v) = sum_ij map[i, j] X[i, j]

with a rank-1 map that depends on sizes only. Nothing is pooled, and the backward pass is a product with the same map: exact and
deterministic, where adaptive pooling's backward on CUDA is not.

The published code instead pools, multiplies with a stored basis of the grid's size, and sums.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .frequency import FREQUENCY_SETS, SPECTRUM, Frequency


def dct_basis(indices: Sequence[int], length: int, device: torch.device | None = None) -> Tensor:
    """Compute basis vectors of the orthonormal DCT-II.

    ``B(u, x) = sqrt((1 if u == 0 else 2) / L) cos(pi u (x + 1/2) / L)`` for the U frequencies u in ``indices`` and for x in 0..L-1, with L
    the ``length``: ``[U, L]``, float64.

    Example:
        >>> dct_basis([0], 4)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    u = torch.tensor(indices, dtype=torch.float64, device=device)[:, None]
    x = torch.arange(length, dtype=torch.float64, device=device)
    norm = ((2 - (u == 0).double()) / length).sqrt()
    return norm * torch.cos(math.pi / length * u * (x + 0.5))


def pooling_matrix(size: int, cells: int, device: torch.device | None = None, valid: Tensor | None = None) -> Tensor:
    """Write adaptive average pooling along one axis as a matrix.

    Cell i averages the entries from floor(i size / cells) up to, not including, ceil((i + 1) size / cells). ``size`` may be smaller than
    ``cells``, and it may be symbolic: the matrix compares two index ranges.

    Args:
        size, cells: the numbers of entries and of cells.
        valid: ``[N]``, integers from 1 to ``size``: in image n only the first ``valid[n]`` entries are pooled, as if there were no more.

    Returns:
        ``[cells, size]``, or ``[N, cells, size]`` with ``valid``; float64, rows summing to 1.

    Example:
        >>> pooling_matrix(3, 2)
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]], dtype=torch.float64)
        >>> pooling_matrix(3, 2, valid=torch.tensor([1]))
        tensor([[[1., 0., 0.],
                 [1., 0., 0.]]], dtype=torch.float64)
    """
    pooled = size if valid is None else valid[:, None, None]
    cell = torch.arange(cells, device=device)[:, None]
    entry = torch.arange(size, device=device)
    start = cell * pooled // cells
    end = ((cell + 1) * pooled + cells - 1) // cells
    return ((entry >= start) & (entry < end)).double() / (end - start)


def spectrum_scale(grid: tuple[int, int]) -> tuple[int, int]:
    """Compute the factors from indices of the 7x7 spectrum to the grid's own, along the height and the width."""
    height, width = (max(cells // SPECTRUM, 1) for cells in grid)
    return height, width


def show_grid(grid: tuple[int, int]) -> int | tuple[int, int]:
    """Write a grid as ``dct_size=`` takes it."""
    return grid[0] if grid[0] == grid[1] else grid


def grid_indices(frequencies: Sequence[Frequency], grid: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Scale frequencies to the spectrum of ``grid``: (u, v) times ``grid // 7``, as FcaNet does.

    A grid below 7 has no spectrum to scale to: there (u, v) are the grid's own indices.
    """
    scale_u, scale_v = spectrum_scale(grid)
    return [u * scale_u for u, _ in frequencies], [v * scale_v for _, v in frequencies]


def projection_maps(
    frequencies: Sequence[Frequency],
    grid: tuple[int, int],
    height: int,
    width: int,
    device: torch.device | None = None,
    valid: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Compute one map per frequency: its inner product with a channel is the DCT component of the channel pooled to ``grid``.

    Args:
        frequencies: (u, v) pairs.
        grid: its (height, width) in cells.
        height, width: of the feature map.
        valid: ``[N, 2]``, the height and width of each image's own part, at the top left: only this is pooled.
        dtype: of the maps. Their vectors along each axis are float64.

    Returns:
        ``[F, height, width]``, or ``[N, F, height, width]`` with ``valid``.

    Example:
        >>> projection_maps([Frequency(0, 0)], (7, 7), 2, 2)  # global average times sqrt(7 * 7)
        tensor([[[1.7500, 1.7500],
                 [1.7500, 1.7500]]], dtype=torch.float64)
    """
    u, v = grid_indices(frequencies, grid)
    heights, widths = (None, None) if valid is None else valid.unbind(1)
    rows = dct_basis(u, grid[0], device) @ pooling_matrix(height, grid[0], device, heights)
    columns = dct_basis(v, grid[1], device) @ pooling_matrix(width, grid[1], device, widths)
    return rows.to(dtype)[..., :, None] * columns.to(dtype)[..., None, :]


def full_basis(frequencies: Sequence[Frequency], grid: tuple[int, int], channels: int) -> Tensor:
    """Compute the DCT components of C channels in equal groups as published checkpoints store them: ``[C, h, w]``, float32.

    Example:
        >>> full_basis([Frequency(0, 0)], (2, 2), 1)
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    u, v = grid_indices(frequencies, grid)
    components = dct_basis(u, grid[0])[:, :, None] * dct_basis(v, grid[1])[:, None, :]
    return components.float().repeat_interleave(channels // len(frequencies), dim=0)


def describe_basis(weight: Tensor) -> str:
    """Describe a stored ``[C, h, w]`` tensor by the arguments that compute it, or by the ``basis`` that loads it.

    The DCT of each channel of a fixed basis has a single coefficient that is not 0; its indices are the frequency.

    Example:
        >>> describe_basis(full_basis(FREQUENCY_SETS['low4'], (14, 14), 64))
        "frequencies='low4', dct_size=14"
    """
    if weight.dim() != 3 or not weight.numel():
        return f'of shape {list(weight.shape)}, which no basis has'
    channels, height, width = weight.shape
    size = show_grid((height, width))
    spectra = dct_basis(range(height), height) @ weight.double().cpu() @ dct_basis(range(width), width).T
    indices = spectra.flatten(1).argmax(1).tolist()
    group = math.gcd(channels, *(channel for channel in range(1, channels) if indices[channel] != indices[channel - 1]))
    scale_u, scale_v = spectrum_scale((height, width))
    pairs = tuple(Frequency(index // width // scale_u, index % width // scale_v) for index in indices[::group])
    if not same_basis(weight, full_basis(pairs, (height, width), channels)):
        kind = 'random' if weight.min() >= 0 and weight.max() <= 1 else 'learned_dct'
        return f'a learned or random tensor (dct_size={size} with basis={kind!r}, or another learned or random basis, loads it)'
    name = next((name for name, frequencies in FREQUENCY_SETS.items() if frequencies == pairs), None)
    return f'frequencies={name or [tuple(pair) for pair in pairs]!r}, dct_size={size}'


def same_basis(stored: Tensor, computed: Tensor) -> bool:
    """Check whether a stored tensor is the computed one, up to the rounding of its dtype."""
    if stored.shape != computed.shape or not stored.is_floating_point():
        return False
    tolerance = max(1e-5, 2 * torch.finfo(stored.dtype).eps) * computed.abs().max()
    return bool((stored.cpu().float() - computed).abs().max() <= tolerance)

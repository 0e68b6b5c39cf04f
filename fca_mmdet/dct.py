"""The two-dimensional DCT of an adaptively pooled feature map as one linear map per frequency.

FcaNet (ICCV 2021, https://arxiv.org/abs/2012.11879, equations 3 to 6) squeezes a channel X of size H x W with a DCT component of
its pooled map. Adaptive average pooling to a grid of h x w cells is ``P_h X P_w^T`` and a component is ``a_u^T (.) b_v``, so

    freq = a_u^T (P_h X P_w^T) b_v = (P_h^T a_u)^T X (P_w^T b_v) = sum_ij map[i, j] X[i, j]

with a rank-1 map that depends on sizes only. Nothing is pooled, and the backward pass is a product with the same map: exact and
deterministic, where adaptive pooling's backward on CUDA is not.

Differs from the published code, which pools, multiplies with a stored basis of the grid's size and sums.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .frequency import SPECTRUM, Frequency

CACHED_MAPS = 64
"""Sizes whose projection maps are kept. A set takes F x H x W numbers, 4 MiB at the first stage of an 800 x 1344 image (13 in a search)."""


def dct_basis(indices: Sequence[int], length: int, device: torch.device | None = None) -> Tensor:
    """Basis vectors of the orthonormal DCT-II.

    ``B(u, x) = sqrt((1 if u == 0 else 2) / L) cos(pi u (x + 1/2) / L)`` for x in 0..L-1.

    Args:
        indices: the frequencies u.
        length: L, the number of samples.

    Returns:
        ``[len(indices), length]``, float64.

    Example:
        >>> dct_basis([0], 4)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    u = torch.tensor(indices, dtype=torch.float64, device=device)[:, None]
    x = torch.arange(length, dtype=torch.float64, device=device)
    norm = ((2 - (u == 0).double()) / length).sqrt()
    return norm * torch.cos(math.pi / length * u * (x + 0.5))


def pooling_matrix(size: int, cells: int, device: torch.device | None = None, valid: Tensor | None = None) -> Tensor:
    """Adaptive average pooling along one axis as a matrix.

    Cell i averages the entries from floor(i size / cells) up to, not including, ceil((i + 1) size / cells). ``size`` may be smaller
    than ``cells`` and may be symbolic: the matrix is a comparison of two index ranges.

    Args:
        size: the number of entries.
        cells: the number of cells.
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


def grid_indices(frequencies: Sequence[Frequency], grid: tuple[int, int]) -> tuple[list[int], list[int]]:
    """The frequencies' indices in the spectrum of ``grid``: (u, v) times ``grid // 7``, as FcaNet scales them.

    A grid below 7 has no spectrum to scale to: there (u, v) are the grid's own indices.
    """
    scale_u, scale_v = (max(cells // SPECTRUM, 1) for cells in grid)
    return [u * scale_u for u, _ in frequencies], [v * scale_v for _, v in frequencies]


def projection_maps(
    frequencies: Sequence[Frequency],
    grid: tuple[int, int],
    height: int,
    width: int,
    device: torch.device | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """One map per frequency: its inner product with a channel is the DCT component of that channel pooled to ``grid``.

    Args:
        frequencies: (u, v) pairs.
        grid: its (height, width) in cells.
        height, width: of the feature map.
        valid: ``[N, 2]``, the height and width of each image's own part, at the top left: the rest is left out of the pooling.

    Returns:
        ``[F, height, width]``, or ``[N, F, height, width]`` with ``valid``; float64.

    Example:
        >>> projection_maps([Frequency(0, 0)], (7, 7), 2, 2)  # global average times sqrt(7 * 7)
        tensor([[[1.7500, 1.7500],
                 [1.7500, 1.7500]]], dtype=torch.float64)
    """
    u, v = grid_indices(frequencies, grid)
    heights, widths = (None, None) if valid is None else valid.unbind(1)
    rows = dct_basis(u, grid[0], device) @ pooling_matrix(height, grid[0], device, heights)
    columns = dct_basis(v, grid[1], device) @ pooling_matrix(width, grid[1], device, widths)
    return rows[..., :, None] * columns[..., None, :]


class ValidPart:
    """The part at the top left of each feature map that is the image's own, not its batch's padding, and the maps that project it.

    The maps are made once for all the blocks that share the part.

    Args:
        sizes: ``[N, 2]``, integers: the height and width of each part, at least 1.

    Example:
        >>> part = ValidPart(torch.tensor([[2, 1]]))
        >>> part.projection_maps((Frequency(0, 0),), (7, 7), torch.rand(1, 8, 2, 2))
        tensor([[[[3.5000, 0.0000],
                  [3.5000, 0.0000]]]])
    """

    def __init__(self, sizes: Tensor):
        self.sizes = sizes
        self._maps: dict[tuple, Tensor] = {}

    def projection_maps(self, frequencies: tuple[Frequency, ...], grid: tuple[int, int], x: Tensor) -> Tensor:
        """``projection_maps`` for the size, dtype and device of ``x``, ``[N, F, H, W]``. Not to be written to.

        Raises:
            ValueError: the part was not made for as many images.
        """
        if x.shape[0] != self.sizes.shape[0]:
            raise ValueError(f'{len(self.sizes)} sizes of valid parts were given for {len(x)} images: give one (height, width) for each')
        height, width = x.shape[2:]
        key = (frequencies, grid, x.dtype)  # without the size, which is one for all feature maps of the part and may be symbolic
        if key not in self._maps:
            with torch.inference_mode(False), torch.no_grad():
                self._maps[key] = projection_maps(frequencies, grid, height, width, x.device, self.sizes).to(x.dtype)
        return self._maps[key]


@lru_cache(maxsize=CACHED_MAPS)
def cached_projection_maps(
    frequencies: tuple[Frequency, ...],
    grid: tuple[int, int],
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``projection_maps`` in ``dtype``, computed once per size and shared by every block that asks for it. Not to be written to."""
    # A map made in inference mode could not be used by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return projection_maps(frequencies, grid, height, width, device).to(dtype)


def _inner_products(x: Tensor, maps: Tensor) -> Tensor:
    """``project`` without a gradient."""
    vectors = maps.flatten(-2)[..., None, :]
    # A view in both memory formats: [N, F, H W, P]. The map on the left of the product is what runs at the speed of memory.
    channels = x.unflatten(1, (maps.shape[-3], -1)).flatten(3).transpose(2, 3)
    if len(x) == 1:
        return torch.bmm(vectors.view(-1, *vectors.shape[-2:]), channels[0]).view(1, -1)
    if x.is_cuda or not len(x):
        return torch.matmul(vectors, channels).flatten(1)
    return torch.stack([torch.bmm(one, image).flatten() for one, image in zip(vectors.expand(len(x), -1, -1, -1), channels, strict=True)])


class _Project(torch.autograd.Function):
    """``project`` with a backward that writes the gradient once, in the input's layout."""

    @staticmethod
    def forward(x: Tensor, maps: Tensor) -> Tensor:
        return _inner_products(x, maps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, maps = inputs
        ctx.save_for_backward(maps, x if ctx.needs_input_grad[1] else None)
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, x = ctx.saved_tensors
        grad = grad.unflatten(1, (maps.shape[-3], -1))
        to_x = to_maps = None
        if ctx.needs_input_grad[1]:
            pixels = grad[:, :, None] @ x.unflatten(1, grad.shape[1:]).flatten(3)  # [N, F, 1, H W]
            to_maps = pixels.squeeze(2).unflatten(-1, maps.shape[-2:]).sum_to_size(maps.shape)
        if ctx.needs_input_grad[0] and ctx.channels_last:
            pixels = maps.movedim(-3, -1).contiguous()[..., None] * grad[:, None, None]  # the product takes its layout from the maps
            to_x = pixels.flatten(3).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            to_x = (grad[..., None, None] * maps[..., None, :, :]).flatten(1, 2)
        return to_x, to_maps


def project(x: Tensor, maps: Tensor) -> Tensor:
    """Squeeze each channel with its group's map: ``freq[n, c] = sum_ij maps[f, i, j] x[n, c, i, j]`` with ``f = c // (C / F)``.

    Args:
        x: ``[N, C, H, W]``, contiguous or channels_last (other strides are copied).
        maps: ``[F, H, W]``, or ``[N, F, H, W]`` where each image has its own, in x's dtype; F divides C.

    Returns:
        ``[N, C]``.

    Example:
        >>> project(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3))
        tensor([[9., 9.]])
    """
    if torch.is_grad_enabled() and (x.requires_grad or maps.requires_grad):
        return _Project.apply(x, maps)
    return _inner_products(x, maps)

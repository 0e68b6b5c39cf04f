"""The squeeze as a product with projection maps: cached maps, the valid part of a padded batch, and the product itself.

A projection is one inner product per channel with a map of the channel's size (``dct.py`` derives the maps). The maps depend on sizes
alone. In eager mode they are cached; if sizes may be symbolic (compiling, exporting, tracing), they are part of the graph.

A map comes in the dtype of the feature map, as the sum of T terms (``in_terms``): one, or two in bfloat16.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from .dct import projection_maps
from .frequency import Frequency

CACHED_MAPS = 64
"""The number of sizes whose maps are cached. Each has F x H x W numbers, 4 MiB at stage 1 of an 800 x 1344 image (13 in a search)."""


def is_symbolic() -> bool:
    """Check whether sizes may be symbolic (compiling, exporting, tracing). Then no branch may depend on a size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class ValidPart:
    """The top left part of each image that is not padding, and the maps that project this part.

    All attentions that share the part share its maps.

    Args:
        sizes: ``[N, 2]``, integers: the height and width of each part, at least 1.

    Example:
        >>> part = ValidPart(torch.tensor([[2, 1]]))
        >>> part.maps((Frequency(0, 0),), (7, 7), torch.rand(1, 8, 2, 2))
        tensor([[[[[3.5000, 0.0000],
                   [3.5000, 0.0000]]]]])
    """

    def __init__(self, sizes: Tensor):
        self.sizes = sizes
        self._maps: dict[tuple, Tensor] = {}
        self._strided: dict[int, ValidPart] = {}

    def at(self, stride: int) -> 'ValidPart':
        """Scale the part to feature maps that are ``stride`` times smaller; round up, as each stride of a backbone does."""
        if stride not in self._strided:
            self._strided[stride] = ValidPart((self.sizes + stride - 1) // stride)
        return self._strided[stride]

    def maps(self, frequencies: tuple[Frequency, ...], grid: tuple[int, int], x: Tensor) -> Tensor:
        """Return the terms of ``projection_maps`` for the size, dtype and device of ``x``, ``[N, F, T, H, W]``. Read only."""
        if x.shape[0] != self.sizes.shape[0]:
            raise ValueError(f'got {len(self.sizes)} sizes of valid parts for {len(x)} images: give one (height, width) for each image')
        height, width = x.shape[2:]
        key = (frequencies, grid, x.dtype)  # not the size: it is the same for all feature maps of the part, and may be symbolic
        if key not in self._maps:
            with torch.inference_mode(False), torch.no_grad():
                self._maps[key] = in_terms(projection_maps(frequencies, grid, height, width, x.device, self.sizes), x.dtype)
        return self._maps[key]


class _Call(threading.local):
    """The state of the forward in this thread, since mmdet's modules pass on only tensors."""

    def __init__(self) -> None:
        self.valid: ValidPart | None = None


_call = _Call()


def current_valid_part() -> ValidPart | None:
    """Return the valid part of the images in this thread's forward; None means whole maps."""
    return _call.valid


@contextmanager
def within(valid: ValidPart | None) -> Iterator[None]:
    """Let attentions with a ``stride`` pool over this part of the images only, in this thread, within the context."""
    before, _call.valid = _call.valid, valid
    try:
        yield
    finally:
        _call.valid = before


def in_terms(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Write maps as sums of T terms in ``dtype``, ``[..., H, W]`` to ``[..., T, H, W]``.

    In bfloat16 there are two, the rounded map and what rounding left. A map has few distinct values, so their rounding errors would not
    average out: they would mix the mean of a channel into its other components.

    Example:
        >>> in_terms(torch.tensor([[1.005]]), torch.bfloat16).float().flatten()
        tensor([ 1.0078, -0.0028])
    """
    high = maps.to(dtype)
    return torch.stack([high, (maps - high).to(dtype)] if dtype == torch.bfloat16 else [high], -3)


@lru_cache(maxsize=CACHED_MAPS)
def cached_projection_maps(
    frequencies: tuple[Frequency, ...],
    grid: tuple[int, int],
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Compute the terms of ``projection_maps`` in ``dtype`` once per size; all attentions share them. Read only."""
    # A map made in inference mode could not be used by a later training step, nor one made under a mode such as FakeTensorMode.
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
        return in_terms(projection_maps(frequencies, grid, height, width, device), dtype)


def maps_for(frequencies: tuple[Frequency, ...], grid: tuple[int, int], x: Tensor, valid: ValidPart | None) -> Tensor:
    """Return the maps for the size, dtype and device of ``x``: ``[F, T, H, W]``, or ``[N, F, T, H, W]`` with ``valid``. Read only."""
    if valid is not None:
        return valid.maps(frequencies, grid, x)
    height, width = x.shape[2:]
    if is_symbolic() or isinstance(x, FakeTensor):
        # A graph computes them in each call, where whole maps in float64 cost time.
        return in_terms(projection_maps(frequencies, grid, height, width, x.device, dtype=_precise(x.dtype)), x.dtype)
    return cached_projection_maps(frequencies, grid, height, width, x.dtype, x.device)


def project(x: Tensor, maps: Tensor) -> Tensor:
    """Squeeze each channel with its group's map: ``freq[n, c] = sum_ij map_f[i, j] x[n, c, i, j]`` with ``f = c // (C / F)``.

    Args:
        x: ``[N, C, H, W]``, contiguous or channels_last (other strides are copied).
        maps: ``[F, T, H, W]``, or ``[N, F, T, H, W]`` where each image has its own, in x's dtype; F divides C.

    Returns:
        ``[N, C]``.

    Example:
        >>> project(torch.ones(1, 2, 3, 3), torch.ones(1, 1, 3, 3))
        tensor([[9., 9.]])
    """
    if is_symbolic():
        # A plain sum of products, which the compiler can arrange.
        products = x.unflatten(1, (maps.shape[-4], -1)) * (maps if maps.shape[-3] == 1 else maps.sum(-3, True, dtype=_precise(x.dtype)))
        return products.sum((3, 4)).flatten(1)
    if torch.is_grad_enabled() and (x.requires_grad or maps.requires_grad):
        return _Project.apply(x, maps)
    return _inner_products(x, maps)


def project_affine(z: Tensor, weight: Tensor, shift: Tensor, maps: Tensor) -> Tensor:
    """Compute ``project(y, maps)`` for ``y = weight z + shift`` without y: products over channels and over pixels commute.

    ``freq[n, c] = sum_p weight[c, p] <map_f, z[n, p]> + shift[c] sum(map_f)`` with f the group of c; z is ``[N, P, H, W]``,
    weight ``[C, P]``, shift ``[C]``, the result ``[N, C]``, in float32 at least. The maps are as in ``project``, in z's dtype.

    Example:
        >>> z, maps = torch.rand(1, 2, 3, 3), torch.rand(1, 1, 3, 3)
        >>> freq = project_affine(z, 5 * torch.eye(2), torch.ones(2), maps)
        >>> torch.allclose(freq, project(5 * z + 1, maps))
        True
    """
    groups, precise = maps.shape[-4:-2], _precise(z.dtype)
    terms = maps.flatten(-2).flatten(-3, -2)
    # Expanded by hand, since matmul would copy a channels_last z if the maps have a gradient.
    products = terms.expand(z.shape[0], -1, -1) @ z.flatten(2).transpose(1, 2)
    projected = products.unflatten(1, groups).sum(2, dtype=precise)  # [N, F, P]
    sums = terms.sum(-1, dtype=precise).unflatten(-1, groups).sum(-1, keepdim=True)
    freq = torch.einsum('fcp,nfp->nfc', weight.to(precise).unflatten(0, (groups[0], -1)), projected)
    return (freq + shift.to(precise).unflatten(0, (groups[0], -1)) * sums).flatten(1)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _inner_products(x: Tensor, maps: Tensor) -> Tensor:
    """Compute ``project`` without a gradient."""
    vectors = maps.flatten(-2)
    # [N, F, H W, P], a view in both memory formats. With the map on its left, the product runs at the speed of memory.
    channels = x.unflatten(1, (maps.shape[-4], -1)).flatten(3).transpose(2, 3)
    if len(x) == 1:
        products = torch.bmm(vectors.view(-1, *vectors.shape[-2:]), channels[0])[None]
    elif x.is_cuda or not len(x):
        products = torch.matmul(vectors, channels)
    else:
        products = torch.stack([torch.bmm(*pair) for pair in zip(vectors.expand(len(x), -1, -1, -1), channels, strict=True)])
    return products.sum(2, dtype=_precise(x.dtype)).to(x.dtype).flatten(1)


class _Project(torch.autograd.Function):
    """``project`` with a backward that writes the gradient once, in the input's layout."""

    @staticmethod
    def forward(x: Tensor, maps: Tensor) -> Tensor:
        return _inner_products(x, maps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, maps = inputs
        ctx.save_for_backward(maps, x if ctx.needs_input_grad[1] else None)
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, x = ctx.saved_tensors
        rounded = maps.select(-3, 0)  # the first term is the map in the gradient's dtype
        grad = grad.unflatten(1, (rounded.shape[-3], -1))
        to_x = to_maps = None
        if ctx.needs_input_grad[1]:
            pixels = grad[:, :, None] @ x.unflatten(1, grad.shape[1:]).flatten(3)  # [N, F, 1, H W], the same for each term
            to_maps = pixels.unflatten(-1, maps.shape[-2:]).sum_to_size(maps.narrow(-3, 0, 1).shape).expand_as(maps)
        if ctx.needs_input_grad[0] and ctx.channels_last:
            pixels = rounded.movedim(-3, -1).contiguous()[..., None] * grad[:, None, None]  # the product takes its layout from the maps
            to_x = pixels.flatten(3).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            to_x = (grad[..., None, None] * rounded[..., None, :, :]).flatten(1, 2)
        return to_x, to_maps

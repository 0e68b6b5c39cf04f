"""The squeeze as a product with projection maps: the maps that are kept, the valid part of a padded batch, and the product itself.

A projection is one inner product per channel with a map of the channel's size (``dct.py`` derives the maps). The maps depend on sizes
alone. In eager mode they are kept from one forward to the next; while sizes may be symbols (compiling, exporting, tracing) they are part
of the graph.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .dct import projection_maps
from .frequency import Frequency

CACHED_MAPS = 64
"""Sizes whose projection maps are kept. A set takes F x H x W numbers, 4 MiB at the first stage of an 800 x 1344 image (13 in a search)."""


def is_symbolic() -> bool:
    """Whether sizes may be symbols (compiling, exporting, tracing): then maps are part of the graph, and no branch asks for a size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class ValidPart:
    """The part at the top left of each image that is its own, not padding of the batch; and the maps that project this part.

    The maps are made once for all the attentions that share the part.

    Args:
        sizes: ``[N, 2]``, integers: the height and width of each part, at least 1.

    Example:
        >>> part = ValidPart(torch.tensor([[2, 1]]))
        >>> part.maps((Frequency(0, 0),), (7, 7), torch.rand(1, 8, 2, 2))
        tensor([[[[3.5000, 0.0000],
                  [3.5000, 0.0000]]]])
    """

    def __init__(self, sizes: Tensor):
        self.sizes = sizes
        self._maps: dict[tuple, Tensor] = {}
        self._strided: dict[int, ValidPart] = {}

    def at(self, stride: int) -> 'ValidPart':
        """The part of feature maps that are ``stride`` times smaller. Each of a backbone's strides rounds up, and so does their product."""
        if stride not in self._strided:
            self._strided[stride] = ValidPart((self.sizes + stride - 1) // stride)
        return self._strided[stride]

    def maps(self, frequencies: tuple[Frequency, ...], grid: tuple[int, int], x: Tensor) -> Tensor:
        """``projection_maps`` for the size, dtype and device of ``x``, ``[N, F, H, W]``. Read only."""
        if x.shape[0] != self.sizes.shape[0]:
            raise ValueError(f'{len(self.sizes)} sizes of valid parts were given for {len(x)} images: give one (height, width) for each')
        height, width = x.shape[2:]
        key = (frequencies, grid, x.dtype)  # without the size, which is one for all feature maps of the part and may be symbolic
        if key not in self._maps:
            with torch.inference_mode(False), torch.no_grad():
                self._maps[key] = projection_maps(frequencies, grid, height, width, x.device, self.sizes).to(x.dtype)
        return self._maps[key]


class _Call(threading.local):
    """What belongs to the forward that runs in a thread. Modules of mmdet hand on a tensor and nothing else."""

    def __init__(self) -> None:
        self.valid: ValidPart | None = None


_call = _Call()


def current_valid_part() -> ValidPart | None:
    """The valid part of the images in the forward that runs in this thread, if it is to be heeded."""
    return _call.valid


@contextmanager
def within(valid: ValidPart | None) -> Iterator[None]:
    """Let the attentions that know their ``stride`` pool over this part of the images alone, in this thread, until the context ends."""
    before, _call.valid = _call.valid, valid
    try:
        yield
    finally:
        _call.valid = before


@lru_cache(maxsize=CACHED_MAPS)
def cached_projection_maps(
    frequencies: tuple[Frequency, ...],
    grid: tuple[int, int],
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``projection_maps`` in ``dtype``, computed once per size and shared by every attention that asks for it. Read only."""
    # A map made in inference mode could not be used by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return projection_maps(frequencies, grid, height, width, device).to(dtype)


def maps_for(frequencies: tuple[Frequency, ...], grid: tuple[int, int], x: Tensor, valid: ValidPart | None) -> Tensor:
    """The maps for the size, dtype and device of ``x``: ``[F, H, W]``, or ``[N, F, H, W]`` with ``valid``. Read only."""
    if valid is not None:
        return valid.maps(frequencies, grid, x)
    height, width = x.shape[2:]
    if is_symbolic():
        return projection_maps(frequencies, grid, height, width, x.device).to(x.dtype)
    return cached_projection_maps(frequencies, grid, height, width, x.dtype, x.device)


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
    if is_symbolic():
        # A sum of products, which the compiler arranges as it likes.
        return (x.unflatten(1, (maps.shape[-3], -1)) * maps.unsqueeze(-3)).sum((3, 4)).flatten(1)
    if torch.is_grad_enabled() and (x.requires_grad or maps.requires_grad):
        return _Project.apply(x, maps)
    return _inner_products(x, maps)


def project_affine(z: Tensor, weight: Tensor, shift: Tensor, maps: Tensor) -> Tensor:
    """``project(y, maps)`` of ``y = weight z + shift`` without y, since a product over channels and one over pixels commute.

    ``freq[n, c] = sum_p weight[c, p] <maps_f, z[n, p]> + shift[c] sum(maps_f)`` with f the group of c.

    Args:
        z: ``[N, P, H, W]``.
        weight: ``[C, P]``.
        shift: ``[C]``.
        maps: as in ``project``, in z's dtype.

    Returns:
        ``[N, C]``.

    Example:
        >>> z, maps = torch.rand(1, 2, 3, 3), torch.rand(1, 3, 3)
        >>> freq = project_affine(z, 5 * torch.eye(2), torch.ones(2), maps)
        >>> torch.allclose(freq, project(5 * z + 1, maps))
        True
    """
    maps = maps.flatten(-2)
    # [N, F, P]; expanded by hand, since matmul would copy a channels_last z where the maps have a gradient.
    projected = maps.expand(z.shape[0], -1, -1) @ z.flatten(2).transpose(1, 2)
    groups = (maps.shape[-2], -1)
    freq = torch.einsum('fcp,nfp->nfc', weight.to(z.dtype).unflatten(0, groups), projected)
    return (freq + shift.to(z.dtype).unflatten(0, groups) * maps.sum(-1, keepdim=True)).flatten(1)


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
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, maps = inputs
        ctx.save_for_backward(maps, x if ctx.needs_input_grad[1] else None)
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
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

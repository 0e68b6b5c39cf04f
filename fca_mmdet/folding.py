"""The folded execution of a residual block: the same function, with fewer feature maps written, read and kept for backward.

With frozen statistics a normalisation is affine, so it folds into the convolution before it ("Tune-Mode ConvBN Blocks",
https://arxiv.org/abs/2305.11624). In a bottleneck, with z the input of conv3 and s, b the scale and shift of its normalisation,

    y = s W_3 z + b,    freq[c] = <map_f, y[c]> = s_c sum_p W_3[c, p] <map_f, z[p]> + b_c sum(map_f),

since a 1x1 convolution and a projection over pixels commute. So the gate g (FcaNet, ICCV 2021, equations 7 to 10) is known before
conv3 runs, and

    relu(x + g y) = relu(x + g b + (g s W_3) z)

is one matrix product per image that adds into the shortcut. The output of conv3, the normalised map and the scaled map are never made.

A block runs in the first of three ways that applies; all are exact:

1. *readable*: the modules' own forwards, if ``is_foldable`` says no.
2. *product*, the formula above: a bottleneck in eager mode whose z has at least ``PRODUCT_PIXELS`` pixels per channel. On smaller maps,
   scaling W_3 for every image costs more than it saves.
3. *gate*: y from a convolution, then one scale-and-add. A basic block needs this, since its 3x3 convolution does not commute with the
   projection, and a compiler fuses it better. The gate comes from y; in a compiled or exported bottleneck, from z.

An export can ask for the product form where a bottleneck sees one image (``product_for_one_image``).

This file knows no framework's blocks: a block passes its convolutions, each with the normalisation after it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks

from .attention import MultiSpectralAttention
from .projection import is_symbolic
from .squeeze import Projected

_GLOBAL_HOOKS = tuple(getattr(hooks, f'_global_{kind}_hooks') for kind in ('forward', 'forward_pre', 'backward', 'backward_pre'))

PRODUCT_PIXELS = 8
"""The product form runs from this H W / P on, with P the channels of conv3's input (``tools/benchmark.py forms`` measures it)."""

CONVOLVED_BYTES = 32 * 2**20
"""The largest contiguous map of a single image whose product runs as a convolution, as a channels_last map's always does.

On larger maps, oneDNN's copies into its own layout, which glibc maps anew each time, cost more than its kernel saves.
"""


def is_foldable(
    block: nn.Module,
    attention: nn.Module | None,
    normalised: Iterable[tuple[nn.Module, nn.Module | None]],
    convolution: type[nn.Conv2d] = nn.Conv2d,
    frozen: tuple[type[nn.Module], ...] = (),
) -> bool:
    """Check whether the folded run is exact. Ask at each forward, since all of this can change.

    It is if every normalisation is a batch normalisation with frozen statistics, or is fused into its convolution (mmcv's
    ``fuse_conv_bn``), every convolution is torch's own (no DCN), none of these has a forward of its own, the attention's basis is
    ``Projected``, and no hook watches a module inside the block.

    ``attention`` is the last module before the addition; ``normalised`` has each convolution, the shortcut's too, with its normalisation.
    A framework with a convolution of its own names it in ``convolution``; in ``frozen``, its normalisations whose statistics never change.
    """
    return (
        isinstance(attention, MultiSpectralAttention)
        and isinstance(attention.dct_layer, Projected)
        and all(is_plain(conv, convolution) and _is_affine(norm, frozen) for conv, norm in normalised)
        and not any(_GLOBAL_HOOKS)
        and not any(_is_watched(module) for module in block.modules() if module is not block)
    )


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Check whether a module is of a kind and has that kind's forward."""
    return isinstance(module, kind) and type(module).forward is kind.forward and 'forward' not in module.__dict__


def _is_affine(norm: Any, frozen: tuple[type[nn.Module], ...]) -> bool:
    # With a single process, mmengine turns SyncBatchNorm into a relative of BatchNorm2d.
    batch_norm = is_plain(norm, nn.modules.batchnorm._BatchNorm) or is_plain(norm, nn.SyncBatchNorm)
    still = batch_norm and not norm.training and norm.running_var is not None
    return still or is_plain(norm, nn.Identity) or any(is_plain(norm, kind) for kind in frozen)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def fold_normalisation(
    weight: Tensor, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float, scale: Tensor | None, offset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Write a convolution and the frozen normalisation after it as one convolution, W' and b'.

    ``offset + scale (W x + bias - mean) / sqrt(variance + eps) = W' x + b'`` with W ``[C, ...]`` and all others ``[C]``. ``bias`` is None
    for a convolution without bias, ``scale`` and ``offset`` for a normalisation without parameters.

    Example:
        >>> one = torch.ones(1)
        >>> fold_normalisation(one[None], None, mean=one, variance=4 * one, eps=0.0, scale=2 * one, offset=one)
        (tensor([[1.]]), tensor([0.]))
    """
    factor = torch.rsqrt(variance + eps)
    if scale is not None:
        factor = factor * scale
    shift = -mean if bias is None else bias - mean
    shift = shift * factor if offset is None else offset + shift * factor
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), shift


def fold_modules(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Call ``fold_normalisation`` for two modules; ``nn.Identity`` is a normalisation that is fused already."""
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias
    return fold_normalisation(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)  # type: ignore[arg-type]


def convolve(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Run a convolution and the frozen normalisation after it, as one step unless a copy of the weights is larger than a feature map."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    if isinstance(norm, nn.Identity) or (not is_symbolic() and pixels < conv.weight[0].numel()):
        return norm(conv._conv_forward(x, conv.weight, conv.bias))
    return conv._conv_forward(x, *fold_modules(conv, norm))


def add_attended(attention: MultiSpectralAttention, identity: Tensor, y: Tensor) -> Tensor:
    """End a block from y, its last normalised convolution: ``relu(identity + g y)``, with g the gate of y."""
    return scale_and_add(identity, y, attention.excite(attention.squeeze(y)))


def add_attended_product(
    attention: MultiSpectralAttention, identity: Tensor, z: Tensor, conv: nn.Conv2d, norm: nn.Module, owned: bool
) -> Tensor:
    """End a bottleneck: ``relu(identity + g y)``, with y the normalised 1x1 convolution of z and g the gate of y.

    ``identity`` is ``[N, C, H, W]``. ``owned``: nothing else uses it, so it may be overwritten.
    """
    if not is_symbolic() and z.shape[2] * z.shape[3] < PRODUCT_PIXELS * z.shape[1]:
        return add_attended(attention, identity, convolve(conv, norm, z))
    weight, shift = fold_modules(conv, norm)
    gate = attention.gate_of_affine(z, weight.flatten(1), shift)
    if is_symbolic() and _exported_product and isinstance(z.shape[0], int) and z.shape[0] == 1:
        return F.relu(identity + F.conv2d(z, gate[0, :, None, None, None] * weight, gate[0] * shift))
    if is_symbolic():
        return scale_and_add(identity, F.conv2d(z, weight, shift), gate)
    return add_product(identity, z, gate[:, :, None] * weight.flatten(1), gate * shift, owned)


_exported_product = False


@contextmanager
def product_for_one_image(wanted: bool) -> Iterator[None]:
    """Within the context, export a bottleneck in the product form where the batch is fixed at one, if ``wanted``."""
    global _exported_product
    before, _exported_product = _exported_product, wanted
    try:
        yield
    finally:
        _exported_product = before


def scale_and_add(identity: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Compute ``relu(identity + gate y)``, with ``identity`` and y ``[N, C, H, W]`` and the gate ``[N, C]``."""
    return F.relu_(torch.addcmul(identity.to(y.dtype), y, gate.to(y.dtype)[:, :, None, None]))


def add_product(identity: Tensor, z: Tensor, weight: Tensor, shift: Tensor, owned: bool) -> Tensor:
    """Compute ``relu(identity + shift + weight z)``, with ``weight`` ``[N, C, P]`` and ``shift`` ``[N, C]``.

    If nothing else uses ``identity`` (``owned``) and there is no gradient, it is overwritten, which saves a feature map.
    """
    identity, weight, shift = identity.to(z.dtype), weight.to(z.dtype), shift.to(z.dtype)
    owned = owned and not any(value.requires_grad for value in (identity, z, weight))
    channels_last = z.is_contiguous(memory_format=torch.channels_last)
    if len(z) == 1 and not owned and (channels_last or identity.nbytes <= CONVOLVED_BYTES):
        return F.relu_(F.conv2d(z, weight[0, :, :, None, None], shift[0]).add_(identity))
    # Pixels are flattened first, since autograd copies a tensor that is written to through a view.
    if channels_last:
        out, shift = identity.permute(0, 2, 3, 1).flatten(1, 2), shift[:, None]
        factors = z.permute(0, 2, 3, 1).flatten(1, 2), weight.transpose(1, 2)
    else:
        out, shift = identity.flatten(2), shift[:, :, None]
        factors = weight, z.flatten(2)
    out = out.add_(shift) if owned else out + shift
    F.relu_(out.baddbmm_(*factors))
    return out.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2) if channels_last else out.unflatten(2, z.shape[2:])

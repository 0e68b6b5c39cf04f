"""The folded execution of a residual block: the same function, with fewer feature maps written, read and kept for backward.

With frozen statistics a normalisation is affine, so it folds into the convolution before it ("Tune-Mode ConvBN Blocks",
https://arxiv.org/abs/2305.11624; mmengine's ``efficient_conv_bn_eval_forward``). In a bottleneck that leaves, with z the input of conv3
and s, b the scale and shift of its normalisation,

    y = s W_3 z + b,    freq[c] = <map_f, y[c]> = s_c sum_p W_3[c, p] <map_f, z[p]> + b_c sum(map_f),

since a 1x1 convolution and a projection over pixels commute. So the gate g (FcaNet, ICCV 2021, equations 7 to 10) is known before
conv3 runs, and

    relu(x + g y) = relu(x + g b + (g s W_3) z)

is one matrix product per image that adds into the shortcut: neither conv3's output, nor the normalised, nor the scaled map exists.

Three ways to run a block, all exact; the first that applies is taken:

1. *readable*: the modules' own forwards, where ``foldable`` says no.
2. *product*, the formula above: a bottleneck in eager mode whose z has at least ``PRODUCT_PIXELS`` pixels per channel. On smaller maps it
   costs more to scale W_3 for every image than a feature map costs.
3. *gate*: y from a convolution, then one scale-and-add. A basic block's 3x3 convolution does not commute with the projection, and a
   compiler fuses this form better. The gate comes from y, or, compiled, from z.
"""

from collections.abc import Iterator
from typing import cast

import torch
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmengine.model.efficient_conv_bn_eval import efficient_conv_bn_eval_forward
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from .attention import PROJECTED, MultiSpectralAttention, is_symbolic, without_autocast

PRODUCT_PIXELS = 8
"""H W / P from which on the product form runs, P the channels of conv3's input (``tools/benchmark.py forms`` measures it)."""

CONVOLVED_BYTES = 32 * 2**20
"""The largest contiguous map of one image whose product runs as a convolution with that image's weights, as channels_last maps always do.

On larger ones oneDNN's copies into its own layout, which glibc maps anew each time, cost more than its kernel gains on a matrix product.
"""


def foldable(block: BasicBlock | Bottleneck) -> bool:
    """Whether the folded execution computes what the block's modules would: asked at each forward, since all of this can change.

    Yes if every normalisation is a batch normalisation with frozen statistics, or is in the convolution for good (mmcv's ``fuse_conv_bn``),
    every convolution is torch's own (no DCN), the attention is the last plugin and projects (``PROJECTED``), and nothing watches a module
    that would be passed by: no hook, no forward of its own.
    """
    attention = block.att
    return (
        isinstance(attention, MultiSpectralAttention)
        and attention.basis in PROJECTED
        and getattr(block, 'after_conv3_plugin_names', ['att']) == ['att']
        and all(_is(conv, nn.Conv2d) and _is_affine(norm) for conv, norm in _normalised(block))
        and (not isinstance(block, Bottleneck) or (block.conv3.kernel_size, block.conv3.groups) == ((1, 1), 1))
        and _is(block.relu, nn.ReLU)
        and not _has_any_global_hook()
        and not any(_is_watched(module) for module in block.modules() if module is not block)
    )


def _normalised(block: BasicBlock | Bottleneck) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The block's convolutions, each with its normalisation."""
    yield block.conv1, block.norm1
    yield block.conv2, block.norm2
    if isinstance(block, Bottleneck):
        yield block.conv3, block.norm3
    if block.downsample is not None:
        known = isinstance(block.downsample, nn.Sequential) and len(block.downsample) >= 2
        yield (block.downsample[-2], block.downsample[-1]) if known else (block.downsample, block.downsample)


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(module, kind) and type(module).forward is kind.forward and 'forward' not in module.__dict__


def _is_affine(norm: nn.Module) -> bool:
    # mmengine makes of SyncBatchNorm, where there is one process, a relative of BatchNorm2d.
    batch_norm = _is(norm, nn.modules.batchnorm._BatchNorm) or _is(norm, nn.SyncBatchNorm)
    return _is(norm, nn.Identity) or (batch_norm and not norm.training and norm.running_var is not None)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def run_folded(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """The block's forward, folded. ``[N, C_in, H, W]`` to ``[N, C, H / stride, W / stride]``, in the memory format of the input.

    Example:
        >>> from fca_mmdet import FcaBottleneck
        >>> block, x = FcaBottleneck(64, 16, dct_size=7).eval(), torch.rand(1, 64, 9, 13)
        >>> folded, block.fold = run_folded(block, x), False
        >>> torch.allclose(folded, block(x), atol=1e-6)
        True
    """
    return _run_bottleneck(block, x) if isinstance(block, Bottleneck) else _run_basic_block(block, x)


def _run_basic_block(block: BasicBlock, x: Tensor) -> Tensor:
    z = F.relu_(_conv_norm(block.conv1, block.norm1, x))
    y = _conv_norm(block.conv2, block.norm2, z)
    return _scale_and_add(_shortcut(block, x), y, block.att.excite(block.att.squeeze(y)))


def _run_bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    z = F.relu_(_conv_norm(block.conv1, block.norm1, x))
    if block.with_plugins:
        z = block.forward_plugin(z, block.after_conv1_plugin_names)
    z = F.relu_(_conv_norm(block.conv2, block.norm2, z))
    if block.with_plugins:
        z = block.forward_plugin(z, block.after_conv2_plugin_names)
    if not is_symbolic() and z.shape[2] * z.shape[3] < PRODUCT_PIXELS * z.shape[1]:
        y = _conv_norm(block.conv3, block.norm3, z)
        return _scale_and_add(_shortcut(block, x), y, block.att.excite(block.att.squeeze(y)))
    weight, shift = _folded_weight(block.conv3, block.norm3)
    gate = gate_from_input(block.att, z, weight, shift)
    if is_symbolic():
        return _scale_and_add(_shortcut(block, x), F.conv2d(z, weight[:, :, None, None], shift), gate)
    return _add_product(_shortcut(block, x), z, gate[:, :, None] * weight, gate * shift, owned=block.downsample is not None)


def _conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.Identity, x: Tensor) -> Tensor:
    """A convolution and the frozen normalisation after it; as one, unless a copy of the weights is larger than a feature map."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    if isinstance(norm, nn.Identity) or (not is_symbolic() and pixels < conv.weight[0].numel()):
        return norm(conv(x))
    return efficient_conv_bn_eval_forward(norm, conv, x)


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    *pool, conv, norm = block.downsample  # ResNet-D averages before it
    for module in pool:
        x = module(x)
    return _conv_norm(conv, norm, x)


def _folded_weight(conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.Identity) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution and the frozen normalisation after it as one affine map: ``[C, P]`` and ``[C]``."""
    weight = conv.weight.flatten(1)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias
    if isinstance(norm, nn.Identity):
        return weight, bias
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    shift = (bias - mean) * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return weight * scale[:, None], shift


def gate_from_input(attention: MultiSpectralAttention, z: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """The gates of ``y = weight z + shift`` without y: ``[N, P, H, W]``, ``[C, P]`` and ``[C]`` to ``[N, C]``.

    ``freq[n, c] = sum_p weight[c, p] <map_f, z[n, p]> + shift[c] sum(map_f)`` with f the group of c.
    """
    with without_autocast(z.device.type):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        maps = attention.projection_maps(z).flatten(-2)
        # [N, F, P]; expanded by hand, since matmul would copy a channels_last z where the maps have a gradient.
        projected = maps.expand(z.shape[0], -1, -1) @ z.flatten(2).transpose(1, 2)
        groups, dtype = (maps.shape[-2], -1), z.dtype
        freq = torch.einsum('fcp,nfp->nfc', weight.to(dtype).unflatten(0, groups), projected)
        freq = freq + shift.to(dtype).unflatten(0, groups) * maps.sum(-1, keepdim=True)
        return attention.excite(freq.flatten(1))


def _scale_and_add(identity: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``relu(identity + gate y)``."""
    return F.relu_(torch.addcmul(identity.to(y.dtype), y, gate.to(y.dtype)[:, :, None, None]))


def _add_product(identity: Tensor, z: Tensor, weight: Tensor, shift: Tensor, owned: bool) -> Tensor:
    """``relu(identity + shift + weight z)``, with ``weight`` ``[N, C, P]`` and ``shift`` ``[N, C]``.

    Where nobody else holds ``identity`` (``owned``) and there is no gradient, it is written to, which saves a feature map.
    """
    identity, weight, shift = identity.to(z.dtype), weight.to(z.dtype), shift.to(z.dtype)
    owned = owned and not any(value.requires_grad for value in (identity, z, weight))
    channels_last = z.is_contiguous(memory_format=torch.channels_last)
    if len(z) == 1 and not owned and (channels_last or identity.nbytes <= CONVOLVED_BYTES):
        return F.relu_(F.conv2d(z, weight[0, :, :, None, None], shift[0]).add_(identity))
    # Pixels are flattened first, since autograd copies what is written to through a view.
    if channels_last:
        out, shift = identity.permute(0, 2, 3, 1).flatten(1, 2), shift[:, None]
        factors = z.permute(0, 2, 3, 1).flatten(1, 2), weight.transpose(1, 2)
    else:
        out, shift = identity.flatten(2), shift[:, :, None]
        factors = weight, z.flatten(2)
    out = out.add_(shift) if owned else out + shift
    F.relu_(out.baddbmm_(*factors))
    return out.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2) if channels_last else out.unflatten(2, z.shape[2:])

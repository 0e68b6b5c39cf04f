"""Padding: how it is found, and a backbone whose attentions ignore it."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import MEAN, SHAPES, STD, batch, frozen, largest_error, needs_a_later_compiler, padded_batch
from mmdet.models.data_preprocessors import DetDataPreprocessor

from fca_mmdet import FcaResNet, FcaResNetV1d, FcaResNeXt, MultiSpectralAttention
from fca_mmdet.padding import unpadded_sizes
from fca_mmdet.projection import current_valid_part


def test_unpadded_sizes_are_the_images_own():
    data = DetDataPreprocessor(mean=list(MEAN), std=list(STD), bgr_to_rgb=True, pad_size_divisor=32)(batch(*SHAPES))
    assert data['inputs'].shape[2:] == (128, 160)
    assert unpadded_sizes(data['inputs']).tolist() == [list(shape) for shape in SHAPES]
    assert unpadded_sizes(torch.zeros(1, 3, 4, 5)).tolist() == [[1, 1]]
    assert unpadded_sizes(torch.full((1, 3, 4, 5), float('nan'))).tolist() == [[4, 5]]


BACKBONES = {
    'FcaResNet-18': lambda **options: FcaResNet(18, base_channels=16, stem_channels=16, **options),
    'FcaResNet-50': lambda **options: FcaResNet(50, base_channels=16, stem_channels=16, **options),
    'dilated': lambda **options: FcaResNet(50, base_channels=16, stem_channels=16, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), **options),
    'FcaResNetV1d': lambda **options: FcaResNetV1d(depth=50, base_channels=16, stem_channels=16, **options),
    'FcaResNeXt': lambda **options: FcaResNeXt(depth=50, groups=4, base_width=16, **options),
}


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('name', BACKBONES)
@torch.no_grad()
def test_every_attention_sees_what_it_would_see_of_the_image_alone(name, fold):
    """The sizes at each stage are those of the features of the images alone, and the gates are those of the features cropped to them."""
    x = padded_batch()
    backbone = BACKBONES[name](ignore_padding=True, zero_init_residual=False)
    frozen(backbone)
    plain = copy.deepcopy(backbone)
    plain.ignore_padding = False
    sizes: dict[str, list] = {}
    watch = {
        name: module.register_forward_pre_hook(lambda module, inputs, name=name: sizes.setdefault(name, []).append(inputs[0].shape[2:]))
        for name, module in plain.named_modules()
        if isinstance(module, MultiSpectralAttention)
    }
    for n, (h, w) in enumerate(SHAPES):
        plain(x[n : n + 1, :, :h, :w])
    for handle in watch.values():
        handle.remove()
    assert len(sizes) == sum(plain.stage_blocks)

    for block in plain.modules():  # the readable path, each attention shown the crops
        if hasattr(block, 'fold'):
            block.fold = False
        if isinstance(block, MultiSpectralAttention):
            block.forward = crop_first(block, sizes[next(name for name, module in plain.named_modules() if module is block)])
    for block in backbone.modules():
        if hasattr(block, 'fold'):
            block.fold = fold
    for found, expected in zip(backbone(x), plain(x), strict=True):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    backbone.ignore_padding = False
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(backbone(x), plain(x), strict=True)) > 1e-3


def crop_first(attention, sizes):
    """The attention with gates computed from the crops of a batch, image by image."""

    def forward(x):
        crops = [x[n : n + 1, :, :h, :w].contiguous() for n, (h, w) in enumerate(sizes)]
        gates = torch.cat([attention.excite(attention.squeeze(crop)) for crop in crops])
        return x * gates[:, :, None, None]

    return forward


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('depth', [18, 50])
def test_a_checkpointed_block_is_recomputed_within_the_part_of_its_own_batch(depth, fold):
    """Two forwards, then one backward: the recomputation must not find the second batch's sizes."""
    x = padded_batch()
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = FcaResNet(depth, base_channels=16, stem_channels=16, ignore_padding=True, with_cp=with_cp, fold=fold, norm_eval=True)
        backbone.train()
        loss = sum(out.square().mean() for batch in (x, x.flip(0)[:, :, :64]) for out in backbone(batch))
        assert current_valid_part() is None
        loss.backward()
        gradients.append([parameter.grad for parameter in backbone.parameters() if parameter.grad is not None])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-5, atol=1e-6 * float(kept.abs().max()))


@torch.no_grad()
@needs_a_later_compiler
def test_ignoring_padding_compiles_and_exports():
    backbone = FcaResNet(
        50, base_channels=16, stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), ignore_padding=True
    )
    frozen(backbone)
    x = padded_batch()
    compiled = torch.compile(backbone, fullgraph=True, dynamic=True, backend='eager')
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(backbone, (x,), dynamic_shapes=free).module()
    for images in (x, x[:2, :, :70, :97]):
        for expected, *others in zip(backbone(images), compiled(images), exported(images), strict=True):
            for other in others:
                assert (other - expected).abs().max() < 1e-5 * expected.abs().max()


def read(images: torch.Tensor, backbone: torch.nn.Module) -> list[torch.Tensor]:
    """Features, and, where there is a gradient, that of the images."""
    images = images.clone().requires_grad_(torch.is_grad_enabled())
    features = list(backbone(images))
    if torch.is_grad_enabled():
        sum(feature.square().mean() for feature in features).backward()
        features.append(images.grad)
    return [feature.detach() for feature in features]


@pytest.mark.parametrize(
    'mode',
    [
        'folded',
        'readable',
        *(pytest.param(mode, marks=needs_a_later_compiler) for mode in ('compiled', 'exported')),
        'checkpointed',
        'checkpointed, readable',
    ],
)
def test_threads_that_share_a_backbone_do_not_share_its_images(mode):
    """Each thread has images that are padded otherwise, and gets what one thread gets."""
    torch.manual_seed(0)
    options = dict(base_channels=16, stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    options |= dict(zero_init_residual=False, ignore_padding=True, fold='readable' not in mode, with_cp='checkpointed' in mode)
    backbone = FcaResNet(50, **options)
    frozen(backbone).requires_grad_(False)
    batches = [padded_batch(SHAPES[n:] + SHAPES[:n], seed=n) for n in range(3)] + [padded_batch([(128, 160)] * 3, seed=3)]
    with torch.set_grad_enabled('checkpointed' in mode):
        expected = [read(images, backbone) for images in batches]
        if mode == 'compiled':
            run = torch.compile(backbone, fullgraph=True, dynamic=True, backend='eager')
        elif mode == 'exported':
            free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
            run = torch.export.export(backbone, (batches[0],), dynamic_shapes=free).module()
        else:
            run = backbone
    start = threading.Barrier(len(batches))

    def work(index: int) -> float:
        start.wait()
        with torch.set_grad_enabled('checkpointed' in mode):
            return max(largest_error(read(batches[index], run), expected[index]) for _ in range(10))

    with ThreadPoolExecutor(len(batches)) as pool:
        assert max(pool.map(work, range(len(batches)))) < 1e-5
    others = [read(batches[0][:, :, :64], backbone), read(batches[0].flip(0), backbone)]  # the comparison would see another part
    assert all(largest_error(other[:1], [expected[0][0][:, :, : other[0].shape[2]]]) > 1e-3 for other in others)

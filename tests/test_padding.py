import copy

import mmcv
import numpy as np
import oracle
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from test_resnet import frozen
from torch.nn import functional as F

from fca_mmdet import FcaResNet, FcaResNetV1d, FcaResNeXt, MultiSpectralAttention, OrientedDetDataPreprocessor
from fca_mmdet.dct import ValidPart
from fca_mmdet.padding import unpadded_sizes

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def images(*shapes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]


def batch(*shapes, masks=False):
    """A collated batch of random BGR images."""
    samples = []
    for h, w in shapes:
        sample = DetDataSample(metainfo=dict(img_shape=(h, w)))
        if masks:
            sample.gt_instances = InstanceData(masks=BitmapMasks(np.ones((2, h, w), np.uint8), h, w))
        samples.append(sample)
    return dict(inputs=[torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images(*shapes)], data_samples=samples)


def preprocessor(**options):
    return OrientedDetDataPreprocessor(
        **dict(canvas=(40, 70), mean=list(MEAN), std=list(STD), bgr_to_rgb=True, pad_size_divisor=1, pad_mask=True) | options
    )


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    ('shapes', 'canvas'),
    [
        ([(30, 60)], (40, 70)),
        ([(60, 30)], (70, 40)),
        ([(35, 35)], (40, 70)),
        ([(40, 70), (31, 70)], (40, 70)),
        ([(70, 40), (40, 70)], (70, 70)),
    ],
)
def test_every_image_is_normalised_and_then_padded_to_its_canvas(shapes, canvas, training):
    out = preprocessor()(batch(*shapes, masks=training), training)
    assert out['inputs'].shape == (len(shapes), 3, *canvas)
    for image, (h, w), got, sample in zip(images(*shapes), shapes, out['inputs'], out['data_samples'], strict=True):
        expected = mmcv.impad(mmcv.imnormalize(image, MEAN, STD, to_rgb=True), shape=canvas, pad_val=0)
        np.testing.assert_allclose(got.numpy(), expected.transpose(2, 0, 1), atol=1e-5)
        assert sample.batch_input_shape == canvas
        assert sample.pad_shape == ((40, 70) if w >= h else (70, 40))
        if training:
            assert sample.gt_instances.masks.masks.shape == (2, *canvas)
            assert sample.gt_instances.masks.masks.sum() == 2 * h * w


def test_an_image_beyond_the_canvas_keeps_its_size():
    out = preprocessor()(batch((50, 90)))
    assert out['inputs'].shape == (1, 3, 50, 90)
    assert out['data_samples'][0].pad_shape == (50, 90)


def test_a_canvas_that_is_none():
    with pytest.raises(ValueError, match=r'canvas=\(0, 5\) must be \(height, width\) in pixels, such as \(800, 1333\)'):
        OrientedDetDataPreprocessor(canvas=(0, 5))


SHAPES = [(97, 65), (64, 131), (33, 33)]


def test_unpadded_sizes_are_the_images_own():
    data = DetDataPreprocessor(mean=list(MEAN), std=list(STD), bgr_to_rgb=True, pad_size_divisor=32)(batch(*SHAPES))
    assert data['inputs'].shape[2:] == (128, 160)
    assert unpadded_sizes(data['inputs']).tolist() == [list(shape) for shape in SHAPES]
    assert unpadded_sizes(torch.zeros(1, 3, 4, 5)).tolist() == [[1, 1]]
    assert unpadded_sizes(torch.full((1, 3, 4, 5), float('nan'))).tolist() == [[4, 5]]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('basis', ['dct', 'learned_random'])
@pytest.mark.parametrize('pairs', [(16, 9), (1, 1), (5, 20)])
def test_the_attention_of_a_valid_part_is_that_of_the_part_alone(pairs, basis, memory_format):
    attention = MultiSpectralAttention(32, (14, 7), basis=basis).double()
    sizes = [(16, 20), pairs, (3, 7)]
    x = torch.randn(3, 32, 16, 20, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    alone = [x.detach()[n : n + 1, :, :h, :w].clone().requires_grad_() for n, (h, w) in enumerate(sizes)]
    with attention.within(ValidPart(torch.tensor(sizes))):
        freq, out = attention.squeeze(x), attention(x)
    freq.sum().backward()
    for n, (part, (h, w)) in enumerate(zip(alone, sizes, strict=True)):
        expected = attention.squeeze(part)
        expected.sum().backward()
        torch.testing.assert_close(freq[n], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(out[n, :, :h, :w], attention(part)[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(x.grad[n], F.pad(part.grad[0], (0, 20 - w, 0, 16 - h)), rtol=0, atol=1e-12)
    if basis == 'dct':
        slow = oracle.squeeze(alone[1].detach().numpy(), attention.frequencies, (14, 7))
        np.testing.assert_allclose(freq[1].detach().numpy(), slow[0], atol=1e-12)


def test_a_valid_part_of_another_batch_is_refused():
    attention = MultiSpectralAttention(16)
    with (
        attention.within(ValidPart(torch.tensor([[3, 4]]))),
        pytest.raises(ValueError, match=r'1 sizes of valid parts were given for 2 images: give one \(height, width\) for each'),
    ):
        attention(torch.rand(2, 16, 5, 5))
    assert attention.valid is None


BACKBONES = {
    'FcaResNet-18': lambda **options: FcaResNet(18, base_channels=16, stem_channels=16, **options),
    'FcaResNet-50': lambda **options: FcaResNet(50, base_channels=16, stem_channels=16, **options),
    'dilated': lambda **options: FcaResNet(50, base_channels=16, stem_channels=16, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), **options),
    'FcaResNetV1d': lambda **options: FcaResNetV1d(depth=50, base_channels=16, stem_channels=16, **options),
    'FcaResNeXt': lambda **options: FcaResNeXt(depth=50, groups=4, base_width=16, **options),
}


def padded_batch() -> torch.Tensor:
    """Three images of different sizes, padded with zeros to one."""
    torch.manual_seed(0)
    return torch.stack([F.pad(torch.randn(3, h, w), (0, 160 - w, 0, 128 - h)) for h, w in SHAPES])


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
        assert all(module.valid is None for module in backbone.modules() if isinstance(module, MultiSpectralAttention))
        loss.backward()
        gradients.append([parameter.grad for parameter in backbone.parameters() if parameter.grad is not None])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-5, atol=1e-6 * float(kept.abs().max()))


@torch.no_grad()
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

import mmcv
import numpy as np
import pytest
import torch
from helpers import MEAN, STD, batch, images
from mmdet.registry import MODELS
from mmengine.structures import PixelData

from fca_mmdet import CanvasDetDataPreprocessor, OrientedDetDataPreprocessor


def preprocessor(**options):
    return CanvasDetDataPreprocessor(
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


@pytest.mark.parametrize('training', [True, False])
def test_semantic_maps_are_padded_as_the_images_are(training):
    shapes = [(30, 60), (70, 40)]
    data = batch(*shapes)
    for sample, (h, w) in zip(data['data_samples'], shapes, strict=True):
        sample.gt_sem_seg = PixelData(sem_seg=torch.ones(1, h, w, dtype=torch.long))
    out = preprocessor(pad_mask=False, pad_seg=True)(data, training)
    assert out['inputs'].shape[2:] == (70, 70)
    for sample, (h, w) in zip(out['data_samples'], shapes, strict=True):
        expected = np.ones((1, h, w), int)
        if training:  # in test mmdet leaves them as they are
            expected = np.pad(expected, ((0, 0), (0, 70 - h), (0, 70 - w)), constant_values=255)
        np.testing.assert_array_equal(sample.gt_sem_seg.sem_seg.numpy(), expected)


def test_an_image_beyond_the_canvas_keeps_its_size():
    out = preprocessor()(batch((50, 90)))
    assert out['inputs'].shape == (1, 3, 50, 90)
    assert out['data_samples'][0].pad_shape == (50, 90)


def test_a_canvas_that_is_none():
    with pytest.raises(ValueError, match=r'canvas=\(0, 5\) must be \(height, width\) in pixels, such as \(800, 1333\)'):
        CanvasDetDataPreprocessor(canvas=(0, 5))


def test_its_former_name_is_registered():
    assert OrientedDetDataPreprocessor is CanvasDetDataPreprocessor
    assert type(MODELS.build(dict(type='OrientedDetDataPreprocessor'))) is CanvasDetDataPreprocessor

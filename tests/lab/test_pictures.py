"""Pictures of a detector, by what is in them; explanations against finite differences, and the command on a small detector."""

import copy
import sys
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, SMALL, TINY, load_command
from matplotlib import pyplot as plt
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from torch import nn

from fca_mmdet import FREQUENCY_SETS, Frequency, MultiSpectralAttention
from fca_mmdet.configs import read_config
from fca_mmdet.dct import dct_basis
from fca_mmdet.detector import build_detector, load_image
from fca_mmdet.lab.pictures import collect_gates, draw_bases, draw_gate_table, draw_gates, draw_predictions, explain, find_attentions

RED = (200, 40, 10)


class Images(list):
    """A data set: the items that a test pipeline gives, and the classes."""

    metainfo: ClassVar = dict(classes=('shape',), palette=[(0, 255, 0)])


class Oracle(nn.Module):
    """Detects a box from (40, 8) to (56, 24) in every image, with a score of 0.9, and another with 0.1."""

    def test_step(self, batch: dict) -> list[DetDataSample]:
        boxes = torch.tensor([[40.0, 8, 56, 24], [4, 8, 20, 24]])
        for sample in batch['data_samples']:
            sample.pred_instances = InstanceData(bboxes=boxes, labels=torch.zeros(2).long(), scores=torch.tensor([0.9, 0.1]))
        return batch['data_samples']


def item(path) -> dict:
    sample = DetDataSample(metainfo=dict(img_path=str(path), img_shape=(32, 64), ori_shape=(32, 64)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8, 24, 24]]), labels=torch.tensor([0]))
    return dict(inputs=torch.zeros(3, 32, 64, dtype=torch.uint8), data_samples=sample)


def write(folder, name: str, pixels: np.ndarray):
    assert cv2.imwrite(str(folder / name), pixels)
    return folder / name


def colour_at(out, axis: plt.Axes, x: float, y: float) -> np.ndarray:
    """The colour, 0 to 255, that a written picture has at a place of the data of one of its axes."""
    picture = plt.imread(out)[..., :3]
    across, up = axis.figure.transFigure.inverted().transform(axis.transData.transform((x, y)))
    return 255 * picture[int((1 - up) * picture.shape[0]), int(across * picture.shape[1])]


@pytest.mark.parametrize(
    ('name', 'pixels', 'colours'),
    [
        ('colour.png', np.full((32, 64, 3), RED[::-1], np.uint8), (RED, RED)),
        ('gray.png', np.repeat([[50] * 32 + [200] * 32], 32, 0).astype(np.uint8), ((50,) * 3, (200,) * 3)),
        ('16-bit.tif', np.repeat([[50 << 8] * 32 + [200 << 8] * 32], 32, 0).astype(np.uint16), ((50,) * 3, (200,) * 3)),
        ('16-bit-colour.tif', np.full((32, 64, 3), np.array(RED[::-1]) << 8, np.uint16), (RED, RED)),
        ('alpha.png', np.full((32, 64, 4), (*RED[::-1], 255), np.uint8), (RED, RED)),
    ],
)
def test_predictions_lie_on_the_image_as_the_detector_reads_it(name, pixels, colours, drawn, tmp_path):
    runner = SimpleNamespace(model=Oracle(), test_dataloader=SimpleNamespace(dataset=Images([item(write(tmp_path, name, pixels))])))
    draw_predictions(runner, tmp_path / 'predictions.png')
    axis, empty = drawn[0].axes
    assert axis.get_title() == f'{name}: ground truth | predictions >= 0.5'
    assert not axis.axison
    assert not empty.images
    shown = axis.images[0].get_array()
    assert shown.shape == (32, 128, 3)  # twice the image, side by side
    for side in (0, 64):  # away from the boxes
        for x, colour in ((2, colours[0]), (61, colours[1])):
            np.testing.assert_allclose(shown[29, side + x], colour, atol=3)
            np.testing.assert_allclose(colour_at(tmp_path / 'predictions.png', axis, side + x, 29), colour, atol=8)
    # The ground truth's box is drawn on the left, the prediction above the score on the right, the other one nowhere.
    plain = np.concatenate([np.full((32, 32, 3), colour) for colour in colours * 2], 1)
    marked = np.abs(shown.astype(int) - plain).max(2) > 40
    marked[:, [31, 32, 63, 64, 95, 96]] = False  # where colours meet, matplotlib mixes them
    assert marked[8:24, 8:10].all()
    assert marked[10:22, 64 + 55 : 64 + 57].any(1).all()
    assert not marked[26:].any()
    assert not marked[:, 64 : 64 + 30].any()


def test_images_are_spread_over_the_set(drawn, tmp_path):
    paths = [write(tmp_path, f'{index}.png', np.zeros((32, 64, 3), np.uint8)) for index in range(5)]
    runner = SimpleNamespace(model=Oracle(), test_dataloader=SimpleNamespace(dataset=Images(map(item, paths))))
    draw_predictions(runner, tmp_path / 'predictions.png', images=3, score=0.95)
    assert [axis.get_title().split(':')[0] for axis in drawn[0].axes] == ['0.png', '2.png', '4.png', '']


def test_bases_are_in_the_order_of_the_set(drawn, tmp_path):
    frequencies = FREQUENCY_SETS['top16']
    draw_bases(frequencies, tmp_path / 'bases.png', size=14)
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == [f'({u}, {v})' for u, v in frequencies]
    for axis, (u, v) in zip(axes, frequencies, strict=True):
        np.testing.assert_allclose(axis.images[0].get_array(), np.outer(dct_basis([u], 14), dct_basis([v], 14)))
    constant = 255 * np.array(plt.colormaps['RdBu_r'](0.75)[:3])  # of (0, 0), half of the largest value
    for x, y in ((3, 3), (10, 10)):
        np.testing.assert_allclose(colour_at(tmp_path / 'bases.png', axes[0], x, y), constant, atol=3)


def test_a_table_by_block_and_frequency(tmp_path):
    figure, axis = plt.subplots()
    rows = {'backbone.layer1.0.att': torch.tensor([0.25, 0.5]), 'backbone.layer2.0.att': torch.tensor([0.75, 1.0])}
    draw_gate_table(axis, 'mean gate', rows, (Frequency(0, 0), Frequency(6, 1)), vmin=0)
    assert [label.get_text() for label in axis.get_yticklabels()] == ['layer1.0', 'layer2.0']
    assert [label.get_text() for label in axis.get_xticklabels()] == ['0,0', '6,1']
    assert axis.get_title() == 'mean gate'
    assert axis.images[0].get_array().tolist() == [[0.25, 0.5], [0.75, 1.0]]
    assert axis.images[0].get_clim() == (0, 1)
    assert len(figure.axes) == 2  # with a colour bar
    plt.close(figure)


@pytest.fixture
def tiny() -> nn.Module:
    """The tiny detector."""
    torch.manual_seed(0)
    cfg = Config.fromfile(TINY)
    model = build_detector(cfg).eval()
    model.cfg = cfg
    return model


@pytest.mark.parametrize('gradients', [False, True])
def test_gates_are_what_scales_the_channels(tiny, tmp_path, gradients):
    batch = load_image(tiny, write(tmp_path, 'image.png', np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)))
    expected = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: expected.update({name: output / inputs[0]}))
        for name, module in find_attentions(tiny).items()
    ]
    with collect_gates(tiny) as gates, torch.set_grad_enabled(gradients):
        tiny.test_step(batch)
    for handle in handles:
        handle.remove()
    assert list(gates) == list(find_attentions(tiny))
    for name, gate in gates.items():
        assert gate.requires_grad == gradients
        scaled = expected[name]
        known = scaled.isfinite()
        torch.testing.assert_close(scaled[known], gate[:, :, None, None].expand_as(scaled)[known], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in tiny.modules())


def test_gates_of_an_image(tiny, drawn, tmp_path):
    pixels = np.full((64, 96, 3), RED[::-1], np.uint8)
    batch = load_image(tiny, write(tmp_path, 'image.png', pixels))
    dataset = Images([dict(inputs=batch['inputs'][0], data_samples=batch['data_samples'][0])])
    draw_gates(SimpleNamespace(model=tiny, test_dataloader=SimpleNamespace(dataset=dataset)), tmp_path / 'gates.png')
    image, mean, spread, *_ = drawn[0].axes
    assert image.get_title() == 'image.png'
    np.testing.assert_allclose(colour_at(tmp_path / 'gates.png', image, 48, 32), RED, atol=3)
    assert [axis.get_title() for axis in (mean, spread)] == ['mean gate', 'spread (std)']
    with collect_gates(tiny) as gates, torch.no_grad():
        tiny.test_step(batch)
    groups = [gate[0].unflatten(0, (16, -1)) for gate in gates.values()]
    np.testing.assert_allclose(mean.images[0].get_array(), torch.stack([group.mean(1) for group in groups]), rtol=1e-5)
    np.testing.assert_allclose(spread.images[0].get_array(), torch.stack([group.std(1, correction=0) for group in groups]), atol=1e-6)
    assert [label.get_text() for label in mean.get_yticklabels()][:2] == ['layer1.0', 'layer1.1']


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The small detector for three classes, with every score a prediction."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    heads = 'bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)'
    path.write_text(f'_base_ = {str(SMALL)!r}\nmodel = dict(roi_head=dict({heads}), test_cfg=dict(rcnn=dict(score_thr=0.0)))\n')
    return path


@pytest.fixture(scope='module')
def detector(config):
    """It with random weights."""
    torch.manual_seed(0)
    return build_detector(read_config(config)).eval()


@pytest.fixture
def batch():
    data = demo_mm_inputs(1, image_shapes=[(3, 96, 128)], num_classes=3)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return data


def test_the_part_of_a_gate_is_its_derivative(detector, batch, monkeypatch):
    """Against a finite difference with the proposals held: each block's most important group is closed a little."""
    data = detector.data_preprocessor(batch, False)
    with torch.no_grad():
        proposals = detector.rpn_head.predict(detector.extract_feat(data['inputs']), data['data_samples'], rescale=False)
    monkeypatch.setattr(detector.rpn_head, 'predict', lambda *_, **__: copy.deepcopy(proposals))
    sample, cam, means, parts = explain(detector, batch, top=1)
    assert cam.shape == (3, 4)
    assert list(means) == [name for name, module in detector.named_modules() if isinstance(module, MultiSpectralAttention)]
    assert all(0 < float(value) < 1 for mean in means.values() for value in mean)
    step = 1e-2
    for name, part in parts.items():
        group = int(part.abs().argmax())

        def close(module, inputs, output, group=group):
            scale = torch.ones_like(output).unflatten(1, (16, -1))
            scale[:, group] -= step
            return output * scale.flatten(1)

        handle = detector.get_submodule(name).fc.register_forward_hook(close)
        with torch.no_grad():
            (changed,) = detector.test_step(batch)
        handle.remove()
        lost = sample.pred_instances.scores.max() - changed.pred_instances.scores.max()
        assert float(lost) / step == pytest.approx(float(part[group]), rel=0.05), name


def test_explaining_leaves_no_hook(detector, batch):
    explain(detector, batch, top=3)
    assert not any(module._forward_hooks for module in detector.modules())


@pytest.fixture
def folder(config, detector, tmp_path, monkeypatch):
    """With weights, an image whose left half is red, and another file."""
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': detector.state_dict(), 'meta': {}}, 'weights.pth')
    pixels = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    pixels[:, :65] = 200, 0, 0
    Image.fromarray(pixels).save('image.png')
    (tmp_path / 'text.png').write_text('no image')
    return tmp_path


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['visualize.py', *map(str, arguments)])
    load_command('visualize').main()


def test_the_command(config, folder, monkeypatch, capsys, drawn):
    run(monkeypatch, config, 'weights.pth', 'image.png', '--out', 'sub/picture.png', '--score', 0.9, '--top', 3)
    assert 'frequencies that decide most: (' in capsys.readouterr().out
    predictions, cam, means, parts, *_ = drawn[0].axes
    titles = ['image.png: predictions >= 0.9', 'Grad-CAM of the 3 best scores', 'mean gate', 'part in the scores']
    assert [axis.get_title() for axis in (predictions, cam, means, parts)] == titles
    np.testing.assert_array_equal(predictions.images[0].get_array()[45, 20], (200, 0, 0))  # no random score is that high
    np.testing.assert_array_equal(cam.images[0].get_array()[45, 20], (200, 0, 0))
    assert cam.images[1].get_array().shape == (90, 130)
    assert means.images[0].get_array().shape == parts.images[0].get_array().shape == (8, 16)
    low, high = parts.images[0].get_clim()
    assert -low == high == np.abs(parts.images[0].get_array()).max() > 0
    picture = 255 * plt.imread('sub/picture.png')[..., :3]
    assert picture.shape[:2] == (1008, 1800)
    upper_left = picture[:500, :900].reshape(-1, 3)
    assert (np.abs(upper_left - (200, 0, 0)).max(1) < 5).mean() > 0.1


def test_mistakes(config, folder, monkeypatch):
    plain = ROOT / 'configs' / 'faster_rcnn' / 'faster-rcnn_r50_fpn_1x_coco.py'
    (folder / 'plain.py').write_text(f'_base_ = {str(config)!r}\nmodel = dict(backbone=dict(type="ResNet"))\n')
    for arguments, said in (
        ((config, 'weights.pth', 'none.png'), 'there is no none.png'),
        ((config, 'weights.pth', 'text.png'), 'text.png cannot be decoded'),
        (('none.py', 'weights.pth', 'image.png'), 'no config at none.py'),
        ((plain, 'none.pth', 'image.png'), 'there is no checkpoint none.pth'),
        (('plain.py', 'weights.pth', 'image.png'), 'the model of plain.py has no frequency channel attention'),
    ):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, *arguments, '--out', 'picture.png')
        assert end.value.code == f'visualize: {said}'
    assert not (folder / 'picture.png').exists()

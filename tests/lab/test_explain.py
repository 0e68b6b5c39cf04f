"""Explanations against finite differences, and the command on a small detector."""

import copy
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, SMALL, load_command
from matplotlib import pyplot as plt
from mmdet.testing import demo_mm_inputs
from PIL import Image

from fca_mmdet import MultiSpectralAttention
from fca_mmdet.configs import read_config
from fca_mmdet.detector import build_detector
from fca_mmdet.lab.explain import explain


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

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from visualize import explain

from fca_mmdet import MultiSpectralAttention

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools' / 'visualize.py'
CONFIG = ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    """The small detector for three classes, with every score a prediction."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    heads = 'bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)'
    path.write_text(f'_base_ = {str(CONFIG)!r}\nmodel = dict(roi_head=dict({heads}), test_cfg=dict(rcnn=dict(score_thr=0.0)))\n')
    return path


@pytest.fixture(scope='module')
def detector(config):
    """It with random weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    model.eval()
    return model


@pytest.fixture
def batch():
    from mmdet.testing import demo_mm_inputs

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


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_the_command(config, detector, tmp_path):
    torch.save({'state_dict': detector.state_dict(), 'meta': {}}, tmp_path / 'weights.pth')
    Image.fromarray((torch.rand(90, 130, 3) * 255).byte().numpy()).save(tmp_path / 'image.png')
    done = run(config, tmp_path / 'weights.pth', tmp_path / 'image.png', '--out', tmp_path / 'sub' / 'picture.png')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'frequencies that decide most: (' in done.stdout
    assert (tmp_path / 'sub' / 'picture.png').stat().st_size > 20_000
    assert 'there is no none.png' in run(config, tmp_path / 'weights.pth', 'none.png', '--out', tmp_path / 'p.png').stderr
    plain = ROOT / 'configs' / 'faster_rcnn' / 'faster-rcnn_r50_fpn_1x_coco.py'
    refused = run(plain, tmp_path / 'none.pth', tmp_path / 'image.png', '--out', tmp_path / 'p.png')
    assert 'there is no checkpoint' in refused.stderr

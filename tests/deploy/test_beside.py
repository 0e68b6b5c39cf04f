"""An exported backbone or detector beside those with ResNet and SE."""

import re

import pytest
import torch
from helpers import TINY, TOOLS, needs_a_later_compiler, run_python
from mmengine.config import Config
from PIL import Image

from fca_mmdet.deploy.beside import peers
from fca_mmdet.detector import build_detector
from fca_mmdet.errors import UserError


@needs_a_later_compiler
def test_beside_resnet_and_se(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(TINY)!r}\nmodel = dict(backbone=dict(depth=50), neck=dict(in_channels=[64, 128, 256, 512]))\n')
    options = ['--out', 'a.onnx', '--batch', 1, '--runtime', 'onnxruntime', '--beside', '--repeats', 1]
    said = run_python(TOOLS / 'export_onnx.py', config, *options, cwd=tmp_path)
    assert 'Einsum' in said  # the file has the attention
    assert re.findall(r'^ONNX Runtime: (ResNet|\+ SE|FCA) +\d+ ms  \d+\.\d\d$', said, re.MULTILINE) == ['ResNet', '+ SE', 'FCA']
    assert len(re.findall('difference', said)) == 5
    assert 'OpenVINO' not in said
    assert [path.name for path in tmp_path.glob('*.onnx')] == ['a.onnx']


@needs_a_later_compiler
@pytest.mark.slow
def test_a_detector_beside_resnets(tmp_path):
    torch.save(build_detector(Config.fromfile(TINY)).state_dict(), tmp_path / 'random.pth')
    (tmp_path / 'images').mkdir()
    Image.new('RGB', (96, 64)).save(tmp_path / 'images' / 'black.png')
    options = ['--out', 'a.onnx', '--images', 'images', '--runtime', 'onnxruntime', '--beside', '--repeats', 1]
    said = run_python(TOOLS / 'export_detector.py', TINY, 'random.pth', *options, cwd=tmp_path)
    assert re.findall(r'^ONNX Runtime: (ResNet|\+ SE|FCA) +\d+ ms  \d+\.\d\d$', said, re.MULTILINE) == ['ResNet', 'FCA']
    assert [path.name for path in tmp_path.glob('*.onnx')] == ['a.onnx']


def test_what_stands_beside():
    cfg = Config.fromfile(TINY)
    before = cfg.pretty_text
    assert {name: build_detector(other).backbone.__class__.__name__ for name, other in peers(cfg).items()} == {'ResNet': 'ResNet'}
    assert cfg.pretty_text == before
    cfg.model.backbone.update(depth=50, reduction=8)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    squeezed = build_detector(peers(cfg)['+ SE']).backbone.layer2[0]
    assert squeezed.after_conv3_plugin_names
    assert getattr(squeezed, squeezed.after_conv3_plugin_names[0]).conv1.conv.out_channels == squeezed.conv3.out_channels // 8
    cfg.model.backbone = dict(type='ResNet', depth=50)
    with pytest.raises(UserError, match='--beside compares an FCA backbone with ResNet and SE, and this config has ResNet'):
        peers(cfg)

import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TOOLS
from mmdet.models.backbones import ResNet
from torch import nn

from fca_mmdet import FcaResNet, MultiSpectralAttention
from fca_mmdet.configs import read_config
from fca_mmdet.lab.complexity import PUBLISHED, Cost, config_table, count, squeeze_excitation_resnet

IMAGE = (torch.rand(1, 3, 224, 224),)
ELEMENTS = {34: 3 * 64 * 56**2 + 4 * 128 * 28**2 + 6 * 256 * 14**2 + 3 * 512 * 7**2}
ELEMENTS[50] = 4 * ELEMENTS[34]
"""Of the feature maps that are squeezed: each costs FCA one multiplication more than a mean."""


@pytest.mark.parametrize('basis', ['dct', 'searched'])
def test_the_layer_is_counted_by_hand(basis):
    cost = count(MultiSpectralAttention(64, 7, basis=basis), (torch.rand(1, 64, 14, 14),))['']
    assert cost.parameters == 2 * 64 * 4 + (16 * 49 if basis == 'searched' else 0)
    assert cost.flops == 3 * 64 * 14**2 + 2 * 64 * 4  # project, sum, scale; two layers


@pytest.mark.parametrize('depth', [34, 50])
def test_extra_cost_against_se_is_the_published_one(depth):
    se, fca = count(squeeze_excitation_resnet(depth), IMAGE)[''], count(FcaResNet(depth), IMAGE)['']
    assert fca.parameters == se.parameters
    assert fca.flops - se.flops == ELEMENTS[depth]
    assert round(100 * (fca.flops / se.flops - 1), 2) == PUBLISHED[depth]


def test_a_plain_resnet_is_counted_as_published():
    cost = count(ResNet(50), IMAGE)['']
    assert cost.parameters == 25_557_032 - 2_049_000  # torchvision's ResNet-50 without its classifier
    assert cost.flops == pytest.approx(4.09e9, rel=0.01)


def test_a_sum_that_ends_in_a_scalar_is_left_out():
    class Level(nn.Module):
        def forward(self, x):
            return x.sum((2, 3)) + x.sum() * 0  # as mmdet's RoI extractors with a level that has no proposals

    assert count(Level(), (torch.rand(1, 64, 14, 14),))[''].flops == 64 * 14**2 + 1


def test_a_part_counts_as_it_does_alone():
    attention, x = MultiSpectralAttention(64, 7), torch.rand(1, 64, 14, 14)
    parts = count(nn.Sequential(nn.Conv2d(64, 64, 1), attention), (x,))
    assert parts['1'] == count(attention, (x,))['']
    assert parts[''] == Cost(parts['0'].parameters + parts['1'].parameters, parts['0'].flops + parts['1'].flops)
    assert str(parts['1']) == '0.001 M, 0.000 G'


def test_counting_leaves_the_model_as_it_was():
    model = FcaResNet(18).train() or FcaResNet(18)
    before = {name: (type(module), module.training) for name, module in model.named_modules()}
    count(model, (torch.rand(1, 3, 32, 32),))
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == before
    assert model.layer1[0].fold
    model.layer4[0].conv1 = nn.Linear(3, 3)
    before['layer4.0.conv1'] = (nn.Linear, True)
    with pytest.raises(RuntimeError):
        count(model, (torch.rand(1, 3, 32, 32),))
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == before


def test_a_model_of_several_configs_is_counted_once(monkeypatch, capsys):
    from fca_mmdet.lab import complexity

    counted = []
    monkeypatch.setattr(complexity, 'count_config', lambda cfg: counted.append(cfg.model.backbone.depth) or 'costs')
    paths = sorted((ROOT / 'configs' / 'faster_rcnn').glob('faster-rcnn_fca-r*_fpn_[12]x_coco.py'))
    table = config_table({path: read_config(path) for path in paths})
    assert sorted(counted) == [50, 101]
    assert table.splitlines()[2:] == [f'| {path.stem} | costs |' for path in paths]
    assert capsys.readouterr().out == f'{table}\n'


def test_a_config_and_a_path_that_is_none(tmp_path):
    tool, config = TOOLS / 'complexity.py', ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'
    done = subprocess.run(
        [sys.executable, tool, config, '--out', tmp_path / 'out' / 'table.md'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (row,) = re.findall(r'^\| mask-rcnn_fca-r18_fpn_small-heads .*$', done.stdout, re.MULTILINE)
    page = (tmp_path / 'out' / 'table.md').read_text()
    published = (ROOT / 'docs' / 'complexity.md').read_text()
    assert row in published
    comparison = published[published.index('## Against SE') : published.index('\n## Configs')]
    assert comparison in page
    (tmp_path / 'empty').mkdir()
    for wrong in ('none.py', 'empty'):
        refused = subprocess.run([sys.executable, tool, wrong], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert refused.returncode == 1
        assert refused.stderr.strip().endswith(f'complexity: no config at {wrong}')

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from complexity import PUBLISHED, count, squeeze_excitation_resnet
from mmdet.models.backbones import ResNet
from torch import nn

from fca_mmdet import FcaResNet, MultiSpectralAttention

ROOT = Path(__file__).resolve().parents[1]
IMAGE = (torch.rand(1, 3, 224, 224),)
ELEMENTS = {34: 3 * 64 * 56**2 + 4 * 128 * 28**2 + 6 * 256 * 14**2 + 3 * 512 * 7**2}
ELEMENTS[50] = 4 * ELEMENTS[34]
"""Of the feature maps that are squeezed: each costs FCA one multiplication more than a mean."""


def test_the_layer_is_counted_by_hand():
    cost = count(MultiSpectralAttention(64, 7), (torch.rand(1, 64, 14, 14),))
    assert cost.parameters == 2 * 64 * 4
    assert cost.flops == 3 * 64 * 14**2 + 2 * 64 * 4  # project, sum, scale; two layers


@pytest.mark.parametrize('depth', [34, 50])
def test_extra_cost_against_se_is_the_published_one(depth):
    se, fca = count(squeeze_excitation_resnet(depth), IMAGE), count(FcaResNet(depth), IMAGE)
    assert fca.parameters == se.parameters
    assert fca.flops - se.flops == ELEMENTS[depth]
    assert round(100 * (fca.flops / se.flops - 1), 2) == PUBLISHED[depth]


def test_a_plain_resnet_is_counted_as_published():
    cost = count(ResNet(50), IMAGE)
    assert cost.parameters == 25_557_032 - 2_049_000  # torchvision's ResNet-50 without its classifier
    assert cost.flops == pytest.approx(4.09e9, rel=0.01)


def test_counting_leaves_the_attention_as_it_was():
    maps = MultiSpectralAttention.projection_maps
    with pytest.raises(RuntimeError):
        count(nn.Linear(3, 3), (torch.rand(2, 4),))
    assert MultiSpectralAttention.projection_maps is maps


def test_a_config_and_a_path_that_is_none(tmp_path):
    tool, config = ROOT / 'tools' / 'complexity.py', ROOT / 'configs' / 'small'
    done = subprocess.run(
        [sys.executable, tool, config, '--out', tmp_path / 'out' / 'table.md'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r'\| mask-rcnn_fca-r18_fpn_small-heads \| \d\.\d+ M, \d+\.\d+ G \| \d\.\d+ M, ', done.stdout)
    assert '| 152 | ' in (tmp_path / 'out' / 'table.md').read_text()
    wrong = subprocess.run([sys.executable, tool, tmp_path / 'none.py'], capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2
    assert 'no config at ' in wrong.stderr

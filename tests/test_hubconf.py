"""torch.hub's entry points, loaded from the checkout as torch.hub loads them; ``test_elsewhere.py`` runs the documented example."""

import json
import os
import runpy
import sys

import pytest
import torch
from helpers import PUBLISHED, ROOT, TORCHVISION, needs_torchvision, run_python
from test_core import REFUSE

FOLDER = str(ROOT)


def test_the_entry_points():
    names = runpy.run_path(ROOT / 'hubconf.py')
    assert [name for name, value in names.items() if callable(value) and name[0] != '_'] == ['MultiSpectralAttention', 'fca_resnet']


def test_the_attention_needs_torch_alone(tmp_path):
    load = f"""
attention = torch.hub.load({FOLDER!r}, 'MultiSpectralAttention', 64, dct_size=14, frequencies='low4', source='local')
print(attention(torch.rand(2, 64, 9, 13)).shape, attention.grid, len(attention.frequencies))
"""
    assert run_python('-c', REFUSE + load, cwd=tmp_path).splitlines()[-1] == 'torch.Size([2, 64, 9, 13]) (14, 14) 4'


def test_the_backbone_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    with pytest.raises(ModuleNotFoundError, match='torchvision'):
        torch.hub.load(FOLDER, 'fca_resnet', source='local')


BUILD = f"""
import json, torch

def load(*args, **options):
    with torch.device('meta'):
        return torch.hub.load({FOLDER!r}, 'fca_resnet', *args, source='local', **options)

shapes = {{depth: {{name: list(value.shape) for name, value in load(depth).state_dict().items()}} for depth in (34, 50, 101, 152)}}
shallow = load(18, frequencies='low2', reduction=8)
assert {{module.extra_repr() for module in shallow.modules() if type(module).__name__ == 'MultiSpectralAttention'}} == {{
    f'in_channels={{channels}}, grid=({{grid}}, {{grid}}), frequencies=2, basis=dct'
    for channels, grid in ((64, 56), (128, 28), (256, 14), (512, 7))
}}
assert shallow.layer1[0].att.reduction == 8
try:
    load(20)
except ValueError as error:
    assert str(error) == 'there is no fca_resnet of depth 20: use one of 18, 34, 50, 101, 152'
else:
    raise AssertionError('depth 20 is taken')
torch.save({{'fc.weight': torch.zeros(3)}}, 'other.pth')
try:
    load(18, weights='file://' + __import__('os').path.abspath('other.pth'))
except RuntimeError as error:
    assert 'Missing key(s)' in str(error)
else:
    raise AssertionError('weights of another model are taken')
print(json.dumps(shapes))
"""


@needs_torchvision
def test_the_backbones_have_the_names_of_the_published_weights(tmp_path):
    path = os.pathsep.join(map(str, TORCHVISION))
    built = json.loads(run_python('-c', BUILD, cwd=tmp_path, PYTHONPATH=path, TORCH_HOME=str(tmp_path)).splitlines()[-1])
    for depth, shapes in built.items():
        expected = {name: shape for name, shape in PUBLISHED[depth].items() if not name.startswith('fc.') and 'dct_layer' not in name}
        assert shapes == expected

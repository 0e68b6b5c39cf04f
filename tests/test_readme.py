"""README's examples, run as they stand."""

import re

import pytest
import torch
from helpers import ROOT, published_classifier, run_python
from mmengine.config import Config

README = (ROOT / 'README.md').read_text()
CONFIG, CHECK, LAYER = re.findall(r'^```python\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)


def test_the_lines_are_a_config(tmp_path):
    (tmp_path / 'mine.py').write_text(CONFIG)
    backbone = Config.fromfile(tmp_path / 'mine.py').model.backbone
    assert (backbone.type, backbone.depth, backbone.init_cfg.checkpoint) == ('FcaResNet', 50, 'fca50.pth')


def test_the_check_in_a_minute(tmp_path):
    torch.save(published_classifier('50'), tmp_path / 'fca50.pth')
    (tmp_path / 'check.py').write_text(CHECK)
    said = run_python('check.py', cwd=tmp_path)
    (printed,) = re.findall(r'It prints `(.*?)`', README)
    assert printed in said.splitlines()
    assert 'Loads checkpoint by local backend from path: fca50.pth' in said
    assert re.search(r'unexpected key in source state_dict: fc\.weight, fc\.bias\n', said)
    assert 'missing keys' not in said


def test_the_layer_alone(tmp_path):
    (tmp_path / 'layer.py').write_text(
        f'import fca_mmdet, torch\n{LAYER.replace("attention(torch", "print(attention(torch").replace(".shape", ".shape)")}'
    )
    shape = re.search(r'# \[(.*)\]', LAYER)[1]
    assert f'torch.Size([{shape}])' in run_python('layer.py', cwd=tmp_path)


@pytest.mark.parametrize('path', sorted(set(re.findall(r'\]\(([^)#]+)\)', README))))
def test_a_link_leads_somewhere(path):
    assert '://' in path or (ROOT / path).exists()

"""README's examples, run as they stand; the Chinese README against the English one."""

import re

import pytest
import torch
from helpers import ROOT, published_classifier, run_python
from mmengine.config import Config

README, CHINESE = ((ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'README.zh-CN.md'))
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


def commands(text: str) -> list[str]:
    """Code without its comments, which are translated."""
    blocks = re.findall(r'^```(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return [re.sub(r' *#.*', '', block) for block in blocks]


def prose(text: str) -> str:
    """Everything but code blocks."""
    return re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    'find',
    [
        pytest.param(commands, id='commands'),
        pytest.param(lambda text: re.findall(r'^#+ ', prose(text), re.MULTILINE), id='headings'),
        pytest.param(lambda text: re.findall(r'`[^`]+`', prose(text).replace('\n', ' ')), id='names'),
        pytest.param(lambda text: re.findall(r'\]\(([^)]+)\)', text), id='links'),
        pytest.param(lambda text: [re.findall(r'\d[\d.]*', row) for row in text.splitlines() if row.startswith('|')], id='tables'),
        pytest.param(lambda text: re.findall(r'\d+(?:\.\d+)?', re.sub(r'`[^`]+`', '', prose(text))), id='figures'),
    ],
)
def test_the_chinese_readme_says_the_same(find):
    """In any order, since a sentence has another one in Chinese."""
    english, chinese = find(README.replace('.zh-CN', '')), find(CHINESE)  # each links to the other
    assert english
    assert sorted(map(str, chinese)) == sorted(map(str, english))

"""The examples of docs/elsewhere.md, run as they stand, and what each must have built."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from helpers import TORCHVISION, needs_torchvision
from torch.nn.functional import cross_entropy

from fca_mmdet import FREQUENCY_SETS, MultiSpectralAttention

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'elsewhere.md'
SECTIONS = {section.splitlines()[0]: section for section in PAGE.read_text().split('\n## ')[1:]}


def example(heading: str) -> str:
    """The one block of Python under a heading of the page."""
    (block,) = re.findall(r'^```python\n(.*?)^```$', SECTIONS[heading], re.MULTILINE | re.DOTALL)
    return block


def run(code: str, cwd: Path, *path: Path) -> str:
    """Run code in a process of its own: other packages change the registries and the default scope. What it printed last."""
    (cwd / 'example.py').write_text(code)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*path, ROOT]))}
    result = subprocess.run([sys.executable, 'example.py'], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def test_every_section_has_a_test():
    assert list(SECTIONS) == ['A torch model', 'A classifier of mmpretrain', 'A segmentor of mmsegmentation']


def test_a_torch_model():
    torch.manual_seed(0)
    names: dict = {'__name__': 'example'}
    exec(compile(example('A torch model'), str(PAGE), 'exec'), names)
    model, images, labels = names['model'], names['images'], names['labels']
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        assert parameter in names['optimizer'].state, name  # a momentum: the step was taken
    for _ in range(20):
        names['optimizer'].zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        names['optimizer'].step()
    assert loss < names['loss'] / 2

    calls = []
    model.double().eval()
    attentions = [module for module in model.modules() if isinstance(module, MultiSpectralAttention)]
    for attention in attentions:
        attention.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0], output)))
    with torch.no_grad():
        model(images[:1].double())
    assert [module for module, _, _ in calls] == attentions
    for (module, x, out), grid in zip(calls, (28, 14), strict=True):
        reduce, expand = (module.fc[layer].weight.detach().numpy() for layer in (0, 2))
        frequencies = oracle.squeeze(x.numpy(), FREQUENCY_SETS['top16'], (grid, grid))
        np.testing.assert_allclose(module.squeeze(x), frequencies, rtol=1e-9, atol=1e-9 * np.abs(frequencies).max())
        expected = oracle.attention(x.numpy(), FREQUENCY_SETS['top16'], (grid, grid), reduce, expand)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        gates = (out / x).nanmedian(3).values.nanmedian(2).values
        assert gates.max() - gates.min() > 0.1


# After an example with a backbone: the backbone that is to be compared, and what computes its features otherwise.
BACKBONE = """
from fca_mmdet import FcaBottleneck, FcaResNet, stage_plugins

def check_backbone(backbone, other, images, optimizer):
    \"\"\"Every block has the attention with its stage's grid, all of it is trained, and the other's own code gives the same features.\"\"\"
    assert isinstance(backbone, FcaResNet)
    stages = [getattr(backbone, layer) for layer in backbone.res_layers]
    assert all(isinstance(block, FcaBottleneck) for stage in stages for block in stage)
    assert [[block.att.grid for block in stage] for stage in stages] == [[(g, g)] * n for g, n in zip((56, 28, 14, 7), (3, 4, 6, 3))]
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.isfinite().all() and parameter in optimizer.state, name
        assert 'att' not in name or parameter.grad.abs().sum() > 0, name
    assert any(buffer.sum() for name, buffer in backbone.named_buffers() if name.endswith('running_mean'))  # the statistics learn
    other.load_state_dict(backbone.state_dict())
    backbone.eval(), other.eval()
    with torch.no_grad():
        features, expected = backbone(images), other(images)
    assert len(features) == len(expected)
    for ours, theirs in zip(features, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return features
"""

CLASSIFIER = """
from mmdet.models.backbones import ResNet
assert loss.isfinite()
assert MODELS.build(dict(type='fca_mmdet.FcaResNet', depth=18)).__class__ is FcaResNet
(features,) = check_backbone(classifier.backbone, ResNet(50, out_indices=(3,), plugins=stage_plugins()), images, optimizer)
logits = features.mean((2, 3)) @ classifier.head.fc.weight.T + classifier.head.fc.bias
torch.testing.assert_close(torch.stack(scores), logits.softmax(1), rtol=1e-4, atol=1e-5)
print(list(features.shape))
"""


@needs_torchvision
def test_a_classifier_of_mmpretrain(tmp_path):
    code = example('A classifier of mmpretrain') + BACKBONE + CLASSIFIER
    assert run(code, tmp_path, *TORCHVISION) == '[2, 2048, 2, 3]'


SEGMENTOR = """
from mmseg.models.backbones import ResNet, ResNetV1c
assert loss.isfinite()
assert [prediction.pred_sem_seg.data.shape for prediction in predictions] == [(1, 64, 96)] * 2
assert predictions[0].seg_logits.data.shape == (19, 64, 96)
dilated = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
images = torch.rand(2, 3, 64, 96)
features = check_backbone(segmentor.backbone, ResNet(50, **dilated, plugins=stage_plugins()), images, optimizer)

try:
    FcaResNet(50, contract_dilation=True)
except TypeError as error:
    assert 'contract_dilation' in str(error)
else:
    raise AssertionError('contract_dilation is taken: the page says it is not')

v1c = Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs/_base_/models/fcn_r50-d8.py').model.backbone
assert (v1c.type, v1c.contract_dilation) == ('ResNetV1c', True)
own = MODELS.build({**v1c, 'plugins': stage_plugins()})
assert isinstance(own, ResNetV1c) and own.layer3[5].att.grid == (14, 14)
ours = FcaResNet(50, deep_stem=True, **dilated)
own.load_state_dict(ours.state_dict())
ours.eval(), own.eval()
with torch.no_grad():
    differ = [not torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours(images), own(images))]
assert differ == [False, False, True, True]  # theirs contracts the dilation

Path('mine.py').write_text(f'''
_base_ = {str(Path(mmseg.__file__).parent / '.mim/configs/_base_/models/fcn_r50-d8.py')!r}
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)
model = dict(pretrained=None, data_preprocessor=dict(size=(64, 96)), backbone=dict(_delete_=True, **{dict(config.model.backbone)}))
''')
assert Config.fromfile('mine.py').model == config.model
print([list(feature.shape) for feature in features])
"""


def test_a_segmentor_of_mmsegmentation(tmp_path):
    pytest.importorskip('mmseg', reason='mmsegmentation is not installed: docs/elsewhere.md says how')
    code = example('A segmentor of mmsegmentation') + BACKBONE + SEGMENTOR
    assert run(code, tmp_path) == '[[2, 256, 16, 24], [2, 512, 8, 12], [2, 1024, 8, 12], [2, 2048, 8, 12]]'

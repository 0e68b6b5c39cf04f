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
from helpers import TORCHVISION, frozen, needs_torchvision, pretrained, published_classifier
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch.nn.functional import cross_entropy

from fca_mmdet import FREQUENCY_SETS, MultiSpectralAttention

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'elsewhere.md'
SECTIONS = {section.splitlines()[0]: section for section in PAGE.read_text().split('\n## ')[1:]}


def example(heading: str) -> str:
    """The one block of Python under a heading of the page."""
    (block,) = re.findall(r'^```python\n(.*?)^```$', SECTIONS[heading], re.MULTILINE | re.DOTALL)
    return block


def run(code: str, folder: Path, *path: Path, cwd: Path | None = None, **environment: str) -> str:
    """Run code in a process of its own: other packages change the registries and the default scope. What it printed last."""
    (folder / 'example.py').write_text(code)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*path, ROOT])), **environment}
    command = [sys.executable, str(folder / 'example.py')]
    result = subprocess.run(command, cwd=cwd or folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def test_every_section_has_a_test():
    assert list(SECTIONS) == [
        'A torch model',
        'A classifier of mmpretrain',
        'A segmentor of mmsegmentation',
        'A ResNet of timm',
        'A ResNet of torchvision',
        'YOLOX',
        'torch.hub',
    ]


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


@pytest.fixture(scope='module')
def published(tmp_path_factory) -> Path:
    """A folder for TORCH_HOME that has fca50.pth, and what mmdet's ResNet, ours, computes with it."""
    home = tmp_path_factory.mktemp('torch_home')
    (home / 'hub' / 'checkpoints').mkdir(parents=True)
    state = published_classifier('50')
    torch.save(state, home / 'hub' / 'checkpoints' / 'fca50.pth')
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = pretrained(home / 'hub' / 'checkpoints' / 'fca50.pth', fold=False)(images)
    logits = features[3].mean((2, 3)) @ state['fc.weight'].T + state['fc.bias']
    torch.save(dict(images=images, features=features, logits=logits), home / 'expected.pth')
    return home


# After an example with a classifier of 16 bottlenecks whose attention has this name.
CLASSIFIED = """
import os
import torch
from torch.nn.modules.batchnorm import BatchNorm2d

def check_classifier(model, optimizer, name, base):
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    assert [getattr(block, name).grid[0] for block in blocks] == [56] * 3 + [28] * 4 + [14] * 6 + [7] * 3
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0 and parameter in optimizer.state, key
    model.load_state_dict(FCANET)
    model.eval()
    folded = []
    run, base.run_folded = base.run_folded, lambda block, x: (folded.append(block), run(block, x))[1]
    expected = torch.load(os.environ['TORCH_HOME'] + '/expected.pth')
    with torch.no_grad():
        torch.testing.assert_close(model(expected['images']), expected['logits'], rtol=1e-3, atol=1e-3)
        assert folded == blocks
        for block in blocks:
            block.is_foldable = lambda: False
        torch.testing.assert_close(model(expected['images']), expected['logits'], rtol=1e-3, atol=1e-3)
    assert len(folded) == 16

def with_statistics(model):
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):
            norm.running_mean.uniform_(-0.3, 0.3), norm.running_var.uniform_(0.5, 2), torch.nn.init.uniform_(norm.weight, 0.5, 1)
    return model.state_dict()
"""


def publishing(heading: str) -> str:
    """Code that loads FcaNet's weights in place of FCANET, as the page says."""
    (line,) = re.findall(r'`(model\.load_state_dict\(.*\))`', SECTIONS[heading])
    line = line.replace("'fca50.pth'", "os.environ['TORCH_HOME'] + '/hub/checkpoints/fca50.pth'")
    return CLASSIFIED.replace('model.load_state_dict(FCANET)', line)


TIMM_BEFORE = """
import timm
plain = with_statistics(timm.create_model('resnet50'))
torch.save(plain, 'resnet50.pth')
create, created = timm.create_model, {}

def create_model(*args, **options):
    model = create(*args, pretrained_cfg_overlay=dict(file='resnet50.pth'), **options)
    created.update({name: value.clone() for name, value in model.state_dict().items()})
    return model

timm.create_model = create_model
"""

TIMM = """
assert all(torch.equal(created[name], value) for name, value in plain.items())
assert {name.split('.', 2)[2] for name in created.keys() - plain.keys()} == {'se.fc.0.weight', 'se.fc.2.weight'}
try:
    timm.create_model('resnet50', pretrained=True, block_args=dict(attn_layer=attention))
except RuntimeError as error:
    assert 'Missing key(s)' in str(error)
else:
    raise AssertionError('pretrained_strict is not needed')
check_classifier(model, optimizer, 'se', FoldedBlock)
own = create('resnet50', features_only=True, block=Block, block_args=dict(attn_layer=attention))
print([list(feature.shape) for feature in own(images)])
"""


@needs_torchvision
@pytest.mark.skipif(not (TORCHVISION[1] / 'timm').exists(), reason='timm is not there: tools/environment/prepare.py installs it')
def test_a_resnet_of_timm(published, tmp_path):
    code = publishing('A ResNet of timm') + TIMM_BEFORE + example('A ResNet of timm') + TIMM
    shapes = '[[2, 64, 32, 48], [2, 256, 16, 24], [2, 512, 8, 12], [2, 1024, 4, 6], [2, 2048, 2, 3]]'
    assert run(code, tmp_path, *TORCHVISION, TORCH_HOME=str(published)) == shapes


TORCHVISION_BEFORE = """
import torchvision
plain = with_statistics(torchvision.models.resnet50())
torch.save(plain, os.path.join(torch.hub.get_dir(), 'checkpoints', torchvision.models.ResNet50_Weights.DEFAULT.url.rpartition('/')[2]))
own, load = torchvision.models.ResNet.load_state_dict, {}
torchvision.models.ResNet.load_state_dict = lambda model, *args, **options: (
    own(model, *args, **options), load.setdefault('taken', {name: value.clone() for name, value in model.state_dict().items()})
)[0]
"""

TORCHVISIONS = """
assert {name.split('.', 2)[2] for name in missing} == {'att.fc.0.weight', 'att.fc.2.weight'} and len(missing) == 32 and not unexpected
assert all(torch.equal(load['taken'][name], value) for name, value in plain.items())
check_classifier(model, optimizer, 'att', AttendedBlock)
from torchvision.models.feature_extraction import create_feature_extractor
features = create_feature_extractor(model, ['layer4'], tracer_kwargs=dict(leaf_modules=[FcaBottleneck]))(images)
print(list(features['layer4'].shape))
"""


@needs_torchvision
def test_a_resnet_of_torchvision(published, tmp_path):
    code = publishing('A ResNet of torchvision') + TORCHVISION_BEFORE + example('A ResNet of torchvision') + TORCHVISIONS
    assert run(code, tmp_path, *TORCHVISION, TORCH_HOME=str(published)) == '[2, 2048, 2, 3]'


def test_yolox(tmp_path):
    (tmp_path / 'yolox.py').write_text(example('YOLOX'))
    cfg, base = Config.fromfile(tmp_path / 'yolox.py'), get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    metafile = Path(sys.modules['mmdet'].__file__).parent / '.mim' / 'configs' / 'yolox' / 'metafile.yml'
    assert cfg.load_from in metafile.read_text().split()
    init_default_scope('mmdet')
    torch.manual_seed(0)
    plain, detector = MODELS.build(base.model), MODELS.build(cfg.model)
    taken = detector.load_state_dict(plain.state_dict(), strict=False)
    assert not taken.unexpected_keys
    attentions = {name: module for name, module in detector.named_modules() if isinstance(module, MultiSpectralAttention)}
    assert [module.grid for module in attentions.values()] == [(56, 56), (28, 28), (14, 14), (7, 7)]
    assert taken.missing_keys == [f'{name}.fc.{layer}.weight' for name in attentions for layer in (0, 2)]

    gates = []
    for module in attentions.values():
        module.register_forward_hook(lambda module, args, out: gates.append(module.excite(module.squeeze(args[0]))))
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        x = frozen(plain).backbone.stem(images)
        features = frozen(detector).backbone(images)
        expected = [x := getattr(plain.backbone, f'stage{stage}')(x) * gates[stage - 1][:, :, None, None] for stage in (1, 2, 3, 4)]
    for ours, theirs in zip(features, expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(0.4 < gate.mean() < 0.6 for gate in gates)

    before = {name: value.clone() for name, value in detector.named_parameters()}
    batch = demo_mm_inputs(2, image_shapes=[(3, 128, 128)] * 2, num_items=[3, 2], num_classes=80)
    MessageHub.get_current_instance().update_info('iter', 0)  # the data preprocessor asks for it
    losses = detector.train().train_step(batch, build_optim_wrapper(detector, cfg.optim_wrapper))
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, value in detector.named_parameters() if '.fc.' in name and torch.equal(value, before[name])] == []


HUB = """
import os
expected = torch.load(os.environ['TORCH_HOME'] + '/expected.pth')
with torch.no_grad():
    for ours, theirs in zip(backbone(expected['images']).values(), expected['features'], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
print({name: list(feature.shape) for name, feature in features.items()})
"""


@needs_torchvision
def test_torch_hub(published, tmp_path):
    shapes = {'layer1': [1, 256, 16, 24], 'layer2': [1, 512, 8, 12], 'layer3': [1, 1024, 4, 6], 'layer4': [1, 2048, 2, 3]}
    assert run(example('torch.hub') + HUB, tmp_path, *TORCHVISION, cwd=ROOT, TORCH_HOME=str(published)) == str(shapes)

"""Checkpoints in the published format, built from names and shapes alone."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT, load_command, pretrained, published_classifier
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_checkpoint as load_into
from named_weights import named_input, samples

from fca_mmdet import CheckpointError, FcaResNet

convert_checkpoint = load_command('convert_checkpoint')


def features(backbone: FcaResNet, shape=(1, 3, 64, 96)):
    with torch.no_grad():
        return backbone(torch.from_numpy(named_input(shape)))


@pytest.mark.parametrize('depth', ['34', '50'])
def test_a_published_classifier_initialises_the_backbone(checkpoints, log, depth):
    backbone = pretrained(checkpoints[depth], int(depth))
    complaints = [line for line in log if 'key' in line]
    assert all('unexpected key in source state_dict: fc.weight, fc.bias' in line for line in complaints)
    assert not any('missing' in line or 'dct_layer' in line for line in log)
    case = next(key.rsplit('/', 1)[0] for key in GOLDEN.files if key.startswith(f'fca{depth}/'))
    shape = tuple(map(int, case.split('/')[1].split('x')))
    for stage, feature in enumerate(features(backbone, shape), start=1):
        expected = GOLDEN[f'{case}/stage{stage}']
        assert np.abs(samples(feature) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: {'state_dict': state, 'meta': {'epoch': 100}},
        lambda state: {f'module.{key}': value for key, value in state.items()},
        lambda state: {'state_dict': {f'module.backbone.{key}': value for key, value in state.items()}},
        lambda state: {'state_dict': {f'backbone.{key}': value for key, value in state.items()} | {'neck.weight': torch.ones(1)}},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    ],
    ids=['state_dict', 'module', 'module.backbone', 'backbone', 'half'],
)
def test_wrapped_and_prefixed_checkpoints_load(tmp_path, wrap):
    state = {key: value for key, value in published_classifier('34').items() if not key.startswith('fc.')}
    torch.save(wrap(state), tmp_path / 'wrapped.pth')
    loaded = pretrained(tmp_path / 'wrapped.pth', 34).state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-3, rtol=1e-3) for name, value in loaded.items())
    assert len(loaded) == sum('dct_layer' not in name for name in state)


def test_strict_loading_needs_no_conversion():
    state = {key: value for key, value in published_classifier('34').items() if not key.startswith('fc.')}
    FcaResNet(34).load_state_dict(state, strict=True)
    assert any('dct_layer' in key for key in state), 'the dict of the caller is left as it was'


def test_another_depth_is_an_error(checkpoints):
    with pytest.raises(
        CheckpointError,
        match=r'stages of \[3, 4, 6, 3\] blocks with 2 convolutions each, and FcaResNet-50 has \[3, 4, 6, 3\] with 3: choose the depth',
    ):
        pretrained(checkpoints['34'], 50)
    with pytest.raises(CheckpointError, match=r'\[3, 4, 6, 3\] blocks .* FcaResNet-101 has \[3, 4, 23, 3\]'):
        pretrained(checkpoints['50'], 101)


def test_another_width_or_reduction_is_an_error(checkpoints):
    with pytest.raises(CheckpointError, match=r'layer1.0.conv1.weight is \[64, 64, 1, 1\] in the checkpoint and \[32, 32, 1, 1\] in Fca'):
        pretrained(checkpoints['50'], base_channels=32)
    with pytest.raises(CheckpointError, match=r'layer1.0.att.fc.0.weight is \[16, 256\] .* \[32, 256\] in .*width, groups and reduction'):
        pretrained(checkpoints['50'], reduction=8)


def test_fewer_stages_take_their_part(checkpoints):
    backbone = pretrained(checkpoints['50'], num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
    assert torch.equal(backbone.layer3[5].conv1.weight, torch.load(checkpoints['50'])['layer3.5.conv1.weight'])


def test_a_plain_resnets_weights_load_and_the_attentions_are_named_as_missing(tmp_path, log):
    state = {key: value for key, value in published_classifier('50').items() if '.att.' not in key}
    torch.save(state, tmp_path / 'resnet50.pth')
    backbone = pretrained(tmp_path / 'resnet50.pth')
    assert torch.equal(backbone.conv1.weight, state['conv1.weight'])
    assert any('missing keys in source state_dict: layer1.0.att.fc.0.weight' in line for line in log)


def detector(depth: int = 50):
    """Mask R-CNN as configured, without initial weights."""
    init_default_scope('mmdet')
    config = Config.fromfile(ROOT / 'configs/mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco.py')
    config.model.backbone.init_cfg = None
    config.model.backbone.depth = depth
    return MODELS.build(config.model)


@pytest.fixture(scope='module')
def old_detector(tmp_path_factory) -> tuple[Path, dict]:
    """A detector checkpoint as mmdet 2.x saved them, its heads named as stock mmdet names them (unchanged since 2.0)."""
    init_default_scope('mmdet')
    stock = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    stock.backbone.init_cfg = None
    model = MODELS.build(stock)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    state |= {f'backbone.{key}': value for key, value in published_classifier('50').items() if not key.startswith('fc.')}
    optimizer = torch.optim.SGD(detector().parameters(), lr=0.01, momentum=0.9).state_dict()
    meta = dict(mmdet_version='2.4.0', CLASSES=('person',) * 80, config='', epoch=12, iter=87960, env_info='', seed=None)
    path = tmp_path_factory.mktemp('old') / 'mask_rcnn.pth'
    torch.save({'meta': meta, 'state_dict': state, 'optimizer': optimizer}, path)
    return path, state


def test_an_old_detector_checkpoint_loads_without_a_line(old_detector, log):
    path, state = old_detector
    model = detector()
    load_into(model, str(path), map_location='cpu', logger='current')
    assert not [line for line in log if 'key' in line]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_old_detector_checkpoint_of_another_depth(old_detector):
    with pytest.raises(CheckpointError, match='FcaResNet-101 has'):
        load_into(detector(101), str(old_detector[0]))


def test_a_detectors_backbone_initialises_a_backbone(old_detector):
    assert torch.equal(pretrained(old_detector[0]).conv1.weight, old_detector[1]['backbone.conv1.weight'])


def convert(*arguments: object) -> subprocess.CompletedProcess:
    """The command within this process: a process of its own takes seconds to import torch and mmdet."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)])
        try:
            convert_checkpoint.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code, file=sys.stderr)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_conversion_there_and_back(checkpoints, tmp_path):
    ours, back = tmp_path / 'ours.pth', tmp_path / 'sub' / 'back.pth'
    dry = convert(checkpoints['34'], '--to', 'ours', '--dry-run')
    assert dry.returncode == 0, dry.stderr
    assert '- layer1.0.att.dct_layer.weight [64, 56, 56]' in dry.stdout
    done = convert(checkpoints['34'], '--to', 'ours', '--out', ours)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(dry.stdout)
    assert convert(ours, '--to', 'published', '--out', back).returncode == 0
    original, ours_state, published = (torch.load(path) for path in (checkpoints['34'], ours, back))
    assert not any('dct_layer' in key for key in ours_state)
    assert list(published) == list(original)
    assert all(torch.allclose(published[key], original[key], rtol=0, atol=1e-7) for key in original)
    again = convert(ours, '--to', 'published', '--out', back)
    assert again.returncode == 2
    assert 'exists: name another file with --out' in again.stderr


def test_a_classifier_of_mmpretrain_gets_the_published_names(tmp_path):
    state = published_classifier('34')
    trained = {('head.' if key.startswith('fc.') else 'backbone.') + key: value for key, value in state.items() if 'dct_layer' not in key}
    torch.save({'state_dict': trained, 'meta': {}}, tmp_path / 'trained.pth')
    assert convert(tmp_path / 'trained.pth', '--to', 'published', '--out', tmp_path / 'out.pth').returncode == 0
    assert list(torch.load(tmp_path / 'out.pth')) == list(state)


def test_conversion_refuses(checkpoints, hostile, tmp_path):
    low = published_classifier('34', 'low4')
    torch.save(low, tmp_path / 'low4.pth')
    for arguments, says in [
        ((tmp_path / 'low4.pth', '--to', 'ours', '--dry-run'), "compute, but frequencies='low4', dct_size=56"),
        ((hostile, '--to', 'ours', '--dry-run'), 'holds more than data'),
        ((tmp_path / 'none.pth', '--to', 'ours', '--dry-run'), 'there is no checkpoint'),
        ((checkpoints['34'], '--to', 'ours'), 'name the file to write with --out, or look first with --dry-run'),
        ((checkpoints['34'], '--to', 'ours', '--dct-size', 56, '--dry-run'), 'is of stage 2, and --dct-size names 1 grids'),
        ((checkpoints['34'], '--to', 'ours', '--frequencies', 'top3', '--dry-run'), "unknown frequency set 'top3'"),
    ]:
        result = convert(*arguments)
        assert result.returncode, arguments
        assert says in result.stderr
        assert 'Traceback' not in result.stderr
    assert convert(tmp_path / 'low4.pth', '--to', 'ours', '--frequencies', 'low4', '--dry-run').returncode == 0

"""Checkpoints in the published format, built from names and shapes alone."""

import io
import subprocess
import sys
from collections import OrderedDict
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT, SHALLOW, TINY, load_command, pretrained, published_classifier
from mmdet.apis import DetInferencer, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
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
        match=r'stages of \[3, 4, 6, 3\] blocks with 2 convolutions each, but FcaResNet-50 has \[3, 4, 6, 3\] with 3: configure the depth',
    ):
        pretrained(checkpoints['34'], 50)
    with pytest.raises(CheckpointError, match=r'\[3, 4, 6, 3\] blocks .* FcaResNet-101 has \[3, 4, 23, 3\]'):
        pretrained(checkpoints['50'], 101)


def test_another_width_or_reduction_is_an_error(checkpoints):
    with pytest.raises(CheckpointError, match=r'layer1.0.conv1.weight is \[64, 64, 1, 1\] in the checkpoint, but \[32, 32, 1, 1\] in F'):
        pretrained(checkpoints['50'], base_channels=32)
    with pytest.raises(CheckpointError, match=r'layer1.0.att.fc.0.weight is \[16, 256\] .* \[32, 256\] in .*width, groups and reduction'):
        pretrained(checkpoints['50'], reduction=8)


def test_fewer_stages_take_their_part(checkpoints):
    backbone = pretrained(checkpoints['50'], num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
    assert torch.equal(backbone.layer3[5].conv1.weight, torch.load(checkpoints['50'])['layer3.5.conv1.weight'])


def test_a_part_of_the_weights_loads_as_in_torch():
    """One tensor, one block or one stage: torch loads it, and names the rest as missing."""
    weights = {key: torch.full_like(value, 3) for key, value in FcaResNet(**SHALLOW).state_dict().items()}
    parts = [{key} for key in weights] + [
        {key for key in weights if key.startswith(start)} for start in ('layer1', 'layer2.1', 'layer2.0.att')
    ]
    backbone = FcaResNet(**SHALLOW)
    for part in parts:
        missing, unexpected = backbone.load_state_dict({key: weights[key] for key in part}, strict=False)
        counted = {key for key in weights if key.endswith('num_batches_tracked')}  # torch sets these itself
        assert (set(missing) - counted, unexpected) == (weights.keys() - part - counted, [])
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())


def test_parameters_that_are_no_plain_tensors():
    weights = FcaResNet(**SHALLOW).state_dict()
    key = 'layer1.0.conv1.weight'
    for value, says in [
        (3, 'a int'),
        (weights[key].to(torch.int8), 'a torch.strided tensor of torch.int8'),
        (weights[key].cfloat(), 'a torch.strided tensor of torch.complex64'),
        (weights[key].to_sparse(), 'a torch.sparse_coo tensor of torch.float32'),
        (torch.quantize_per_tensor(weights[key], 0.1, 0, torch.qint8), 'a torch.strided tensor of torch.qint8'),
    ]:
        with pytest.raises(CheckpointError, match=f'{key} is {says} in the checkpoint: save dense floating-point tensors'):
            FcaResNet(**SHALLOW).load_state_dict(weights | {key: value})
    with pytest.raises(CheckpointError, match=r'layer1.0.att.dct_layer.weight is a list in the checkpoint'):
        FcaResNet(**SHALLOW).load_state_dict(weights | {'layer1.0.att.dct_layer.weight': [1]})


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
    named = OrderedDict(trained)
    named._metadata = {'backbone.layer2.0.att.dct_layer': {'dct_size': '(14, 14)'}}
    torch.save({'state_dict': named, 'meta': {}}, tmp_path / 'named.pth')
    refused = convert(tmp_path / 'named.pth', '--to', 'published', '--dry-run')
    assert 'layer2.0.att.dct_layer was trained with dct_size=(14, 14), but --frequencies and --dct-size say (28, 28)' in refused.stderr


def test_conversion_refuses(checkpoints, hostile, tmp_path):
    low = published_classifier('34', 'low4')
    torch.save(low, tmp_path / 'low4.pth')
    for arguments, says in [
        ((tmp_path / 'low4.pth', '--to', 'ours', '--dry-run'), "is frequencies='low4', dct_size=56, unlike --frequencies and --dct-size"),
        ((hostile, '--to', 'ours', '--dry-run'), 'holds more than data'),
        ((tmp_path / 'none.pth', '--to', 'ours', '--dry-run'), 'there is no checkpoint'),
        ((checkpoints['34'], '--to', 'ours'), 'name the file to write with --out, or print what would change with --dry-run'),
        ((checkpoints['34'], '--to', 'ours', '--dct-size', 56, '--dry-run'), 'is in stage 2, but --dct-size gives 1 grids: give'),
        ((checkpoints['34'], '--to', 'ours', '--frequencies', 'top3', '--dry-run'), "unknown frequency set 'top3'"),
    ]:
        result = convert(*arguments)
        assert result.returncode, arguments
        assert says in result.stderr
        assert 'Traceback' not in result.stderr
    assert convert(tmp_path / 'low4.pth', '--to', 'ours', '--frequencies', 'low4', '--dry-run').returncode == 0


def shallow(tmp_path: Path, **options) -> tuple[Path, dict]:
    """Weights of a small backbone of ours, and where they are."""
    weights = FcaResNet(**SHALLOW, **options).state_dict()
    torch.save(weights, tmp_path / 'ours.pth')
    return tmp_path / 'ours.pth', weights


@pytest.mark.parametrize(
    'options',
    [
        dict(basis='learned_dct'),
        dict(basis='random'),
        dict(basis='learned_random'),
        dict(basis='learned_dct', frequencies='low2', dct_size=(8, 9)),
    ],
    ids=lambda options: ' '.join(map(str, options.values())),
)
def test_conversion_keeps_a_basis_of_its_own(options, tmp_path):
    path, weights = shallow(tmp_path, **options)
    weights = {key: value + 0.1 * torch.rand_like(value) if 'dct_layer' in key else value for key, value in weights.items()}
    torch.save(weights, path)
    assert convert(path, '--to', 'published', '--out', tmp_path / 'out.pth').returncode == 0
    converted = torch.load(tmp_path / 'out.pth')
    assert converted.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in converted.items())
    refused = convert(path, '--to', 'published', '--frequencies', 'top16', '--dry-run')
    assert 'att.dct_layer.weight is a learned or random tensor' in refused.stderr
    assert 'unlike --frequencies and --dct-size: leave them out to keep it' in refused.stderr


def test_conversion_keeps_a_fixed_basis(tmp_path):
    low = published_classifier('34', 'low4')
    torch.save(low, tmp_path / 'low4.pth')
    assert convert(tmp_path / 'low4.pth', '--to', 'published', '--out', tmp_path / 'out.pth').returncode == 0
    converted = torch.load(tmp_path / 'out.pth')
    assert list(converted) == list(low)
    assert all(torch.equal(value, low[key]) for key, value in converted.items())
    for option in (('--frequencies', 'top16'), ('--frequencies', 'low4', '--dct-size', 28, 28, 14, 7)):
        refused = convert(tmp_path / 'low4.pth', '--to', 'published', *option, '--dry-run')
        assert "is frequencies='low4', dct_size=56, unlike --frequencies and --dct-size: leave them out to keep it" in refused.stderr
    del low['layer1.0.att.dct_layer.weight']
    torch.save(low, tmp_path / 'part.pth')
    assert "is frequencies='low4'" in convert(tmp_path / 'part.pth', '--to', 'published', '--dry-run').stderr
    assert convert(tmp_path / 'part.pth', '--to', 'published', '--frequencies', 'low4', '--dry-run').returncode == 0


def test_conversion_of_a_search(tmp_path):
    path, weights = shallow(tmp_path, basis='searched', frequencies=[(0, 0), (0, 1)])
    weights['selection.logits'][:, 8] = 1
    torch.save(weights, path)
    refused = convert(path, '--to', 'published', '--out', tmp_path / 'out.pth')
    assert 'selection.logits belongs to a search, which mixes all frequencies' in refused.stderr
    assert 'Train with the most probable, frequencies=[(1, 1), (1, 1)], and convert' in refused.stderr
    assert not (tmp_path / 'out.pth').exists()
    assert convert(path, '--to', 'ours', '--out', tmp_path / 'out.pth').returncode == 0
    assert all(torch.equal(value, weights[key]) for key, value in torch.load(tmp_path / 'out.pth').items())


def test_frequencies_as_pairs(tmp_path):
    path, _ = shallow(tmp_path, frequencies='low2')
    for name, frequencies in {'set': 'low2', 'pairs': '[(0, 0), (0, 1)]'}.items():
        assert convert(path, '--to', 'published', '--frequencies', frequencies, '--out', tmp_path / f'{name}.pth').returncode == 0
    named, listed = (torch.load(tmp_path / f'{name}.pth') for name in ('set', 'pairs'))
    assert all(torch.equal(value, listed[key]) for key, value in named.items())
    for wrong, says in {
        '[(0, 0': "invalid frequencies value: '[(0, 0'",
        '[(9, 0)]': 'frequency (9, 0) is outside the spectrum',
        '[(0, 0), (0, 1), (1, 0)]': 'has 16 channels, which 3 frequencies do not divide',
    }.items():
        result = convert(path, '--to', 'published', '--frequencies', wrong, '--dry-run')
        assert result.returncode
        assert says in result.stderr
        assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('options', 'given', 'wrong'),
    [
        (dict(frequencies='low4'), ('--frequencies', 'low4'), 'was trained with frequencies=[(0, 0), (0, 1), (1, 0), '),
        (
            dict(frequencies=[(0, 0), (0, 1), (1, 0), (3, 3)] * 4),
            ('--frequencies', str([(0, 0), (0, 1), (1, 0), (3, 3)] * 4)),
            'was trained with frequencies=[(0, 0), (0, 1), (1, 0), (3, 3), ',
        ),
        (dict(dct_size=(28, 14, 7, 7)), ('--dct-size', 28, 14, 7, 7), 'was trained with dct_size=(28, 28), but --freq'),
        (dict(frequencies='top16'), (), None),
    ],
    ids=['set', 'pairs', 'grids', 'default'],
)
@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.'])
def test_conversion_inserts_the_basis_that_the_weights_were_trained_for(options, given, wrong, prefix, tmp_path):
    model = torch.nn.Module()
    model.add_module(prefix.rstrip('.') or 'backbone', FcaResNet(**SHALLOW, **options))
    torch.save(model.state_dict() if prefix else model.backbone.state_dict(), tmp_path / 'ours.pth')
    without = convert(tmp_path / 'ours.pth', '--to', 'published', '--dry-run')
    assert (without.returncode != 0) == (wrong is not None)
    assert wrong is None or wrong in without.stderr
    done = convert(tmp_path / 'ours.pth', '--to', 'published', *given, '--out', tmp_path / 'out.pth')
    assert done.returncode == 0, done.stderr
    weights = {key.removeprefix(prefix): value for key, value in torch.load(tmp_path / 'out.pth').items()}
    FcaResNet(**SHALLOW, **options).load_state_dict(weights)


@pytest.mark.parametrize(
    'options', [dict(basis='haar', dct_size=(64, 32, 16, 8)), dict(basis='orthogonal_separable'), dict(basis='combined')]
)
def test_what_the_published_format_cannot_store_is_refused(options, tmp_path):
    path, _ = shallow(tmp_path, **options)
    refused = convert(path, '--to', 'published', '--dry-run')
    assert 'belongs to a basis that the published format does not have: load the checkpoint as it is' in refused.stderr


@pytest.mark.parametrize('to', ['ours', 'release'])
def test_converted_weights_name_their_grid_and_frequencies(to, checkpoints, tmp_path):
    """Published ones too, once their basis, which says so, is dropped."""
    path = checkpoints['34'] if to == 'ours' else shallow(tmp_path, dct_size=(28, 14, 7, 7))[0]
    assert convert(path, '--to', to, '--out', tmp_path / 'out').returncode == 0
    (converted,) = tmp_path.glob('out*')
    right, other = (
        (dict(depth=34), dict(depth=34, dct_size=(28, 28, 14, 7))) if to == 'ours' else (dict(SHALLOW, dct_size=(28, 14, 7, 7)), SHALLOW)
    )
    weights = torch.load(converted)
    FcaResNet(**right).load_state_dict(weights, strict=False)
    with pytest.raises(CheckpointError, match=r'layer1.0.att.dct_layer has dct_size=\((56, 56|28, 28)\) in the checkpoint, but \('):
        FcaResNet(**other).load_state_dict(weights, strict=False)


@pytest.mark.parametrize(
    ('options', 'given', 'wrong'),
    [
        (dict(frequencies='low4'), ('--frequencies', 'low4'), 'has frequencies low4, unlike --frequencies'),
        (
            dict(frequencies=[(0, 0), (0, 1), (1, 0), (3, 3)] * 4),
            ('--frequencies', str([(0, 0), (0, 1), (1, 0), (3, 3)] * 4)),
            'has frequencies 0 0 0 1, unlike --frequencies',
        ),
        (dict(dct_size=(28, 14, 7, 7)), ('--dct-size', 28, 14, 7, 7), 'has dct_size 28 14 7 7, unlike --dct-size'),
        (dict(frequencies='top16'), (), None),
    ],
    ids=['set', 'pairs', 'grids', 'default'],
)
def test_the_config_of_mmengine_says_what_the_basis_is(options, given, wrong, tmp_path):
    """Where the weights do not, as after a tool that drops torch's metadata."""
    path, weights = shallow(tmp_path, **options)
    config = Config(dict(model=dict(backbone=dict(type='FcaResNet', **options, norm_eval=True))))
    torch.save(dict(state_dict=dict(weights), meta=dict(cfg=config.pretty_text)), path)
    without = convert(path, '--to', 'published', '--dry-run')
    assert (without.returncode != 0) == (wrong is not None)
    assert wrong is None or wrong in without.stderr
    done = convert(path, '--to', 'published', *given, '--out', tmp_path / 'out.pth')
    assert done.returncode == 0, done.stderr
    FcaResNet(**SHALLOW, **options).load_state_dict(torch.load(tmp_path / 'out.pth'))


def test_release_of_a_detector(tmp_path):
    init_default_scope('mmdet')
    config = Config.fromfile(TINY)
    model = MODELS.build(config.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    log = dict(log_scalars={'loss': HistoryBuffer([1.0], [1])}, runtime_info={}, resumed_keys={})
    meta = dict(epoch=2, dataset_meta=dict(classes=('circle', 'square')), cfg=config.pretty_text)
    trained = dict(state_dict=model.state_dict(), meta=meta, message_hub=log, optimizer=optimizer.state_dict(), param_schedulers=[])
    torch.save(trained, tmp_path / 'epoch_2.pth')
    dry = convert(tmp_path / 'epoch_2.pth', '--to', 'release', '--dry-run')
    done = convert(tmp_path / 'epoch_2.pth', '--to', 'release', '--out', tmp_path / 'tiny-v1.pth')
    assert done.stdout.startswith('- message_hub\n- optimizer\n- param_schedulers\n')
    assert done.stdout.startswith(dry.stdout)
    (released,) = tmp_path.glob('tiny-v1-*.pth')
    assert done.stdout.endswith(f'wrote {released}\n')
    assert released.stat().st_size < 0.6 * (tmp_path / 'epoch_2.pth').stat().st_size

    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # as in a process without this package
    try:
        checkpoint = torch.hub.load_state_dict_from_url(
            released.as_uri(), model_dir=tmp_path / 'hub', check_hash=True, progress=False, weights_only=True
        )
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert checkpoint.keys() == {'meta', 'state_dict'}
    assert checkpoint['meta'] == meta
    for opened in (init_detector(str(TINY), str(released), device='cpu'), DetInferencer(weights=str(released), device='cpu').model):
        assert opened.dataset_meta['classes'] == ('circle', 'square')
        assert all(torch.equal(value, trained['state_dict'][key]) for key, value in opened.state_dict().items())
    again = convert(released, '--to', 'release', '--out', tmp_path / 'tiny-v1.pth')
    assert again.stdout.endswith(f'wrote {released}\n'), 'the same content has the same name'


def test_release_of_a_state_dict(tmp_path):
    path, weights = shallow(tmp_path)
    assert convert(path, '--to', 'release', '--out', tmp_path / 'fca').returncode == 0
    (released,) = tmp_path.glob('fca-*.pth')
    assert all(torch.equal(value, weights[key]) for key, value in torch.load(released).items())


@pytest.mark.parametrize('by', ['torch', 'mmengine'])
def test_a_detectors_backbone_keeps_its_grid(by, tmp_path):
    detector = torch.nn.ModuleDict({'backbone': FcaResNet(**SHALLOW)})
    torch.save(detector.state_dict(), tmp_path / 'weights.pth')

    def load(backbone: FcaResNet) -> None:
        if by == 'torch':
            backbone.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True))
        else:
            load_into(backbone, str(tmp_path / 'weights.pth'))

    load(FcaResNet(**SHALLOW))
    with pytest.raises(CheckpointError, match=r'layer1.0.att.dct_layer has dct_size=\(56, 56\) in the checkpoint, but \(7, 7\)'):
        load(FcaResNet(dct_size=(7, 7), **SHALLOW))

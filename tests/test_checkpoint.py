"""Checkpoints in the published format, built from names and shapes alone."""

import io
import logging
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import convert_checkpoint
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint as load_into
from named_weights import named_input, named_state, samples
from test_resnet import GOLDEN, PUBLISHED, frozen

from fca_mmdet import FcaResNet, MultiSpectralAttention
from fca_mmdet.checkpoint import CheckpointError, describe_basis, full_basis, read_checkpoint, refuse_pickled_code
from fca_mmdet.frequency import FREQUENCY_SETS

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools' / 'convert_checkpoint.py'


def published_classifier(depth: str, frequencies: str = 'top16') -> dict[str, torch.Tensor]:
    """Every key of a published classifier, its basis from a plain loop over the definition."""
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in named_state(PUBLISHED[depth]).items()}
    for name, shape in PUBLISHED[depth].items():
        if name.endswith('dct_layer.weight'):
            channels, grid, _ = shape
            pairs = FREQUENCY_SETS[frequencies]
            x = np.arange(grid) + 0.5
            basis = np.empty(shape, np.float32)
            for channel in range(channels):
                u, v = (index * (grid // 7) for index in pairs[channel * len(pairs) // channels])
                rows, columns = (np.cos(np.pi * k * x / grid) / np.sqrt(grid) * (1 if k == 0 else np.sqrt(2)) for k in (u, v))
                basis[channel] = np.outer(rows, columns)
            state[name] = torch.from_numpy(basis)
    return {name: state[name] for name in PUBLISHED[depth]}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Published classifiers of depths 34 and 50 on disk."""
    folder = tmp_path_factory.mktemp('published')
    paths = {depth: folder / f'fca{depth}.pth' for depth in ('34', '50')}
    for depth, path in paths.items():
        torch.save(published_classifier(depth), path)
    return paths


@pytest.fixture
def log():
    """What mmengine's logger says."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Keep()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def pretrained(path, depth=50, **options) -> FcaResNet:
    backbone = FcaResNet(depth, init_cfg=dict(type='Pretrained', checkpoint=str(path)), **options)
    backbone.init_weights()
    return frozen(backbone)


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


@pytest.mark.parametrize('name', ['top16', 'low4', 'bot8', 'top1'])
@pytest.mark.parametrize('grid', [(56, 56), (7, 7), (14, 21)])
def test_a_stored_basis_tells_what_it_is(name, grid):
    size = grid[0] if grid[0] == grid[1] else grid
    assert describe_basis(full_basis(FREQUENCY_SETS[name], grid, 64)) == f'frequencies={name!r}, dct_size={size}'


def test_a_stored_basis_of_pairs():
    pairs = [(0, 0), (0, 0), (3, 5), (6, 6)]
    attention = MultiSpectralAttention(64, 14, frequencies=pairs)
    assert describe_basis(full_basis(attention.frequencies, (14, 14), 64)) == f'frequencies={pairs}, dct_size=14'


@pytest.mark.parametrize(
    ('stored', 'says'),
    [
        (dict(frequencies='low4'), "is frequencies='low4', dct_size=14; configured is frequencies='top16', dct_size=14"),
        (dict(dct_size=28), "is frequencies='top16', dct_size=28; configured is frequencies='top16', dct_size=14"),
        (dict(basis='random'), "is a learned or random tensor: dct_size=14 with basis='random', or another learned or random basis"),
        (dict(basis='learned_dct'), "is a learned or random tensor: dct_size=14 with basis='learned_dct', or another learned or random"),
    ],
)
def test_another_basis_is_an_error(stored, says):
    trained = MultiSpectralAttention(64, **dict(dct_size=14) | stored)
    state = {'fc.0.weight': torch.ones(4, 64), 'fc.2.weight': torch.ones(64, 4)}
    if trained.basis == 'dct':
        state['dct_layer.weight'] = full_basis(trained.frequencies, trained.grid, 64)
    else:
        with torch.no_grad():
            state['dct_layer.weight'] = trained.dct_layer.weight + 0.01 * (trained.basis == 'learned_dct')
    attention = MultiSpectralAttention(64, 14)
    before = attention.fc[0].weight.clone()
    with pytest.raises(CheckpointError, match=r'dct_layer.weight of the checkpoint ') as error:
        attention.load_state_dict(state, strict=False)
    assert says in str(error.value)
    assert torch.equal(attention.fc[0].weight, before)
    if trained.basis != 'dct':
        MultiSpectralAttention(64, 14, basis=trained.basis).load_state_dict(state, strict=True)


def test_a_learned_basis_of_another_grid_is_an_error():
    state = MultiSpectralAttention(64, 28, basis='learned_dct').state_dict()
    with pytest.raises(CheckpointError, match=r'is \[64, 28, 28\], configured is \[64, 14, 14\]: give dct_size the checkpoint'):
        MultiSpectralAttention(64, 14, basis='learned_dct').load_state_dict(state)


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


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A checkpoint whose unpickling writes ``executed`` beside it."""
    path = tmp_path / 'hostile.pth'
    torch.save({'state_dict': {}, 'meta': Payload(str(tmp_path / 'executed'))}, path)
    return path


def test_no_code_of_a_checkpoint_runs(hostile):
    for read in (read_checkpoint, pretrained):
        with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data: it asks for \S*open, which could run code, so it is'):
            read(hostile)
    assert not hostile.with_name('executed').exists()


def test_no_code_of_a_download_runs(hostile, monkeypatch):
    """mmengine's own loader falls back to a full pickle; within the backbone's initialisation it cannot."""
    monkeypatch.setitem(CheckpointLoader._schemes, 'https://', lambda filename, map_location: torch.load(hostile, weights_only=False))
    with pytest.raises(CheckpointError, match=r'https://host/hostile.pth holds more than data'):
        pretrained('https://host/hostile.pth')
    assert not hostile.with_name('executed').exists()


def test_a_truncated_file_and_other_files(checkpoints, tmp_path):
    content = checkpoints['34'].read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / 'part.pth').write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r'part.pth is truncated or no checkpoint of torch.save \(\w+\): fetch it again'):
            pretrained(tmp_path / 'part.pth', 34)
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    with pytest.raises(CheckpointError, match=r'page.pth is truncated or no checkpoint'):
        read_checkpoint(tmp_path / 'page.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match=r'list.pth holds a list, not a state dict'):
        read_checkpoint(tmp_path / 'list.pth')
    with pytest.raises(FileNotFoundError, match=r'there is no checkpoint .*none.pth'):
        pretrained(tmp_path / 'none.pth')


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


def test_reading_as_data_for_a_whole_process(old_detector, hostile, monkeypatch, log):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    refuse_pickled_code()
    with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data'):
        load_into(torch.nn.Linear(1, 1), str(hostile))
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(hostile, weights_only=False)
    checkpoint = load_into(detector(), str(old_detector[0]))
    assert checkpoint['message_hub']['log_scalars'] == {}
    assert any('mmdet 2.x, which holds no learning rate schedule' in line for line in log)


def convert(*arguments: object) -> subprocess.CompletedProcess:
    """The command within this process: a process of its own takes seconds to import torch and mmdet."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
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

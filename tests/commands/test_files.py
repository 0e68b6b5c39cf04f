"""Every command on files and disks that are not as they should be: a clear error, or it works."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, TOOLS, Payload, ending, says
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fca_mmdet.lab import complexity
from fca_mmdet.lab.shapes import make_shapes

SPACE = 'No space left on device'
READ_ONLY = 'Read-only file system'
FILES = {
    (case, command): said
    for case, rows in {
        'no such config': {
            'train.py none.py': 'FileNotFoundError: ...none.py...',
            'test.py none.py weights.pth': 'FileNotFoundError: ...none.py...',
            **{
                command: f'{command.partition(".")[0]}: no config at none.py'
                for command in (
                    'batching.py --model none.py weights.pth --images data/images --out a.json',
                    'complexity.py none.py',
                    'demo.py --config none.py',
                    'export_detector.py none.py weights.pth --out a.onnx --images data/images',
                    'export_onnx.py none.py --out a.onnx',
                    'preflight.py none.py',
                    'spectrum.py none.py weights.pth --images data/images --out a.png',
                    'visualize.py none.py weights.pth image.png --out a.png',
                )
            },
        },
        'a config without a model': {
            command: f'{command.partition(".")[0]}: empty.py configures no model'
            for command in (
                'complexity.py empty.py',
                'demo.py --data data --config empty.py --work-dir work',
                'export_onnx.py empty.py --out a.onnx',
                'preflight.py empty.py',
                'train.py empty.py',
                'visualize.py empty.py weights.pth image.png --out a.png',
            )
        },
        'a wrong key': {
            'train.py config.py --cfg-options model.backbone.dpeth=50': (
                "TypeError: ...ResNet.__init__() got an unexpected keyword argument 'dpeth'"
            ),
            'train.py config.py --cfg-options model.backbone.type=FcaResnet': (
                'KeyError: FcaResnet is not in the mmdet::model registry. Please check whether the value of `FcaResnet` is correct...'
            ),
        },
        'a wrong value': {
            'train.py config.py --cfg-options model.backbone.frequencies=top3': (
                'ValueError: ...unknown frequency set \'top3\': use top, low or bot followed by 1, 2, 4, 8, 16, 32 (such as "top16"), or a '
                'sequence of (u, v) pairs'
            ),
        },
        'no such checkpoint': {
            'train.py config.py --cfg-options load_from=none.pth': 'FileNotFoundError: there is no checkpoint none.pth',
            'train.py config.py --resume none.pth': 'FileNotFoundError: there is no checkpoint none.pth',
            'train.py pretrained.py --cfg-options model.backbone.init_cfg.checkpoint=none.pth': (
                'FileNotFoundError: there is no checkpoint none.pth'
            ),
            'test.py config.py none.pth': 'FileNotFoundError: there is no checkpoint none.pth',
            'convert_checkpoint.py none.pth --to ours --dry-run': 'convert_checkpoint: there is no checkpoint none.pth',
            'export_onnx.py config.py none.pth --out a.onnx': 'export_onnx: there is no checkpoint none.pth',
            'export_detector.py config.py none.pth --out a.onnx --images data/images': 'export_detector: there is no checkpoint none.pth',
            'quantize_detector.py config.py none.pth --out a.xml': 'quantize_detector: there is no checkpoint none.pth',
            'visualize.py config.py none.pth image.png --out a.png': 'visualize: there is no checkpoint none.pth',
        },
        'a checkpoint that is an image': {
            'test.py config.py image.png': ('test: image.png is a PNG image, not a checkpoint of torch.save: name the checkpoint'),
            'convert_checkpoint.py image.png --to ours --dry-run': (
                'convert_checkpoint: image.png is a PNG image, not a checkpoint of torch.save: name the checkpoint'
            ),
        },
        'no such data': {
            'demo.py --data none --work-dir work': (
                'demo: ...none/annotations/train.json is missing: --data takes a folder with annotations/train.json, annotations/val.json '
                'and images/'
            ),
        },
        'no such image': {
            'visualize.py config.py weights.pth none.png --out a.png': 'visualize: there is no none.png',
        },
        'an image that is a text': {
            'visualize.py config.py weights.pth config.py --out a.png': 'visualize: config.py cannot be decoded',
        },
        'a work directory below a file': {
            'preflight.py config.py --work-dir image.png/below': (
                'preflight: the work directory image.png/below cannot be written to (Not a directory): name another with --work-dir'
            ),
            'demo.py --data data --work-dir image.png/below': "demo: [Errno 20] Not a directory: '...image.png/below'",
        },
        'a read-only disk': {
            'preflight.py config.py --work-dir read-only': (
                f'preflight: the work directory read-only cannot be written to ({READ_ONLY}): name another with --work-dir'
            ),
            'demo.py --work-dir read-only': f"demo: [Errno 30] {READ_ONLY}: 'read-only/shapes.part'",
            'convert_checkpoint.py weights.pth --to published --out read-only/a.pth': (
                f'convert_checkpoint: read-only/a.pth cannot be written ({READ_ONLY}): name another file with --out'
            ),
            **{
                f'{tool}.py {arguments} --out read-only/a': (
                    f'{tool}: read-only/a cannot be written ({READ_ONLY}): name another file with --out'
                )
                for tool, arguments in {
                    'complexity': '',
                    'export_onnx': 'config.py weights.pth',
                    'visualize': 'config.py weights.pth image.png',
                }.items()
            },
        },
        'a full disk': {
            'preflight.py config.py --work-dir full': (
                'preflight: 0.5 MiB are free in full, and 2 checkpoints of ... MiB are to be kept there: free some, keep fewer '
                '(default_hooks.checkpoint.max_keep_ckpts), or name another place with --work-dir'
            ),
            'demo.py --work-dir full': f'demo: [Errno 28] {SPACE}',
            'convert_checkpoint.py weights.pth --to published --out full/a.pth': (
                f'convert_checkpoint: full/a.pth cannot be written ({SPACE}): name another file with --out'
            ),
            'export_onnx.py config.py weights.pth --out full/a.onnx': f'export_onnx: [Errno 28] {SPACE}',
            'visualize.py config.py weights.pth image.png --out full/a.png': f'visualize: [Errno 28] {SPACE}',
        },
    }.items()
    for command, said in rows.items()
}
"""What is said; ``...`` is what depends on the stack or the folder."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """What the commands of ``FILES`` and ``HOSTILE`` name."""
    folder = tmp_path_factory.mktemp('files')
    make_shapes(folder / 'data', train=3, val=2)
    (folder / 'config.py').write_text(f'_base_ = {str(TINY)!r}\n')
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(folder / 'config.py').model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    shutil.copy(folder / 'data/images/val_0000.png', folder / 'image.png')
    (folder / 'empty.py').write_text('max_iters = 1\n')
    (folder / 'pretrained.py').write_text(
        "_base_ = 'config.py'\nmodel = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='hostile.pth')))\n"
    )
    return folder


@pytest.fixture
def disks(folder):
    """A disk without free space, and one that cannot be written to."""
    mounted = []
    for name, options in {'full': 'size=512k', 'read-only': 'ro'}.items():
        path = folder / name
        path.mkdir(exist_ok=True)
        if shutil.which('mount') is None or subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', path]).returncode:
            pytest.skip('a disk of this kind can be mounted by root alone')
        mounted.append(path)
    yield
    for path in mounted:
        subprocess.run(['umount', path], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(('case', 'command'), FILES)
def test_files(case, command, folder, monkeypatch, capsys, request):
    if 'disk' in case:
        request.getfixturevalue('disks')
    monkeypatch.chdir(folder)
    said = ending(command, capsys)
    assert says(said, FILES[case, command]), said
    assert not list(folder.glob('full/a*'))


REFUSED = ' holds more than data: it asks for ...open, which could run code, so it is not read. Ask its author to save the state dict alone'
HOSTILE = {
    'train.py config.py --cfg-options load_from=hostile.pth': f'train: hostile.pth{REFUSED}',
    'train.py config.py --resume hostile.pth': f'train: hostile.pth{REFUSED}',
    'train.py config.py --resume --work-dir trained': f'train: trained/iter_2.pth{REFUSED}',
    'train.py pretrained.py': f'train: hostile.pth{REFUSED}',
    'test.py config.py hostile.pth': f'test: hostile.pth{REFUSED}',
    'demo.py --data data --config config.py --work-dir trained': f'demo: ...trained/iter_2.pth{REFUSED}',
    'demo.py --data data --config config.py --work-dir begun': f'demo: ...hostile.pth{REFUSED}',
    'convert_checkpoint.py hostile.pth --to ours --dry-run': f'convert_checkpoint: hostile.pth{REFUSED}',
    'export_onnx.py config.py hostile.pth --out a.onnx': f'export_onnx: hostile.pth{REFUSED}',
    'export_detector.py config.py hostile.pth --out a.onnx --images data/images': f'export_detector: hostile.pth{REFUSED}',
    'quantize_detector.py config.py hostile.pth --out a.xml': f'quantize_detector: hostile.pth{REFUSED}',
    'visualize.py config.py hostile.pth image.png --out a.png': f'visualize: hostile.pth{REFUSED}',
    'batching.py --model config.py hostile.pth --images data/images --out a.json': f'batching: hostile.pth{REFUSED}',
    'spectrum.py config.py hostile.pth --images data/images --out a.png': f'spectrum: hostile.pth{REFUSED}',
    'preflight.py pretrained.py': 'works',
    'complexity.py pretrained.py': 'works',
}
"""Every command that is given a checkpoint, or a config that names one."""


@pytest.mark.slow
@pytest.mark.parametrize('command', HOSTILE)
def test_no_code_of_a_checkpoint_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(complexity, 'PUBLISHED', {})  # its rows take 17 s and no config
    torch.save(dict(state_dict={}, meta=Payload('executed')), 'hostile.pth')
    for work_dir, checkpoint in {'trained': 'trained/iter_2.pth', 'begun': 'hostile.pth'}.items():
        Path(work_dir).mkdir(exist_ok=True)
        Path(work_dir, 'last_checkpoint').write_text(checkpoint)
    shutil.copy('hostile.pth', 'trained/iter_2.pth')
    Path('trained', 'config.py').unlink(missing_ok=True)  # train.py's, which demo.py would take for its own
    said = ending(command, capsys)
    assert says(said, HOSTILE[command]), said
    assert not Path('executed').exists()


READS = (
    'read_checkpoint(',
    'convert_checkpoint(',
    'load_checkpoint(',
    'open_detector(',
    'init_detector(',
    'torch.load(',
    'Runner.',
    'runpy.',
)
"""How a checkpoint comes to be read."""
WINGS = [ROOT / 'fca_mmdet' / wing for wing in ('training', 'deploy', 'lab')]


def reads(path: Path) -> bool:
    return any(word in path.read_text() for word in READS)


def imported(path: Path) -> set[Path]:
    """The rooms of the wings that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            target = (path.parents[node.level - 1] if node.level else ROOT).joinpath(*(node.module or '').split('.'))
            found |= {target.with_suffix('.py'), *(target / f'{alias.name}.py' for alias in node.names)}
    return {room for room in found if room.parent in WINGS and room.is_file()}


def with_rooms(tool: Path) -> set[Path]:
    """A command, and all rooms of the wings that it needs."""
    found, new = set(), {tool}
    while new:
        found |= new
        new = set().union(*map(imported, new)) - found
    return found


def test_every_command_that_reads_a_checkpoint_is_there():
    tried = {command.split()[0] for command in HOSTILE}
    assert {tool.name for tool in TOOLS.glob('*.py') if any(map(reads, with_rooms(tool)))} <= tried
    rooms = {room for wing in WINGS for room in wing.glob('*.py') if reads(room)}
    assert {'launch.py', 'demo.py', 'pictures.py', 'backbone.py', 'detector.py'} <= {room.name for room in rooms}
    assert rooms <= set().union(*(with_rooms(TOOLS / name) for name in tried))

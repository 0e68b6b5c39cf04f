"""train.py and test.py, which run mmdet's: processes of their own, on a tiny data set, from another working directory."""

import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from helpers import TINY, TOOLS, load_command, run_python
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fca_mmdet import CheckpointError, MultiSpectralAttention
from fca_mmdet.dct import full_basis
from fca_mmdet.lab.shapes import CLASSES, make_shapes

MMDET = Path(mmdet.__file__).parent / '.mim' / 'tools'


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    """The tiny config on eight training and four held-out images: four iterations, a checkpoint every second."""
    folder = tmp_path_factory.mktemp('config')
    make_shapes(folder / 'shapes', train=8, val=4)
    path = folder / 'tiny.py'
    path.write_text(f"""
_base_ = {str(TINY)!r}
train_dataloader = dict(dataset=dict(data_root='{folder}/shapes/'))
val_dataloader = dict(dataset=dict(data_root='{folder}/shapes/'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{folder}/shapes/annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
""")
    return path


@pytest.mark.parametrize('tools', [TOOLS, MMDET], ids=['own', 'mmdet'])
def test_train_resume_and_test(tools, config, tmp_path):
    run_python(tools / 'train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', 'train_cfg.max_iters=2', cwd=tmp_path)
    assert 'message_hub' in torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=True)
    resumed = run_python(tools / 'train.py', config, '--work-dir', tmp_path / 'run', '--resume', cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in resumed
    tested = run_python(tools / 'test.py', config, tmp_path / 'run' / 'iter_4.pth', '--work-dir', tmp_path / 'test', cwd=tmp_path)
    for output in (resumed, tested):
        assert 'coco/segm_mAP:' in output
        assert 'weights_only' not in output  # no fallback to unpickling without a check


def test_a_config_may_leave_the_import_to_the_tools(config, tmp_path):
    path = tmp_path / 'no_import.py'
    path.write_text(f'_base_ = {str(config)!r}\ncustom_imports = None\ntrain_cfg = dict(max_iters=1)\n')
    run_python(TOOLS / 'train.py', path, '--work-dir', tmp_path / 'run', cwd=tmp_path)
    assert (tmp_path / 'run' / 'iter_1.pth').exists()


def test_a_checkpoint_of_mmdet_2_is_tested_resumed_and_started_from(config, tmp_path):
    """With the stored bases, an optimiser and no log, as FcaNet's published detectors have them."""
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, MultiSpectralAttention):
            state[f'{name}.dct_layer.weight'] = full_basis(module.frequencies, module.grid, module.in_channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3).state_dict()
    meta = dict(mmdet_version='2.4.0', epoch=0, iter=3, CLASSES=tuple(CLASSES))
    torch.save(dict(meta=meta, state_dict=state, optimizer=optimizer), tmp_path / 'old.pth')
    tested = run_python(TOOLS / 'test.py', config, tmp_path / 'old.pth', '--work-dir', tmp_path / 'test', cwd=tmp_path)
    resumed = run_python(TOOLS / 'train.py', config, '--work-dir', tmp_path / 'resume', '--resume', tmp_path / 'old.pth', cwd=tmp_path)
    start = ['--cfg-options', 'train_cfg.max_iters=1', f'load_from={tmp_path / "old.pth"}']
    started = run_python(TOOLS / 'train.py', config, '--work-dir', tmp_path / 'start', *start, cwd=tmp_path)
    for output in (tested, resumed, started):
        assert not [line for line in output.splitlines() if 'key' in line and 'state_dict' in line]
        assert f'from {tmp_path / "old.pth"}' in output
    assert 'resumed epoch: 0, iter: 3' in resumed
    assert 'holds no learning rate schedule: resumed, the schedule starts anew' in resumed
    assert (tmp_path / 'resume' / 'iter_4.pth').exists()


def test_a_checkpoint_that_would_run_code_is_refused(config, hostile):
    command = [sys.executable, TOOLS / 'test.py', config, hostile, '--work-dir', hostile.parent / 'work']
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f'test: {hostile} holds more than data: it asks for')
    assert not (hostile.parent / 'executed').exists()


def launched(monkeypatch, config: Path, error: Exception) -> str:
    """What train.py ends with where mmdet's raises an error."""

    def fail(path: str, run_name: str) -> None:
        assert (path, run_name) == (str(MMDET / 'train.py'), '__main__')
        raise error

    monkeypatch.setattr(runpy, 'run_path', fail)
    monkeypatch.setattr(sys, 'argv', ['train.py', str(config), '--work-dir', str(config.parent / 'work')])
    with pytest.raises(SystemExit) as ended:
        load_command('train').main()
    return ended.value.code


def test_a_users_mistake_is_one_line_and_another_error_keeps_its_traceback(config, monkeypatch, capsys):
    assert launched(monkeypatch, config, CheckpointError('a.pth is truncated')) == 'train: a.pth is truncated'
    assert launched(monkeypatch, config, OSError(28, 'No space left on device')) == 1
    said = capsys.readouterr().err.replace('[rank0]: ', '')  # torch's, where another test has made a process group
    assert said.startswith('Traceback')
    assert said.endswith('in fail\n    raise error\nOSError: [Errno 28] No space left on device\n')
    with pytest.raises(KeyError, match='wrong'):
        launched(monkeypatch, config, KeyError('wrong'))


def test_a_config_for_a_library_that_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / 'config.py').write_text("default_scope = 'mmnothing'\nmodel = dict()\n")
    monkeypatch.chdir(tmp_path)
    expected = r"^train: config.py is for mmnothing, which is not installed; mmpretrain comes with pip install '.\[classification\]'$"
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py'])
    with pytest.raises(SystemExit, match=expected):
        load_command('train').main()


@pytest.mark.parametrize(('script', 'arguments'), [('dist_train.sh', []), ('dist_test.sh', ['CHECKPOINT'])])
def test_distributed_scripts_hand_over_every_argument(script, arguments, tmp_path):
    """python is replaced by a program that prints what it is given."""
    (tmp_path / 'python').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    result = subprocess.run(
        [TOOLS / script, 'my config.py', *arguments, '2', '--cfg-options', 'a=[1, 2]'],
        env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'PORT': '29511'},
        capture_output=True,
        text=True,
        check=True,
    )
    given = result.stdout.splitlines()
    assert given[:2] == ['-m', 'torch.distributed.run']
    assert {'--nproc_per_node=2', '--nnodes=1', '--master_port=29511'} <= set(given)
    assert given[-4 - len(arguments) - 1 :][:1] == ['my config.py']
    assert given[-4:] == ['--launcher', 'pytorch', '--cfg-options', 'a=[1, 2]']


@pytest.mark.parametrize(
    ('script', 'given', 'command'),
    [
        ('slurm_train.sh', ['my config.py', 'my dir'], ['train.py', 'my config.py', '--work-dir=my dir', '--launcher=slurm']),
        ('slurm_test.sh', ['my config.py', 'a.pth'], ['test.py', 'my config.py', 'a.pth', '--launcher=slurm']),
    ],
)
def test_slurm_scripts_hand_over_every_argument(script, given, command, tmp_path):
    """srun is replaced by a program that prints what it is given."""
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    result = subprocess.run(
        [TOOLS / script, 'gpu', 'job', *given, '--cfg-options', 'a=[1, 2]'],
        env=dict(PATH=f'{tmp_path}:/usr/bin:/bin', GPUS='16', GPUS_PER_NODE='4', SRUN_ARGS='--time=1 --qos=low'),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    options, called = lines[: lines.index('python')], lines[lines.index('python') :]
    assert {'--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4', '--job-name=job', '--time=1', '--qos=low'} <= set(options)
    assert options[:2] == ['-p', 'gpu']
    assert [called[1], Path(called[2]).name, *called[3:]] == ['-u', *command, '--cfg-options', 'a=[1, 2]']

"""Preflight under mmdet's own runner, in one process and in two, and left out under the commands of ``tools/``."""

import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from coco_folder import COUNTS, TRAIN, VAL, configure, edit, images, objects
from helpers import load_command, run_python
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner

from fca_mmdet import PreflightHook, UserError
from fca_mmdet.lab import demo
from fca_mmdet.training import preflight

MMDET = Path(mmdet.__file__).parent / '.mim' / 'tools'
NO_AREA = (
    f"annotations[0] of {TRAIN} has no 'area' (19 of 19 are at fault): write the area of the mask, or else the width times the height of"
)
HOOK = dict(custom_hooks=[dict(type='PreflightHook')], work_dir='work', load_from=None)


@pytest.fixture(autouse=True)
def enabled(monkeypatch) -> None:
    """As in a process of its own: a command of ``tools/`` that ran in this one has switched it off."""
    monkeypatch.setattr(PreflightHook, 'enabled', True)


def test_a_fault_ends_before_mmdet_loads_the_data(folder):
    edit(objects(lambda annotation: annotation.pop('area')), TRAIN)
    with pytest.raises(UserError) as refused:
        Runner.from_cfg(configure(HOOK)).train()
    assert str(refused.value).startswith(NO_AREA)
    with pytest.raises(KeyError, match='area'):
        Runner.from_cfg(configure(HOOK | dict(custom_hooks=[], experiment_name='without'))).train()


def test_a_test_looks_at_the_test_data_alone(folder, capsys):
    edit(objects(lambda annotation: annotation.pop('area')), TRAIN)
    edit(images(lambda image: image.update(file_name='none.png'), 2), VAL)
    with pytest.raises(UserError, match=r'^1 of 2 images of the test data, .*, are missing: the first is data/images/none.png$'):
        Runner.from_cfg(configure(HOOK)).test()
    assert 'train' not in [line.split(':')[1] for line in capsys.readouterr().out.splitlines() if line.startswith('preflight:')]


def test_a_hook_that_was_made_elsewhere(folder, capsys):
    runner = Runner.from_cfg(configure(HOOK | dict(custom_hooks=[])))
    runner.register_hook(PreflightHook())
    capsys.readouterr()
    for _ in range(2):
        runner.call_hook('before_train')
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith('preflight: ')]
    assert said == [f'preflight: {line}' for line in COUNTS[:2]]


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_it_is_found_from_other_scopes(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(HOOKS.build(dict(type='mmdet.PreflightHook', decode=True))) is PreflightHook


def test_a_config_of_another_library_is_left_alone(folder, monkeypatch):
    monkeypatch.setattr(preflight, 'check', None)
    runner = Runner.from_cfg(configure(HOOK | dict(custom_hooks=[])))
    runner.cfg = Config(dict(default_scope='mmpretrain'))
    PreflightHook().before_train(runner)


@pytest.mark.parametrize('option', [[], ['--no-preflight']])
def test_the_commands_check_once_or_not_at_all(option, folder, monkeypatch):
    checked, arguments = [], []
    monkeypatch.setattr(preflight, 'check', lambda cfg, splits, work_dir: checked.append((splits, cfg.resume, cfg.load_from)))
    monkeypatch.setattr(runpy, 'run_path', lambda path, run_name: arguments.append(sys.argv[1:]))
    for name in ('train', 'test'):
        given = ['config.py', '--work-dir', 'work', '--resume', 'a.pth'][: 5 if name == 'train' else 3]
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *option, *given])
        load_command(name).main()
        assert arguments.pop() == given
        assert not PreflightHook.enabled
    assert checked == ([] if option else [(('train', 'val'), True, 'a.pth'), (('test',), False, None)])


@pytest.mark.parametrize('option', [[], ['--no-preflight']])
def test_the_demo_hands_the_option_over(option, monkeypatch):
    given = []
    monkeypatch.setattr(demo, 'run_demo', lambda **arguments: given.append(arguments['preflight']))
    monkeypatch.setattr(sys, 'argv', ['demo.py', *option])
    load_command('demo').main()
    assert given == [not option]


@pytest.mark.slow
def test_under_mmdets_own_commands(folder):
    (folder / 'here.py').write_text("_base_ = 'config.py'\ncustom_hooks = [dict(type='PreflightHook')]\n")
    trained = run_python(MMDET / 'train.py', 'here.py', '--work-dir', 'work', cwd=folder)
    tested = run_python(MMDET / 'test.py', 'here.py', 'work/iter_2.pth', '--work-dir', 'work', cwd=folder)
    for output, counts in ((trained, COUNTS[:2]), (tested, COUNTS[2:])):
        assert [line for line in output.splitlines() if line.startswith('preflight: ')] == [f'preflight: {line}' for line in counts]
    edit(objects(lambda annotation: annotation.pop('area')), TRAIN)
    command = [sys.executable, MMDET / 'train.py', 'here.py', '--work-dir', 'work']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f'fca_mmdet.errors.UserError: {NO_AREA}')


@pytest.mark.slow
def test_two_processes_end_with_the_same_sentence(folder):
    """The first looks."""
    edit(objects(lambda annotation: annotation.pop('area')), TRAIN)
    (folder / 'here.py').write_text("_base_ = 'config.py'\ncustom_hooks = [dict(type='PreflightHook')]\nwork_dir = 'work'\n")
    (folder / 'both.py').write_text(
        'from mmengine.config import Config\nfrom mmengine.runner import Runner\nfrom torch import distributed\n'
        "import fca_mmdet\ndistributed.init_process_group('gloo')\nrunner = Runner.from_cfg(Config.fromfile('here.py'))\n"
        'try:\n    runner.train()\nexcept fca_mmdet.UserError as error:\n'
        "    open(f'said{distributed.get_rank()}', 'w').write(str(error))\n"
    )
    output = run_python(
        '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29533', 'both.py', cwd=folder, OMP_NUM_THREADS='1'
    )
    said = [(folder / f'said{rank}').read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith(NO_AREA)
    assert 'preflight: ' not in output

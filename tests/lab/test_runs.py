"""Runs: the configs that are written for them, their trainings, and what is read of these."""

import fcntl
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers import TOOLS
from made_up_results import log
from mmengine.config import Config
from mmengine.runner import Runner

from fca_mmdet.errors import UserError
from fca_mmdet.lab import runs
from fca_mmdet.lab.data import read_folder
from fca_mmdet.lab.machine import machine
from fca_mmdet.lab.plan import read_plan
from fca_mmdet.lab.runs import Run, configure, fraction_done, is_running, read_result, train_once, write_configs

PLAIN = 'small/mask-rcnn_r50-thin_fpn_small-heads.py'
FCA = 'small/mask-rcnn_fca-r50-thin_fpn_small-heads.py'
SMALL_IMAGES = {'train_cfg.val_interval': 4, 'train_dataloader.dataset.pipeline.2.scale': [64, 64]}


def a_run(folder, **schedule: int) -> Run:
    return Run('a', 0, folder, dict(digest='12e45678', parameters=7), schedule)


def test_written_configs(write_plan, shapes, tmp_path):
    plan = read_plan(
        write_plan(
            seeds=2, options=SMALL_IMAGES, runs={'plain': {'config': PLAIN}, 'low': {'config': FCA, 'frequencies': [[0, 0], [0, 1]]}}
        )
    )
    folder = read_folder(shapes)
    written = write_configs(list(plan['runs']), plan, tmp_path / 'out', folder, {'train_cfg.max_iters': 7}, None)
    assert [(run.name, run.seed) for run in written] == [('plain', 0), ('plain', 1), ('low', 0), ('low', 1)]
    assert written[0].facts['digest'] == written[1].facts['digest'] != written[2].facts['digest']
    config = Config.fromfile(written[3].folder / 'config.py')
    assert config.randomness.seed == 1
    assert config.train_cfg.max_iters == config.default_hooks.logger.interval == 7
    assert config.train_dataloader.dataset.pipeline[2].scale == (64, 64)
    assert [tuple(pair) for pair in config.model.backbone.frequencies] == [(0, 0), (0, 1)]
    assert written[3].facts['frequencies'] == '[[0, 0], [0, 1]]'
    assert written[2].facts['parameters'] > written[0].facts['parameters']
    # Written again they are the same; otherwise they are refused.
    assert write_configs(list(plan['runs']), plan, tmp_path / 'out', folder, {'train_cfg.max_iters': 7}, None) == written
    with pytest.raises(UserError, match=r'holds a run of another config .*: name another --out, or remove it'):
        write_configs(list(plan['runs']), plan, tmp_path / 'out', folder, {'train_cfg.max_iters': 8}, None)


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'config': 'small/none.py'}, "the run a: fca_mmdet has no config 'small/none.py'"),
        ({'config': FCA, 'frequencies': 'low3'}, "the run a: .*unknown frequency set 'low3'"),
        ({'config': FCA, 'options': {'model.backbone.type': 'FcaResnet'}}, 'the run a: .*FcaResnet is not in the'),
        (
            {'config': FCA, 'options': {'max_iters': 5}},
            'the run a: nothing reads the option max_iters: its first part must be one',
        ),
        ({'config': FCA, 'options': {'optim_wraper.optimizer.lr': 5}}, 'the run a: nothing reads the option optim_wraper.optimizer.lr'),
        ({'config': FCA, 'options': {'randomness.seed': 5}}, 'the run a: leave work_dir and randomness.seed out of the options'),
        ({'config': FCA, 'options': {'randomness': {'seed': 5}}}, 'the run a: leave work_dir and randomness.seed out of the options'),
        ({'config': FCA, 'options': {'work_dir': 'b'}}, 'the run a: leave work_dir and randomness.seed out of the options'),
        ({'config': FCA, 'options': {'train_dataloader.dataset.pipeline.9.prob': 1}}, 'the run a: KeyError: .*Index 9 exceeds'),
        ({'config': FCA, 'options': {'val_evaluator': [{'type': 'CocoMetric'}]}}, 'the run a: val_evaluator must be one CocoMetric'),
        ({'config': FCA, 'options': {'val_evaluator.type': 'VOCMetric'}}, 'the run a: val_evaluator must be one CocoMetric'),
        (
            {'config': 'faster_rcnn/faster-rcnn_fca-r50_fpn_1x_coco.py'},
            r"the run a: val_evaluator must be one CocoMetric or FastCocoMetric with metric=\['bbox', 'segm'\] for this plan",
        ),
        ({'config': 'a.py'}, 'the run a: a.py configures no model'),
        ({'config': 'b.py'}, 'the run a: SyntaxError: '),
    ],
)
def test_what_cannot_be_built_or_ranked_is_told_before_training(entry, message, write_plan, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.py').write_text('max_iters = 1')
    (tmp_path / 'b.py').write_text('max_iters = (')
    plan = read_plan(write_plan(runs={'a': entry}, metric='segm_mAP'))
    with pytest.raises(UserError, match=message):
        write_configs(['a'], plan, tmp_path / 'out', read_folder(shapes), {}, None)
    assert not (tmp_path / 'out').exists()


def test_a_run_that_is_to_select_has_the_hook_for_it(write_plan):
    searching = 'small/mask-rcnn_fca-r50-thin_fpn_searched_small-heads.py'
    for config in (FCA, searching):
        plan = read_plan(write_plan(runs={'search': {'config': config}, 'a': {'config': FCA, 'selected_by': 'search'}}))
        context = nullcontext() if config == searching else pytest.raises(UserError, match=r'search is to select .* no FrequencySearchHook')
        with context:
            configure('search', plan, None, {}, None)
        configure('a', plan, None, {}, None)


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    run = a_run(tmp_path)
    assert not is_running(run)
    with open(tmp_path / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_running(run)
        assert 'another process is training it' in train_once(run, {})['error']
    assert not is_running(run)
    assert not run.result.exists()


def test_what_is_read_of_a_finished_training(tmp_path):
    steps = [dict(step=step, epoch=1, loss=2.0, time=time, memory=memory) for step, time, memory in [(1, 3.0, 5), (2, 1.0, 9), (3, 1.0, 7)]]
    log(tmp_path, [*steps, {'step': 3, 'coco/bbox_mAP': 0.25, 'coco/segm_mAP_50': 0.5}])
    (tmp_path / 'output.log').touch()
    row = read_result(a_run(tmp_path))
    expected = dict(name='a', seed=0, digest='12e45678', parameters=7, iterations=3, bbox_mAP=0.25, segm_mAP_50=0.5)
    expected |= dict(seconds_per_iteration=1.0, training_minutes=pytest.approx(5 / 3 * 3 / 60), cuda_memory_mib=9)
    assert {key: row[key] for key in expected} == expected
    assert all(row[key] for key in ('fca_mmdet', 'torch', 'mmdet', 'mmengine', 'mmcv', 'python', 'device', 'finished'))


def test_how_much_of_a_run_is_done(tmp_path):
    assert fraction_done(a_run(tmp_path, max_iters=8)) == 0
    log(tmp_path, [dict(step=step, epoch=1 + step // 4, loss=1.0) for step in range(1, 7)])
    assert fraction_done(a_run(tmp_path, max_iters=8)) == 6 / 8
    assert fraction_done(a_run(tmp_path, max_epochs=4)) == 1 / 4


def test_the_device_is_that_of_the_training(tmp_path, monkeypatch):
    """As mmengine logs it; this process may see other devices, or in another order."""
    log(tmp_path, [dict(step=1, loss=2.0, time=1.0), {'step': 1, 'coco/bbox_mAP': 0.25}])
    names, lines = [], []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(names))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: names[device])
    runner = SimpleNamespace(logger=SimpleNamespace(info=lines.append), cfg=SimpleNamespace(_cfg_dict={}))
    for name in ('_randomness_cfg', '_seed', '_launcher', '_distributed', '_world_size'):
        setattr(runner, name, {})
    devices = []
    for names[:] in ([], ['Abacus 1'], ['Abacus 2', 'Abacus 2'], ['Abacus 3', 'Sand clock']):  # started again on another one
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, 'is_available', lambda: bool(names))
            Runner._log_env(runner, {})
        (tmp_path / 'output.log').write_text('\n'.join(lines))
        devices.append(read_result(a_run(tmp_path))['device'])
    assert devices == [machine('cpu')['cpu'], 'Abacus 1', 'Abacus 2', 'Abacus 3']


TRAINING = """
import json, os, pathlib, sys
config, resume, option, folder = sys.argv[1:]
print(pathlib.Path(config).name, resume, option, os.environ['DEVICE'], os.environ.get('HOME'))
if os.environ['DEVICE'] == 'broken':
    sys.exit('no such device')
if os.environ['DEVICE'] == 'silent':
    sys.exit()
log = pathlib.Path(folder, 'now', 'vis_data')
log.mkdir(parents=True)
(log / 'scalars.json').write_text(json.dumps({'step': 1, 'loss': 1, 'time': 3600, 'coco/bbox_mAP': 0.5}) + chr(10))
"""


def test_a_training_is_a_process_with_a_log_a_result_and_some_more_variables(tmp_path, monkeypatch):
    (tmp_path / 'train.py').write_text(TRAINING)
    monkeypatch.setattr(runs, 'TRAIN', tmp_path / 'train.py')
    monkeypatch.setenv('HOME', 'unchanged')
    run = a_run(tmp_path)
    failed = train_once(run, {'DEVICE': 'broken'})
    assert failed == dict(name='a', seed=0, error='config.py --resume --work-dir broken unchanged\nno such device\n')
    assert not run.result.exists()
    silent = train_once(run, {'DEVICE': 'silent'})
    assert silent == dict(name='a', seed=0, error=f'{tmp_path} logged no step: see its output.log, remove it and start again')
    row = train_once(run, {'DEVICE': 'whole'})
    assert row['bbox_mAP'] == 0.5
    assert row['peak_memory_mib'] > 0
    assert row['minutes'] == 60, 'an interrupted training has taken longer than its last process'
    assert json.loads(run.result.read_text()) == row
    assert (tmp_path / 'output.log').read_text().endswith('config.py --resume --work-dir whole unchanged\n')
    assert train_once(run, {'DEVICE': 'broken'}) == row  # done, so left out


def test_a_training_is_that_of_tools():
    assert runs.TRAIN.resolve() == TOOLS / 'train.py'

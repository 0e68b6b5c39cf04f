"""Plans that are run: what a terminal shows, the table of results and, slow, real trainings that are killed, resumed and collected."""

import csv
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import yaml
from helpers import TINY, TOOLS, load_command
from made_up_results import finish, log
from rich.console import Console

from fca_mmdet.lab import experiment
from fca_mmdet.lab.experiment import Board, submit_here, write_results
from fca_mmdet.lab.plan import read_plan
from fca_mmdet.lab.runs import Run

FOUR = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4}
ONE = {'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1, 'default_hooks.logger.interval': 50}
TOP16, LOW2 = {'config': str(TINY)}, {'config': str(TINY), 'frequencies': 'low2'}
PLAIN = {'config': 'small/mask-rcnn_r50-thin_fpn_small-heads.py'}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none'], r'^experiment: .*plans/none.yml is not a plan: .*No such file or directory'),
        (['small', '--only', 'plain', 'plane'], r'^experiment: --only plane: the runs of the plan are plain, se, '),
        (['small', '--data', 'none'], r'^experiment: .*none/annotations/train.json is missing: --data takes a folder with '),
        (['small', '--seeds', '0'], r'^experiment: --seeds 0: give 1 or more$'),
        (['small', '--jobs', '0'], r'^experiment: --jobs 0: give 1 or more$'),
        (['small', '--devices', '0', '2'], r'^experiment: --devices 2: this process sees 2 GPUs; they are numbered from 0'),
        (['small', '--devices', 'cuda:0'], r'^experiment: --devices cuda:0: this process sees 2 GPUs; they are numbered from 0'),
        (['small', '--ray', '--gpus', '3'], r'^experiment: --gpus 3: this machine has 2 GPUs$'),
        (['small', '--ray', '--gpus', '-1'], r'^experiment: --gpus -1: this machine has 2 GPUs$'),
        (['waiting.yml', '--data', 'shapes'], r"^experiment: the run best: fca_mmdet has no config 'small/none.py'"),
    ],
)
def test_mistakes_end_the_command_before_training(arguments, message, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    (tmp_path / 'shapes').symlink_to(shapes)
    waiting = dict(singles={'config': str(TINY)}, runs={'best': {'config': 'small/none.py', 'best': 2}})  # for 49 trainings
    (tmp_path / 'waiting.yml').write_text(yaml.safe_dump(waiting))
    monkeypatch.setattr(sys, 'argv', ['experiment.py', *arguments, '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit, match=message):
        load_command('experiment').main()
    assert not list(tmp_path.rglob('config.py'))


def test_results_have_a_row_for_each_finished_run(write_plan, tmp_path):
    plan = read_plan(write_plan(seeds=11, runs={'b': PLAIN, 'a': PLAIN}))
    for seed in (10, 2):
        finish(tmp_path, 'b', 0.1, seed)
    finish(tmp_path, 'a', 0.3, segm_mAP=0.2)
    write_results(plan, tmp_path)
    with (tmp_path / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['name'], row['seed'], row['segm_mAP']) for row in rows] == [('b', '2', ''), ('b', '10', ''), ('a', '0', '0.2')]
    assert json.loads((tmp_path / 'results.json').read_text())[2]['bbox_mAP'] == 0.3


def test_the_table_of_results_before_any_is_finished(write_plan, tmp_path):
    write_results(read_plan(write_plan(runs={'a': PLAIN})), tmp_path)
    assert json.loads((tmp_path / 'results.json').read_text()) == []
    assert (tmp_path / 'results.csv').read_text().strip() == ''


def show(board: Board) -> list[list[str]]:
    """The cells of each row that a terminal shows, and the lines that are not rows."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(board)
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.strip('│').split('│')] for line in lines if line.strip()]


def test_what_a_terminal_shows(write_plan, tmp_path):
    plan = read_plan(write_plan(runs={'plain': PLAIN, 'search': PLAIN, 'learned': {**PLAIN, 'selected_by': 'search'}}))
    runs = [Run(name, seed, tmp_path / f'{name}-{seed}', {}, dict(max_iters=8)) for name in ('plain', 'search') for seed in range(3)]
    log(runs[2].folder, [dict(step=step, loss=1.0) for step in (1, 2)])
    board = Board(runs, plan)
    assert show(board)[-1] == ['the time left is known after the first log entry']
    board.rows = {runs[0]: dict(bbox_mAP=0.2, segm_mAP=0.1), runs[1]: dict(bbox_mAP=0.3), runs[3]: dict(error='no memory')}
    board.running = {runs[2]}
    log(runs[2].folder, [dict(step=step, loss=1.0) for step in (3, 4, 5, 6)], 'resumed')
    board.start -= 350  # seconds for 3.5 of 5.75 runs: three, and half of one of which a quarter was done before
    shown = show(board)
    assert shown[0] == ['2 of 6 runs finished']
    assert ['plain', '2 of 3', 'seed 2: 75 %', '25.0', '10.0'] in shown
    assert ['search', '0 of 3', '1 failed', '', ''] in shown
    assert ['learned', '', 'chosen later', '', ''] in shown
    assert shown[-1] == ['about 4 min left']


def test_each_device_has_one_run_at_a_time(monkeypatch, tmp_path):
    """Four runs on three devices, of which one is given twice: three begin, and the fourth takes the first that is free."""
    begun: queue.Queue = queue.Queue()
    ends = [threading.Event() for _ in range(4)]

    def train(run: Run, environment: dict[str, str]) -> dict:
        begun.put((run.seed, environment))
        assert ends[run.seed].wait(60)
        return dict(seed=run.seed)

    monkeypatch.setattr(experiment, 'train_once', train)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    with submit_here(1, ['0', '0', '1']) as submit:
        futures = [submit(Run('a', seed, tmp_path, {}, {})) for seed in range(4)]
        first = dict(begun.get(timeout=60) for _ in range(3))
        assert sorted(environment['CUDA_VISIBLE_DEVICES'] for environment in first.values()) == ['0', '0', '1']
        assert begun.empty()
        ends[1].set()
        assert begun.get(timeout=60) == (3, first[1])
        for end in ends:
            end.set()
        assert [future.result() for future in futures] == [dict(seed=seed) for seed in range(4)]
    with submit_here(1, []) as submit:
        submit(Run('a', 0, tmp_path, {}, {})).result()
    assert begun.get() == (0, {'OMP_NUM_THREADS': '1'})


@pytest.mark.parametrize('visible', ['3', '5,2', ' GPU-aa , GPU-bb '])
def test_devices_are_those_that_this_process_sees(visible, monkeypatch, tmp_path):
    names = [name.strip() for name in visible.split(',')]
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(names))
    monkeypatch.setattr(experiment, 'train_once', lambda run, environment: environment)
    for index, name in enumerate(names):
        with submit_here(1, [str(index)]) as submit:
            assert submit(Run('a', 0, tmp_path, {}, {})).result() == {'CUDA_VISIBLE_DEVICES': name}


def test_a_run_that_raises_does_not_stop_the_others(write_plan, tmp_path, capsys):
    plan = read_plan(write_plan(runs={'a': PLAIN, 'b': PLAIN}))
    runs = [Run(name, 0, tmp_path / name / 'seed-0', {}, {}) for name in 'ab']

    def submit(run: Run) -> Future:
        future: Future = Future()
        if run.name == 'a':
            future.set_exception(OSError(28, 'No space left on device'))
        else:
            future.set_result(dict(name='b', seed=0, bbox_mAP=0.3))
        return future

    assert experiment.run_all(runs, plan, tmp_path, submit) == runs[:1]
    said = capsys.readouterr().out
    assert 'a, seed 0 failed:\nOSError: [Errno 28] No space left on device' in said
    assert 'b, seed 0: box AP 30.0' in said
    assert said.count('1 of 2 runs finished') == 1
    assert said.endswith('\n')


def start(plan: Path, out: Path, data: Path, *more: str) -> subprocess.Popen:
    """The command, as a user starts it."""
    command = [sys.executable, TOOLS / 'experiment.py', plan, '--out', out, '--data', data, '--jobs', '1', *more]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def figures(out: Path) -> list[dict]:
    """The results without what depends on the clock."""
    clock = {'seconds_per_iteration', 'training_minutes', 'finished', 'minutes', 'peak_memory_mib'}
    return [{key: value for key, value in row.items() if key not in clock} for row in json.loads((out / 'results.json').read_text())]


@pytest.mark.slow
def test_killed_and_started_again_a_plan_ends_with_the_same_figures(write_plan, shapes, tmp_path):
    plan = write_plan(options=FOUR, runs={'top16': TOP16, 'low2': LOW2})
    whole = start(plan, tmp_path / 'whole', shapes)
    output = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, output
    assert 'low2, seed 0: box AP' in output
    cut = start(plan, tmp_path / 'cut', shapes)
    checkpoint = tmp_path / 'cut' / 'top16' / 'seed-0' / 'iter_2.pth'
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(cut.pid, signal.SIGKILL)  # the command and its training
    cut.communicate()
    assert not (tmp_path / 'cut' / 'top16' / 'seed-0' / 'result.json').exists()
    resumed = start(plan, tmp_path / 'cut', shapes)
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    assert figures(tmp_path / 'cut') == figures(tmp_path / 'whole')
    result = tmp_path / 'cut' / 'top16' / 'seed-0' / 'result.json'
    before = result.stat().st_mtime_ns
    again = start(plan, tmp_path / 'cut', shapes)
    assert again.wait(timeout=120) == 0
    assert result.stat().st_mtime_ns == before  # done, so left out


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(write_plan, shapes, tmp_path):
    bad = {**TOP16, 'options': {'optim_wrapper.optimizer.lr': 'fast'}}
    process = start(write_plan(options=ONE, runs={'bad': bad, 'good': TOP16}), tmp_path / 'out', shapes)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert 'bad, seed 0 failed' in output
    assert 'experiment: 1 runs failed: mend the errors above, and the same command runs only these again' in output
    assert [row['name'] for row in figures(tmp_path / 'out')] == ['good']


@pytest.mark.slow
def test_a_plan_on_ray(write_plan, shapes, tmp_path):
    pytest.importorskip('ray')
    plan = write_plan(options=ONE, runs={'top16': TOP16, 'low2': LOW2})
    for name, more in {'here': (), 'ray': ('--ray',)}.items():
        process = start(plan, tmp_path / name, shapes, *more)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    assert figures(tmp_path / 'ray') == figures(tmp_path / 'here')

"""tools/experiment.py: plans as they are read and prepared, and, slow, real trainings that are killed, resumed and collected."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml
from experiment import Run, choose, execute, prepare, rank_singles, read_plan, write_chosen, write_results
from make_shapes import make_shapes
from mmengine.config import Config

from fca_mmdet import FREQUENCY_SETS, config_path
from fca_mmdet.configs import CONFIGS

ROOT = Path(__file__).resolve().parents[1]
PLANS = sorted((CONFIGS / 'plans').glob('*.yml'))
PLAIN = 'small/mask-rcnn_r50-thin_fpn_small-heads.py'
FCA = 'small/mask-rcnn_fca-r50-thin_fpn_small-heads.py'
TINY = {
    'train_cfg.max_iters': 4,
    'train_cfg.val_interval': 4,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
    'train_dataloader.dataset.pipeline.2.scale': [64, 64],
    'model.rpn_head.anchor_generator.scales': [8],
    'model.test_cfg.rpn.max_per_img': 20,
}


@pytest.fixture
def write(tmp_path):
    """Writes a plan and returns its path."""

    def write(**plan) -> Path:
        path = tmp_path / 'plan.yml'
        path.write_text(yaml.safe_dump(plan, sort_keys=False))
        return path

    return write


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    """Eight training and four held-out images."""
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(folder, train=8, val=4)
    return folder


def has(config: Config, key: str) -> bool:
    """Whether a dotted key is in a config."""
    value = config
    for part in key.split('.'):
        if isinstance(value, list):
            part = int(part)
            if part >= len(value):
                return False
        elif part not in value:
            return False
        value = value[part]
    return True


@cache
def read(name: str) -> Config:
    """A config of this package."""
    return Config.fromfile(config_path(name))


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_shipped_plans_change_what_their_configs_have(path):
    plan = read_plan(path)
    for entry in plan['runs'].values():
        config = read(entry['config'])
        backbone = 'model.backbone.'  # its arguments have defaults
        missing = [key for key in {**plan['options'], **entry.get('options', {})} if not key.startswith(backbone) and not has(config, key)]
        assert not missing
        if isinstance(entry.get('frequencies'), str):
            assert entry['frequencies'] in FREQUENCY_SETS


def test_the_coco_plan_changes_the_attention_alone():
    plan = read_plan(CONFIGS / 'plans' / 'coco.yml')
    assert len(plan['runs']) == 3 * 2 * 5
    for name, entry in plan['runs'].items():
        detector, attention = name.rsplit('_', 1)
        assert entry['baseline'] == f'{detector}_plain'
        plain = plan['runs'][entry['baseline']]['config']
        family, rest = plain.split('rcnn_')[0:-1], plain.split('rcnn_')[-1]
        assert entry['config'] == 'rcnn_'.join([*family, rest if attention == 'plain' else f'{attention}-{rest}'])


MISTAKES = {
    'no runs': ({'seeds': 2}, 'is no plan: it needs runs, each a name with a config'),
    'an unknown word': ({'runs': {'a': {'config': PLAIN}}, 'sedes': 2}, 'has sedes; a plan has baseline, data'),
    'no config': ({'runs': {'a': {'frequencies': 'low2'}}}, "the run a of .* is {'frequencies': 'low2'}: it needs a config"),
    'two choices': (
        {'runs': {'a': {'config': FCA, 'frequencies': 'low2', 'selected_by': 'b'}, 'b': {'config': FCA}}},
        'names its frequencies more than once',
    ),
    'no singles': ({'runs': {'a': {'config': FCA, 'best': 2}}}, 'takes the best 2 of the singles, and the plan has no singles'),
    'nobody selects': ({'runs': {'a': {'config': FCA, 'selected_by': 'b'}}}, 'the selected_by b of the run a of .* is none of its runs: a'),
    'no baseline': ({'runs': {'a': {'config': FCA}}, 'baseline': 'b'}, 'the baseline b of the run a of .* is none of its runs: a'),
}


@pytest.mark.parametrize(('plan', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_plan(plan, message, write):
    with pytest.raises(SystemExit, match=message):
        read_plan(write(**plan))


@pytest.mark.parametrize('text', ['runs: [', '- a', '!!python/object/apply:os.system ["touch pwned"]'])
def test_what_is_no_plan_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'plan.yml').write_text(text)
    with pytest.raises(SystemExit, match=r'plan.yml is no plan'):
        read_plan(tmp_path / 'plan.yml')
    assert not (tmp_path / 'pwned').exists()


def test_a_plan_adds_to_its_base(write, tmp_path):
    (tmp_path / 'base.yml').write_text(yaml.safe_dump(dict(seeds=4, options={'a': 1, 'b': 2}, runs={'old': {'config': PLAIN}})))
    plan = read_plan(write(base='base.yml', options={'b': 3}, runs={'new': {'config': FCA}}))
    assert plan == dict(seeds=4, options={'a': 1, 'b': 3}, runs={'new': {'config': FCA}}, baseline='new')


def test_prepared_configs(write, shapes, tmp_path):
    plan = read_plan(
        write(seeds=2, options=TINY, runs={'plain': {'config': PLAIN}, 'low': {'config': FCA, 'frequencies': [[0, 0], [0, 1]]}})
    )
    runs = prepare(list(plan['runs']), plan, tmp_path / 'out', shapes, {'train_cfg.max_iters': 7}, None)
    assert [(run.name, run.seed) for run in runs] == [('plain', 0), ('plain', 1), ('low', 0), ('low', 1)]
    assert runs[0].digest == runs[1].digest != runs[2].digest
    config = Config.fromfile(runs[3].config)
    assert config.randomness.seed == 1
    assert config.train_cfg.max_iters == 7
    assert config.train_dataloader.dataset.pipeline[2].scale == (64, 64)
    assert [tuple(pair) for pair in config.model.backbone.frequencies] == [(0, 0), (0, 1)]
    assert dict(runs[3].facts)['frequencies'] == '[[0, 0], [0, 1]]'
    assert dict(runs[2].facts)['parameters'] > dict(runs[0].facts)['parameters']
    # Prepared again they are the same; otherwise they are refused.
    assert prepare(list(plan['runs']), plan, tmp_path / 'out', shapes, {'train_cfg.max_iters': 7}, None) == runs
    with pytest.raises(SystemExit, match=r'holds a run of another config .*: name another --out, or remove it'):
        prepare(list(plan['runs']), plan, tmp_path / 'out', shapes, {'train_cfg.max_iters': 8}, None)


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'config': 'small/none.py'}, "the run a: fca_mmdet has no config 'small/none.py'"),
        ({'config': FCA, 'frequencies': 'low3'}, "the run a: .*unknown frequency set 'low3'"),
        ({'config': FCA, 'options': {'model.backbone.type': 'FcaResnet'}}, 'the run a: .*FcaResnet is not in the'),
    ],
)
def test_what_cannot_be_built_is_told_before_training(entry, message, write, shapes, tmp_path):
    plan = read_plan(write(runs={'a': entry}))
    with pytest.raises(SystemExit, match=message):
        prepare(['a'], plan, tmp_path / 'out', shapes, {}, None)
    assert not (tmp_path / 'out' / 'a').exists()


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    run = Run('a', 0, tmp_path, 'digest', ())
    with open(tmp_path / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert 'another process is at it' in execute(run, {})['error']
    assert not run.result.exists()


def finish(out: Path, name: str, figure: float, seed: int = 0, **more) -> None:
    """A result, as a finished run leaves it."""
    folder = out / name / f'seed-{seed}'
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text(json.dumps(dict(name=name, seed=seed, bbox_mAP=figure, **more)))


def test_two_step_selection(write, tmp_path):
    entries = {f'best-{k}': {'config': FCA, 'best': k} for k in (1, 2, 4)}
    plan = read_plan(write(singles={'config': FCA, 'seeds': 2}, runs=entries))
    assert len(plan['runs']) == 52
    for u in range(7):
        for v in range(7):  # the mean over seeds grows with v, then with u; a seed alone says otherwise
            for seed in (0, 1):
                finish(tmp_path, f'single-{u}{v}', (7 * v + u) / 100 + (0.5 if seed else -0.5) * (u == 3), seed)
    ranking = rank_singles(plan, tmp_path)
    assert ranking[:3] == [[6, 6], [5, 6], [4, 6]]
    assert ranking == sorted(ranking, key=lambda pair: (-pair[1], -pair[0]))
    assert choose(entries['best-4'], plan, tmp_path) == ranking[:4]
    for name, figure in {'best-1': 0.2, 'best-2': 0.4, 'best-4': 0.3}.items():
        finish(tmp_path, name, figure)
    write_chosen(plan, tmp_path)
    written = json.loads((tmp_path / 'frequencies.json').read_text())
    assert written == dict(metric='bbox_mAP', ranking=ranking, frequencies=ranking[:2])
    (tmp_path / 'single-34' / 'seed-0' / 'result.json').unlink()
    (tmp_path / 'single-34' / 'seed-1' / 'result.json').unlink()
    with pytest.raises(SystemExit, match='single-34 has no result, so the singles cannot be ranked'):
        rank_singles(plan, tmp_path)


def test_a_learned_list_is_taken_from_the_run_that_learned_it(write, tmp_path):
    plan = read_plan(write(runs={'search': {'config': FCA}, 'learned': {'config': FCA, 'selected_by': 'search'}}))
    with pytest.raises(SystemExit, match=r'search has written no .*frequencies.json'):
        choose(plan['runs']['learned'], plan, tmp_path)
    (tmp_path / 'search' / 'seed-0').mkdir(parents=True)
    (tmp_path / 'search' / 'seed-0' / 'frequencies.json').write_text('{"frequencies": [[0, 0], [3, 4]]}')
    assert choose(plan['runs']['learned'], plan, tmp_path) == [[0, 0], [3, 4]]


def test_results_have_a_row_for_each_finished_run(write, tmp_path):
    plan = read_plan(write(seeds=11, runs={'b': {'config': PLAIN}, 'a': {'config': PLAIN}}))
    for seed in (10, 2):
        finish(tmp_path, 'b', 0.1, seed)
    finish(tmp_path, 'a', 0.3, segm_mAP=0.2)
    write_results(plan, tmp_path)
    with (tmp_path / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['name'], row['seed'], row['segm_mAP']) for row in rows] == [('b', '2', ''), ('b', '10', ''), ('a', '0', '0.2')]
    assert json.loads((tmp_path / 'results.json').read_text())[2]['bbox_mAP'] == 0.3


def start(plan: Path, out: Path, data: Path, *more: str) -> subprocess.Popen:
    """The command, as a user starts it."""
    command = [sys.executable, ROOT / 'tools' / 'experiment.py', plan, '--out', out, '--data', data, '--jobs', '1', *more]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def figures(out: Path) -> list[dict]:
    """The results without what depends on the clock."""
    clock = {'seconds_per_iteration', 'training_minutes', 'finished', 'peak_memory_mib'}
    return [{key: value for key, value in row.items() if key not in clock} for row in json.loads((out / 'results.json').read_text())]


@pytest.mark.slow
def test_killed_and_started_again_a_plan_ends_with_the_same_figures(write, shapes, tmp_path):
    plan = write(options=TINY, runs={'plain': {'config': PLAIN}, 'low2': {'config': FCA, 'frequencies': 'low2'}})
    whole = start(plan, tmp_path / 'whole', shapes)
    output = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, output
    assert 'low2, seed 0: box AP' in output
    cut = start(plan, tmp_path / 'cut', shapes)
    checkpoint = tmp_path / 'cut' / 'plain' / 'seed-0' / 'iter_2.pth'
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(cut.pid, signal.SIGKILL)  # the command and its training
    cut.communicate()
    assert not (tmp_path / 'cut' / 'plain' / 'seed-0' / 'result.json').exists()
    resumed = start(plan, tmp_path / 'cut', shapes)
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    assert figures(tmp_path / 'cut') == figures(tmp_path / 'whole')
    result = tmp_path / 'cut' / 'plain' / 'seed-0' / 'result.json'
    before = result.stat().st_mtime_ns
    again = start(plan, tmp_path / 'cut', shapes)
    assert again.wait(timeout=120) == 0
    assert result.stat().st_mtime_ns == before  # done, so left out


@pytest.mark.slow
def test_a_failed_run_hinders_no_other(write, shapes, tmp_path):
    options = {**TINY, 'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1}
    bad = {'config': PLAIN, 'options': {'optim_wrapper.optimizer.lr': 'fast'}}
    process = start(write(options=options, runs={'bad': bad, 'good': {'config': PLAIN}}), tmp_path / 'out', shapes)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert 'bad, seed 0 failed' in output
    assert 'experiment: 1 runs failed; mended, the same command runs them alone' in output
    assert [row['name'] for row in figures(tmp_path / 'out')] == ['good']


@pytest.mark.slow
def test_a_plan_on_ray(write, shapes, tmp_path):
    pytest.importorskip('ray')
    options = {**TINY, 'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1}
    plan = write(options=options, runs={'plain': {'config': PLAIN}, 'low2': {'config': FCA, 'frequencies': 'low2'}})
    for name, more in {'here': (), 'ray': ('--ray',)}.items():
        process = start(plan, tmp_path / name, shapes, *more)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    assert figures(tmp_path / 'ray') == figures(tmp_path / 'here')

"""The numbers of a report against numpy's and the t distribution's, what became of runs, and what is said of bad results."""

import numpy as np
import pytest
from made_up_results import AP, PLAN, all_rows, row, write
from scipy import stats

from fca_mmdet.errors import UserError
from fca_mmdet.lab.power import power, seeds_to_tell
from fca_mmdet.lab.results import evaluate, holm


@pytest.fixture
def results(tmp_path):
    return write(tmp_path / 'results', all_rows())


def by_hand(differences: list[float]) -> tuple[float, list[float], float]:
    """Mean, 95 % interval and two-sided p, from the t distribution."""
    n, mean = len(differences), sum(differences) / len(differences)
    error = (sum((value - mean) ** 2 for value in differences) / (n - 1)) ** 0.5 / n**0.5
    half = stats.t.ppf(0.975, n - 1) * error
    return mean, [mean - half, mean + half], 2 * stats.t.sf(abs(mean / error), n - 1)


def test_means_and_spreads(results):
    found, _ = evaluate([results])
    for name, aps in AP.items():
        summary = found['runs'][name]['figures']['bbox_mAP']
        assert summary['n'] == len(aps)
        assert summary['mean'] == pytest.approx(np.mean(list(aps.values())))
        assert summary['std'] == (pytest.approx(np.std(list(aps.values()), ddof=1)) if len(aps) > 1 else None)
    ratios = [(0.55 + 0.01 * seed) / (0.5 + 0.01 * seed) for seed in range(4)]
    assert found['runs']['low2']['relative_time'] == pytest.approx(dict(n=4, mean=np.mean(ratios), std=np.std(ratios, ddof=1)))
    assert found['runs']['low4']['relative_time']['n'] == 3
    assert found['runs']['low4']['figures']['segm_mAP'] == dict(n=0, mean=None, std=None)


def test_differences_are_of_the_same_seed(results):
    found, _ = evaluate([results])
    rows, ps = found['differences']['bbox_mAP']['plain'], {}
    for name, above in {'low2': 4, 'low4': 2}.items():
        differences = [AP[name][seed] - AP['plain'][seed] for seed in AP['plain'] if seed in AP[name]]
        mean, interval, ps[name] = by_hand(differences)
        assert rows[name]['n'] == len(differences)
        assert rows[name]['above'] == above
        assert rows[name]['mean'] == pytest.approx(mean)
        assert rows[name]['interval'] == pytest.approx(interval)
        assert rows[name]['p'] == pytest.approx(ps[name])
        std = np.std(differences, ddof=1)
        assert power(rows[name]['tells'] / std, len(differences)) == pytest.approx(0.8)
        assert rows[name]['seeds_for_1'] == seeds_to_tell(0.01, std)
    untold = dict(tells=None, seeds_for_1=None)
    assert rows['low2']['p_holm'] == pytest.approx(2 * ps['low2'])
    assert rows['low4']['p_holm'] == pytest.approx(max(2 * ps['low2'], ps['low4']))
    assert rows['se'] == dict(n=1, mean=pytest.approx(0.01), interval=None, above=1, p=None, p_holm=None, **untold)
    assert found['differences']['segm_mAP']['plain']['low4'] == dict(n=0, mean=None, interval=None, above=0, p=None, p_holm=None, **untold)


def test_holm():
    """What Holm's paper defines: the hypothesis of rank i is rejected if p_(j) <= level / (m - j + 1) for all j <= i."""
    ps = np.array([0.012, 0.9, 0.03, 0.001, 0.012, 0.04])
    adjusted = holm({str(index): p for index, p in enumerate(ps)})
    for level in np.linspace(0.0005, 1, 400):
        rejected, order = set(), np.argsort(ps, kind='stable')
        for rank, index in enumerate(order):
            if ps[index] > level / (len(ps) - rank):
                break
            rejected.add(str(index))
        assert {name for name, p in adjusted.items() if p <= level} == rejected


def test_differences_that_are_all_the_same(tmp_path):
    rows = [row(name, seed, ap) for name, ap in {'plain': 0.3, 'low2': 0.3, 'se': 0.4}.items() for seed in range(3)]
    found, _ = evaluate([write(tmp_path, rows)])
    rows = found['differences']['bbox_mAP']['plain']
    assert rows['low2'] == dict(n=3, mean=0, interval=[0, 0], above=0, p=None, p_holm=None, tells=None, seeds_for_1=None)
    assert rows['se']['interval'] == pytest.approx([0.1, 0.1])


def test_what_became_of_runs(results):
    def begin(title: str, log: str) -> None:
        folder = results / title.replace(' ', '/seed-')
        folder.mkdir(parents=True)
        (folder / 'output.log').write_text(log)

    begin('gc 0', 'Traceback (most recent call last):\n  File ...\nRuntimeError: no memory\n')
    begin('gc 1', 'Iter(train) [10/40]\n')
    (results / 'gc' / 'seed-2').mkdir()
    found, _ = evaluate([results])
    assert found['states']['failed'] == ['gc seed 0 (RuntimeError: no memory)']
    assert found['states']['begun, not finished'] == ['gc seed 1']
    # Of gc three seeds were prepared; of the others what the plan says is expected.
    assert found['states']['not begun'] == ['low4 seed 2', 'se seed 0', 'se seed 1', 'se seed 3', 'gc seed 2']
    assert len(found['states']['finished']) == 13


@pytest.mark.parametrize(
    ('changed', 'said'),
    [
        (dict(torch='2.6.0'), 'torch differs, so rows are not comparable: 2.13.0 (plain, low2, low4); 2.6.0 (se)'),
        (dict(iterations=80), 'iterations differs, so rows are not comparable: 40 (plain, low2, low4); 80 (se)'),
        (dict(device='H100'), 'device differs, so times are not comparable: 2 cores (plain, low2, low4); H100 (se)'),
    ],
)
def test_rows_that_cannot_be_compared(changed, said, tmp_path):
    rows = all_rows()
    rows[-1] |= changed
    found, _ = evaluate([write(tmp_path, rows)])
    assert found['obstacles'] == [said]


def test_seeds_of_different_configs(tmp_path):
    rows = all_rows()
    rows[1]['digest'] = '12e45670'  # the same as 12e4567... if it is read as a number
    found, _ = evaluate([write(tmp_path, rows)])
    assert found['obstacles'] == ['the seeds of plain ran different configs (digests 12e45675, 12e45670), so they are not comparable']


def test_runs_of_several_baselines(tmp_path):
    """Each is a table of its own, whose p-values are adjusted for its rows, and whose rows alone must be comparable."""
    values = {'plain': [0.3, 0.32], 'se': [0.31, 0.34], 'plain-3x': [0.4, 0.41], 'se-3x': [0.42, 0.425]}
    rows = [row(name, seed, ap) for name, aps in values.items() for seed, ap in enumerate(aps)]
    for index in (4, 5, 6, 7):
        rows[index] |= dict(iterations=120, seconds_per_iteration=2.0 if index < 6 else 3.0)
    runs = '\n'.join(f'  {name}: {{config: a.py, baseline: {name.replace("se", "plain")}}}' for name in values)
    found, _ = evaluate([write(tmp_path, rows, f'runs:\n{runs}')])
    assert found['obstacles'] == []
    tables = found['differences']['bbox_mAP']
    assert {baseline: list(table) for baseline, table in tables.items()} == {'plain': ['se'], 'plain-3x': ['se-3x']}
    for baseline, name in {'plain': 'se', 'plain-3x': 'se-3x'}.items():
        mean, interval, p = by_hand([first - second for first, second in zip(values[name], values[baseline], strict=True)])
        one = dict(tables[baseline][name])
        assert one.pop('interval') == pytest.approx(interval)
        assert one.pop('tells') > abs(mean)
        assert one.pop('seeds_for_1') > 2
        assert one == pytest.approx(dict(n=2, mean=mean, above=2, p=p, p_holm=p))
    assert found['runs']['se-3x']['relative_time'] == dict(n=2, mean=1.5, std=0)


def test_singles_are_apart_from_runs_that_begin_like_them(tmp_path):
    rows = [row(name, 0, ap) for name, ap in {'plain': 0.3, 'single-06': 0.2, 'single-60': 0.1, 'single-stage': 0.4}.items()]
    plan = 'singles: {config: fca.py}\nruns:\n  plain: {config: plain.py}\n  single-stage: {config: one.py}'
    found, _ = evaluate([write(tmp_path, rows, plan)])
    assert list(found['runs']) == ['plain', 'single-stage']
    assert {pair: summary['mean'] for pair, summary in found['singles'].items()} == {'06': 0.2, '60': 0.1}


def keep(columns: list[str]) -> str:
    return '\n'.join([','.join(columns), ','.join(str(row('plain', 0, 0.3)[column]) for column in columns)])


COLUMNS = list(row('plain', 0, 0.3))
BAD = {
    'no results': (
        'results.csv',
        None,
        'there is no .*results.csv: give the folder that tools/experiment.py wrote, once a run has finished',
    ),
    'nothing': ('results.csv', '', '.*results.csv is empty: no run has finished; start tools/experiment.py again to go on'),
    'a header': ('results.csv', ','.join(COLUMNS), '.*results.csv is empty: no run has finished; .*'),
    'bytes': ('results.csv', b'\xff\xfe\x00', ".*results.csv cannot be read: 'utf-8' codec .*"),
    'no torch': (
        'results.csv',
        keep([column for column in COLUMNS if column not in ('torch', 'seed')]),
        '.*results.csv has no column torch, seed: start tools/experiment.py again, which rewrites it',
    ),
    'half a row': (
        'results.csv',
        '\n'.join([keep(COLUMNS), 'plain,1,12e4']),
        '.*results.csv, line 3, has no device: start tools/experiment.py again, or delete the line',
    ),
    'a long row': (
        'results.csv',
        f'{keep(COLUMNS)}\n{"1," * 40}',
        '.*results.csv cannot be read: .* Expected 20 fields in line 3, saw 41',
    ),
    'a word': (
        'results.csv',
        keep(COLUMNS).replace(',0.3,', ',many,'),
        ".*results.csv, line 2: bbox_mAP is 'many', and must be a number",
    ),
    'no plan': ('plan.yml', None, 'there is no .*plan.yml: give the folder that tools/experiment.py wrote'),
    'a list': ('plan.yml', '[plain]', r".*plan.yml is \['plain'\]: it must be keys with values"),
    'no runs': ('plan.yml', 'seeds: 3', '.*plan.yml is not a plan: it needs runs, each a name with a config'),
    'baseline': (
        'plan.yml',
        f'baseline: none\n{PLAN}',
        'the baseline none of the run plain of .*plan.yml is not one of its runs: plain, low2, low4, se, 1 more',
    ),
    'metric': (
        'plan.yml',
        f'metric: segm_mAP_50\n{PLAN}',
        'the metric segm_mAP_50 of the plan is not in the results: make it one of bbox_mAP, .*',
    ),
    'published': (
        'plan.yml',
        PLAN.replace('0.374', '37.4'),
        'bbox_mAP of published of the run plain of .*plan.yml is 37.4: it must be a number from 0 to 1, as COCO gives it',
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_results(case, results):
    name, content, said = BAD[case]
    if content is None:
        (results / name).unlink()
    else:
        (results / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f'^{said}$'):
        evaluate([results])


def test_a_run_that_is_there_twice(results):
    with pytest.raises(UserError, match=r'^plain with seed 0 occurs twice in .*results, .*results: leave one out$'):
        evaluate([results, results])

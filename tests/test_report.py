"""tools/report.py: its numbers against numpy's and the t distribution's, its text, its figures, and what it says of bad results."""

import csv
import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import report
from figures import place_labels, plt, run_colors, write_figure
from scipy import stats

AP = {
    'plain': {0: 0.30, 1: 0.31, 2: 0.35, 3: 0.33},
    'low2': {0: 0.31, 1: 0.34, 2: 0.36, 3: 0.37},
    'low4': {0: 0.32, 1: 0.30, 3: 0.36, 4: 0.50},
    'se': {2: 0.36},
}
"""Of each run by seed: one with the baseline's seeds, one that lacks one of them and has another, one with one seed."""
PLAN = """\
seeds: 4
runs:
  plain: {config: plain.py, published: {bbox_mAP: 0.374, source: 'FcaNet, table 4'}}
  low2: {config: fca.py, frequencies: low2}
  low4: {config: fca.py, best: 4}
  se: {config: se.py}
  gc: {config: gc.py}
"""
VERSIONS = dict(fca_mmdet='0.1.0', torch='2.13.0', mmdet='3.5.1', mmengine='0.10.12', mmcv='2.3.6', python='3.11.2')
PAIRS = {'low2': '[[0, 0], [0, 1]]', 'low4': '[[0, 0], [0, 1], [6, 0], [0, 5]]'}


def row(name: str, seed: int, ap: float, **others: object) -> dict:
    seconds = 0.5 if name == 'plain' else 0.55
    cost = dict(parameters=4_211_000 if name == 'plain' else 4_402_000, iterations=40, seconds_per_iteration=seconds + 0.01 * seed)
    figures = dict(bbox_mAP=ap, bbox_mAP_50=ap + 0.2, bbox_mAP_75=ap + 0.1, bbox_mAP_s=-1, segm_mAP=-1 if name == 'low4' else ap - 0.02)
    start = dict(name=name, seed=seed, digest=f'12e4567{len(name)}', config=f'{name}.py', frequencies=PAIRS.get(name, ''))
    return start | cost | figures | VERSIONS | dict(device='2 cores') | others


def write(folder: Path, rows: list[dict], plan: str = PLAN) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / 'plan.yml').write_text(plan)
    with (folder / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def all_rows() -> list[dict]:
    return [row(name, seed, ap) for name, aps in AP.items() for seed, ap in aps.items()]


@pytest.fixture
def results(tmp_path) -> Path:
    return write(tmp_path / 'results', all_rows())


def run(monkeypatch, *arguments: object) -> dict:
    monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, arguments)])
    report.main()
    out = Path(arguments[arguments.index('--out') + 1] if '--out' in arguments else arguments[0])
    return json.loads((out / 'report.json').read_text())


def by_hand(differences: list[float]) -> tuple[float, list[float], float]:
    """Mean, 95 % interval and two-sided p, from the t distribution."""
    n, mean = len(differences), sum(differences) / len(differences)
    error = (sum((value - mean) ** 2 for value in differences) / (n - 1)) ** 0.5 / n**0.5
    half = stats.t.ppf(0.975, n - 1) * error
    return mean, [mean - half, mean + half], 2 * stats.t.sf(abs(mean / error), n - 1)


def test_means_and_spreads(results):
    found, _ = report.evaluate([results])
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
    found, _ = report.evaluate([results])
    rows, ps = found['differences']['bbox_mAP']['plain'], {}
    for name, above in {'low2': 4, 'low4': 2}.items():
        differences = [AP[name][seed] - AP['plain'][seed] for seed in AP['plain'] if seed in AP[name]]
        mean, interval, ps[name] = by_hand(differences)
        assert rows[name]['n'] == len(differences)
        assert rows[name]['above'] == above
        assert rows[name]['mean'] == pytest.approx(mean)
        assert rows[name]['interval'] == pytest.approx(interval)
        assert rows[name]['p'] == pytest.approx(ps[name])
    assert rows['low2']['p_holm'] == pytest.approx(2 * ps['low2'])
    assert rows['low4']['p_holm'] == pytest.approx(max(2 * ps['low2'], ps['low4']))
    assert rows['se'] == dict(n=1, mean=pytest.approx(0.01), interval=None, above=1, p=None, p_holm=None)
    assert found['differences']['segm_mAP']['plain']['low4'] == dict(n=0, mean=None, interval=None, above=0, p=None, p_holm=None)


def test_holm():
    """What Holm's paper defines: the hypothesis of rank i is rejected if p_(j) <= level / (m - j + 1) for all j <= i."""
    ps = np.array([0.012, 0.9, 0.03, 0.001, 0.012, 0.04])
    adjusted = report.holm({str(index): p for index, p in enumerate(ps)})
    for level in np.linspace(0.0005, 1, 400):
        rejected, order = set(), np.argsort(ps, kind='stable')
        for rank, index in enumerate(order):
            if ps[index] > level / (len(ps) - rank):
                break
            rejected.add(str(index))
        assert {name for name, p in adjusted.items() if p <= level} == rejected


def test_differences_that_are_all_the_same(tmp_path):
    rows = [row(name, seed, ap) for name, ap in {'plain': 0.3, 'low2': 0.3, 'se': 0.4}.items() for seed in range(3)]
    found, _ = report.evaluate([write(tmp_path, rows)])
    rows = found['differences']['bbox_mAP']['plain']
    assert rows['low2'] == dict(n=3, mean=0, interval=[0, 0], above=0, p=None, p_holm=None)
    assert rows['se']['interval'] == pytest.approx([0.1, 0.1])


TEXT = """\
# Report

fca_mmdet 0.1.0, torch 2.13.0, mmdet 3.5.1, mmengine 0.10.12, mmcv 2.3.6, python 3.11.2, on 2 cores.

13 of 21 runs finished, 8 not begun.

Not begun: low4 seed 2, se seed 0, se seed 1, se seed 3, gc seed 0, gc seed 1, gc seed 2, gc seed 3.

## Results

| run   | seeds | box AP     | AP50       | AP75       | mask AP    | parameters, M | s/iteration, relative | published               |
| ----- | ----- | ---------- | ---------- | ---------- | ---------- | ------------- | --------------------- | ----------------------- |
| plain | 4     | 32.2 ± 2.2 | 52.2 ± 2.2 | 42.2 ± 2.2 | 30.2 ± 2.2 | 4.211         | 1                     | box AP 37.4 (published) |
| low2  | 4     | 34.5 ± 2.6 | 54.5 ± 2.6 | 44.5 ± 2.6 | 32.5 ± 2.6 | 4.402         | 1.10 ± 0.00           |                         |
| low4  | 4     | 37.0 ± 9.0 | 57.0 ± 9.0 | 47.0 ± 9.0 | none       | 4.402         | 1.10 ± 0.00           |                         |
| se    | 1     | 36.0       | 56.0       | 46.0       | 34.0       | 4.402         | 1.10                  |                         |

- 100 x COCO AP, mean ± sample standard deviation over seeds; time relative to plain with the same seed.
- One seed, so no spread: se.
- 'none' stands where COCO has no such objects, or the detector no masks.
- Published for plain: FcaNet, table 4. Not measured here.
- Frequencies of low4: 00 01 60 05.

## Box AP minus that of plain

| run  | seeds | difference | 95 % interval          | seeds above | p     | p, Holm |
| ---- | ----- | ---------- | ---------------------- | ----------- | ----- | ------- |
| low2 | 4     | +2.25      | -0.14 to +4.64         | 4 of 4      | 0.058 | 0.115   |
| low4 | 3     | +1.33      | -3.84 to +6.50         | 2 of 3      | 0.383 | 0.383   |
| se   | 1     | +1.00      | none: 1 seed in common | 1 of 1      | none  | none    |

## Mask AP minus that of plain

| run  | seeds | difference | 95 % interval           | seeds above | p     | p, Holm |
| ---- | ----- | ---------- | ----------------------- | ----------- | ----- | ------- |
| low2 | 4     | +2.25      | -0.14 to +4.64          | 4 of 4      | 0.058 | 0.058   |
| low4 | 0     | none       | none: 0 seeds in common | 0 of 0      | none  | none    |
| se   | 1     | +1.00      | none: 1 seed in common  | 1 of 1      | none  | none    |

Differences of 100 x AP between runs of the same seed: mean and 95 % t interval. p is of a paired t test (two-sided); Holm adjusts it for \
the number of rows of its table.

![AP by seed](seeds.png)

![AP against cost](ap_cost.png)

![AP against the number of frequencies](ap_frequencies.png)
"""


def test_the_text(results, monkeypatch, capsys):
    run(monkeypatch, results)
    text = (results / 'report.md').read_text()
    assert text == TEXT
    assert capsys.readouterr().out == f'{text}\n{results / "report.md"}\n'


def test_what_became_of_runs(results):
    def begin(title: str, log: str) -> None:
        folder = results / title.replace(' ', '/seed-')
        folder.mkdir(parents=True)
        (folder / 'output.log').write_text(log)

    begin('gc 0', 'Traceback (most recent call last):\n  File ...\nRuntimeError: no memory\n')
    begin('gc 1', 'Iter(train) [10/40]\n')
    (results / 'gc' / 'seed-2').mkdir()
    found, _ = report.evaluate([results])
    assert found['states']['failed'] == ['gc seed 0 (RuntimeError: no memory)']
    assert found['states']['begun, not finished'] == ['gc seed 1']
    # Of gc three seeds were prepared; of the others what the plan says is expected.
    assert found['states']['not begun'] == ['low4 seed 2', 'se seed 0', 'se seed 1', 'se seed 3', 'gc seed 2']
    assert len(found['states']['finished']) == 13


def test_results_of_several_folders_are_one_report(results, tmp_path, monkeypatch):
    alone = run(monkeypatch, results)
    shares = [write(tmp_path / part, [row for row in all_rows() if (row['name'] == 'low4') == (part == 'b')]) for part in 'ab']
    together = run(monkeypatch, *shares, '--out', tmp_path / 'both')
    assert together == alone
    with pytest.raises(SystemExit, match=r'^report: low4 with seed 0 is there twice in .*b, .*b: leave one out$'):
        run(monkeypatch, shares[1], shares[1])


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
    found, _ = report.evaluate([write(tmp_path, rows)])
    assert found['obstacles'] == [said]
    assert f'\n**Warning:** {said}.\n' in report.render(found, {})


def test_seeds_of_different_configs(tmp_path):
    rows = all_rows()
    rows[1]['digest'] = '12e45670'  # the same as 12e4567... if it is read as a number
    found, _ = report.evaluate([write(tmp_path, rows)])
    assert found['obstacles'] == ['the seeds of plain ran different configs (digests 12e45675, 12e45670), so they are not comparable']


def test_runs_of_several_baselines(tmp_path):
    """Each is a table of its own, whose p-values are adjusted for its rows, and whose rows alone must be comparable."""
    values = {'plain': [0.3, 0.32], 'se': [0.31, 0.34], 'plain-3x': [0.4, 0.41], 'se-3x': [0.42, 0.425]}
    rows = [row(name, seed, ap) for name, aps in values.items() for seed, ap in enumerate(aps)]
    for index in (4, 5, 6, 7):
        rows[index] |= dict(iterations=120, seconds_per_iteration=2.0 if index < 6 else 3.0)
    runs = '\n'.join(f'  {name}: {{config: a.py, baseline: {name.replace("se", "plain")}}}' for name in values)
    found, table = report.evaluate([write(tmp_path, rows, f'runs:\n{runs}')])
    assert found['obstacles'] == []
    tables = found['differences']['bbox_mAP']
    assert {baseline: list(table) for baseline, table in tables.items()} == {'plain': ['se'], 'plain-3x': ['se-3x']}
    for baseline, name in {'plain': 'se', 'plain-3x': 'se-3x'}.items():
        mean, interval, p = by_hand([first - second for first, second in zip(values[name], values[baseline], strict=True)])
        one = dict(tables[baseline][name])
        assert one.pop('interval') == pytest.approx(interval)
        assert one == pytest.approx(dict(n=2, mean=mean, above=2, p=p, p_holm=p))
    assert found['runs']['se-3x']['relative_time'] == dict(n=2, mean=1.5, std=0)
    text = report.render(found, {})
    assert "time relative to the run's baseline with the same seed" in text
    assert '## Box AP minus that of plain-3x\n' in text
    assert len(report.draw(found, table, [tmp_path], tmp_path)) == 2
    assert is_picture(tmp_path / 'seeds.png')


def test_a_baseline_that_has_not_finished(tmp_path, monkeypatch):
    found = run(monkeypatch, write(tmp_path, [row('se', 0, 0.3)]))
    assert found['differences'] == {'bbox_mAP': {}, 'segm_mAP': {}}
    assert 'The baseline plain has not finished, so there are no differences to it.' in (tmp_path / 'report.md').read_text()


def is_picture(path: Path) -> bool:
    red, green, blue = (255 * plt.imread(path)[..., :3]).astype(int).transpose(2, 0, 1)
    return min(red.shape) > 200 and len(np.unique(red << 16 | green << 8 | blue)) > 50


def test_all_figures(tmp_path, monkeypatch):
    """With the logs and the singles that the plan asks for, one of them missing."""
    rows = all_rows()
    rows += [row(f'single-{u}{v}', 0, 0.3 + 0.01 * u + 0.001 * v, segm_mAP='') for u in range(7) for v in range(7) if (u, v) != (6, 6)]
    write(tmp_path, rows, PLAN + ''.join(f'  single-{u}{v}: {{config: fca.py, seeds: 1}}\n' for u in range(7) for v in range(7)))
    (tmp_path / 'frequencies.json').write_text(json.dumps(dict(metric='bbox_mAP', ranking=[], frequencies=[[6, 5], [6, 4]])))
    for name in ('plain', 'low2'):
        for seed in range(2):
            log = tmp_path / name / f'seed-{seed}' / 'time' / 'vis_data' / 'scalars.json'
            log.parent.mkdir(parents=True)
            entries = [dict(step=step, loss=2 - 0.1 * step + 0.2 * seed) for step in (2, 4, 6, 8)]
            entries += [{'step': step, 'coco/bbox_mAP': 0.03 * step + 0.01 * seed} for step in (4, 8)]
            log.write_text('\n'.join(map(json.dumps, entries)))
    found = run(monkeypatch, tmp_path)
    names = ['ap_cost.png', 'ap_frequencies.png', 'learning.png', 'seeds.png', 'singles.png']
    assert sorted(path.name for path in tmp_path.glob('*.png*')) == names
    assert all(is_picture(tmp_path / name) for name in names)
    assert 'single-66 seed 0' in found['states']['not begun']
    text = (tmp_path / 'report.md').read_text()
    assert '| u = 6 | 36.0  | 36.1  | 36.2  | 36.3  | 36.4  | 36.5  | none  |' in text
    assert 'Chosen: 65 64.' in text
    assert '| single-' not in text
    assert all(f']({name})' in text for name in names)


def test_curves_over_seeds():
    logs = {
        'plain': [[dict(step=2, loss=1.0), {'step': 2, 'coco/bbox_mAP': 0.3}], [dict(step=2, loss=3.0), {'step': 4, 'coco/bbox_mAP': -1}]]
    }
    assert report.collect_curves(logs, 'loss') == {'plain': {2: [1.0, 3.0]}}
    assert report.collect_curves(logs, 'coco/bbox_mAP', 100) == {'plain': {2: [30.0]}}


def test_families():
    frequencies = {'best-2': [0] * 2, 'best-16': [0] * 16, 'top16': [0] * 16, 'learned': [0] * 8, 'fca-16': [0] * 2, 'plain': None}
    aps = {name: [float(index)] for index, name in enumerate(frequencies)}
    families = {'best': {2: [0.0], 16: [1.0]}, 'top': {16: [2.0]}, 'learned': {8: [3.0]}, 'fca-16': {2: [4.0]}}
    assert report.group_families(frequencies, aps) == families


def test_names_do_not_overlap():
    points = {f'a name of run {index}': (1 + 0.001 * (index % 4), 30 + 0.001 * (index // 4)) for index in range(16)} | {'far': (2.0, 40.0)}
    figure, axis = plt.subplots()
    axis.plot(*zip(*points.values(), strict=True), 'o')
    place_labels(figure, axis, points, dict(zip(points, run_colors(len(points)), strict=True)))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == len(points)
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])
    assert all(axis.get_window_extent().count_contains(box.corners()) == 4 for box in boxes)
    plt.close(figure)


def test_no_part_of_a_picture_is_left(tmp_path):
    """As files of more than 1,000 bytes cannot be written."""
    out = tmp_path / 'figure.png'
    out.write_bytes(b'old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    figure = plt.figure()
    figure.text(0.5, 0.5, 'text')
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            write_figure(figure, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'figure.png': b'old'}
    write_figure(figure, out)
    assert plt.imread(out).ndim == 3


def keep(columns: list[str]) -> str:
    return '\n'.join([','.join(columns), ','.join(str(row('plain', 0, 0.3)[column]) for column in columns)])


COLUMNS = list(row('plain', 0, 0.3))
BAD = {
    'no results': (
        'results.csv',
        None,
        'there is no .*results.csv: give the folder that tools/experiment.py wrote, once a run has finished',
    ),
    'nothing': ('results.csv', '', '.*results.csv is empty: no run has finished; tools/experiment.py goes on with what was begun'),
    'a header': ('results.csv', ','.join(COLUMNS), '.*results.csv is empty: no run has finished; .*'),
    'bytes': ('results.csv', b'\xff\xfe\x00', ".*results.csv cannot be read: 'utf-8' codec .*"),
    'no torch': (
        'results.csv',
        keep([column for column in COLUMNS if column not in ('torch', 'seed')]),
        '.*results.csv has no column torch, seed: let tools/experiment.py write it again',
    ),
    'half a row': (
        'results.csv',
        '\n'.join([keep(COLUMNS), 'plain,1,12e4']),
        '.*results.csv, line 3, has no device: let tools/experiment.py write it again, or take the line out',
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
    'no plan': ('plan.yml', None, '.*plan.yml cannot be read .*No such file.*: give the folder that tools/experiment.py wrote'),
    'a list': ('plan.yml', '[plain]', '.*plan.yml is no plan of tools/experiment.py: it has no runs'),
    'no runs': ('plan.yml', 'runs: {}', '.*plan.yml is no plan of tools/experiment.py: it has no runs'),
    'baseline': (
        'plan.yml',
        f'baseline: none\n{PLAN}',
        'the baseline none of plain in .*plan.yml is none of its runs: make it one of plain, low2, .*',
    ),
    'metric': ('plan.yml', f'metric: AP\n{PLAN}', 'the metric AP of the plan is none of the results: make it one of bbox_mAP, .*'),
    'published': (
        'plan.yml',
        PLAN.replace('0.374', '37.4'),
        'the published bbox_mAP of plain in .*plan.yml is 37.4: give it as COCO does, 0 to 1',
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_results(case, results, monkeypatch):
    name, content, said = BAD[case]
    if content is None:
        (results / name).unlink()
    else:
        (results / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=f'^report: {said}$'):
        run(monkeypatch, results)
    assert not (results / 'report.md').exists()

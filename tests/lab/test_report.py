"""The text of a report, the figures that the results can fill, and the command that writes both."""

import json
import sys
from pathlib import Path

import pytest
from helpers import load_command, read_picture
from made_up_results import AP, PLAN, all_rows, log, row, write

from fca_mmdet.errors import UserError
from fca_mmdet.lab.report import draw, group_families, render, write_report
from fca_mmdet.lab.results import evaluate


@pytest.fixture
def results(tmp_path) -> Path:
    return write(tmp_path / 'results', all_rows())


def run(*folders: Path, out: Path | None = None) -> dict:
    write_report(folders, out)
    return json.loads(((out or folders[0]) / 'report.json').read_text())


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
- 'none': COCO has no such objects, or the detector predicts no masks.
- Published for plain: FcaNet, table 4. Not measured here.
- Frequencies of low4: 00 01 60 05.

## Box AP minus that of plain

| run  | seeds | difference | 95 % interval          | seeds above | p     | p, Holm | told apart     | tells | seeds for 1 AP |
| ---- | ----- | ---------- | ---------------------- | ----------- | ----- | ------- | -------------- | ----- | -------------- |
| low2 | 4     | +2.25      | -0.14 to +4.64         | 4 of 4      | 0.058 | 0.115   | not told apart | 3.2   | 20             |
| low4 | 3     | +1.33      | -3.84 to +6.50         | 2 of 3      | 0.383 | 0.383   | not told apart | 6.8   | 36             |
| se   | 1     | +1.00      | none: 1 seed in common | 1 of 1      | none  | none    | none           | none  | none           |

## Mask AP minus that of plain

| run  | seeds | difference | 95 % interval           | seeds above | p     | p, Holm | told apart     | tells | seeds for 1 AP |
| ---- | ----- | ---------- | ----------------------- | ----------- | ----- | ------- | -------------- | ----- | -------------- |
| low2 | 4     | +2.25      | -0.14 to +4.64          | 4 of 4      | 0.058 | 0.058   | not told apart | 3.2   | 20             |
| low4 | 0     | none       | none: 0 seeds in common | 0 of 0      | none  | none    | none           | none  | none           |
| se   | 1     | +1.00      | none: 1 seed in common  | 1 of 1      | none  | none    | none           | none  | none           |

Differences of 100 x AP between runs of the same seed: mean and 95 % t interval. p is of a paired t test (two-sided); Holm adjusts it \
for the number of rows of its table, and runs are told apart if that is below 0.05. Tells: the smallest true difference that so many \
seeds would tell apart with a probability of 80 %, if it were the only row.

![AP by seed](seeds.png)

![AP against cost](ap_cost.png)

![AP against the number of frequencies](ap_frequencies.png)
"""


def test_the_text(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['report.py', str(results)])
    load_command('report').main()
    text = (results / 'report.md').read_text()
    assert text == TEXT
    assert capsys.readouterr().out == f'{text}\n{results / "report.md"}\n'


def test_results_of_several_folders_are_one_report(results, tmp_path):
    alone = run(results)
    shares = [write(tmp_path / part, [row for row in all_rows() if (row['name'] == 'low4') == (part == 'b')]) for part in 'ab']
    together = run(*shares, out=tmp_path / 'both')
    assert together == alone


def test_warnings_are_in_the_text(tmp_path):
    rows = all_rows()
    rows[-1] |= dict(torch='2.6.0')
    found, _ = evaluate([write(tmp_path, rows)])
    assert '\n**Warning:** torch differs, so rows are not comparable: 2.13.0 (plain, low2, low4); 2.6.0 (se).\n' in render(found, {})


def test_runs_of_several_baselines(tmp_path, drawn):
    """A table and a heading for each, and differences to the run's own."""
    values = {'plain': [0.3, 0.32], 'se': [0.31, 0.34], 'plain-3x': [0.4, 0.41], 'se-3x': [0.42, 0.425]}
    rows = [row(name, seed, ap) for name, aps in values.items() for seed, ap in enumerate(aps)]
    runs = '\n'.join(f'  {name}: {{config: a.py, baseline: {name.replace("se", "plain")}}}' for name in values)
    found, table = evaluate([write(tmp_path, rows, f'runs:\n{runs}')])
    text = render(found, {})
    assert "time relative to the run's baseline with the same seed" in text
    assert '## Box AP minus that of plain\n' in text
    assert '## Box AP minus that of plain-3x\n' in text
    assert list(draw(found, table, [tmp_path], tmp_path)) == ['seeds.png', 'ap_cost.png']
    assert drawn[0].axes[1].get_xlabel() == "minus that of the run's baseline with the same seed; band: 95 % interval"


def test_another_baseline(results, tmp_path):
    write_report([results], tmp_path / 'out', 'low2')
    found = json.loads((tmp_path / 'out' / 'report.json').read_text())
    planned = run(results)
    assert list(found['differences']['bbox_mAP']) == ['low2']
    there, back = found['differences']['bbox_mAP']['low2'], planned['differences']['bbox_mAP']['plain']
    assert there.keys() == {'plain', 'low4', 'se'}
    assert there['plain']['mean'] == pytest.approx(-back['low2']['mean'])
    assert '## Box AP minus that of low2' in (tmp_path / 'out' / 'report.md').read_text()
    with pytest.raises(UserError, match=r'^--baseline none: the runs are plain, low2, low4, se, gc$'):
        write_report([results], tmp_path / 'out', 'none')


def test_what_is_wrong_is_said_under_the_command_s_name(results, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['report.py', str(tmp_path / 'none')])
    with pytest.raises(SystemExit, match=r'^report: there is no .*none/plan.yml: give the folder that tools/experiment.py wrote$'):
        load_command('report').main()
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'file/below/report.md cannot be written \(Not a directory\): name another file with --out'):
        write_report([results], tmp_path / 'file' / 'below')
    (results / 'results.csv').unlink()
    with pytest.raises(UserError):
        write_report([results])
    assert not (results / 'report.md').exists()


def test_a_baseline_that_has_not_finished(tmp_path):
    found = run(write(tmp_path, [row('se', 0, 0.3)]))
    assert found['differences'] == {'bbox_mAP': {}, 'segm_mAP': {}}
    assert 'The baseline plain has not finished, so there are no differences to it.' in (tmp_path / 'report.md').read_text()


COLORS = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)]
RED, LIGHT_GRAY = (255, 0, 0), (211, 211, 211)
FIGURES = {
    'seeds.png': ((393, 1440), COLORS),  # of five seeds
    'ap_cost.png': ((600, 1560), COLORS[:4]),  # of four runs
    'ap_frequencies.png': ((540, 840), COLORS[:1]),  # of one family
    'singles.png': ((720, 840), [RED, LIGHT_GRAY]),  # of a chosen and a missing one
    'learning.png': ((540, 1584), COLORS[:2]),  # of two runs with logs
}
"""Height and width of each figure, and the colours of its points, lines or cells."""


def test_all_figures(tmp_path, drawn):
    """With the logs and the singles that the plan asks for, one of them missing."""
    rows = all_rows()
    rows += [row(f'single-{u}{v}', 0, 0.3 + 0.01 * u + 0.001 * v, segm_mAP='') for u in range(7) for v in range(7) if (u, v) != (6, 6)]
    write(tmp_path, rows, PLAN + ''.join(f'  single-{u}{v}: {{config: fca.py, seeds: 1}}\n' for u in range(7) for v in range(7)))
    (tmp_path / 'frequencies.json').write_text(json.dumps(dict(metric='bbox_mAP', ranking=[], frequencies=[[6, 5], [6, 4]])))
    for name in ('plain', 'low2'):
        for seed in range(2):
            entries = [dict(step=step, loss=2 - 0.1 * step + 0.2 * seed) for step in (2, 4, 6, 8)]
            entries += [{'step': step, 'coco/bbox_mAP': 0.03 * step + 0.01 * seed} for step in (4, 8)]
            log(tmp_path / name / f'seed-{seed}', entries)
    found = run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob('*.png*')) == sorted(FIGURES)
    for name, (size, colors) in FIGURES.items():
        picture = read_picture(tmp_path / name)
        assert picture.shape == (*size, 3)
        assert set(colors) <= set(map(tuple, picture.reshape(-1, 3).tolist()))
    # What each is given: seeds, costs, families, singles, logs.
    seeds, cost, frequencies, singles, learning = (figure.axes for figure in drawn)
    assert [label.get_text() for label in seeds[0].get_yticklabels()] == list(AP)
    assert sorted(line.get_xdata()[0] for line in seeds[0].lines) == pytest.approx(
        sorted(100 * ap for aps in AP.values() for ap in aps.values())
    )
    assert len(seeds[1].lines) == 4 + 3 + 1 + 1  # a point of each seed in common, and the line at zero
    assert [axis.get_xlabel() for axis in cost] == ['training time per iteration, relative to plain', 'parameters, M']
    assert all(axis.get_ylabel() == '100 x box AP' for axis in (cost[0], frequencies[0], learning[1]))
    assert [label.get_text() for label in frequencies[0].get_xticklabels()] == ['2', '4']
    assert '36.5' in {text.get_text() for text in singles[0].texts}
    assert list(learning[0].lines[0].get_ydata()) == pytest.approx([1.9, 1.7, 1.5, 1.3])
    assert list(learning[1].lines[1].get_ydata()) == pytest.approx([12.5, 24.5])
    assert 'single-66 seed 0' in found['states']['not begun']
    text = (tmp_path / 'report.md').read_text()
    assert '| u = 6 | 36.0  | 36.1  | 36.2  | 36.3  | 36.4  | 36.5  | none  |' in text
    assert 'Chosen: 65 64.' in text
    assert '| single-' not in text
    assert all(f']({name})' in text for name in FIGURES)


def test_families():
    frequencies = {'best-2': [0] * 2, 'best-16': [0] * 16, 'top16': [0] * 16, 'learned': [0] * 8, 'fca-16': [0] * 2, 'plain': None}
    aps = {name: [float(index)] for index, name in enumerate(frequencies)}
    families = {'best': {2: [0.0], 16: [1.0]}, 'top': {16: [2.0]}, 'learned': {8: [3.0]}, 'fca-16': {2: [4.0]}}
    assert group_families(frequencies, aps) == families

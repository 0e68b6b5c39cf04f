"""Turn results of tools/experiment.py into tables and figures.

    python tools/report.py RESULTS [RESULTS ...] [--out FOLDER]

RESULTS is what tools/experiment.py wrote: plan.yml, results.csv, and the runs' logs for curves. Several folders, such as the shares of
several machines, are one report. It stands in report.md, its numbers in report.json, the figures that the results can fill beside them.
Needs the extra 'experiments'.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import yaml
from figures import (
    collect_curves,
    draw_ap_against_cost,
    draw_ap_against_frequencies,
    draw_heat_map,
    draw_learning,
    draw_seeds,
    name_baseline,
    read_scalars,
)
from preflight import check_out
from scipy import stats

from fca_mmdet import Frequency
from fca_mmdet.frequency import SPECTRUM
from fca_mmdet.selection import CANDIDATES

VERSIONS = ('fca_mmdet', 'torch', 'mmdet', 'mmengine', 'mmcv', 'python')
TEXT = ('name', 'digest', 'config', 'frequencies', 'device', *VERSIONS)
NUMBERS = ('seed', 'iterations', 'seconds_per_iteration', 'parameters', 'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')
OPTIONAL = ('config', 'frequencies')
"""Columns of the results; of optional ones a cell may be empty."""
AP_LABELS = {'bbox_mAP': 'box AP', 'segm_mAP': 'mask AP'}
COLUMNS = {'bbox_mAP': 'box AP', 'bbox_mAP_50': 'AP50', 'bbox_mAP_75': 'AP75', 'segm_mAP': 'mask AP'}
PUBLISHED_LABELS = {**COLUMNS, 'segm_mAP_50': 'mask AP50', 'segm_mAP_75': 'mask AP75'}
CONFIDENCE = 0.95
SINGLE = 'single-'
NONE = 'none'
FAILED_TAIL = 1500
"""Characters at the end of a run's output in which a traceback says that it failed."""


def read_plan(folders: Sequence[Path]) -> dict:
    """The plans of all folders as one: the first one's seeds, baseline and metric, and everyone's runs, each with its baseline.

    Raises:
        SystemExit: a folder without a plan, a plan without runs, an unknown baseline, or a published AP that is none.
    """
    merged: dict[str, Any] = {}
    for folder in folders:
        path = folder / 'plan.yml'
        try:
            plan = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            refuse(f'{path} cannot be read ({flatten(error)}): give the folder that tools/experiment.py wrote')
        if not isinstance(plan, dict) or not isinstance(plan.get('runs'), dict) or not plan['runs']:
            refuse(f'{path} is no plan of tools/experiment.py: it has no runs')
        plan.setdefault('baseline', next(iter(plan['runs'])))
        for name, run in plan['runs'].items():
            if run.setdefault('baseline', plan['baseline']) not in plan['runs']:
                refuse(
                    f'the baseline {run["baseline"]} of {name} in {path} is none of its runs: make it one of {shorten(list(plan["runs"]))}'
                )
            for metric, value in run.get('published', {}).items():
                if metric != 'source' and not (isinstance(value, int | float) and 0 <= value <= 1):
                    refuse(f'the published {metric} of {name} in {path} is {value!r}: give it as COCO does, 0 to 1')
        runs = merged.get('runs', {})
        merged = {**plan, **merged, 'runs': runs | {name: run for name, run in plan['runs'].items() if name not in runs}}
    return merged


def read_results(folders: Sequence[Path]) -> pd.DataFrame:
    """The finished runs of all folders, a row for each; what COCO gives as -1, having no such objects, is NaN.

    Raises:
        SystemExit: no results, an incomplete or unreadable row, or a run that is there twice.
    """
    tables = []
    for folder in folders:
        path = folder / 'results.csv'
        try:
            # Read as text: a digest such as 12e45678 is no number, and a run may be called NA.
            table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[''])
        except FileNotFoundError:
            refuse(f'there is no {path}: give the folder that tools/experiment.py wrote, once a run has finished')
        except pd.errors.EmptyDataError:
            table = pd.DataFrame()
        except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
            refuse(f'{path} cannot be read: {flatten(error)}')
        if table.empty:
            refuse(f'{path} is empty: no run has finished; tools/experiment.py goes on with what was begun')
        if absent := [column for column in (*TEXT, *NUMBERS) if column not in table]:
            refuse(f'{path} has no column {", ".join(absent)}: let tools/experiment.py write it again')
        for column in table.columns.difference(TEXT):
            if column in NUMBERS or column.startswith(('bbox_', 'segm_')):
                table[column] = as_numbers(table[column], path)
        for column in (*TEXT, *NUMBERS):
            if column not in OPTIONAL and (empty := np.flatnonzero(table[column].isna())).size:
                refuse(f'{path}, line {empty[0] + 2}, has no {column}: let tools/experiment.py write it again, or take the line out')
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    for _, twice in rows[rows.duplicated(['name', 'seed'])].iterrows():
        refuse(f'{twice["name"]} with seed {twice["seed"]:.0f} is there twice in {", ".join(map(str, folders))}: leave one out')
    metrics = [column for column in rows if column.startswith(('bbox_', 'segm_'))]
    rows[metrics] = rows[metrics].where(rows[metrics] >= 0)
    return rows


def as_numbers(column: pd.Series, path: Path) -> pd.Series:
    """A column of text as numbers."""
    numbers = pd.to_numeric(column, errors='coerce')
    for line in np.flatnonzero(numbers.isna() & column.notna()):
        refuse(f'{path}, line {line + 2}: {column.name} is {column[line]!r}, and must be a number')
    return numbers


def flatten(error: Exception) -> str:
    """What it says, in one line."""
    return ' '.join(str(error).split())


def refuse(sentence: str) -> NoReturn:
    """End with what is wrong."""
    sys.exit(f'report: {sentence}')


def summarize(values: Iterable[float]) -> dict:
    """Number, mean and sample standard deviation of what is not NaN; what there is none of is None.

    Example:
        >>> summarize([1, 2, 3])
        {'n': 3, 'mean': 2.0, 'std': 1.0}
        >>> summarize([1])
        {'n': 1, 'mean': 1.0, 'std': None}
    """
    series = pd.Series(values, dtype=float).dropna()
    return dict(n=len(series), mean=float(series.mean()) if len(series) else None, std=float(series.std()) if len(series) > 1 else None)


def compare(rows: pd.DataFrame, name: str, baseline: str, metric: str) -> dict:
    """Differences of a run to the baseline, of the seeds that both have: mean, t interval, seeds above, p of a paired t test.

    Two seeds are the least that have an interval, and differences that are all the same have no p.
    """
    by_seed = rows.pivot(index='seed', columns='name', values=metric).reindex(columns=[name, baseline]).dropna()
    differences = by_seed[name] - by_seed[baseline]
    found: dict[str, Any] = dict(n=len(differences), mean=None, interval=None, above=int((differences > 0).sum()), p=None)
    if len(differences):
        found['mean'] = float(differences.mean())
    if len(differences) > 1 and np.ptp(differences) > 1e-12:
        test = stats.ttest_rel(by_seed[name], by_seed[baseline])
        found |= dict(interval=list(map(float, test.confidence_interval(CONFIDENCE))), p=float(test.pvalue))
    elif len(differences) > 1:
        found['interval'] = [found['mean']] * 2
    return found


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm, 1979): significant at a level, they hold together at that level.

    Example:
        >>> holm({'a': 0.04, 'b': 0.01, 'c': 0.03})
        {'b': 0.03, 'c': 0.06, 'a': 0.06}
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def collect_states(plan: dict, rows: pd.DataFrame, folders: Sequence[Path]) -> dict[str, list[str]]:
    """What became of the runs: ``finished``, ``failed`` and ``begun`` as their folders say, and those ``not begun``."""
    finished = {(name, int(seed)) for name, seed in zip(rows['name'], rows['seed'], strict=True)}
    states: dict[str, list[str]] = {'finished': [], 'failed': [], 'begun, not finished': [], 'not begun': []}
    for name, run in plan['runs'].items():
        prepared = {int(path.name[5:]) for folder in folders for path in (folder / name).glob('seed-*') if path.name[5:].isdigit()}
        expected = prepared or set(range(run.get('seeds', plan.get('seeds', 1))))
        for seed in sorted(expected | {seed for other, seed in finished if other == name}):
            logs = [log for folder in folders if (log := folder / name / f'seed-{seed}' / 'output.log').exists()]
            tails = [log.read_text(errors='replace')[-FAILED_TAIL:] for log in logs]
            failures = [tail.strip().splitlines()[-1] for tail in tails if 'Traceback (most recent call last)' in tail]
            title = f'{name} seed {seed}'
            if (name, seed) in finished:
                states['finished'].append(title)
            elif failures:
                states['failed'].append(f'{title} ({failures[0][:200]})')
            else:
                states['begun, not finished' if tails else 'not begun'].append(title)
    return states


def find_obstacles(rows: pd.DataFrame, baselines: Mapping[str, str]) -> list[str]:
    """Why rows of one baseline, or the singles, cannot be compared: other versions or lengths, or configs that changed between seeds."""
    obstacles = []
    groups_of_rows = rows.groupby(rows['name'].map(baselines).fillna(SINGLE), sort=False)
    for _, part in groups_of_rows:
        for column in (*VERSIONS, 'iterations', 'device'):
            if part[column].nunique() > 1:
                groups = [f'{value:.0f}' if column == 'iterations' else value for value in part[column].unique()]
                names = [shorten(part.loc[part[column] == value, 'name'].unique()) for value in part[column].unique()]
                what = 'times' if column == 'device' else 'rows'
                sides = '; '.join(f'{group} ({members})' for group, members in zip(groups, names, strict=True))
                obstacles.append(f'{column} differs, so {what} are not comparable: {sides}')
    for name, digests in rows.groupby('name', sort=False)['digest'].unique().items():
        if len(digests) > 1:
            obstacles.append(f'the seeds of {name} ran different configs (digests {", ".join(digests)}), so they are not comparable')
    return obstacles


def shorten(names: Sequence[str], shown: int = 4) -> str:
    """Names, the first few of many."""
    return ', '.join([*names[:shown], *([f'{len(names) - shown} more'] if len(names) > shown else [])])


def evaluate(folders: Sequence[Path]) -> tuple[dict, pd.DataFrame]:
    """All numbers of the report, as report.json has them, and the rows that they are of. APs are as COCO gives them, 0 to 1."""
    plan, rows = read_plan(folders), read_results(folders)
    metrics = [column for column in rows if column.startswith(('bbox_', 'segm_'))]
    known = set(rows['name'])
    names = [name for name in [*plan['runs'], *sorted(known - plan['runs'].keys())] if name in known and not name.startswith(SINGLE)]
    seconds = rows.pivot(index='seed', columns='name', values='seconds_per_iteration')
    baselines = {name: plan['runs'].get(name, plan)['baseline'] for name in names}
    runs = {}
    for name, baseline in baselines.items():
        mine = rows[rows['name'] == name]
        runs[name] = dict(
            baseline=baseline,
            config=mine['config'].dropna().iloc[0] if mine['config'].notna().any() else None,
            frequencies=json.loads(mine['frequencies'].iloc[0]) if mine['frequencies'].notna().all() else None,
            seeds=[int(seed) for seed in mine['seed']],
            iterations=int(mine['iterations'].iloc[0]),
            parameters=int(mine['parameters'].iloc[0]),
            figures={metric: summarize(mine[metric]) for metric in metrics},
            seconds_per_iteration=summarize(mine['seconds_per_iteration']),
            relative_time=summarize(seconds[name] / seconds[baseline] if baseline in seconds else []),
            published=plan['runs'].get(name, {}).get('published'),
            chosen=bool(plan['runs'].get(name, {}).keys() & {'best', 'selected_by'}),
        )
    differences: dict[str, dict] = {metric: {} for metric in AP_LABELS if metric in rows and rows[metric].notna().any()}
    for metric, baseline in itertools.product(differences, dict.fromkeys(baselines.values())):
        compared = [name for name in names if baselines[name] == baseline != name]
        if compared and baseline in runs:
            found = {name: compare(rows, name, baseline, metric) for name in compared}
            adjusted = holm({name: row['p'] for name, row in found.items() if row['p'] is not None})
            differences[metric][baseline] = {name: {**row, 'p_holm': adjusted.get(name)} for name, row in found.items()}
    chosen: dict = next((json.loads(path.read_text()) for folder in folders if (path := folder / 'frequencies.json').exists()), {})
    metric = plan.get('metric', 'bbox_mAP')
    if metric not in metrics:
        refuse(f'the metric {metric} of the plan is none of the results: make it one of {", ".join(metrics)}')
    singles = rows[rows['name'].str.startswith(SINGLE)]
    report = dict(
        baseline=plan['baseline'],
        metric=metric,
        confidence=CONFIDENCE,
        **{column: list(rows[column].unique()) for column in (*VERSIONS, 'device')},
        states=collect_states(plan, rows, folders),
        obstacles=find_obstacles(rows, baselines),
        runs=runs,
        differences=differences,
        singles={name.removeprefix(SINGLE): summarize(mine[metric]) for name, mine in singles.groupby('name')},
        chosen=chosen.get('frequencies', []),
    )
    return report, rows


def render(report: dict, figures: Mapping[str, str]) -> str:
    """The report as Markdown; ``figures`` are titles by file."""
    states = report['states']
    total = sum(map(len, states.values()))
    versions = ', '.join(f'{column} {" and ".join(report[column])}' for column in VERSIONS)
    parts = ['# Report', f'{versions}, on {" and ".join(report["device"])}.']
    unfinished = [f'{len(runs)} {state}' for state, runs in states.items() if runs and state != 'finished']
    parts.append(f'{len(states["finished"])} of {total} runs finished{"".join(f", {part}" for part in unfinished)}.')
    parts += [f'{state.capitalize()}: {shorten(runs, 20)}.' for state, runs in states.items() if runs and state != 'finished']
    parts += [f'**Warning:** {obstacle}.' for obstacle in report['obstacles']]
    parts += ['## Results', render_runs(report), describe_runs(report)]
    for metric, tables in report['differences'].items():
        for baseline, rows in tables.items():
            parts += [f'## {AP_LABELS[metric][0].upper()}{AP_LABELS[metric][1:]} minus that of {baseline}', render_differences(rows)]
    if any(report['differences'].values()):
        parts.append(
            f'Differences of 100 x AP between runs of the same seed: mean and {100 * CONFIDENCE:.0f} % t interval. p is of a paired t test'
            ' (two-sided); Holm adjusts it for the number of rows of its table.'
        )
    for baseline in sorted({run['baseline'] for run in report['runs'].values()} - report['runs'].keys()):
        parts.append(f'The baseline {baseline} has not finished, so there are no differences to it.')
    if report['singles']:
        parts += ['## Each frequency alone', render_singles(report)]
    parts += [f'![{title}]({file})' for file, title in figures.items()]
    return '\n\n'.join(parts) + '\n'


def render_runs(report: dict) -> str:
    """The main table."""
    runs = report['runs']
    shown = find_shown(runs)
    published = any(run['published'] for run in runs.values())
    header = ['run', 'seeds', *shown.values(), 'parameters, M', 's/iteration, relative', *(['published'] if published else [])]
    lines = []
    for name, run in runs.items():
        relative = '1' if name == run['baseline'] else show_spread(run['relative_time'], 1, 2)
        cells = [show_spread(run['figures'][metric]) for metric in shown]
        figures = [
            f'{PUBLISHED_LABELS.get(metric, metric)} {100 * value:.1f}'
            for metric, value in (run['published'] or {}).items()
            if metric != 'source'
        ]
        last = [f'{", ".join(figures)} (published)' if figures else ''] if published else []
        lines.append([name, str(len(run['seeds'])), *cells, f'{run["parameters"] / 1e6:.3f}', relative, *last])
    return render_table(header, lines)


def find_shown(runs: Mapping[str, dict]) -> dict[str, str]:
    """The columns that any run has a figure for, with their labels."""
    return {metric: label for metric, label in COLUMNS.items() if any(run['figures'].get(metric, {}).get('n') for run in runs.values())}


def describe_runs(report: dict) -> str:
    """What the main table shows, and where its published values and chosen frequencies come from."""
    runs = report['runs']
    base = name_baseline({name: run['baseline'] for name, run in runs.items()})
    lines = [f'100 x COCO AP, mean ± sample standard deviation over seeds; time relative to {base} with the same seed.']
    if alone := [name for name, run in runs.items() if len(run['seeds']) == 1]:
        lines.append(f'One seed, so no spread: {", ".join(alone)}.')
    if any(run['figures'].get(metric, {}).get('n') == 0 for run in runs.values() for metric in find_shown(runs)):
        lines.append(f"'{NONE}' stands where COCO has no such objects, or the detector no masks.")
    for name, run in runs.items():
        if run['published']:
            lines.append(f'Published for {name}: {run["published"].get("source", "no source given")}. Not measured here.')
        if run['chosen']:
            lines.append(f'Frequencies of {name}: {" ".join(f"{u}{v}" for u, v in run["frequencies"])}.')
    return '\n'.join(f'- {line}' for line in lines)


def render_differences(rows: Mapping[str, dict]) -> str:
    """The differences of one AP."""
    header = ['run', 'seeds', 'difference', f'{100 * CONFIDENCE:.0f} % interval', 'seeds above', 'p', 'p, Holm']
    lines = []
    for name, row in rows.items():
        mean = NONE if row['mean'] is None else f'{100 * row["mean"]:+.2f}'
        interval = ' to '.join(f'{100 * end:+.2f}' for end in row['interval']) if row['interval'] else f'{NONE}: {row["n"]} seeds in common'
        interval = interval.replace('1 seeds', '1 seed')
        cells = [show_p(row['p']), show_p(row['p_holm'])]
        lines.append([name, str(row['n']), mean, interval, f'{row["above"]} of {row["n"]}', *cells])
    return render_table(header, lines)


def render_singles(report: dict) -> str:
    """AP by (u, v)."""
    cells = {pair: show_spread(report['singles'].get(f'{pair.u}{pair.v}', summarize([]))) for pair in CANDIDATES}
    lines = [[f'u = {u}', *(cells[Frequency(u, v)] for v in range(SPECTRUM))] for u in range(SPECTRUM)]
    over = show_spread(summarize(single['mean'] for single in report['singles'].values()))
    said = f'100 x {AP_LABELS.get(report["metric"], report["metric"])}; u along the height, v along the width. Over them {over}.'
    if report['chosen']:
        said += f' Chosen: {" ".join(f"{u}{v}" for u, v in report["chosen"])}.'
    return f'{render_table(["", *(f"v = {v}" for v in range(SPECTRUM))], lines)}\n\n{said}'


def show_spread(summary: dict, scale: float = 100, digits: int = 1) -> str:
    """Mean and spread, the mean of one seed alone, or that there is none."""
    if summary['mean'] is None:
        return NONE
    spread = '' if summary['std'] is None else f' ± {scale * summary["std"]:.{digits}f}'
    return f'{scale * summary["mean"]:.{digits}f}{spread}'


def show_p(p: float | None) -> str:
    """A p-value, to three digits."""
    return NONE if p is None else '< 0.001' if p < 0.001 else f'{p:.3f}'


def render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is a table in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ['-' * width for width in widths]
    return '\n'.join(
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in (header, rule, *lines)
    )


def draw(report: dict, rows: pd.DataFrame, folders: Sequence[Path], out: Path) -> dict[str, str]:
    """The figures that the results can fill. Returns their titles by file."""
    metric, baseline, runs = report['metric'], report['baseline'], report['runs']
    baselines = {name: run['baseline'] for name, run in runs.items()}
    label = f'100 x {AP_LABELS.get(metric, metric)}'
    scored = rows[rows[metric].notna()]
    aps = {
        name: {int(seed): 100 * ap for seed, ap in zip(mine['seed'], mine[metric], strict=True)}
        for name in runs
        if len(mine := scored[scored['name'] == name])
    }
    drawn = {}
    if aps:
        intervals = {
            name: tuple(100 * end for end in row['interval'])
            for table in report['differences'].get(metric, {}).values()
            for name, row in table.items()
            if row['interval']
        }
        draw_seeds(aps, baselines, intervals, label, out / 'seeds.png')
        drawn['seeds.png'] = 'AP by seed'
        values = {name: list(by_seed.values()) for name, by_seed in aps.items()}
        seconds = rows.pivot(index='seed', columns='name', values='seconds_per_iteration')
        times = {name: list((seconds[name] / seconds[baselines[name]]).dropna()) for name in aps if baselines[name] in seconds}
        costs = {
            f'training time per iteration, relative to {name_baseline(baselines)}': times,
            'parameters, M': {name: [runs[name]['parameters'] / 1e6] for name in aps},
        }
        draw_ap_against_cost(values, {name: cost for name, cost in costs.items() if any(cost.values())}, label, out / 'ap_cost.png')
        drawn['ap_cost.png'] = 'AP against cost'
        families = group_families({name: run['frequencies'] for name, run in runs.items() if name in aps}, values)
        if any(len(family) > 1 for family in families.values()):
            draw_ap_against_frequencies(families, (baseline, values.get(baseline, [])), label, out / 'ap_frequencies.png')
            drawn['ap_frequencies.png'] = 'AP against the number of frequencies'
    singles = {
        Frequency(*map(int, pair)): 100 * summary['mean'] for pair, summary in report['singles'].items() if summary['mean'] is not None
    }
    if singles:
        draw_heat_map(singles, [Frequency(*pair) for pair in report['chosen']], label, out / 'singles.png')
        drawn['singles.png'] = 'AP of each frequency alone'
    logs = {
        name: [entries for seed in run['seeds'] for folder in folders if (entries := read_scalars(folder / name / f'seed-{seed}'))]
        for name, run in runs.items()
    }
    logs = {name: entries for name, entries in logs.items() if entries}
    if any(len(curve) > 1 for key in ('loss', f'coco/{metric}') for curve in collect_curves(logs, key).values()):
        draw_learning(logs, metric, label, out / 'learning.png')
        drawn['learning.png'] = 'loss and AP over the training'
    return drawn


def group_families(frequencies: Mapping[str, list | None], aps: Mapping[str, list[float]]) -> dict[str, dict[int, list[float]]]:
    """AP by number of frequencies of each family of runs; best-4, best-8 and best-16 are one, and 'learned' is one alone."""
    families: dict[str, dict[int, list[float]]] = {}
    for name, pairs in frequencies.items():
        if pairs:
            family = re.sub(rf'-?{len(pairs)}$', '', name) or name
            families.setdefault(family, {})[len(pairs)] = aps[name]
    return families


def main() -> None:
    """Parse the command line, and write the report."""
    parser = argparse.ArgumentParser(description='Turn results of tools/experiment.py into tables and figures.')
    parser.add_argument('results', type=Path, nargs='+', help='a folder that tools/experiment.py wrote')
    parser.add_argument('--out', type=Path, help='a folder (default: the first of RESULTS)')
    args = parser.parse_args()
    out = args.out or args.results[0]
    report, rows = evaluate(args.results)
    check_out(out / 'report.md')
    text = render(report, draw(report, rows, args.results, out))
    (out / 'report.json').write_text(json.dumps(report, indent=1, allow_nan=False))
    (out / 'report.md').write_text(text)
    print(f'{text}\n{out / "report.md"}')


if __name__ == '__main__':
    main()

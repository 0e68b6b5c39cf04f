"""Write the report of a plan: its numbers as Markdown tables, and the figures that its results allow."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..files import check_writable, write_whole
from ..frequency import SPECTRUM, Frequency
from . import plots
from .log import read_scalars
from .plan import shorten
from .power import LEVEL, MOST_SEEDS, POWER
from .results import AP_LABELS, CONFIDENCE, VERSIONS, evaluate, summarize

COLUMNS = {'bbox_mAP': 'box AP', 'bbox_mAP_50': 'AP50', 'bbox_mAP_75': 'AP75', 'segm_mAP': 'mask AP'}
PUBLISHED_LABELS = {**COLUMNS, 'segm_mAP_50': 'mask AP50', 'segm_mAP_75': 'mask AP75'}
NONE = 'none'


def write_report(results: Sequence[Path], out: Path | None = None, baseline: str | None = None) -> None:
    """Write and print the report of folders of results, and draw its figures.

    Args:
        results: folders of results.
        out: a folder, by default the first of ``results``.
        baseline: the run to compare all others with, instead of the plan's.

    Raises:
        UserError: the results cannot be read, or ``out`` cannot be written to.
    """
    out = out or results[0]
    report, rows = evaluate(results, baseline)
    check_writable(out / 'report.md')
    text = render(report, draw(report, rows, results, out))
    write_whole(out / 'report.json', json.dumps(report, indent=1, allow_nan=False))
    write_whole(out / 'report.md', text)
    print(f'{text}\n{out / "report.md"}')


def render(report: dict, figures: Mapping[str, str]) -> str:
    """Format the report as Markdown. ``figures`` has their titles by file."""
    states = report['states']
    versions = ', '.join(f'{column} {" and ".join(report[column])}' for column in VERSIONS)
    unfinished = {state: runs for state, runs in states.items() if runs and state != 'finished'}
    total, left = sum(map(len, states.values())), ''.join(f', {len(runs)} {state}' for state, runs in unfinished.items())
    parts = ['# Report', f'{versions}, on {" and ".join(report["device"])}.', f'{len(states["finished"])} of {total} runs finished{left}.']
    parts += [f'{state.capitalize()}: {shorten(runs, 20)}.' for state, runs in unfinished.items()]
    parts += [f'**Warning:** {obstacle}.' for obstacle in report['obstacles']]
    parts += ['## Results', *_render_runs(report['runs'])]
    for metric, tables in report['differences'].items():
        for baseline, rows in tables.items():
            parts += [f'## {AP_LABELS[metric][0].upper()}{AP_LABELS[metric][1:]} minus that of {baseline}', _render_differences(rows)]
    if any(report['differences'].values()):
        parts.append(
            f'Differences of 100 x AP between runs of the same seed: mean and {100 * CONFIDENCE:.0f} % t interval. p is of a paired t test'
            ' (two-sided); Holm adjusts it for the number of rows of its table, and runs are told apart if that is below'
            f' {LEVEL}. Tells: the smallest true difference that so many seeds would tell apart with a probability of {100 * POWER:.0f} %,'
            ' if it were the only row.'
        )
    for baseline in sorted({run['baseline'] for run in report['runs'].values()} - report['runs'].keys()):
        parts.append(f'The baseline {baseline} has not finished, so there are no differences to it.')
    if report['singles']:
        parts += ['## Each frequency alone', _render_singles(report)]
    parts += [f'![{title}]({file})' for file, title in figures.items()]
    return '\n\n'.join(parts) + '\n'


def _render_runs(runs: Mapping[str, dict]) -> list[str]:
    """Format the main table, and notes on what it shows and on the source of published values and chosen frequencies."""
    shown = [metric for metric in COLUMNS if any(run['figures'].get(metric, {}).get('n') for run in runs.values())]
    published = any(run['published'] for run in runs.values())
    lines, sources = [], []
    for name, run in runs.items():
        cells = [_show_spread(run['figures'][metric]) for metric in shown]
        relative = '1' if name == run['baseline'] else _show_spread(run['relative_time'], 1, 2)
        lines.append([name, str(len(run['seeds'])), *cells, f'{run["parameters"] / 1e6:.3f}', relative])
        figures = dict(run['published'] or {})
        source = figures.pop('source', 'no source given')
        if published:
            said = ', '.join(f'{PUBLISHED_LABELS.get(metric, metric)} {100 * value:.1f}' for metric, value in figures.items())
            lines[-1].append(said and f'{said} (published)')
        if run['published']:
            sources.append(f'Published for {name}: {source}. Not measured here.')
        if run['chosen']:
            sources.append(f'Frequencies of {name}: {" ".join(f"{u}{v}" for u, v in run["frequencies"])}.')
    base = plots.name_baseline({name: run['baseline'] for name, run in runs.items()})
    notes = [f'100 x COCO AP, mean ± sample standard deviation over seeds; time relative to {base} with the same seed.']
    if alone := [name for name, run in runs.items() if len(run['seeds']) == 1]:
        notes.append(f'One seed, so no spread: {", ".join(alone)}.')
    if any(run['figures'][metric]['n'] == 0 for run in runs.values() for metric in shown):
        notes.append(f"'{NONE}': COCO has no such objects, or the detector predicts no masks.")
    header = ['run', 'seeds', *(COLUMNS[metric] for metric in shown), 'parameters, M', 's/iteration, relative', *['published'] * published]
    return [render_table(header, lines), '\n'.join(f'- {note}' for note in [*notes, *sources])]


def _render_differences(rows: Mapping[str, dict]) -> str:
    header = [
        'run',
        'seeds',
        'difference',
        f'{100 * CONFIDENCE:.0f} % interval',
        'seeds above',
        'p',
        'p, Holm',
        'told apart',
        'tells',
        'seeds for 1 AP',
    ]
    lines = []
    for name, row in rows.items():
        mean = NONE if row['mean'] is None else f'{100 * row["mean"]:+.2f}'
        common = f'{NONE}: {row["n"]} seed{"s" * (row["n"] != 1)} in common'
        interval = ' to '.join(f'{100 * end:+.2f}' for end in row['interval']) if row['interval'] else common
        ps = [NONE if p is None else '< 0.001' if p < 0.001 else f'{p:.3f}' for p in (row['p'], row['p_holm'])]
        told = NONE if row['p_holm'] is None else 'told apart' if row['p_holm'] < LEVEL else 'not told apart'
        tells = NONE if row['tells'] is None else f'{100 * row["tells"]:.1f}'
        seeds = NONE if row['tells'] is None else str(row['seeds_for_1'] or f'over {MOST_SEEDS}')
        lines.append([name, str(row['n']), mean, interval, f'{row["above"]} of {row["n"]}', *ps, told, tells, seeds])
    return render_table(header, lines)


def _render_singles(report: dict) -> str:
    singles, missing = report['singles'], summarize([])
    lines = [[f'u = {u}', *(_show_spread(singles.get(f'{u}{v}', missing)) for v in range(SPECTRUM))] for u in range(SPECTRUM)]
    over = _show_spread(summarize(single['mean'] for single in singles.values()))
    said = f'100 x {AP_LABELS.get(report["metric"], report["metric"])}; u along the height, v along the width. Over them {over}.'
    if report['chosen']:
        said += f' Chosen: {" ".join(f"{u}{v}" for u, v in report["chosen"])}.'
    return f'{render_table(["", *(f"v = {v}" for v in range(SPECTRUM))], lines)}\n\n{said}'


def _show_spread(summary: dict, scale: float = 100, digits: int = 1) -> str:
    numbers = [summary[key] for key in ('mean', 'std') if summary[key] is not None]
    return ' ± '.join(f'{scale * number:.{digits}f}' for number in numbers) or NONE


def render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table that also reads well in a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ['-' * width for width in widths]
    padded = ' | '.join(f'{{:{width}}}' for width in widths)
    return '\n'.join(f'| {padded.format(*line)} |' for line in (header, rule, *lines))


def draw(report: dict, rows: pd.DataFrame, folders: Sequence[Path], out: Path) -> dict[str, str]:
    """Draw the figures that the results allow. Returns their titles by file."""
    metric, baseline, runs = report['metric'], report['baseline'], report['runs']
    baselines = {name: run['baseline'] for name, run in runs.items()}
    label = f'100 x {AP_LABELS.get(metric, metric)}'
    by_name = {name: mine.set_index(mine['seed'].astype(int)) for name, mine in rows.groupby('name')}
    aps = {name: ap for name in runs if (ap := (100 * by_name[name][metric]).dropna().to_dict())}
    drawn = {}
    if aps:
        intervals = {
            name: [100 * end for end in row['interval']]
            for table in report['differences'].get(metric, {}).values()
            for name, row in table.items()
            if row['interval']
        }
        plots.draw_seeds(aps, baselines, intervals, label, out / 'seeds.png')
        drawn['seeds.png'] = 'AP by seed'
        values = {name: list(mine.values()) for name, mine in aps.items()}
        costs = {'parameters, M': {name: [runs[name]['parameters'] / 1e6] for name in aps}}
        times = {name: list(by_name[name]['relative_time'].dropna()) for name in aps}
        if any(times.values()):
            costs = {f'training time per iteration, relative to {plots.name_baseline(baselines)}': times, **costs}
        plots.draw_ap_against_cost(values, costs, label, out / 'ap_cost.png')
        drawn['ap_cost.png'] = 'AP against cost'
        families = group_families({name: runs[name]['frequencies'] for name in aps}, values)
        if any(len(family) > 1 for family in families.values()):
            plots.draw_ap_against_frequencies(families, (baseline, values.get(baseline, [])), label, out / 'ap_frequencies.png')
            drawn['ap_frequencies.png'] = 'AP against the number of frequencies'
    singles = {Frequency(*map(int, pair)): 100 * single['mean'] for pair, single in report['singles'].items() if single['mean'] is not None}
    if singles:
        plots.draw_heat_map(singles, [Frequency(*pair) for pair in report['chosen']], label, out / 'singles.png')
        drawn['singles.png'] = 'AP of each frequency alone'
    logs = {
        name: [entries for seed in run['seeds'] for folder in folders if (entries := read_scalars(folder / name / f'seed-{seed}'))]
        for name, run in runs.items()
    }
    logs = {name: entries for name, entries in logs.items() if entries}
    if any(len(curve) > 1 for key in ('loss', f'coco/{metric}') for curve in plots.collect_curves(logs, key).values()):
        plots.draw_learning(logs, metric, label, out / 'learning.png')
        drawn['learning.png'] = 'loss and AP over the training'
    return drawn


def group_families(frequencies: Mapping[str, list | None], aps: Mapping[str, list[float]]) -> dict[str, dict[int, list[float]]]:
    """Group AP by number of frequencies and family of runs: best-4, best-8 and best-16 are one family, learned another."""
    families: dict[str, dict[int, list[float]]] = {}
    for name, pairs in frequencies.items():
        if pairs:
            family = re.sub(rf'-?{len(pairs)}$', '', name) or name
            families.setdefault(family, {})[len(pairs)] = aps[name]
    return families

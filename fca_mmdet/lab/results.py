"""Read and check the results of plans, and compute the numbers of a report."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import UserError
from .plan import CHOSEN, SINGLES, is_decided, merge_plans, shorten
from .power import seeds_to_tell, smallest_difference

VERSIONS = ('fca_mmdet', 'torch', 'mmdet', 'mmengine', 'mmcv', 'python')
TEXT = ('name', 'digest', 'config', 'frequencies', 'device', *VERSIONS)
NUMBERS = ('seed', 'iterations', 'seconds_per_iteration', 'parameters', 'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')
OPTIONAL = ('config', 'frequencies')  # columns in which a cell may be empty
AP_LABELS = {'bbox_mAP': 'box AP', 'segm_mAP': 'mask AP'}
CONFIDENCE = 0.95
FAILED_TAIL = 1500  # characters at the end of a run's output: if they have a traceback, the run failed


def _read_table(path: Path) -> pd.DataFrame:
    """Read a folder's finished runs, one a row. COCO's -1, which means no such objects, becomes NaN."""
    try:
        # Read as text: a digest such as 12e45678 is not a number, and a run may be called NA.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[''])
    except FileNotFoundError as error:
        raise UserError(f'there is no {path}: give the folder that tools/experiment.py wrote, once a run has finished') from error
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f'{path} cannot be read: {" ".join(str(error).split())}') from error
    if table.empty:
        raise UserError(f'{path} is empty: no run has finished; start tools/experiment.py again to go on')
    if absent := [column for column in (*TEXT, *NUMBERS) if column not in table]:
        raise UserError(f'{path} has no column {", ".join(absent)}: start tools/experiment.py again, which rewrites it')
    metrics = _list_metrics(table)
    for column in dict.fromkeys((*NUMBERS, *metrics)):
        numbers = pd.to_numeric(table[column], errors='coerce')
        for line in np.flatnonzero(numbers.isna() & table[column].notna()):
            raise UserError(f'{path}, line {line + 2}: {column} is {table[column][line]!r}, and must be a number')
        table[column] = numbers
    for column in (*TEXT, *NUMBERS):
        if column not in OPTIONAL and (empty := np.flatnonzero(table[column].isna())).size:
            raise UserError(f'{path}, line {empty[0] + 2}, has no {column}: start tools/experiment.py again, or delete the line')
    table[metrics] = table[metrics].where(table[metrics] >= 0)
    return table


def _list_metrics(table: pd.DataFrame) -> list[str]:
    return [column for column in table if column.startswith(('bbox_', 'segm_'))]


def summarize(values: Iterable[float]) -> dict:
    """Compute number, mean and sample standard deviation of the values that are not NaN; None where undefined.

    Example:
        >>> summarize([1, 2, 3])
        {'n': 3, 'mean': 2.0, 'std': 1.0}
        >>> summarize([1])
        {'n': 1, 'mean': 1.0, 'std': None}
    """
    series = pd.Series(values, dtype=float).dropna()
    return dict(n=len(series), mean=float(series.mean()) if len(series) else None, std=float(series.std()) if len(series) > 1 else None)


def _compare(rows: pd.DataFrame, name: str, baseline: str, metric: str) -> dict:
    """Compare a run with its baseline over common seeds: mean difference, t interval, number of seeds above, p of a paired t test.

    An interval needs two seeds. There is no p if all differences are equal. ``tells`` is the smallest true difference that so many seeds
    would have told, ``seeds_for_1`` the number of seeds that would tell a difference of 1 AP.
    """
    by_seed = rows.pivot(index='seed', columns='name', values=metric).reindex(columns=[name, baseline]).dropna()
    differences = by_seed[name] - by_seed[baseline]
    n, mean = len(differences), summarize(differences)['mean']
    interval, p, tells, seeds = [mean] * 2 if n > 1 else None, None, None, None
    if n > 1 and np.ptp(differences) > 1e-12:
        test = stats.ttest_rel(by_seed[name], by_seed[baseline])
        interval, p = list(map(float, test.confidence_interval(CONFIDENCE))), float(test.pvalue)
        std = float(differences.std())
        tells, seeds = smallest_difference(std, n), seeds_to_tell(0.01, std)
    return dict(n=n, mean=mean, interval=interval, above=int((differences > 0).sum()), p=p, tells=tells, seeds_for_1=seeds)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for their number (Holm, 1979), so that all below a level are significant together at that level.

    Example:
        >>> holm({'a': 0.04, 'b': 0.01, 'c': 0.03})
        {'b': 0.03, 'c': 0.06, 'a': 0.06}
    """
    names = sorted(p_values, key=lambda name: p_values[name])
    scaled = [min(1.0, (len(names) - rank) * p_values[name]) for rank, name in enumerate(names)]
    return dict(zip(names, itertools.accumulate(scaled, max), strict=True))


def _collect_states(plan: dict, rows: pd.DataFrame, folders: Sequence[Path]) -> dict[str, list[str]]:
    """Sort the runs with each seed by state: finished, failed, begun but not finished, or not begun."""
    states: dict[str, list[str]] = {'finished': [], 'failed': [], 'begun, not finished': [], 'not begun': []}
    for name, run in plan['runs'].items():
        finished = set(rows.loc[rows['name'] == name, 'seed'])
        written = {int(path.name[5:]) for folder in folders for path in (folder / name).glob('seed-*') if path.name[5:].isdigit()}
        for seed in sorted(finished | (written or set(range(run.get('seeds', plan.get('seeds', 1)))))):
            logs = [log for folder in folders if (log := folder / name / f'seed-{seed}' / 'output.log').exists()]
            tails = [log.read_text(errors='replace')[-FAILED_TAIL:] for log in logs]
            failures = [tail.strip().splitlines()[-1] for tail in tails if 'Traceback (most recent call last)' in tail]
            title = f'{name} seed {seed}'
            if seed in finished:
                states['finished'].append(title)
            elif failures:
                states['failed'].append(f'{title} ({failures[0][:200]})')
            else:
                states['begun, not finished' if tails else 'not begun'].append(title)
    return states


def _find_obstacles(rows: pd.DataFrame, baselines: Mapping[str, str]) -> list[str]:
    """List why rows of one baseline, or singles, cannot be compared: other versions, lengths or devices, or configs between seeds."""
    obstacles = []
    for _, part in rows.groupby(rows['name'].map(baselines).fillna('singles'), sort=False):
        for column in (*VERSIONS, 'iterations', 'device'):
            sides = part.groupby(column, sort=False)['name'].unique()
            if len(sides) > 1:
                what = 'times' if column == 'device' else 'rows'
                listed = '; '.join(f'{value} ({shorten(names)})' for value, names in sides.items())
                obstacles.append(f'{column} differs, so {what} are not comparable: {listed}')
    for name, digests in rows.groupby('name', sort=False)['digest'].unique().items():
        if len(digests) > 1:
            obstacles.append(f'the seeds of {name} ran different configs (digests {", ".join(digests)}), so they are not comparable')
    return obstacles


def _summarize_runs(plan: dict, rows: pd.DataFrame, baselines: Mapping[str, str]) -> dict[str, dict]:
    runs = {}
    for name, baseline in baselines.items():
        mine, entry = rows[rows['name'] == name], plan['runs'].get(name, {})
        runs[name] = dict(
            baseline=baseline,
            config=next(iter(mine['config'].dropna()), None),
            frequencies=json.loads(mine['frequencies'].iloc[0]) if mine['frequencies'].notna().all() else None,
            seeds=mine['seed'].astype(int).tolist(),
            iterations=int(mine['iterations'].iloc[0]),
            parameters=int(mine['parameters'].iloc[0]),
            figures={metric: summarize(mine[metric]) for metric in _list_metrics(rows)},
            seconds_per_iteration=summarize(mine['seconds_per_iteration']),
            relative_time=summarize(mine['relative_time']),
            published=entry.get('published'),
            chosen=not is_decided(entry),
        )
    return runs


def _compare_runs(rows: pd.DataFrame, baselines: Mapping[str, str]) -> dict[str, dict]:
    """Compare each run with its baseline. There is a table for each AP and baseline; its p-values are adjusted for its rows."""
    tables: dict[str, dict] = {metric: {} for metric in AP_LABELS if metric in rows and rows[metric].notna().any()}
    for metric, baseline in itertools.product(tables, dict.fromkeys(baselines.values())):
        found = {name: _compare(rows, name, baseline, metric) for name in baselines if baselines[name] == baseline != name}
        if found and baseline in baselines:
            adjusted = holm({name: row['p'] for name, row in found.items() if row['p'] is not None})
            tables[metric][baseline] = {name: {**row, 'p_holm': adjusted.get(name)} for name, row in found.items()}
    return tables


def evaluate(folders: Sequence[Path], baseline: str | None = None) -> tuple[dict, pd.DataFrame]:
    """Compute all numbers of a report, as in report.json, and return them with the rows. APs are 0 to 1, as COCO gives them.

    ``baseline`` replaces those of the plan.
    """
    plan = merge_plans(folders)
    if baseline is not None:
        if baseline not in plan['runs']:
            raise UserError(f'--baseline {baseline}: the runs are {", ".join(plan["runs"])}')
        plan |= dict(baseline=baseline, runs={name: {**run, 'baseline': baseline} for name, run in plan['runs'].items()})
    rows = pd.concat([_read_table(folder / 'results.csv') for folder in folders], ignore_index=True)
    for _, twice in rows[rows.duplicated(['name', 'seed'])].iterrows():
        raise UserError(f'{twice["name"]} with seed {twice["seed"]:.0f} occurs twice in {", ".join(map(str, folders))}: leave one out')
    metric = plan.get('metric', 'bbox_mAP')
    if metric not in (metrics := _list_metrics(rows)):
        raise UserError(f'the metric {metric} of the plan is not in the results: make it one of {", ".join(metrics)}')
    known = set(rows['name'])
    names = [name for name in [*plan['runs'], *sorted(known - plan['runs'].keys())] if name in known and name not in SINGLES]
    baselines = {name: plan['runs'].get(name, plan)['baseline'] for name in names}
    seconds = rows.set_index(['name', 'seed'])['seconds_per_iteration']
    rows['relative_time'] = rows['seconds_per_iteration'] / seconds.reindex([rows['name'].map(baselines), rows['seed']]).to_numpy()
    singles = rows[rows['name'].isin(SINGLES)]
    chosen: dict = next((json.loads(path.read_text()) for folder in folders if (path := folder / CHOSEN).exists()), {})
    report = dict(
        baseline=plan['baseline'],
        metric=metric,
        confidence=CONFIDENCE,
        **{column: list(rows[column].unique()) for column in (*VERSIONS, 'device')},
        states=_collect_states(plan, rows, folders),
        obstacles=_find_obstacles(rows, baselines),
        runs=_summarize_runs(plan, rows, baselines),
        differences=_compare_runs(rows, baselines),
        singles={'{}{}'.format(*SINGLES[name]): summarize(mine[metric]) for name, mine in singles.groupby('name')},
        chosen=chosen.get('frequencies', []),
    )
    return report, rows

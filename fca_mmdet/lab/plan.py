"""Plans of experiments as ``configs/plans/README.md`` describes them: how they are read, and which frequencies their runs take."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..files import write_whole
from ..frequency import CANDIDATES

PLAN_KEYS = {'seeds', 'baseline', 'options', 'data', 'singles', 'metric', 'runs'}
RUN_KEYS = {'config', 'options', 'seeds', 'baseline', 'frequencies', 'best', 'selected_by', 'published'}
CHOSEN = 'frequencies.json'  # what a selection writes: a list in the form that ``frequencies=`` takes, under that key
SINGLE = 'single-'  # what the names of the runs of one frequency begin with


def read_plan(path: Path) -> dict:
    """Read a plan with what it takes from its base, check it, and put its singles among its runs."""
    plan = _load_plan(path)
    if not isinstance(plan.get('runs'), dict) or not plan['runs']:
        raise UserError(f'{path} is not a plan: it needs runs, each a name with a config')
    if unknown := plan.keys() - PLAN_KEYS:
        raise UserError(f'{path} has {", ".join(sorted(unknown))}; a plan has {", ".join(sorted(PLAN_KEYS))}')
    plan.setdefault('baseline', next(iter(plan['runs'])))
    if singles := plan.get('singles'):
        plan['runs'] = {f'{SINGLE}{u}{v}': {'seeds': 1, **singles, 'frequencies': [[u, v]]} for u, v in CANDIDATES} | plan['runs']
    for name, run in plan['runs'].items():
        if not isinstance(run, dict) or 'config' not in run or run.keys() - RUN_KEYS:
            allowed = ', '.join(sorted(RUN_KEYS - {'config'}))
            raise UserError(f'the run {name} of {path} is {run}: it needs a config, and may have {allowed}')
        if len(run.keys() & {'frequencies', 'best', 'selected_by'}) > 1:
            raise UserError(f'the run {name} of {path} names its frequencies more than once: keep one of frequencies, best, selected_by')
        if 'best' in run and not singles:
            raise UserError(f'the run {name} of {path} takes the best {run["best"]} of the singles, and the plan has no singles')
        for key, other in {'baseline': plan['baseline'], **run}.items():
            if key in ('baseline', 'selected_by') and other not in plan['runs']:
                raise UserError(f'the {key} {other} of the run {name} of {path} is not one of its runs: {shorten(list(plan["runs"]))}')
        for metric, value in run.get('published', {}).items():
            if metric != 'source' and not (isinstance(value, int | float) and 0 <= value <= 1):
                raise UserError(f'the published {metric} of {name} in {path} is {value!r}: give it as COCO does, 0 to 1')
    return plan


def _load_plan(path: Path) -> dict:
    """Read a plan's file over its base's: options are added to the base's, anything else replaces it."""
    try:
        plan = yaml.safe_load(path.read_text())  # mmengine's load would run what a YAML file tells it to
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f'{path} is not a plan: {" ".join(str(error).split())}') from error
    if not isinstance(plan, dict):
        raise UserError(f'{path} is not a plan: it is a {type(plan).__name__}, not keys with values')
    base = _load_plan(path.parent / plan.pop('base')) if 'base' in plan else {}
    return {**base, **plan, 'options': {**base.get('options', {}), **plan.get('options', {})}}


def merge_plans(folders: Sequence[Path]) -> dict:
    """Merge the plans of several results: the first one's seeds, baseline and metric, and all runs, each with its baseline."""
    merged: dict[str, Any] = {'runs': {}}
    for path in (folder / 'plan.yml' for folder in folders):
        if not path.exists():
            raise UserError(f'there is no {path}: give the folder that tools/experiment.py wrote')
        plan = read_plan(path)
        runs = {name: {'baseline': plan['baseline'], **run} for name, run in plan['runs'].items()}
        merged = {**plan, **merged, 'runs': {**merged['runs'], **runs, **merged['runs']}}
    return merged


def shorten(names: Sequence[str], shown: int = 4) -> str:
    """List names, the first few of many."""
    return ', '.join([*names[:shown], *([f'{len(names) - shown} more'] if len(names) > shown else [])])


def is_decided(run: dict) -> bool:
    """Tell whether the frequencies of a plan's run are known before anything has run."""
    return not run.keys() & {'best', 'selected_by'}


def read_finished(out: Path, name: str) -> list[dict]:
    """Read the results of a run's finished seeds, in the order of the seeds."""
    rows = [json.loads(path.read_text()) for path in (out / name).glob('seed-*/result.json')]
    return sorted(rows, key=lambda row: row['seed'])


def choose_frequencies(run: dict, plan: dict, out: Path) -> Any:
    """Find the frequencies of a plan's run, or None for those of its config."""
    if 'best' in run:
        return rank_singles(plan, out)[: run['best']]
    if 'selected_by' in run:
        chosen = out / run['selected_by'] / 'seed-0' / CHOSEN
        if not chosen.exists():
            raise UserError(f'{run["selected_by"]} has written no {chosen}: its output.log says why; mend that and start again')
        return json.loads(chosen.read_text())['frequencies']
    return run.get('frequencies')


def rank_singles(plan: dict, out: Path) -> list[list[int]]:
    """Rank the 49 frequencies, the one that alone reaches the highest figure first (the first step of FcaNet-TS)."""
    singles = [name for name in plan['runs'] if name.startswith(SINGLE)]
    means = _mean_figures(singles, plan, out)
    if failed := [name for name in singles if name not in means]:
        why = 'its output.log says why; mend that and start again'
        raise UserError(f'{failed[0]} has no result, so the singles cannot be ranked: {why}')
    return [plan['runs'][name]['frequencies'][0] for name in sorted(singles, key=lambda name: -means[name])]


def _mean_figures(names: Iterable[str], plan: dict, out: Path) -> dict[str, float]:
    """Average the finished seeds of each run that has some, in what the plan ranks by."""
    figures = {name: [row[plan.get('metric', 'bbox_mAP')] for row in read_finished(out, name)] for name in names}
    return {name: statistics.mean(values) for name, values in figures.items() if values}


def write_chosen(plan: dict, out: Path) -> None:
    """Write ``frequencies.json``: the ranking of the singles, and from it the best k that reached the highest figure."""
    ranking = rank_singles(plan, out)
    sizes = {name: run['best'] for name, run in plan['runs'].items() if 'best' in run}
    means = _mean_figures(sizes, plan, out)
    chosen = ranking[: sizes[max(means, key=lambda name: means[name])]] if means else ranking
    write_whole(out / CHOSEN, json.dumps(dict(metric=plan.get('metric', 'bbox_mAP'), ranking=ranking, frequencies=chosen)))

"""Read plans of experiments, which ``configs/plans/README.md`` describes, and choose the frequencies of their runs."""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..files import write_whole
from ..frequency import CANDIDATES

CHOSEN = 'frequencies.json'  # a selection writes it; its ``frequencies`` is a list that ``FcaResNet(frequencies=...)`` takes
SINGLES = {f'single-{u}{v}': [u, v] for u, v in CANDIDATES}
"""The names of runs of one frequency each."""
METRIC_ITEMS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
"""All COCO figures, as mmdet names them."""
METRICS = [f'{kind}_{item}' for kind in ('bbox', 'segm') for item in METRIC_ITEMS]
SHAPES = 'shapes'  # the name of the made data and of their folder

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is of the right kind, and what is allowed."""
COUNT: Rule = (lambda value: type(value) is int and value > 0, 'a whole number from 1')
TEXT: Rule = (lambda value: isinstance(value, str), 'a text')
ENTRY: Rule = (lambda value: isinstance(value, dict), 'keys with values')
OPTIONS: Rule = (
    lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
    'keys of a config with values, such as {train_cfg.max_iters: 400}',
)
PLAN = dict(
    runs=(lambda value: isinstance(value, dict) and bool(value), 'names of runs, each with a config'),
    base=TEXT,
    options=OPTIONS,
    seeds=COUNT,
    baseline=TEXT,
    data=(lambda value: value == SHAPES, f'{SHAPES}; for other data, leave it out and give --data'),
    singles=ENTRY,
    recipes=(
        lambda value: isinstance(value, dict) and all(map(OPTIONS[0], value.values())),
        'names, each with options to try in --pilot, such as {short: {train_cfg.max_iters: 200}}',
    ),
    metric=(METRICS.__contains__, f'one of {", ".join(METRICS)}'),
)
"""What a plan may have."""
RUN = dict(
    config=TEXT,
    options=OPTIONS,
    seeds=COUNT,
    baseline=TEXT,
    published=ENTRY,
    frequencies=(lambda value: isinstance(value, str | list), 'a set, such as low2, or a list of (u, v) pairs'),
    best=(lambda value: COUNT[0](value) and value <= len(CANDIDATES), f'a whole number from 1 to {len(CANDIDATES)}'),
    selected_by=TEXT,
)
"""What a run may have."""
SHARE: Rule = (lambda value: isinstance(value, int | float) and 0 <= value <= 1, 'a number from 0 to 1, as COCO gives it')
PUBLISHED = dict(source=TEXT, **dict.fromkeys(METRICS, SHARE))
"""What the published figures of a run may have."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as ``--cfg-options`` does, and refuses a key that occurs twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.YAMLError(f'{key.value} occurs twice, in line {key.start_mark.line + 1} too')
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+$'), list('-+0123456789'))


def read_plan(path: Path) -> dict:
    """Read a plan and its base, and add a run for each of its singles. A mistake in it is a ``UserError``."""
    plan = _load_plan(path)
    if 'runs' not in plan:
        raise UserError(f'{path} is not a plan: it needs runs, each a name with a config')
    plan.setdefault('baseline', next(iter(plan['runs'])))
    if 'singles' in plan:
        common = _check(f'singles of {path}', plan['singles'], {key: RUN[key] for key in ('config', 'options', 'seeds', 'baseline')})
        singles = {name: {'seeds': 1, **common, 'frequencies': [pair]} for name, pair in SINGLES.items()}
        if other := next((name for name, run in singles.items() if plan['runs'].get(name, run) != run), None):
            raise UserError(f'{path} has singles, which make the run {other}, and another run of that name: rename it')
        plan['runs'] = singles | plan['runs']
    plan['runs'] = {name: _check(f'the run {name} of {path}', run, RUN) for name, run in plan['runs'].items()}
    for name in (*plan['runs'], *plan.get('recipes', ())):  # they become folders
        if not (isinstance(name, str) and re.fullmatch(r'\w[\w.+-]*', name)) or name == SHAPES:
            what = 'run' if name in plan['runs'] else 'recipe'
            raise UserError(f"{path} has a {what} named {name!r}: use letters, digits (in quotes), '_', '.', '+' and '-', and not {SHAPES}")
    for name, run in plan['runs'].items():
        if 'config' not in run:
            raise UserError(f'the run {name} of {path} has no config: name one, such as small/mask-rcnn_fca-r18_fpn_small-heads.py')
        _check(f'published of the run {name} of {path}', run.get('published', {}), PUBLISHED)
        if len(run.keys() & {'frequencies', 'best', 'selected_by'}) > 1:
            raise UserError(f'the run {name} of {path} names its frequencies more than once: keep one of frequencies, best, selected_by')
        if 'best' in run and 'singles' not in plan:
            raise UserError(f'the run {name} of {path} takes the best {run["best"]} singles, but the plan has none: add singles to it')
        for key, other in {'baseline': plan['baseline'], **run}.items():
            if key in ('baseline', 'selected_by') and other not in plan['runs']:
                raise UserError(f'the {key} {other} of the run {name} of {path} is not one of its runs: {shorten(list(plan["runs"]))}')
        if 'selected_by' in run and not is_decided(plan['runs'][run['selected_by']]):
            raise UserError(f'the run {name} of {path} is selected_by {run["selected_by"]}, which itself waits for others: name a search')
    return plan


def _load_plan(path: Path, heirs: tuple[Path, ...] = ()) -> dict:
    """Read a plan's file and its base's: options are added to the base's, every other key replaces the base's."""
    if path.resolve() in heirs:
        raise UserError(f'{path} is its own base: name another one')
    try:
        plan = yaml.load(path.read_text(), _Loader)  # mmengine's load would run code that the YAML file names
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f'{path} is not a plan: {" ".join(str(error).split())}') from error
    plan = _check(str(path), plan, PLAN)
    base = _load_plan(path.parent / plan.pop('base'), (*heirs, path.resolve())) if 'base' in plan else {}
    return {**base, **plan, 'options': {**base.get('options', {}), **plan.get('options', {})}}


def _check(what: str, entry: Any, rules: Mapping[str, Rule]) -> dict:
    """Return an entry of a plan without its empty keys; one with another key or a value of another kind is a ``UserError``."""
    if not isinstance(entry, dict):
        raise UserError(f'{what} is {entry!r:.80}: it must be keys with values')
    for key, value in entry.items():
        if key not in rules:
            raise UserError(f'{what} has the unknown key {key!r}: it may have {", ".join(rules)}')
        fits, allowed = rules[key]
        if value is not None and not fits(value):
            raise UserError(f'{key} of {what} is {value!r:.80}: it must be {allowed}')
    return {key: value for key, value in entry.items() if value is not None}


def merge_plans(folders: Sequence[Path]) -> dict:
    """Merge the plans of several folders of results: seeds, baseline and metric of the first, all runs with their own baselines."""
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
    """Choose the frequencies of a plan's run; None stands for those of its config."""
    if 'best' in run:
        return rank_singles(plan, out)[: run['best']]
    if 'selected_by' in run:
        chosen = out / run['selected_by'] / 'seed-0' / CHOSEN
        if not chosen.exists():
            raise UserError(f'the run {run["selected_by"]} has not written {chosen}: run it, or see its output.log, and start again')
        return json.loads(chosen.read_text())['frequencies']
    return run.get('frequencies')


def rank_singles(plan: dict, out: Path) -> list[list[int]]:
    """Rank the 49 frequencies by the figure that each reaches alone, the highest first (the first step of FcaNet-TS)."""
    means = _mean_figures(SINGLES, plan, out)
    if missing := [name for name in SINGLES if name not in means]:
        raise UserError(f'singles cannot be ranked without {missing[0]}: run it, or see its output.log, and start again')
    return [SINGLES[name] for name in sorted(SINGLES, key=lambda name: -means[name])]


def _mean_figures(names: Iterable[str], plan: dict, out: Path) -> dict[str, float]:
    """Average the plan's metric over the finished seeds of each run that has some."""
    figures = {name: [row[plan.get('metric', 'bbox_mAP')] for row in read_finished(out, name)] for name in names}
    return {name: statistics.mean(values) for name, values in figures.items() if values}


def write_chosen(plan: dict, out: Path) -> None:
    """Write ``frequencies.json``: the ranking of the singles, and its first k, for the k that reached the highest figure."""
    ranking = rank_singles(plan, out)
    sizes = {name: run['best'] for name, run in plan['runs'].items() if 'best' in run}
    means = _mean_figures(sizes, plan, out)
    chosen = ranking[: sizes[max(means, key=lambda name: means[name])]] if means else ranking
    write_whole(out / CHOSEN, json.dumps(dict(metric=plan.get('metric', 'bbox_mAP'), ranking=ranking, frequencies=chosen)))

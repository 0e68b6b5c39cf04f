"""Try the recipes of a plan with two runs and a few seeds, and say which tells the smallest difference in a budget of hours."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from ..errors import UserError
from ..files import write_whole
from .experiment import Submitting, check_names, find_data, locate, run_all
from .plan import read_finished
from .power import MOST_SEEDS, seeds_to_tell, smallest_difference
from .report import render_table
from .results import CONFIDENCE
from .runs import write_configs

SEEDS = 4
"""The number of trainings of each run, unless ``--seeds`` gives another."""


def run_pilot(
    plan: str,
    submitting: Submitting,
    out: Path | None,
    data: Path | None,
    seeds: int | None,
    only: Sequence[str] | None,
    options: dict,
    hours: float,
    at_once: int,
) -> None:
    """Train two runs of a plan under each of its ``recipes``, print what each recipe could tell, and propose one.

    Args:
        plan, submitting, out, data, seeds, options: as of ``run_plan``. OUT/pilot/RECIPE has the trainings of a recipe.
        only: the two runs; by default the baseline and the run after it.
        hours: the budget of the whole plan.
        at_once: the number of trainings that run at the same time.

    Raises:
        UserError: as ``run_plan``; or there are not two runs and two seeds, or no recipe can be afforded.
    """
    entries, out = locate(plan, out)
    baseline = entries['baseline']
    names = list(only or [baseline, *(name for name in entries['runs'] if name != baseline)][:2])
    check_names(names, entries)
    if len(names) != 2:
        raise UserError(f'--pilot compares two runs, not {len(names)}: name them with --only')
    seeds = SEEDS if seeds is None else seeds
    if seeds < 2:
        raise UserError(f'--seeds {seeds}: give 2 or more, since a spread needs two')
    if hours <= 0:
        raise UserError(f'--pilot {hours:g}: give the hours that the plan may take')
    recipes = entries.pop('recipes', None) or {'planned': {}}
    tried = {}
    with submitting as submit:
        folder = find_data(entries, data, out)
        for recipe, changes in recipes.items():
            place = out / 'pilot' / recipe
            variant = {**entries, 'baseline': names[0], 'options': {**entries.get('options', {}), **changes}}
            variant['runs'] = {name: entries['runs'][name] for name in names}
            write_whole(place / 'plan.yml', yaml.safe_dump(variant, sort_keys=False))
            if run_all(write_configs(names, variant, place, folder, options, seeds), variant, place, submit):
                raise UserError(f'runs of the recipe {recipe} failed: mend the errors above, and the same command goes on')
            rows = [row for name in names for row in read_finished(place, name) if row['seed'] < seeds]
            metric = entries.get('metric', 'bbox_mAP')
            tried[recipe] = judge(pd.DataFrame(rows), names, metric, hours * 60 * at_once / len(entries['runs']))
    text = render(tried, names, hours, len(entries['runs']))
    write_whole(out / 'pilot' / 'pilot.json', json.dumps(tried, indent=1))
    write_whole(out / 'pilot' / 'pilot.md', text)
    print(f'{text}\n{out / "pilot" / "pilot.md"}')


def judge(rows: pd.DataFrame, names: Sequence[str], metric: str, minutes: float) -> dict:
    """Compute what a recipe could tell from the finished trainings of two runs.

    Args:
        rows: one for each training: ``name``, ``seed``, ``minutes`` and the metric.
        names: the two runs, the baseline first.
        minutes: the budget of each run of the plan.

    Returns:
        The mean of the metric; the standard deviation of paired differences, the limits of its 95 % confidence interval, and what it would
        be if the seeds were not paired; minutes of a training; the seeds that tell 1 AP; the seeds that the budget affords, and the
        difference that they tell. None where undefined.
    """
    scores = rows.pivot(index='seed', columns='name', values=metric)[list(names)]
    std, count = float((scores[names[1]] - scores[names[0]]).std()), len(scores)
    limits = [std * ((count - 1) / stats.chi2.isf(tail, count - 1)) ** 0.5 for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)]
    each = float(rows['minutes'].mean())
    affordable = int(minutes / each)
    return dict(
        seeds=count,
        mean=float(scores.to_numpy().mean()),
        std=std,
        limits=limits,
        unpaired=float(np.sqrt(scores.var().sum())),
        minutes=each,
        seeds_for_1=seeds_to_tell(0.01, std) if std else 2,
        affordable=affordable,
        tells=smallest_difference(std, affordable) if affordable > 1 else None,
    )


def render(tried: dict[str, dict], names: Sequence[str], hours: float, runs: int) -> str:
    """Format the recipes as a Markdown table, with a proposal below it.

    Raises:
        UserError: no recipe affords two seeds.
    """
    fitting = {recipe: found for recipe, found in tried.items() if found['tells'] is not None}
    if not fitting:
        least = min(found['minutes'] for found in tried.values())
        raise UserError(f'--pilot {hours:g}: a training takes {least:.1f} minutes, and {runs} runs need two seeds each: give more hours')
    header = ['recipe', 'AP', 'std of a paired difference', 'if not paired', 'minutes a run', 'seeds for 1 AP']
    header += [f'seeds in {hours:g} h', 'which tell']
    lines = []
    for recipe, found in tried.items():
        low, high = found['limits']
        told = '' if found['tells'] is None else f'{100 * found["tells"]:.1f}'
        spread = f'{100 * found["std"]:.1f} ({100 * low:.1f} to {100 * high:.1f})'
        wanted = str(found['seeds_for_1'] or f'over {MOST_SEEDS}')
        lines.append([recipe, f'{100 * found["mean"]:.1f}', spread, f'{100 * found["unpaired"]:.1f}', f'{found["minutes"]:.1f}', wanted])
        lines[-1] += [str(found['affordable']), told]
    best = min(fitting, key=lambda recipe: fitting[recipe]['tells'])
    count = next(iter(tried.values()))['seeds']
    return (
        f'{render_table(header, lines)}\n\n100 x AP of {names[0]} and {names[1]}, {count} seeds each; in brackets the 95 % interval of the '
        f'standard deviation. Told: with a probability of 80 % (two-sided 5 %), for {runs} runs. A recipe with an AP '
        'near 0 has learned too little: its spread says nothing.\n\n'
        f'Proposed: {best}, {fitting[best]["affordable"]} seeds, which tell {100 * fitting[best]["tells"]:.1f} AP in {hours:g} h.\n'
    )

"""Pilots: what a recipe could tell against numpy and scipy, the proposal, and real configs with made-up trainings."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from helpers import TINY, load_command
from scipy import stats

from fca_mmdet.errors import UserError
from fca_mmdet.lab.pilot import judge, render, run_pilot
from fca_mmdet.lab.runs import Run

APS = {'plain': [0.30, 0.31, 0.35, 0.33], 'low2': [0.31, 0.34, 0.36, 0.37]}
TWO = {'plain': {'config': str(TINY)}, 'low2': {'config': str(TINY), 'frequencies': 'low2'}}


def test_what_a_recipe_could_tell():
    rows = [dict(name=name, seed=seed, bbox_mAP=ap, minutes=2.0) for name, aps in APS.items() for seed, ap in enumerate(aps)]
    found = judge(pd.DataFrame(rows), list(APS), 'bbox_mAP', 21)
    differences = np.subtract(APS['low2'], APS['plain'])
    assert found['std'] == pytest.approx(np.std(differences, ddof=1))
    assert found['unpaired'] == pytest.approx(np.sqrt(sum(np.var(aps, ddof=1) for aps in APS.values())))
    low, high = found['limits']
    squares = ((differences - differences.mean()) ** 2).sum()
    assert [stats.chi2.cdf(squares / limit**2, 3) for limit in (high, low)] == pytest.approx([0.025, 0.975])
    assert found['mean'] == pytest.approx(np.mean(list(APS.values())))
    assert (found['seeds'], found['minutes'], found['affordable']) == (4, 2.0, 10)
    generator = np.random.default_rng(0)
    for seeds, difference in ((10, found['tells']), (found['seeds_for_1'], 0.01)):
        simulated = generator.normal(difference, found['std'], (20_000, seeds))
        assert np.mean(stats.ttest_1samp(simulated, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def fake(minutes: float, better: float) -> Callable[[Run], Future]:
    """Trainings that end at once: the short recipe's are quick and spread, the others take ``minutes``."""

    def submit(run: Run) -> Future:
        short = 'short' in run.folder.parts
        ap = (
            0.3
            + better * (run.name == 'low2')
            + (0.02 if short else 0.001) * np.random.default_rng([run.seed, run.name == 'low2']).normal()
        )
        row = dict(name=run.name, seed=run.seed, bbox_mAP=float(ap), minutes=minutes / 10 if short else minutes)
        run.result.write_text(json.dumps(row))
        done: Future = Future()
        done.set_result(row)
        return done

    return submit


def test_the_recipe_that_tells_the_least_is_proposed(write_plan, shapes, tmp_path, capsys):
    recipes = {'short': {'train_cfg.max_iters': 1}, 'long': {'train_cfg.max_iters': 3}}
    plan = write_plan(runs={**TWO, 'other': TWO['plain']}, baseline='plain', recipes=recipes)
    run_pilot(str(plan), nullcontext(fake(6, 0.01)), tmp_path / 'out', shapes, None, None, {}, 2, 2)
    said = capsys.readouterr().out
    assert json.loads((tmp_path / 'out' / 'pilot' / 'pilot.json').read_text())['long']['affordable'] == 2 * 60 * 2 // (6 * 3)
    assert 'Proposed: long, 13 seeds, which tell ' in said
    assert (tmp_path / 'out' / 'pilot' / 'pilot.md').read_text() in said
    configs = {path.parent.relative_to(tmp_path / 'out' / 'pilot').as_posix() for path in tmp_path.rglob('config.py')}
    assert configs == {f'{recipe}/{name}/seed-{seed}' for recipe in recipes for name in TWO for seed in range(4)}
    assert 'max_iters=3' in (tmp_path / 'out' / 'pilot' / 'long' / 'low2' / 'seed-0' / 'config.py').read_text()


def test_a_budget_for_less_than_two_seeds(write_plan, shapes, tmp_path):
    with pytest.raises(UserError, match=r'--pilot 0.5: a training takes 60.0 minutes, and 2 runs need two seeds each: give more hours'):
        run_pilot(str(write_plan(runs=TWO)), nullcontext(fake(60, 0)), tmp_path / 'out', shapes, 2, None, {}, 0.5, 1)


def test_equal_figures_need_two_seeds():
    rows = pd.DataFrame([dict(name=name, seed=seed, bbox_mAP=0.5, minutes=1) for name in TWO for seed in range(2)])
    found = judge(rows, list(TWO), 'bbox_mAP', 5)
    assert (found['std'], found['seeds_for_1'], found['tells']) == (0, 2, 0)
    assert '| 0.0 (0.0 to 0.0) ' in render({'planned': found}, list(TWO), 1, 2)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--pilot', '0'], r'^experiment: --pilot 0: give the hours that the plan may take$'),
        (['--pilot', '1', '--seeds', '1'], r'^experiment: --seeds 1: give 2 or more, since a spread needs two$'),
        (['--pilot', '1', '--only', 'plain'], r'^experiment: --pilot compares two runs, not 1: name them with --only$'),
        (['--pilot', '1', '--only', 'plain', 'x'], r'^experiment: --only x: the runs of the plan are plain, se, '),
        (['--pilot', '1', '--ray'], r'^experiment: --pilot reckons with this machine, and not with a cluster: leave out --ray$'),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['experiment.py', 'small', *arguments, '--out', str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        load_command('experiment').main()

"""Power against simulation, and against the sample sizes of G*Power's tables."""

import numpy as np
import pytest
from scipy import stats

from fca_mmdet.lab.power import LEVEL, POWER, power, seeds_to_tell, smallest_difference


@pytest.mark.parametrize(('effect', 'seeds'), [(0.0, 5), (1.0, 3), (1.0, 10), (-1.0, 10), (0.5, 34), (3.0, 2)])
def test_power_is_the_share_of_simulated_runs_that_tell(effect, seeds):
    samples = np.random.default_rng(0).normal(effect, 1, (40_000, seeds))
    told = (stats.ttest_1samp(samples, 0, axis=1).pvalue < LEVEL).mean()
    assert power(effect, seeds) == pytest.approx(told, abs=0.01)


@pytest.mark.parametrize(('effect', 'seeds'), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_published_sample_sizes(effect, seeds):
    """Of G*Power 3.1, means of matched pairs, two tails, 0.05 and 0.80."""
    assert seeds_to_tell(effect, std=1.0) == seeds


@pytest.mark.parametrize('seeds', [2, 3, 5, 8, 40])
@pytest.mark.parametrize('std', [0.004, 1.3])
def test_the_smallest_difference_is_that_which_so_many_seeds_tell(std, seeds):
    difference = smallest_difference(std, seeds)
    assert power(difference / std, seeds) == pytest.approx(POWER)
    assert seeds_to_tell(1.001 * difference, std) == seeds


def test_a_difference_that_no_number_of_seeds_tells():
    assert seeds_to_tell(1e-4, std=1.0) is None

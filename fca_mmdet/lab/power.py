"""What a comparison over paired seeds can tell: the power of the two-sided paired t test."""

import itertools

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8
MOST_SEEDS = 10_000


def power(effect: float, seeds: int) -> float:
    """Compute the probability that the test tells a true difference.

    The statistic has the noncentral t distribution with ``seeds - 1`` degrees of freedom and noncentrality ``effect sqrt(seeds)`` (Cohen,
    Statistical Power Analysis for the Behavioral Sciences, 1988).

    Args:
        effect: the true mean of the paired differences, over their standard deviation.
        seeds: the number of pairs, 2 or more.

    Example:
        >>> round(power(0.5, 34), 2)
        0.81
    """
    critical, shift = stats.t.isf(LEVEL / 2, seeds - 1), abs(effect) * seeds**0.5
    wrong_side = stats.nct.cdf(-critical, seeds - 1, shift)  # scipy gives NaN where it is next to nothing
    return float(stats.nct.sf(critical, seeds - 1, shift) + np.nan_to_num(wrong_side))


def smallest_difference(std: float, seeds: int) -> float:
    """Compute the smallest true difference that is told with probability ``POWER``, given the standard deviation of paired differences.

    Example:
        >>> round(smallest_difference(1.0, 34), 2)
        0.5
    """
    enough = next(effect for effect in (0.1 * 2**step for step in itertools.count()) if power(effect, seeds) >= POWER)
    return std * float(optimize.brentq(lambda effect: power(effect, seeds) - POWER, 0, enough))


def seeds_to_tell(difference: float, std: float) -> int | None:
    """Compute the number of paired seeds that tell a true difference with probability ``POWER``; None if beyond ``MOST_SEEDS``.

    Example:
        >>> seeds_to_tell(1.0, std=2.0)
        34
    """
    if power(difference / std, MOST_SEEDS) < POWER:
        return None
    # A guess from the normal distribution is below the answer, which is then near.
    guess = ((stats.norm.isf(LEVEL / 2) + stats.norm.ppf(POWER)) * std / difference) ** 2
    return next(seeds for seeds in itertools.count(max(2, int(guess))) if power(difference / std, seeds) >= POWER)

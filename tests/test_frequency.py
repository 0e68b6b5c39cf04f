import numpy as np
import pytest

from fca_mmdet import FREQUENCY_SETS, Frequency
from fca_mmdet.frequency import resolve_frequencies


def test_there_are_18_sets_of_distinct_frequencies_inside_the_spectrum():
    assert len(FREQUENCY_SETS) == 18
    for name, pairs in FREQUENCY_SETS.items():
        assert len(pairs) == int(name[3:]), name
        assert len(set(pairs)) == len(pairs), name
        assert all(0 <= index < 7 for pair in pairs for index in pair), name


def test_a_larger_set_extends_a_smaller_one():
    for ranking in ('top', 'low', 'bot'):
        for size in (1, 2, 4, 8, 16):
            assert FREQUENCY_SETS[f'{ranking}{2 * size}'][:size] == FREQUENCY_SETS[f'{ranking}{size}']


@pytest.mark.parametrize(
    ('name', 'pairs'),
    [
        ('top4', [(0, 0), (0, 1), (6, 0), (0, 5)]),
        ('low4', [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ('bot4', [(6, 6), (1, 4), (3, 4), (3, 6)]),
    ],
)
def test_u_runs_along_the_height(name, pairs):
    assert list(resolve_frequencies(name)) == pairs


def test_low_is_ordered_by_the_sum_of_its_indices_up_to_4():
    sums = [u + v for u, v in FREQUENCY_SETS['low8']]
    assert sums == [0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize('pairs', [[(0, 0), (6, 6)], ([0, 0], [6, 6]), np.array([[0, 0], [6, 6]])])
def test_pairs_may_come_as_any_sequence(pairs):
    assert resolve_frequencies(pairs) == (Frequency(0, 0), Frequency(6, 6))


@pytest.mark.parametrize(
    ('frequencies', 'message'),
    [
        ('top3', r"unknown frequency set 'top3': use top, low or bot followed by 1, 2, 4, 8, 16, 32"),
        ('TOP16', r"unknown frequency set 'TOP16'"),
        ([(0, 7)], r'frequency \(0, 7\) is outside the spectrum: u and v must be integers in 0..6'),
        ([(-1, 0)], r'frequency \(-1, 0\) is outside the spectrum'),
        ([(0.5, 0)], r'frequency \(0.5, 0\) is outside the spectrum'),
        ([(0, 1, 2)], r'must be \(u, v\) pairs, got \(0, 1, 2\)'),
        ([3, 4], r'must be \(u, v\) pairs, got 3'),
        ([], r'frequencies is empty'),
    ],
)
def test_errors_name_the_value_and_the_remedy(frequencies, message):
    with pytest.raises(ValueError, match=message):
        resolve_frequencies(frequencies)

import numpy as np
import oracle
import pytest
import scipy.fft
import torch
from torch.nn import functional as F

from fca_mmdet import FREQUENCY_SETS, MultiSpectralAttention
from fca_mmdet.dct import dct_basis, describe_basis, full_basis, pooling_matrix, projection_maps
from fca_mmdet.frequency import CANDIDATES

SIZES = [(1, 1), (1, 9), (5, 3), (7, 7), (9, 13), (14, 14), (25, 42)]


@pytest.mark.parametrize('length', [1, 2, 7, 56])
def test_basis_is_the_orthonormal_dct_of_scipy(length):
    expected = scipy.fft.dct(np.eye(length), norm='ortho', axis=0)
    np.testing.assert_allclose(dct_basis(range(length), length), expected, atol=1e-13)


@pytest.mark.parametrize('size', [1, 2, 3, 6, 7, 8, 14, 25, 100])
@pytest.mark.parametrize('cells', [1, 2, 7, 14])
def test_pooling_matrix_pools_as_torch_does(size, cells):
    x = torch.rand(1, 3, size, dtype=torch.float64)
    torch.testing.assert_close(x @ pooling_matrix(size, cells).T, F.adaptive_avg_pool1d(x, cells), rtol=0, atol=1e-14)


def test_pooling_a_valid_part_is_pooling_it_alone():
    pooled = pooling_matrix(9, 7, valid=torch.arange(1, 10))
    for size, matrix in enumerate(pooled, 1):
        torch.testing.assert_close(matrix, F.pad(pooling_matrix(size, 7), (0, 9 - size)), rtol=0, atol=0)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('grid', [(7, 7), (14, 7)])
def test_maps_are_the_dct_of_the_pooled_channel(size, grid):
    channel = np.random.default_rng(0).standard_normal(size)
    coefficients = scipy.fft.dctn(oracle.pool(channel, grid), norm='ortho')
    expected = [coefficients[u * (grid[0] // 7), v * (grid[1] // 7)] for u, v in CANDIDATES]
    freq = (projection_maps(CANDIDATES, grid, *size).numpy() * channel).sum((1, 2))
    np.testing.assert_allclose(freq, expected, atol=1e-12)


def test_a_map_sums_to_the_constant_that_folding_relies_on():
    """sqrt(h w) for (0, 0) and 0 for every other frequency, at sizes that divide the grid and at those that do not."""
    for size in SIZES:
        sums = projection_maps(CANDIDATES, (14, 7), *size).sum((1, 2))
        np.testing.assert_allclose(sums, [(14 * 7) ** 0.5] + [0] * 48, atol=1e-12)


@pytest.mark.parametrize('name', ['top16', 'low4', 'bot8', 'top1'])
@pytest.mark.parametrize('grid', [(56, 56), (7, 7), (14, 21)])
def test_a_stored_basis_tells_what_it_is(name, grid):
    size = grid[0] if grid[0] == grid[1] else grid
    assert describe_basis(full_basis(FREQUENCY_SETS[name], grid, 64)) == f'frequencies={name!r}, dct_size={size}'


def test_a_stored_basis_of_pairs():
    pairs = [(0, 0), (0, 0), (3, 5), (6, 6)]
    attention = MultiSpectralAttention(64, 14, frequencies=pairs)
    assert describe_basis(full_basis(attention.frequencies, (14, 14), 64)) == f'frequencies={pairs}, dct_size=14'

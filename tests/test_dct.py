import numpy as np
import oracle
import pytest
import scipy.fft
import torch
from torch.nn import functional as F

from fca_mmdet import FREQUENCY_SETS, Frequency
from fca_mmdet.dct import (
    CACHED_MAPS,
    cached_projection_maps,
    dct_basis,
    pooling_matrix,
    project,
    projection_maps,
)

SPECTRUM = [Frequency(u, v) for u in range(7) for v in range(7)]
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
    expected = [coefficients[u * (grid[0] // 7), v * (grid[1] // 7)] for u, v in SPECTRUM]
    freq = (projection_maps(SPECTRUM, grid, *size).numpy() * channel).sum((1, 2))
    np.testing.assert_allclose(freq, expected, atol=1e-12)


def test_a_map_sums_to_the_constant_that_folding_relies_on():
    """sqrt(h w) for (0, 0) and 0 for every other frequency, at sizes that divide the grid and at those that do not."""
    for size in SIZES:
        sums = projection_maps(SPECTRUM, (14, 7), *size).sum((1, 2))
        np.testing.assert_allclose(sums, [(14 * 7) ** 0.5] + [0] * 48, atol=1e-12)


def test_global_average_pooling_is_the_lowest_component():
    """Theorem 1 of the paper."""
    x = torch.rand(2, 4, 14, 21, dtype=torch.float64)
    freq = project(x, projection_maps([Frequency(0, 0)], (7, 7), 14, 21))
    torch.testing.assert_close(freq, 7 * x.mean((2, 3)))


@pytest.mark.parametrize('batch', [0, 1, 3])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'strided', 'expanded'])
def test_project_in_every_layout(batch, layout):
    maps = projection_maps(FREQUENCY_SETS['low4'], (7, 7), 6, 5)
    x = torch.rand(batch, 8, 6, 5, dtype=torch.float64)
    expected = (x.unflatten(1, (4, 2)) * maps[:, None]).sum((3, 4)).flatten(1)
    if layout == 'channels_last':
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == 'strided':
        x = torch.stack([x, -x], dim=-1)[..., 0]
    elif layout == 'expanded':
        x = x[:, :1].expand(-1, 8, -1, -1)
        expected = (x.unflatten(1, (4, 2)) * maps[:, None]).sum((3, 4)).flatten(1)
    torch.testing.assert_close(project(x, maps), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_project_gradient(layout):
    maps = projection_maps(FREQUENCY_SETS['top2'], (7, 7), 4, 5)
    x = torch.rand(2, 4, 4, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: project(value, maps), x)
    assert torch.autograd.gradgradcheck(lambda value: project(value, maps), x)
    (grad,) = torch.autograd.grad(project(x, maps).sum(), x)
    assert grad.is_contiguous(memory_format=layout)


def test_maps_are_cached_within_bounds_and_usable_for_training_after_inference():
    cached_projection_maps.cache_clear()
    arguments = (FREQUENCY_SETS['low2'], (7, 7), 8, 9, torch.float32, torch.device('cpu'))
    with torch.inference_mode():
        maps = cached_projection_maps(*arguments)
    assert cached_projection_maps(*arguments) is maps
    x = torch.rand(1, 2, 8, 9, requires_grad=True)
    project(x, maps).sum().backward()
    for width in range(1, CACHED_MAPS + 20):
        cached_projection_maps(FREQUENCY_SETS['low2'], (7, 7), 1, width, torch.float32, torch.device('cpu'))
    assert cached_projection_maps.cache_info().currsize == CACHED_MAPS

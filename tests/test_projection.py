import numpy as np
import oracle
import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from fca_mmdet import FREQUENCY_SETS, Frequency, MultiSpectralAttention
from fca_mmdet.dct import projection_maps
from fca_mmdet.projection import (
    CACHED_MAPS,
    ValidPart,
    cached_projection_maps,
    current_valid_part,
    in_terms,
    project,
    project_affine,
    within,
)


def test_global_average_pooling_is_the_lowest_component():
    """Theorem 1 of the paper."""
    x = torch.rand(2, 4, 14, 21, dtype=torch.float64)
    freq = project(x, projection_maps([Frequency(0, 0)], (7, 7), 14, 21)[:, None])
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
    torch.testing.assert_close(project(x, maps[:, None]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_project_gradient(layout):
    maps = projection_maps(FREQUENCY_SETS['top2'], (7, 7), 4, 5)[:, None]
    x = torch.rand(2, 4, 4, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: project(value, maps), x)
    assert torch.autograd.gradgradcheck(lambda value: project(value, maps), x)
    (grad,) = torch.autograd.grad(project(x, maps).sum(), x)
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_terms_of_a_map_add_up_to_it(dtype):
    maps = projection_maps(FREQUENCY_SETS['top16'], (56, 56), 25, 43)
    terms = in_terms(maps, dtype)
    assert terms.shape == (16, 2 if dtype == torch.bfloat16 else 1, 25, 43)
    assert (terms.double().sum(1) - maps).abs().max() <= (2**-16 if dtype == torch.bfloat16 else torch.finfo(dtype).eps) * maps.abs().max()


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


@pytest.mark.parametrize('options', [{}, dict(allow_non_fake_inputs=True)])
def test_a_forward_on_fake_tensors_leaves_none_in_the_cache(options):
    """As a memory estimator runs one: before or after a real forward of the same size, both see what they would alone."""
    attention, x = MultiSpectralAttention(16), torch.rand(2, 16, 5, 6)
    expected = attention(x)
    for emptied in (True, False):
        if emptied:
            cached_projection_maps.cache_clear()
        with FakeTensorMode(**options) as mode:
            fake = MultiSpectralAttention(16)(mode.from_tensor(x))
            assert isinstance(fake, FakeTensor)
            assert fake.shape == x.shape
            if options:  # real tensors under the mode
                assert isinstance(attention(x), FakeTensor)
        out = attention(x)
        assert type(out) is torch.Tensor
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_the_projection_of_an_affine_map_needs_no_map(batch, layout):
    maps = projection_maps(FREQUENCY_SETS['low4'], (7, 7), 6, 5)[:, None]
    z = torch.rand(batch, 3, 6, 5, dtype=torch.float64).contiguous(memory_format=layout)
    weight, shift = torch.rand(8, 3, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    y = F.conv2d(z, weight[:, :, None, None], shift)
    torch.testing.assert_close(project_affine(z, weight, shift, maps), project(y, maps), rtol=1e-12, atol=1e-12)


def test_a_part_of_smaller_maps_rounds_up_as_strides_do():
    part = ValidPart(torch.tensor([[97, 65], [64, 131]]))
    assert part.at(32).sizes.tolist() == [[4, 3], [2, 5]]
    assert part.at(32) is part.at(32)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('basis', ['dct', 'learned_random'])
@pytest.mark.parametrize('pairs', [(16, 9), (1, 1), (5, 20)])
def test_the_attention_of_a_valid_part_is_that_of_the_part_alone(pairs, basis, memory_format):
    attention = MultiSpectralAttention(32, (14, 7), basis=basis).double()
    sizes = [(16, 20), pairs, (3, 7)]
    x = torch.randn(3, 32, 16, 20, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    alone = [x.detach()[n : n + 1, :, :h, :w].clone().requires_grad_() for n, (h, w) in enumerate(sizes)]
    attention.stride = 1
    with within(ValidPart(torch.tensor(sizes))):
        freq, out = attention.squeeze(x), attention(x)
    freq.sum().backward()
    for n, (part, (h, w)) in enumerate(zip(alone, sizes, strict=True)):
        expected = attention.squeeze(part)
        expected.sum().backward()
        torch.testing.assert_close(freq[n], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(out[n, :, :h, :w], attention(part)[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(x.grad[n], F.pad(part.grad[0], (0, 20 - w, 0, 16 - h)), rtol=0, atol=1e-12)
    if basis == 'dct':
        slow = oracle.squeeze(alone[1].detach().numpy(), attention.frequencies, (14, 7))
        np.testing.assert_allclose(freq[1].detach().numpy(), slow[0], atol=1e-12)


def test_a_valid_part_of_another_batch_is_refused():
    attention = MultiSpectralAttention(16)
    attention.stride = 1
    with (
        within(ValidPart(torch.tensor([[3, 4]]))),
        pytest.raises(ValueError, match=r'got 1 sizes of valid parts for 2 images: give one \(height, width\) for each'),
    ):
        attention(torch.rand(2, 16, 5, 5))
    assert current_valid_part() is None

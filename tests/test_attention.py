from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.registry import MODELS
from named_weights import named_array, named_input, samples
from torch.nn import functional as F

from fca_mmdet import FREQUENCY_SETS, MultiSpectralAttention
from fca_mmdet.squeeze import BASES

GOLDEN = np.load(Path(__file__).parent / 'reference' / 'attention.npz')
SIZES = [(1, 1), (1, 9), (5, 3), (7, 7), (9, 13), (25, 42)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.abs(actual - expected).max() / np.abs(expected).max()


def named_attention(channels, dct_size, frequencies, reduction=4) -> MultiSpectralAttention:
    attention = MultiSpectralAttention(channels, dct_size, frequencies, reduction)
    state = {name: torch.from_numpy(named_array(name, value.shape)) for name, value in attention.state_dict().items()}
    attention.load_state_dict(state)
    return attention


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', sorted({key.rsplit('/', 1)[0] for key in GOLDEN.files}))
def test_agrees_with_the_reference_implementation(case, dtype):
    frequencies, channels, grid, size = case.split('/')
    height, width = map(int, size.split('x'))
    attention = named_attention(int(channels[1:]), int(grid[1:]), frequencies).to(dtype)
    x = torch.from_numpy(named_input((2, attention.in_channels, height, width))).to(dtype).requires_grad_()
    freq, out = attention.squeeze(x), attention(x)
    (out.flatten() * torch.sin(torch.arange(out.numel(), dtype=dtype))).sum().backward()
    expected = GOLDEN[f'{case}/freq']
    # The reference's basis is rounded to float32: where all components cancel, what is left of them is that rounding.
    assert np.abs(freq.detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max() + 2e-7
    assert relative_error(samples(out.detach()), GOLDEN[f'{case}/out']) < 1e-5
    assert relative_error(samples(x.grad), GOLDEN[f'{case}/grad']) < 1e-5


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('grid', [7, (14, 7)])
def test_agrees_with_the_slow_oracle(size, grid, dtype):
    attention = named_attention(32, grid, 'top16').to(dtype)
    x = torch.from_numpy(named_input((2, 32, *size))).to(dtype)
    reduce, expand = (attention.fc[layer].weight.detach().double().numpy() for layer in (0, 2))
    expected = oracle.attention(x.double().numpy(), FREQUENCY_SETS['top16'], attention.grid, reduce, expand)
    out = attention(x)
    assert out.dtype == dtype
    assert relative_error(out.detach().double(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize('basis', BASES)
def test_gradients(basis):
    attention = MultiSpectralAttention(4, 8 if basis == 'haar' else 7, 'low2', reduction=2, basis=basis).double()
    x = torch.rand(2, 4, 5, 9, dtype=torch.float64, requires_grad=True)
    parameters = dict(attention.named_parameters())

    def run(value, *weights):
        return torch.func.functional_call(attention, dict(zip(parameters, weights, strict=True)), (value,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize('size', SIZES)
def test_memory_format_is_kept_and_strides_do_not_matter(size):
    attention = named_attention(32, 7, 'low8')
    x = torch.rand(2, 32, *size)
    expected = attention(x)
    channels_last = attention(x.contiguous(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, expected)
    torch.testing.assert_close(attention(torch.stack([x, -x], -1)[..., 0]), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_excitation_in_float32(dtype):
    attention = named_attention(32, 56, 'top16')
    x = torch.rand(2, 32, 20, 30).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        freq = attention.squeeze(x)
        gate, out = attention.excite(freq), attention(x)
    assert (gate.dtype, out.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(gate, attention.excite(freq.float()))
    assert relative_error(out.detach().float(), attention(x.float()).detach()) < 1e-2


def test_float16_is_squeezed_in_float32():
    attention, x = named_attention(32, 56, 'top16'), torch.rand(2, 32, 20, 30).half()
    with torch.autocast('cpu', dtype=torch.float16):
        torch.testing.assert_close(attention.squeeze(x), attention.squeeze(x.float()))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('size', [(20, 30), (25, 43), (100, 168)])
def test_bfloat16_maps_add_no_more_error_than_a_bfloat16_feature_map_has(size, memory_format):
    """Beside that, each component is rounded once, which the published code's linear layers do under autocast."""
    attention = named_attention(32, 56, 'top16').double()
    x = torch.rand(4, 32, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    rounded = x.bfloat16()
    exact = attention.squeeze(x)
    unavoidable = (attention.squeeze(rounded.double()) - exact).square().mean(0).sqrt()
    error = (attention.squeeze(rounded).double() - exact).abs()
    assert (error.square().mean(0).sqrt().mean() - unavoidable.mean()) < unavoidable.mean() + 2**-9 * exact.abs().mean()
    assert (error <= 8 * unavoidable.mean() + 2**-8 * exact.abs()).all()
    gate = attention.gate_of_affine(rounded, torch.eye(32), torch.zeros(32))
    torch.testing.assert_close(gate, attention.excite(exact), rtol=0, atol=2**-8)


def test_half_precision_does_not_overflow_where_a_mean_would_not():
    attention = named_attention(32, 56, 'top1')
    x = torch.full((1, 32, 8, 8), 3e4, dtype=torch.float16)
    with torch.autocast('cpu', dtype=torch.float16):
        assert attention.squeeze(x).isfinite().all()
        assert attention(x).isfinite().all()


def test_weights_of_half_precision_do_not_overflow_either():
    attention = named_attention(32, 56, 'top1')
    x = torch.full((1, 32, 8, 8), 3e4, dtype=torch.float16)
    expected = attention(x.float())
    assert relative_error(attention.half()(x).detach().float(), expected.detach()) < 1e-3


def test_one_frequency_is_squeeze_and_excitation():
    """An example to check by hand: top1 squeezes with the mean times sqrt(7 * 7)."""
    attention = named_attention(8, 7, 'top1')
    x = torch.rand(2, 8, 14, 21)
    reduce, _, expand, _ = attention.fc
    gate = torch.sigmoid(F.linear(F.relu(F.linear(7 * x.mean((2, 3)), reduce.weight)), expand.weight))
    torch.testing.assert_close(attention(x), x * gate[:, :, None, None])


def test_groups_follow_the_order_of_the_channels():
    attention = MultiSpectralAttention(4, 7, [(0, 0), (3, 0)], reduction=1)
    ramp = torch.linspace(-1, 1, 7)[:, None].expand(1, 4, 7, 7)
    freq = attention.squeeze(ramp)[0]
    assert freq[0] == freq[1] != freq[2] == freq[3]
    assert abs(freq[0]) < 1e-6 < abs(freq[2])


def test_u_is_along_the_height():
    stripes = torch.cos(torch.pi * 3 * (torch.arange(7) + 0.5) / 7)[:, None].expand(1, 2, 7, 7)
    vertical, horizontal = MultiSpectralAttention(2, 7, [(3, 0), (0, 3)], reduction=1).squeeze(stripes)[0]
    assert vertical > 1
    assert abs(horizontal) < 1e-6


def test_the_state_holds_the_published_names_and_no_basis():
    assert {name: tuple(value.shape) for name, value in MultiSpectralAttention(64).state_dict().items()} == {
        'fc.0.weight': (4, 64),
        'fc.2.weight': (64, 4),
    }
    assert 'dct_layer.weight' in MultiSpectralAttention(64, basis='random').state_dict()


@pytest.mark.parametrize('backbone', [ResNet, ResNeXt])
def test_is_a_plugin_of_mmdet_backbones(backbone):
    plugin = dict(cfg=dict(type='mmdet.MultiSpectralAttention', dct_size=14, frequencies='low2'), position='after_conv3')
    model = backbone(depth=50, plugins=[plugin])
    assert isinstance(model.layer3[2].att, MultiSpectralAttention)
    assert model.layer3[2].att.in_channels == 1024
    assert [feature.shape[1] for feature in model(torch.rand(1, 3, 33, 65))] == [256, 512, 1024, 2048]


def test_mmengine_initialises_it():
    constant = dict(type='Constant', layer='Linear', val=0.5)
    plugin = dict(cfg=dict(type='mmdet.MultiSpectralAttention', init_cfg=constant), position='after_conv3')
    model = ResNet(50, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,), plugins=[plugin])
    model.init_weights()
    alone = MODELS.build(dict(type='MultiSpectralAttention', in_channels=64, init_cfg=constant))
    alone.init_weights()
    for attention in (model.layer1[2].att, alone):
        assert all((layer.weight == 0.5).all() for layer in (attention.fc[0], attention.fc[2]))


def test_is_registered():
    attention = MODELS.build(dict(type='MultiSpectralAttention', in_channels=64))
    assert isinstance(attention, MultiSpectralAttention)
    assert 'grid=(7, 7)' in repr(attention)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(in_channels=100), r'in_channels=100 must be a positive multiple of 16, the number of frequencies: use 96 or 112'),
        (dict(in_channels=8), r'in_channels=8 must .*: use 16, or fewer frequencies'),
        (dict(in_channels=0), r'in_channels=0 must be a positive multiple of 16'),
        (dict(in_channels=64, dct_size=6), r"dct_size=6 is too small for the set 'top16' of the 7x7 spectrum: use 7 or more"),
        (dict(in_channels=64, dct_size=(7, 5)), r'dct_size=\(7, 5\) is too small'),
        (dict(in_channels=64, dct_size=0), r'dct_size=0 has no cells'),
        (dict(in_channels=64, dct_size=4, frequencies=[(0, 5)]), r'frequency \(0, 5\) does not exist on a grid of 4 x 4 cells'),
        (dict(in_channels=64, frequencies='top5'), r"unknown frequency set 'top5'"),
        (dict(in_channels=64, frequencies=[(7, 0)]), r'frequency \(7, 0\) is outside the spectrum'),
        (dict(in_channels=16, reduction=17), r'reduction=17 must be from 1 to in_channels=16'),
        (dict(in_channels=16, reduction=0), r'reduction=0 must be from 1 to in_channels=16'),
        (
            dict(in_channels=16, basis='dst'),
            r"unknown basis 'dst': use one of dct, learned_dct, random, learned_random, orthogonal, ",
        ),
    ],
)
def test_constructor_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiSpectralAttention(**arguments)


@pytest.mark.parametrize('shape', [(64, 7, 7), (1, 32, 7, 7), (1, 64, 7), (1, 1, 64, 7, 7)])
def test_input_errors(shape):
    with pytest.raises(ValueError, match=r'expected an input of shape \[N, 64, H, W\], got \[') as error:
        MultiSpectralAttention(64)(torch.rand(shape))
    assert str(list(shape)) in str(error.value)


def test_pairs_on_a_small_grid_are_its_own_indices():
    attention = MultiSpectralAttention(4, 4, [(0, 0), (3, 1)], reduction=1)
    x = torch.rand(1, 4, 9, 9)
    expected = oracle.squeeze(x.double().numpy(), [(0, 0), (3, 1)], (4, 4))
    assert relative_error(attention.squeeze(x).detach(), expected) < TOLERANCE[torch.float32]


def test_the_comparison_can_fail():
    """The tolerance of the tests above would notice a wrong frequency, a transposed pair, and the wrong grid."""
    x = torch.from_numpy(named_input((1, 32, 9, 13)))
    right = named_attention(32, 14, 'low4')(x).detach()
    transposed = [(v, u) for u, v in FREQUENCY_SETS['low4']]
    for wrong in (named_attention(32, 14, 'top4'), named_attention(32, 14, transposed), named_attention(32, 7, 'low4')):
        assert relative_error(wrong(x).detach(), right) > 1e-4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_a_hook_on_the_excitation_sees_the_gates_in_every_precision(dtype):
    attention, seen = named_attention(32, 7, 'top16').to(dtype), {}
    for name, module in attention.fc.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    x = torch.rand(2, 32, 9, 13, dtype=dtype)
    torch.testing.assert_close(attention(x), x * seen[''].to(dtype)[:, :, None, None])
    assert list(seen) == ['0', '1', '2', '3', '']


def test_dynamic_quantisation():
    """It leaves the excitation as it is: two small layers that run in the precision of the frequency vector."""
    attention, x = named_attention(64, 7, 'top16'), torch.rand(2, 64, 9, 13)
    quantised = torch.ao.quantization.quantize_dynamic(attention, {torch.nn.Linear})
    torch.testing.assert_close(quantised(x), attention(x), rtol=0.02, atol=0.02)

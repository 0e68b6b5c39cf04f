"""Every public constructor and module under arguments and inputs of any kind: it works, or says which argument is wrong.

docs/faults/bad_input.md sums up what happens; the full list is here, and in test_preflight.py and test_files.py.
"""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import says
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.backbones import ResNet
from mmdet.structures import DetDataSample
from torch import nn

import fca_mmdet
from fca_mmdet import (
    FREQUENCY_SETS,
    CanvasDetDataPreprocessor,
    EfficientChannelAttention,
    FastCocoMetric,  # noqa: F401 (a name in CALLS)
    FcaBasicBlock,
    FcaBottleneck,
    FcaResNet,
    FcaResNetV1d,
    FcaResNeXt,
    FcaResNeXtBottleneck,
    Frequency,
    FrequencySearchHook,
    FrequencySelection,
    MultiSpectralAttention,
    SqueezeExcitation,
    config_path,
    stage_plugins,
)
from fca_mmdet.errors import MAX_COUNT

settings.register_profile('stable', deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile('stable')

CALLS = {
    'MultiSpectralAttention(None)': 'TypeError: in_channels=None must be an integer in 0..65536',
    'MultiSpectralAttention(64.0)': 'TypeError: in_channels=64.0 must be an integer in 0..65536',
    'MultiSpectralAttention(-64)': 'ValueError: in_channels=-64 must be an integer in 0..65536',
    'MultiSpectralAttention(10**20)': 'ValueError: in_channels=100000000000000000000 must be an integer in 0..65536',
    'MultiSpectralAttention(100)': (
        'ValueError: in_channels=100 must be a positive multiple of 16, the number of frequencies: use 96 or 112, or fewer frequencies'
    ),
    "MultiSpectralAttention(64, dct_size='7')": (
        "TypeError: dct_size='7' must be an integer in 0..65536, or a (height, width) pair of them"
    ),
    'MultiSpectralAttention(64, dct_size=(7, 7, 7))': (
        'TypeError: dct_size=(7, 7, 7) must be an integer in 0..65536, or a (height, width) pair of them'
    ),
    'MultiSpectralAttention(64, dct_size=10**6)': (
        'ValueError: dct_size=1000000 must be an integer in 0..65536, or a (height, width) pair of them'
    ),
    'MultiSpectralAttention(64, dct_size=0)': ('ValueError: dct_size=0 has no cells: use a positive number or a (height, width) pair'),
    'MultiSpectralAttention(64, frequencies=16)': ('TypeError: frequencies=16 must be the name of a set, such as "top16", or (u, v) pairs'),
    "MultiSpectralAttention(64, frequencies='top3')": (
        'ValueError: unknown frequency set \'top3\': use top, low or bot followed by 1, 2, 4, 8, 16, 32 (such as "top16"), or a sequence '
        'of (u, v) pairs'
    ),
    'MultiSpectralAttention(64, frequencies=[(0, 0.5)])': (
        'ValueError: frequency (0, 0.5) is outside the spectrum: u and v must be integers in 0..6'
    ),
    'MultiSpectralAttention(64, reduction=0)': 'ValueError: reduction=0 must be from 1 to in_channels=64',
    'MultiSpectralAttention(64, reduction=1.5)': 'TypeError: reduction=1.5 must be an integer in 0..65536',
    'MultiSpectralAttention(64, basis=None)': (
        'ValueError: unknown basis None: use one of dct, learned_dct, random, learned_random, '
        'orthogonal, orthogonal_separable, haar, combined, searched'
    ),
    "MultiSpectralAttention(64, 6, [(0, 0)], basis='searched')": (
        "ValueError: dct_size=6 is too small for basis='searched', which selects from the 7x7 spectrum: use 7 or more (multiples of 7 are "
        'usual)'
    ),
    'FrequencySelection(0)': 'ValueError: groups=0 must be 1 or more',
    'FastCocoMetric(use_mp_eval=True)': (
        'ValueError: use_mp_eval=True runs pycocotools in several processes: leave it out, or use CocoMetric'
    ),
    'FrequencySearchHook(end=0)': ('ValueError: start=1.0 and end=0 must be temperatures, start >= end > 0, such as 1.0 and 0.05'),
    'SqueezeExcitation(8)': 'ValueError: ratio=16 must be from 1 to in_channels=8',
    'SqueezeExcitation(64, ratio=None)': 'TypeError: ratio=None must be an integer in 0..65536',
    'EfficientChannelAttention(0)': 'ValueError: in_channels=0 must be 1 or more',
    "FcaBasicBlock('64', 64)": "TypeError: inplanes='64' must be an integer in 0..65536",
    'FcaBottleneck(64, -16)': 'ValueError: planes=-16 must be an integer in 0..65536',
    'FcaResNeXtBottleneck(64, None)': 'TypeError: planes=None must be an integer in 0..65536',
    'FcaResNet([50])': 'TypeError: depth=[50] must be an integer in 0..65536',
    'FcaResNet(20)': 'KeyError: invalid depth 20 for resnet',
    'FcaResNet(50, dct_size=None)': ('ValueError: dct_size=None must give one grid for each of the 4 stages, such as (56, 28, 14, 7)'),
    'FcaResNet(50, dct_size=(56, 28))': (
        'ValueError: dct_size=(56, 28) must give one grid for each of the 4 stages, such as (56, 28, 14, 7)'
    ),
    'FcaResNet(50, frequncies=2)': "TypeError: ResNet.__init__() got an unexpected keyword argument 'frequncies'",
    'CanvasDetDataPreprocessor(canvas=800)': 'ValueError: canvas=800 must be (height, width) in pixels, such as (800, 1333)',
    'CanvasDetDataPreprocessor(canvas=(800.0, 1333.0))': 'TypeError: canvas=800.0 must be an integer in 0..65536',
    'stage_plugins(7)': 'TypeError: dct_size=7 must give one grid for each stage, such as (56, 28, 14, 7)',
    'stage_plugins([])': 'ValueError: dct_size=[] must give one grid for each stage, such as (56, 28, 14, 7)',
    "stage_plugins(position='after_conv4')": "ValueError: position='after_conv4' must be after_conv1, after_conv2 or after_conv3",
    'config_path(None)': 'TypeError: name=None must be a str or a path, such as mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco',
    "config_path('small/mask-rcnn')": (
        "FileNotFoundError: fca_mmdet has no config 'small/mask-rcnn'; the nearest are small/mask-rcnn_fca-r18_fpn_small-heads, ..."
    ),
    "Frequency('x', None)": 'works',
}
"""What is called, and what happens; ``...`` is what depends on the configs that there are."""

REFUSED_INPUT = 'TypeError: expected a dense floating-point input, got {1} with layout {0}: convert it first'
INPUTS = {
    'torch.ones(2, 64, 3, 3, dtype=torch.int8)': REFUSED_INPUT.format('torch.strided', 'torch.int8'),
    'torch.ones(2, 64, 3, 3, dtype=torch.bool)': REFUSED_INPUT.format('torch.strided', 'torch.bool'),
    'torch.ones(2, 64, 3, 3, dtype=torch.complex64)': REFUSED_INPUT.format('torch.strided', 'torch.complex64'),
    'torch.ones(2, 64, 3, 3).to_sparse()': REFUSED_INPUT.format('torch.sparse_coo', 'torch.float32'),
    'torch.ones(64, 3, 3)': 'ValueError: expected an input of shape [N, 64, H, W], got [64, 3, 3]',
    'torch.ones(2, 63, 3, 3)': 'ValueError: expected an input of shape [N, 64, H, W], got [2, 63, 3, 3]',
    'torch.ones(2, 64, 3, 3, dtype=torch.float16)': 'works',
    'torch.ones(2, 64, 3, 3, dtype=torch.bfloat16)': 'works',
    'torch.ones(2, 64, 3, 3, dtype=torch.float64)': 'works',
    'torch.ones(0, 64, 3, 3)': 'works',
    'torch.ones(2, 64, 0, 3)': 'works',
    'torch.ones(1, 64, 1, 1)': 'works',
    'torch.ones(1, 64, 1, 4096)': 'works',
    'torch.ones(1, 64, 4096, 1)': 'works',
    'torch.ones(1, 64, 1, 1).expand(2, 64, 3, 3)': 'works',
    'torch.ones(2, 3, 3, 64).permute(0, 3, 1, 2)': 'works',
}
"""What is given to ``MultiSpectralAttention(64)``, and what happens."""


def outcome(call) -> str:
    try:
        call()
    except Exception as error:
        return f'{type(error).__name__}: {error.args[0]}'
    return 'works'


@pytest.mark.parametrize('call', CALLS)
def test_a_call(call):
    said = outcome(lambda: eval(call))
    assert says(said, CALLS[call]), said


@pytest.mark.parametrize('basis', ['dct', 'learned_dct', 'searched'])
@pytest.mark.parametrize('given_input', INPUTS)
def test_an_input(given_input, basis):
    x = eval(given_input)
    assert outcome(lambda: MultiSpectralAttention(64, basis=basis)(x)) == INPUTS[given_input]


def test_every_public_name_is_here():
    values = {'CheckpointError', 'UserError', 'FREQUENCY_SETS', '__version__', 'OrientedDetDataPreprocessor'}  # tested elsewhere
    assert set(fca_mmdet.__all__) - values <= {
        name for call in [*CALLS, 'FcaResNetV1d(', 'FcaResNeXt(', 'FcaCSPDarknet(', 'PreflightHook('] for name in [call.split('(')[0]]
    }


numbers = st.integers(-9, 80) | st.integers(MAX_COUNT + 1) | st.integers(max_value=-MAX_COUNT)
anything = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=9),
    st.binary(max_size=4),
    st.sampled_from([*FREQUENCY_SETS, 'dct', 'random', 'learned_dct', 'learned_random', 'searched']),
    st.sampled_from([object(), len, np.int64(14), np.float32(7), np.array([7, 7]), torch.tensor(7), torch.tensor(7.0), torch.ones(2, 2)]),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.lists(st.none() | numbers | st.floats() | st.text(max_size=2), max_size=5),
    st.lists(st.tuples(st.integers(-1, 7), st.integers(-1, 7)), max_size=4),
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
    st.sampled_from([(14, 7, 7, 7), [28, 14, 7, (7, 9)], (56, 28, 14, 7)]),
)

NAMED = {'frequencies': 'frequenc', 'planes': 'planes|in_channels', 'name': 'name=|has no config'}
"""How a message names an argument that it does not name as such."""


def built_or_refused(build, name: str):
    """What ``build`` makes, or None after an exception that a user's mistake may raise and that names it."""
    try:
        return build()
    except (TypeError, ValueError, KeyError, FileNotFoundError) as error:
        if re.search(NAMED.get(name, name), str(error)):
            return None
        raise


def assert_sound(module: nn.Module, channels: int):
    """A small image goes through it, and comes out finite."""
    module.eval()
    for height, width in ((9, 4), (1, 1)):
        outputs = module(torch.randn(2, channels, height, width))
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            assert output.isfinite().all()


@settings(max_examples=500)
@given(name=st.sampled_from(['in_channels', 'dct_size', 'frequencies', 'reduction', 'basis']), value=anything)
def test_arguments_of_the_attention(name, value):
    attention = built_or_refused(lambda: MultiSpectralAttention(**{'in_channels': 64, name: value}), name)
    if attention is not None:
        assert_sound(attention, attention.in_channels)


@settings(max_examples=200)
@given(kind=st.sampled_from([SqueezeExcitation, EfficientChannelAttention]), name=st.sampled_from(['in_channels', 'ratio']), value=anything)
def test_arguments_of_the_baselines(kind, name, value):
    if kind is EfficientChannelAttention:
        name = 'in_channels'
    attention = built_or_refused(lambda: kind(**{'in_channels': 64, name: value}), name)
    if attention is not None:
        assert_sound(attention, int(value) if name == 'in_channels' else 64)


@given(kind=st.sampled_from([(FrequencySelection, 'groups'), (FrequencySearchHook, 'start'), (FrequencySearchHook, 'end')]), value=anything)
def test_arguments_of_the_search(kind, value):
    built, name = kind
    made = built_or_refused(lambda: built(**{name: value}), name)
    if isinstance(made, FrequencySelection):
        assert len(made.chosen()) == int(value)


@settings(max_examples=200)
@given(
    kind=st.sampled_from([FcaBasicBlock, FcaBottleneck, FcaResNeXtBottleneck]),
    name=st.sampled_from(['inplanes', 'planes', 'frequencies', 'dct_size', 'reduction', 'basis']),
    value=anything,
)
def test_arguments_of_the_blocks(kind, name, value):
    channels = 16 * kind.expansion
    block = built_or_refused(lambda: kind(**{'inplanes': channels, 'planes': 16, name: value}), name)
    if block is not None and name not in ('inplanes', 'planes'):
        assert_sound(block, channels)


@pytest.mark.parametrize('kind', [FcaBasicBlock, FcaBottleneck, FcaResNeXtBottleneck])
@pytest.mark.parametrize('fold', [None, 0, 1.5, 'no', [], np.bool_(True), torch.tensor(False)])
def test_fold_is_taken_by_its_truth(kind, fold):
    assert_sound(kind(16 * kind.expansion, 16, fold=fold), 16 * kind.expansion)


@given(
    kind=st.sampled_from([FcaResNet, FcaResNetV1d, FcaResNeXt]),
    name=st.sampled_from(['depth', 'frequencies', 'dct_size', 'reduction', 'basis']),
    value=anything,
)
def test_arguments_of_the_backbones(kind, name, value):
    small = dict(depth=50 if kind is FcaResNeXt else 18, base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    backbone = built_or_refused(lambda: kind(**small | {name: value}), name)
    if backbone is not None:
        assert_sound(backbone, 3)


@given(canvas=anything)
def test_arguments_of_the_preprocessor(canvas):
    preprocessor = built_or_refused(lambda: CanvasDetDataPreprocessor(canvas=canvas), 'canvas')
    if preprocessor is not None:
        size = preprocessor(dict(inputs=[torch.zeros(3, 1, 2)], data_samples=[DetDataSample(metainfo=dict(img_shape=(1, 2)))]))
        assert size['inputs'].shape[2:] == tuple(max(sides) for sides in zip(canvas, (1, 2), strict=True))


@settings(max_examples=200)
@given(name=anything | st.sampled_from(['../../setup', '/etc/passwd', 'small/../small/x', '\0', 'x' * 5000, 'small', '.']))
def test_arguments_of_config_path(name):
    assert built_or_refused(lambda: config_path(name), 'name') is None


def test_a_config_by_its_path():
    assert config_path(Path('small', 'mask-rcnn_fca-r18_fpn_small-heads.py')) == config_path('small/mask-rcnn_fca-r18_fpn_small-heads')


@settings(max_examples=40)
@given(name=st.sampled_from(['dct_size', 'position', 'frequencies']), value=anything)
def test_arguments_of_the_plugins(name, value):
    """They are built with the backbone."""
    options = {'num_stages': 1, 'strides': (1,), 'dilations': (1,), 'out_indices': (0,)}
    plugins = built_or_refused(lambda: stage_plugins(**{'dct_size': (7,), name: value}), name)
    if plugins is not None and len(plugins) == 1:
        backbone = built_or_refused(lambda: ResNet(50, plugins=plugins, **options), name)
        assert backbone is None or sum(isinstance(module, MultiSpectralAttention) for module in backbone.modules()) == 3


@given(u=anything, v=anything)
def test_a_frequency_is_checked_where_it_is_used(u, v):
    pair = Frequency(u, v)
    attention = built_or_refused(lambda: MultiSpectralAttention(2, frequencies=[pair, (0, 0)], reduction=1), 'frequencies')
    assert attention is None or attention.frequencies[0] == pair


MODULES = {
    'attention': MultiSpectralAttention(32),
    'attention, learned': MultiSpectralAttention(32, 14, 'low4', basis='learned_dct'),
    'attention, searched': MultiSpectralAttention(32, 14, 'low4', basis='searched'),
    'SE': SqueezeExcitation(32),
    'ECA': EfficientChannelAttention(32),
    'basic block': FcaBasicBlock(32, 32),
    'basic block, readable': FcaBasicBlock(32, 32, fold=False),
    'bottleneck': FcaBottleneck(32, 8),
    'bottleneck, readable': FcaBottleneck(32, 8, fold=False),
    'ResNeXt bottleneck': FcaResNeXtBottleneck(32, 8, groups=2, base_width=64),
}
sizes = st.tuples(*[st.sampled_from([1, 2, 3, 7, 15])] * 2) | st.sampled_from([(1, 4096), (4096, 1)])
modules = st.sampled_from(list(MODULES))
batches = st.integers(0, 3)


def image_maps(batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 32, *size, generator=torch.Generator().manual_seed(batch + 7 * size[0] + size[1])).to(dtype)


LAYOUTS = {
    'contiguous': lambda x: x.clone(),
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'batch inside': lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    'every second': lambda x: torch.stack([x, x], -1).flatten(3)[..., ::2],
    'offset': lambda x: nn.functional.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    'expanded': lambda x: x[:, :, :1, :1].expand(x.shape),
}


@settings(max_examples=150)
@given(
    name=modules,
    batch=batches,
    size=sizes,
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_size_stride_and_precision(name, batch, size, layout, dtype):
    """Every image as it is alone, in float64 and contiguous."""
    module = MODULES[name].eval().double()
    x = LAYOUTS[layout](image_maps(batch, size, dtype))
    with torch.no_grad():
        expected = [module(image[None].double().contiguous())[0] for image in x]
        output = module.to(dtype)(x)
    assert output.shape == x.shape
    assert output.dtype == dtype
    roundings = 16 if dtype.itemsize == 2 else 100
    for image, alone in zip(output, expected, strict=True):
        torch.testing.assert_close(image.double(), alone, rtol=0, atol=roundings * torch.finfo(dtype).eps * max(1, alone.abs().max()))


@settings(max_examples=100)
@given(name=modules, batch=batches, size=sizes, layout=st.sampled_from(list(LAYOUTS)), training=st.booleans())
def test_any_size_has_a_gradient(name, batch, size, layout, training):
    module = MODULES[name].float().train(training)
    x = LAYOUTS[layout](image_maps(batch, size)).detach().requires_grad_()
    if training and batch == 1 and size == (1, 1) and any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()):
        with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
            module(x)
        return
    module.zero_grad()
    module(x).sum().backward()
    assert x.grad.shape == x.shape
    for value in (x.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()):
        assert value.isfinite().all()


@given(name=modules, size=sizes, bad=st.sampled_from([float('nan'), float('inf'), float('-inf')]), layout=st.sampled_from(list(LAYOUTS)))
def test_a_number_that_is_none_stays_in_its_image(name, size, bad, layout):
    module = MODULES[name].float().eval()
    x = LAYOUTS[layout](image_maps(3, size)).contiguous()
    spoilt = x.clone()
    spoilt[1, 5, size[0] // 2, size[1] // 2] = bad
    results = []
    for images in (x, spoilt):
        images.requires_grad_()
        output = module(images)
        output[[0, 2]].sum().backward()
        results.append((output[[0, 2]], images.grad[[0, 2]]))
    for clean, beside in zip(*results, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, beside)
    assert not output[1].isfinite().all()


@pytest.mark.parametrize('name', MODULES)
def test_shapes_without_numbers(name):
    x = image_maps(2, (3, 7)).to('meta')
    assert copy.deepcopy(MODULES[name]).to('meta').float().eval()(x).shape == x.shape


@pytest.mark.parametrize('name', [name for name in MODULES if not name.startswith('attention')])
@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64, torch.float16])
def test_torch_refuses_a_type_that_the_weights_have_not(name, dtype):
    with pytest.raises((RuntimeError, NotImplementedError)):
        MODULES[name].float().eval()(image_maps(2, (3, 7)).to(dtype))


@settings(max_examples=25)
@given(
    batch=batches,
    size=st.tuples(*[st.sampled_from([1, 2, 3, 33])] * 2) | st.sampled_from([(1, 4096), (4096, 1)]),
    fold=st.booleans(),
    training=st.booleans(),
)
def test_a_backbone_at_any_size(batch, size, fold, training):
    torch.manual_seed(0)
    backbone = FcaResNet(18, base_channels=16, frozen_stages=1, norm_eval=True, fold=fold)
    backbone.train(training)
    images = torch.randn(batch, 3, *size, requires_grad=True)
    features = backbone(images)
    assert [feature.shape for feature in features] == [
        (batch, 16 * 2**stage, *(-(-side // (4 * 2**stage)) for side in size)) for stage in range(4)
    ]
    assert all(feature.isfinite().all() for feature in features)
    sum(feature.sum() for feature in features).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in backbone.parameters())

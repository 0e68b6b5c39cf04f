import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import GOLDEN, PUBLISHED, frozen
from mmdet.models.backbones import ResNet, ResNetV1d
from mmdet.registry import MODELS
from named_weights import named_input, named_state, samples
from torch import nn

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d, MultiSpectralAttention

IMAGE = torch.rand(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))


def training(model: nn.Module) -> nn.Module:
    """The model in training mode."""
    model.train()
    return model


def published_shapes(depth: str) -> dict:
    """Names and shapes of a published classifier's backbone, without its basis buffers."""
    return {
        name: tuple(shape)
        for name, shape in PUBLISHED[depth].items()
        if not name.startswith('fc.') and not name.endswith('dct_layer.weight')
    }


@pytest.mark.parametrize('depth', PUBLISHED)
def test_parameter_names_are_those_of_the_published_weights(depth):
    state = FcaResNet(int(depth)).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == published_shapes(depth)


@pytest.mark.parametrize('case', sorted({key.rsplit('/', 1)[0] for key in GOLDEN.files}))
@pytest.mark.parametrize('fold', [True, False])
def test_stages_agree_with_the_reference_implementation(case, fold):
    depth, size = case.removeprefix('fca').split('/')
    backbone = frozen(FcaResNet(int(depth), fold=fold))
    weights = named_state(published_shapes(depth))
    backbone.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        features = backbone(torch.from_numpy(named_input(tuple(map(int, size.split('x'))))))
    for stage, feature in enumerate(features, start=1):
        expected = GOLDEN[f'{case}/stage{stage}']
        assert np.abs(samples(feature) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize('depth', [18, 34, 50])
@pytest.mark.parametrize(('ours', 'theirs'), [(FcaResNet, ResNet), (FcaResNetV1d, ResNetV1d)])
def test_with_open_gates_it_is_mmdets_resnet(depth, ours, theirs):
    """mmdet's own backbone is the oracle for everything but the attention."""
    model, plain = frozen(ours(depth=depth, zero_init_residual=False)), frozen(theirs(depth=depth))
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if '.att.' not in name})
    for block in model.modules():
        if isinstance(block, (FcaBasicBlock, FcaBottleneck)):
            block.att = nn.Identity()
    with torch.no_grad():
        for feature, expected in zip(model(IMAGE), plain(IMAGE), strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5)
    assert isinstance(model, theirs)


@pytest.mark.parametrize('depth', [18, 50])
def test_every_block_attends_on_the_grid_of_its_stage(depth):
    backbone = FcaResNet(depth, frequencies='low4', reduction=8, basis='learned_dct', dct_size=(28, (14, 7), 14, 7))
    for stage, grid in enumerate([(28, 28), (14, 7), (14, 14), (7, 7)], start=1):
        for block in getattr(backbone, f'layer{stage}'):
            assert isinstance(block.att, MultiSpectralAttention)
            assert (block.att.grid, len(block.att.frequencies), block.att.reduction) == (grid, 4, 8)
            assert block.att.basis == 'learned_dct'


@pytest.mark.parametrize(('depth', 'last'), [(18, 'norm2'), (50, 'norm3')])
def test_zero_initialised_residuals(depth, last):
    for zero in (True, False):
        backbone = FcaResNet(depth, zero_init_residual=zero)
        backbone.init_weights()
        sums = {getattr(block, last).weight.detach().sum().item() == 0 for block in backbone.layer2}
        assert sums == {zero}
    given = FcaResNet(depth, init_cfg=dict(type='Kaiming', layer='Conv2d'))
    given.init_weights()
    assert getattr(given.layer1[0], last).weight.detach().sum() > 0


def test_train_and_eval_return_the_backbone():
    backbone = FcaResNet(18, frozen_stages=1)
    assert backbone.eval() is backbone.train() is backbone
    assert not backbone.layer1.training
    assert len(FcaResNetV1d(depth=18).eval()(IMAGE)) == 4


def test_frozen_stages_and_frozen_statistics():
    backbone = training(FcaResNet(50, frozen_stages=2, norm_eval=True))
    assert not any(p.requires_grad for stage in (backbone.layer1, backbone.layer2) for p in stage.parameters())
    assert all(p.requires_grad for p in backbone.layer3.parameters())
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert backbone.layer3[0].att.training
    assert not backbone.layer2[0].att.training


@pytest.mark.parametrize('depth', [18, 50])
def test_checkpointing_changes_neither_outputs_nor_gradients(depth):
    plain, frugal = FcaResNet(depth, zero_init_residual=False), FcaResNet(depth, zero_init_residual=False, with_cp=True)
    frugal.load_state_dict(plain.state_dict())
    results = []
    for model in (training(plain), training(frugal)):
        image = IMAGE.clone().requires_grad_()
        outputs = model(image)
        sum(output.square().mean() for output in outputs).backward()
        results.append([*outputs, image.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    'options',
    [
        dict(deep_stem=True, avg_down=True),
        dict(style='caffe'),
        dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
        dict(base_channels=32, stem_channels=16),
        dict(norm_cfg=dict(type='GN', num_groups=8), norm_eval=False),
        dict(norm_cfg=dict(type='SyncBN', requires_grad=True)),
        dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), stages=(False, True, True, True), position='after_conv3')]),
        dict(plugins=[dict(cfg=dict(type='NonLocal2d'), stages=(False, False, False, True), position='after_conv2')]),
        dict(dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False), stage_with_dcn=(False, False, True, True)),
        dict(dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False), stage_with_dcn=(False, True, True, True)),
        dict(out_indices=(1, 3)),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
        dict(in_channels=4),
    ],
    ids=lambda options: ','.join(options),
)
def test_options_of_mmdets_resnet(options):
    ours, theirs = frozen(FcaResNet(50, **copy.deepcopy(options))), frozen(ResNet(50, **copy.deepcopy(options)))
    assert {name for name in ours.state_dict() if '.att.' not in name} == set(theirs.state_dict())
    image = torch.rand(2, options.get('in_channels', 3), 96, 96)
    with torch.no_grad():
        assert [f.shape for f in ours(image)] == [f.shape for f in theirs(image)]


def test_copies_pickles_and_registry():
    backbone = frozen(MODELS.build(dict(type='FcaResNet', depth=18, frozen_stages=1)))
    expected = backbone(IMAGE)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        for feature, value in zip(twin(IMAGE), expected, strict=True):
            assert torch.equal(feature, value)
    assert isinstance(MODELS.build(dict(type='FcaResNetV1d', depth=18)), FcaResNetV1d)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(depth=50, dct_size=7), ValueError, r'dct_size=7 must give one grid for each of the 4 stages, such as \(56, 28, 14, 7\)'),
        (dict(depth=50, dct_size=(56, 28)), ValueError, r'dct_size=\(56, 28\) must give one grid for each of the 4 stages'),
        (dict(depth=50, dct_size=(56, 28, 14, 6)), ValueError, r'dct_size=6 is too small'),
        (dict(depth=50, base_channels=3), ValueError, r'in_channels=12 must be a positive multiple of 16'),
        (dict(depth=20), KeyError, r'invalid depth 20'),
        (dict(depth=50, norm_evil=True), TypeError, r'norm_evil'),
    ],
)
def test_constructor_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        FcaResNet(**arguments)


def survives(backbone: nn.Module, exponent: int, dtype: torch.dtype, autocast: bool) -> bool:
    """Whether the features of an input of that magnitude are finite."""
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double().mul(2.0**exponent).to(dtype)
    with torch.no_grad(), torch.autocast('cpu', dtype, enabled=autocast):
        return all(bool(out.isfinite().all()) for out in backbone(x.float() if autocast else x))


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('autocast', [True, False], ids=['autocast', 'half weights'])
@pytest.mark.parametrize(('dtype', 'largest', 'short'), [(torch.float16, 15, 0), (torch.bfloat16, 127, 4)])
@pytest.mark.parametrize('depth', [18, 50])
def test_half_precision_survives_what_the_plain_resnet_does(depth, dtype, largest, short, autocast, fold):
    """To the last power of two in float16; bfloat16 reaches so far that float32's own range ends the squeeze up to four below."""
    torch.manual_seed(0)
    plain = frozen(ResNet(depth, base_channels=16, stem_channels=16))
    backbone = FcaResNet(depth, base_channels=16, stem_channels=16, fold=fold)
    backbone.load_state_dict(plain.state_dict(), strict=False)
    frozen(backbone)
    if not autocast:
        plain.to(dtype), backbone.to(dtype)
    limit = max(exponent for exponent in range(largest - 6, largest + 1) if survives(plain, exponent, dtype, autocast))
    assert limit > largest - 6
    assert all(survives(backbone, exponent, dtype, autocast) for exponent in (0, largest // 2, limit - short - 1, limit - short))

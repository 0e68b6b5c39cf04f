"""Every basis: the learned selection against the slow oracle, the tensors per channel, another basis in a checkpoint, a new basis."""

import copy
import math
import pickle
import re

import numpy as np
import oracle
import pytest
import torch
from helpers import (
    FORMATS,
    FORMS,
    SHALLOW,
    THIN,
    choose_form,
    evaluate,
    folded_calls,
    largest_error,
    padded_batch,
    saved_bytes,
    shortcut,
    with_statistics,
)
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import get_state_dict, load_checkpoint, load_state_dict, weights_to_cpu
from torch import nn
from torch.nn import functional as F

from fca_mmdet import (
    CheckpointError,
    FcaBasicBlock,
    FcaBottleneck,
    FcaResNet,
    FcaResNetV1d,
    FcaResNeXt,
    FrequencySelection,
    MultiSpectralAttention,
)
from fca_mmdet.dct import full_basis
from fca_mmdet.frequency import CANDIDATES
from fca_mmdet.projection import ValidPart, within
from fca_mmdet.squeeze import BASES, Projected, check_selection


def searched(module: nn.Module, temperature: float = 0.7) -> nn.Module:
    """The module with random logits."""
    generator = torch.Generator().manual_seed(0)
    for selection in module.modules():
        if isinstance(selection, FrequencySelection):
            nn.init.normal_(selection.logits, generator=generator)
            selection.temperature.fill_(temperature)
    return module


@pytest.mark.parametrize('valid', [None, [(9, 13), (4, 6)]])
@pytest.mark.parametrize('grid', [7, (14, 7)])
def test_the_mixture_agrees_with_the_slow_oracle(grid, valid):
    attention = searched(MultiSpectralAttention(4, grid, 'low2', reduction=2, basis='searched').double())
    x = torch.randn(2, 4, 9, 13, dtype=torch.float64)
    logits = attention.dct_layer.selection.logits.detach().numpy() / 0.7
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    attention.stride = 1
    with within(valid and ValidPart(torch.tensor(valid))):
        freq = attention.squeeze(x).detach().numpy()
    scale = [cells // 7 for cells in attention.grid]
    for n, (h, w) in enumerate(valid or [(9, 13)] * 2):
        for c in range(4):
            pooled = oracle.pool(x[n, c, :h, :w].numpy(), attention.grid)
            components = [oracle.component(pooled, u * scale[0], v * scale[1]) for u in range(7) for v in range(7)]
            np.testing.assert_allclose(freq[n, c], weights[c // 2] @ components, rtol=0, atol=1e-12)


def gradients_agree(module: nn.Module, x: torch.Tensor, **options) -> bool:
    """Of the input and of the logits, by finite differences."""
    name = next(name for name, _ in module.named_parameters() if name.endswith('logits'))
    logits = module.get_parameter(name).detach().clone().requires_grad_()
    return torch.autograd.gradcheck(lambda *given: torch.func.functional_call(module, {name: given[1]}, given[:1]), (x, logits), **options)


@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('valid', [None, [(3, 4), (2, 1)]])
def test_gradients(valid, memory_format):
    attention = searched(MultiSpectralAttention(4, 7, 'low2', reduction=2, basis='searched').double())
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    attention.stride = 1
    with within(valid and ValidPart(torch.tensor(valid))):
        assert gradients_agree(attention, x.requires_grad_())
        assert gradients_agree(attention, x.detach())  # as after a frozen stage


BLOCKS = {
    'bottleneck': lambda **options: FcaBottleneck(8, 2, frequencies='low2', reduction=2, basis='searched', **options),
    'bottleneck, stride 2': lambda **options: FcaBottleneck(
        4, 2, stride=2, downsample=shortcut(4, 8, 2), frequencies='low4', reduction=1, basis='searched', **options
    ),
    'basic': lambda **options: FcaBasicBlock(4, 4, frequencies='low2', reduction=2, basis='searched', **options),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('name', BLOCKS)
def test_folded_and_checkpointed_it_is_what_is_readable(name, memory_format, form, monkeypatch):
    choose_form(monkeypatch, form)
    torch.manual_seed(0)
    block = searched(with_statistics(BLOCKS[name]()).double()).to(memory_format=memory_format)
    readable, frugal = copy.deepcopy(block), copy.deepcopy(block)
    readable.fold, frugal.with_cp = False, True
    for batch in (1, 2):
        x = torch.randn(batch, block.conv1.in_channels, 9, 13, dtype=torch.float64).contiguous(memory_format=memory_format)
        expected = evaluate(readable, x)
        with folded_calls(monkeypatch) as calls:
            assert largest_error(evaluate(block, x), expected) < 1e-12
            assert largest_error(evaluate(frugal, x), expected) < 1e-12
        assert set(calls) == {block, frugal}
    assert block.att.dct_layer.selection.logits.grad.abs().max() > 1e-6
    assert gradients_agree(block, torch.randn(1, block.conv1.in_channels, 3, 4, dtype=torch.float64).requires_grad_(), fast_mode=True)


PAIRS = [(0, 0), (6, 1), (0, 0), (2, 5)]


def select(selection: FrequencySelection, pairs: list[tuple[int, int]]) -> None:
    """Logits of 1 for these pairs and 0 for the others, at the temperature that the hook ends with."""
    with torch.no_grad():
        selection.logits.copy_(torch.tensor([[float(candidate == pair) for candidate in CANDIDATES] for pair in pairs]))
        selection.temperature.fill_(0.05)


def test_a_discrete_selection_is_the_attention_with_these_frequencies():
    attention, fixed = (
        MultiSpectralAttention(64, 14, frequencies, basis=basis) for frequencies, basis in (('low4', 'searched'), (PAIRS, 'dct'))
    )
    select(attention.dct_layer.selection, PAIRS)
    assert list(attention.frequencies) == attention.dct_layer.selection.chosen() == PAIRS
    assert attention.dct_layer.selection.entropy() < 1e-5
    x = torch.rand(2, 64, 9, 13)
    fixed.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(x), fixed(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(attention(x[:1, :, :2, :1]), fixed(x[:1, :, :2, :1]), rtol=0, atol=1e-6)
    select(attention.dct_layer.selection, PAIRS[::-1])
    assert (attention(x) - fixed(x)).abs().max() > 1e-4


def test_at_first_all_frequencies_weigh_the_same():
    selection = FrequencySelection(3)
    assert torch.equal(selection(), torch.full((3, 49), 1 / 49))
    assert selection.entropy().item() == pytest.approx(math.log(49))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_mixes_in_float32(dtype):
    attention = searched(MultiSpectralAttention(32, 14, 'low4', basis='searched'), temperature=0.05)
    x = torch.randn(2, 32, 9, 13).to(dtype)
    expected = attention.squeeze(x.float())
    with torch.autocast('cpu', dtype=dtype):
        freq = attention.squeeze(x)
        gate = attention.gate_of_affine(x, torch.eye(32), torch.zeros(32))
    torch.testing.assert_close(freq, expected)
    torch.testing.assert_close(gate, attention.excite(expected))
    assert attention.to(dtype)(x).dtype == dtype


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
def test_a_search_keeps_no_feature_map_more(memory_format, fold):
    x = torch.rand(2, 128, 20, 30).contiguous(memory_format=memory_format).requires_grad_()
    kept = []
    for basis in ('dct', 'searched'):
        block = with_statistics(FcaBottleneck(128, 32, basis=basis, fold=fold)).to(memory_format=memory_format)
        kept.append(saved_bytes(block, x))
    maps = 4 * 20 * 30 * (49 + 16)  # all that are mixed, which the blocks of a stage share, and the mixtures
    assert 0 < kept[1] - kept[0] < maps + 20_000 < x.nbytes


KINDS = {
    'FcaResNet': lambda **options: FcaResNet(50, **THIN, **options),
    'FcaResNetV1d': lambda **options: FcaResNetV1d(depth=18, **THIN, **options),
    'FcaResNeXt': lambda **options: FcaResNeXt(depth=50, groups=4, base_width=16, base_channels=16, **options),
}


@pytest.mark.parametrize('name', KINDS)
def test_the_blocks_of_a_backbone_share_one_selection(name):
    backbone = searched(KINDS[name](basis='searched'))
    fixed = KINDS[name]()
    assert backbone.state_dict().keys() - fixed.state_dict().keys() == {'selection.logits', 'selection.temperature'}
    other = KINDS[name](basis='searched')
    other.load_state_dict(backbone.state_dict(), strict=True)
    average = ExponentialMovingAverage(backbone).module
    for twin in (backbone, other, average, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        found = [block.att.dct_layer.selection for stage in twin.res_layers for block in getattr(twin, stage)]
        assert len(found) == sum(twin.stage_blocks)
        assert all(selection is twin.selection for selection in found)
        assert [module for module in twin.modules() if isinstance(module, FrequencySelection)] == [twin.selection]
        assert torch.equal(twin.selection(), backbone.selection())
    assert copy.deepcopy(backbone).selection is not backbone.selection


def test_the_optimiser_has_the_logits_once_with_a_rate_of_their_own():
    model = nn.ModuleDict(dict(backbone=FcaResNet(50, basis='searched', frozen_stages=1, **THIN)))
    keys = dict(selection=dict(lr_mult=10, decay_mult=0))
    wrapper = build_optim_wrapper(
        model, dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05), paramwise_cfg=dict(custom_keys=keys))
    )
    groups = [group for group in wrapper.param_groups if any(value is model.backbone.selection.logits for value in group['params'])]
    assert [(group['lr'], group['weight_decay']) for group in groups] == [(0.02, 0)]


@pytest.mark.parametrize('ignore_padding', [False, True])
def test_a_training_step_moves_the_logits(ignore_padding):
    gradients = []
    for options in (dict(), dict(fold=False), dict(with_cp=True), dict(with_cp=True, fold=False)):
        torch.manual_seed(0)
        options |= dict(norm_eval=True, zero_init_residual=False, ignore_padding=ignore_padding)
        backbone = FcaResNet(50, basis='searched', **THIN, **options)
        searched(backbone.double()).train()
        optimiser = torch.optim.SGD(backbone.parameters(), lr=1)
        sum(feature.square().mean() for feature in backbone(padded_batch().double())).backward()
        before = backbone.selection().detach()
        optimiser.step()
        gradients.append(backbone.selection.logits.grad)
        assert (backbone.selection() - before).abs().max() > 0
    for gradient in gradients:
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=1e-9 * float(gradients[0].abs().max()))


def test_a_frozen_stage_is_not_differentiated():
    backbone = FcaResNet(50, basis='searched', frozen_stages=2, norm_eval=True, zero_init_residual=False, **THIN)
    backbone.train()
    features = backbone(torch.rand(1, 3, 64, 64))
    assert [feature.requires_grad for feature in features] == [False, False, True, True]
    features[-1].square().mean().backward()
    assert backbone.selection.logits.grad.abs().max() > 0
    frozen = FcaResNet(50, basis='searched', frozen_stages=4, **THIN)
    frozen.train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@torch.no_grad()
def test_it_compiles_and_exports():
    shallow = SHALLOW | dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    backbone = searched(with_statistics(FcaResNet(basis='searched', **shallow)))
    x = torch.rand(2, 3, 40, 56)
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(backbone, (x,), dynamic_shapes=free).module()
    compiled = torch.compile(backbone, fullgraph=True, dynamic=True, backend='eager')
    for other, image in ((exported, x[:1, :, :33]), (compiled, x)):
        for found, expected in zip(other(image), backbone(image), strict=True):
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('basis', ['learned_dct', 'random', 'learned_random'])
def test_channel_bases_pool_multiply_and_sum(basis):
    attention = MultiSpectralAttention(32, 14, 'low16', basis=basis).double()
    x = torch.rand(2, 32, 9, 20, dtype=torch.float64)
    weight = attention.dct_layer.weight
    torch.testing.assert_close(attention.squeeze(x), (F.adaptive_avg_pool2d(x, 14) * weight).sum((2, 3)))
    assert isinstance(weight, torch.nn.Parameter) == basis.startswith('learned')


def test_a_learned_dct_starts_as_the_fixed_one():
    x = torch.rand(2, 32, 9, 20)
    learned = MultiSpectralAttention(32, 14, 'low16', basis='learned_dct')
    torch.testing.assert_close(learned.squeeze(x), MultiSpectralAttention(32, 14, 'low16').squeeze(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('stored', 'says'),
    [
        (dict(frequencies='low4'), "is frequencies='low4', dct_size=14 in the checkpoint, but frequencies='top16', dct_size=14 in the"),
        (dict(dct_size=28), "is frequencies='top16', dct_size=28 in the checkpoint, but frequencies='top16', dct_size=14 in the"),
        (dict(basis='random'), "is a learned or random tensor (dct_size=14 with basis='random', or another learned or random basis"),
        (dict(basis='learned_dct'), "is a learned or random tensor (dct_size=14 with basis='learned_dct', or another learned or random"),
    ],
)
def test_another_basis_is_an_error(stored, says):
    trained = MultiSpectralAttention(64, **dict(dct_size=14) | stored)
    state = {'fc.0.weight': torch.ones(4, 64), 'fc.2.weight': torch.ones(64, 4)}
    if trained.basis == 'dct':
        state['dct_layer.weight'] = full_basis(trained.frequencies, trained.grid, 64)
    else:
        with torch.no_grad():
            state['dct_layer.weight'] = trained.dct_layer.weight + 0.01 * (trained.basis == 'learned_dct')
    attention = MultiSpectralAttention(64, 14)
    before = attention.fc[0].weight.clone()
    with pytest.raises(CheckpointError, match=r'dct_layer.weight is .* in the configuration: configure what the checkpoint has') as error:
        attention.load_state_dict(state, strict=False)
    assert says in str(error.value)
    assert torch.equal(attention.fc[0].weight, before)
    if trained.basis != 'dct':
        MultiSpectralAttention(64, 14, basis=trained.basis).load_state_dict(state, strict=True)


def test_a_learned_basis_of_another_grid_is_an_error():
    state = MultiSpectralAttention(64, 28, basis='learned_dct').state_dict()
    with pytest.raises(CheckpointError, match=r'is \[64, 28, 28\] in the checkpoint, but \[64, 14, 14\] in the .*: set dct_size to the'):
        MultiSpectralAttention(64, 14, basis='learned_dct').load_state_dict(state)


@pytest.mark.parametrize(
    ('basis', 'options', 'says'),
    [
        ('dct', dict(dct_size=28), 'dct_layer has dct_size=(14, 14) in the checkpoint, but (28, 28) in the configuration: '),
        (
            'dct',
            dict(frequencies=[(0, 0), (0, 1)]),
            'dct_layer has frequencies=[(0, 0), (1, 0)] in the checkpoint, but [(0, 0), (0, 1)]',
        ),
        (
            'searched',
            dict(dct_size=28),
            'dct_layer has dct_size=(14, 14) in the checkpoint, but (28, 28) in the configuration: configure what',
        ),
    ],
)
@pytest.mark.parametrize('stored_by', ['torch', 'mmengine'])
def test_weights_that_were_saved_with_another_grid_or_other_frequencies_are_refused(basis, options, says, stored_by, tmp_path):
    def detector(**changed) -> nn.Module:
        attention = MultiSpectralAttention(64, **dict(dct_size=14, frequencies=[(0, 0), (1, 0)], basis=basis) | changed)
        return nn.ModuleDict({'neck': nn.Sequential(nn.Identity(), attention)})

    path = str(tmp_path / 'weights.pth')
    state = detector().state_dict() if stored_by == 'torch' else weights_to_cpu(get_state_dict(detector()))
    assert not any('dct_size' in key for key in state)
    torch.save(dict(state_dict=state), path)

    def load(model: nn.Module) -> None:
        if stored_by == 'torch':
            model.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
        else:
            load_checkpoint(model, path)

    load(detector())
    with pytest.raises(CheckpointError, match=rf'^neck.1.{re.escape(says)}'):
        load(detector(**options))


@pytest.mark.parametrize('frequencies', ['top16', [(0, 0)]])
def test_a_grid_without_the_spectrum(frequencies):
    with pytest.raises(ValueError, match=r"dct_size=\(7, 6\) is too small for basis='searched', .*: use 7 or more"):
        MultiSpectralAttention(64, (7, 6), frequencies, basis='searched')


def test_no_groups():
    with pytest.raises(ValueError, match='groups=0 must be 1 or more'):
        FrequencySelection(0)


def test_the_weights_of_a_search_go_where_its_frequencies_are_configured():
    backbone = FcaResNet(basis='searched', frequencies='low4', **SHALLOW)
    select(backbone.selection, PAIRS)
    fixed = FcaResNet(frequencies=PAIRS, **SHALLOW)
    fixed.load_state_dict(backbone.state_dict(), strict=True)
    x = torch.rand(1, 3, 40, 56)
    for found, expected in zip(with_statistics(fixed)(x), with_statistics(backbone)(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    for options in (dict(frequencies='low4'), dict(frequencies=PAIRS, basis='learned_dct')):
        with pytest.raises(
            CheckpointError, match=r'selection.logits in the checkpoint selects frequencies=\[\(0, 0\), \(6, 1\), \(0, 0\), \(2, 5\)\]'
        ):
            FcaResNet(**options, **SHALLOW).load_state_dict(backbone.state_dict())
    with pytest.raises(CheckpointError, match=r'selection.logits is \[4, 49\] in the checkpoint, but \[16, 49\] in the'):
        FcaResNet(basis='searched', **SHALLOW).load_state_dict(backbone.state_dict())


@pytest.mark.parametrize('logits', [torch.zeros(49), torch.zeros(16, 50), [0.0]])
def test_a_selection_that_no_search_stores_is_refused(logits):
    with pytest.raises(
        CheckpointError, match=r'selection.logits in the checkpoint is not \[F, 49\], as a search stores it: fetch it again'
    ):
        check_selection({'selection.logits': logits}, '', MultiSpectralAttention(64).dct_layer)


def test_weights_of_a_fixed_basis_are_refused_and_those_without_attention_taken():
    stored = MultiSpectralAttention(64, 14).state_dict() | {'dct_layer.weight': full_basis(CANDIDATES[:4], (14, 14), 64)}
    with pytest.raises(CheckpointError, match=r"dct_size=14 in the checkpoint, but basis='searched' in .*: start from weights without"):
        MultiSpectralAttention(64, 14, basis='searched').load_state_dict(stored)
    backbone = FcaResNet(basis='searched', **SHALLOW)
    plain = {name: value for name, value in FcaResNet(**SHALLOW).state_dict().items() if '.att.' not in name}
    missing, unexpected = backbone.load_state_dict(plain, strict=False)
    assert not unexpected
    assert {name for name in missing if '.att.' not in name} == {'selection.logits', 'selection.temperature'}


ORTHONORMAL = ('orthogonal', 'orthogonal_separable', 'haar')


def filters(attention: MultiSpectralAttention) -> torch.Tensor:
    """The filter of each channel on the grid, ``[C, h, w]``."""
    squeeze = attention.dct_layer
    if not isinstance(squeeze, Projected):
        return squeeze.weight
    maps = squeeze.rows[:, :, None] * squeeze.columns[:, None, :]
    return maps.repeat_interleave(attention.in_channels // len(maps), 0)


@pytest.mark.parametrize(('channels', 'grid'), [(64, 14), (256, 16), (1024, 7), (48, 8)])
def test_orthogonal_filters_are_orthonormal_within_a_group(channels, grid):
    """Where a group has more channels than the grid has cells, in parts of so many."""
    weight = MultiSpectralAttention(channels, grid, 'low4', basis='orthogonal').dct_layer.weight.flatten(1).double()
    for group in weight.split(channels // 4):
        for part in group.split(grid * grid):
            torch.testing.assert_close(part @ part.T, torch.eye(len(part), dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize('basis', ['orthogonal_separable', 'haar'])
@pytest.mark.parametrize('frequencies', ['top16', 'low8', [(0, 0), (0, 5), (6, 0)]])
def test_separable_maps_are_orthonormal(basis, frequencies):
    attention = MultiSpectralAttention(48, (8, 16), frequencies, basis=basis)
    maps = filters(attention)[:: 48 // len(attention.frequencies)].flatten(1)
    torch.testing.assert_close(maps @ maps.T, torch.eye(len(maps)), atol=1e-5, rtol=0)
    if basis == 'haar':
        torch.testing.assert_close(maps[0], torch.full((128,), 128**-0.5))  # the mean, as in the DCT


@pytest.mark.parametrize('basis', ORTHONORMAL)
@pytest.mark.parametrize('valid', [None, [(9, 13), (4, 6)]])
def test_an_orthonormal_basis_squeezes_the_pooled_map(basis, valid):
    """Against torch's own adaptive pooling, image by image."""
    attention = MultiSpectralAttention(32, (16, 8) if basis == 'haar' else (14, 7), 'low4', basis=basis)
    attention.stride, x = 1, torch.randn(2, 32, 9, 13)
    with within(None if valid is None else ValidPart(torch.tensor(valid))):
        freq = attention.squeeze(x)
    for image, found, size in zip(x, freq, valid or [(9, 13)] * 2, strict=True):
        pooled = F.adaptive_avg_pool2d(image[:, : size[0], : size[1]], attention.grid)
        torch.testing.assert_close(found, (pooled * filters(attention)).sum((1, 2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('basis', ['orthogonal_separable', 'haar'])
def test_a_separable_basis_folds_and_exports(basis, monkeypatch):
    backbone = with_statistics(FcaResNet(basis=basis, **SHALLOW | dict(depth=50, dct_size=(16, 8, 8, 8))))
    x = torch.rand(2, 3, 65, 97)
    with folded_calls(monkeypatch) as calls, torch.no_grad():
        folded = backbone(x)
        assert len(calls) == sum(backbone.stage_blocks[: len(folded)])
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(backbone, (torch.rand(3, 3, 40, 56),), dynamic_shapes=free).module()
    with torch.no_grad():
        assert largest_error(exported(x), folded) < 1e-5
        for block in [block for name in backbone.res_layers for block in getattr(backbone, name)]:
            block.fold = False
        assert largest_error(backbone(x), folded) < 1e-5


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict], ids=['torch', 'mmengine'])
@pytest.mark.parametrize('other', ['dct', 'published', 'random', *ORTHONORMAL])
@pytest.mark.parametrize('basis', ORTHONORMAL)
def test_weights_of_another_basis_are_refused(basis, other, load):
    def build(name):
        return MultiSpectralAttention(64, 16, 'low4', basis=name)

    torch.manual_seed(0)
    trained = build('dct' if other == 'published' else other)
    state = trained.state_dict()
    if other == 'published':
        state['dct_layer.weight'] = full_basis(trained.frequencies, (16, 16), 64)
    if other == basis:
        again = build(basis)
        load(again, state)
        x = torch.rand(1, 64, 9, 13)
        torch.testing.assert_close(again(x), trained(x), rtol=0, atol=0)
    else:
        with pytest.raises(CheckpointError, match=r'another basis|not orthonormal|has basis=|weight is'):
            load(build(basis), state)
        if other in ('haar', 'orthogonal_separable'):
            with pytest.raises(CheckpointError, match='rows in the checkpoint belongs to another basis'):
                load(build('dct'), state)


@pytest.mark.parametrize('valid', [None, [(9, 13), (4, 6)]])
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
def test_every_frequency_on_every_channel_agrees_with_the_slow_oracle(memory_format, valid):
    attention = MultiSpectralAttention(4, (14, 7), [(0, 0), (6, 1)], reduction=2, basis='combined').double()
    nn.init.normal_(attention.dct_layer.weight)
    weights = attention.dct_layer.weight.detach().numpy()
    attention.stride, x = 1, torch.randn(2, 4, 9, 13, dtype=torch.float64).contiguous(memory_format=memory_format)
    with within(valid and ValidPart(torch.tensor(valid))):
        freq = attention.squeeze(x).detach().numpy()
        assert torch.autograd.gradcheck(
            lambda x, weight: torch.func.functional_call(attention, {'dct_layer.weight': weight}, x),
            (x.requires_grad_(), attention.dct_layer.weight),
            fast_mode=True,
        )
    for n, (h, w) in enumerate(valid or [(9, 13)] * 2):
        for c in range(4):
            pooled = oracle.pool(x[n, c, :h, :w].detach().numpy(), attention.grid)
            components = [oracle.component(pooled, 2 * u, v) for u, v in attention.frequencies]
            np.testing.assert_allclose(freq[n, c], weights[c] @ components, rtol=0, atol=1e-12)


@torch.no_grad()
def test_every_frequency_starts_as_a_fixed_selection_and_exports(tmp_path):
    backbone, fixed = (with_statistics(FcaResNet(basis=basis, **SHALLOW | dict(depth=50))) for basis in ('combined', 'dct'))
    weights = fixed.state_dict()
    backbone.load_state_dict({**backbone.state_dict(), **weights}, strict=True)
    x = torch.rand(2, 3, 65, 97)
    assert largest_error(backbone(x), fixed(x)) < 1e-5
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(backbone, (torch.rand(3, 3, 40, 56),), dynamic_shapes=free).module()
    assert largest_error(exported(x), backbone(x)) < 1e-5
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    backbone.load_state_dict(torch.load(tmp_path / 'weights.pth'), strict=True)
    others = [dict(frequencies='low16'), dict(frequencies='low4'), dict(dct_size=(28, 14, 7, 7)), dict(basis='dct'), dict(basis='random')]
    for options in others:
        with pytest.raises(CheckpointError, match='in the checkpoint'):
            FcaResNet(**dict(basis='combined') | SHALLOW | dict(depth=50) | options).load_state_dict(backbone.state_dict())
    with pytest.raises(CheckpointError, match='trained with another basis'):
        backbone.load_state_dict(weights)


@pytest.mark.parametrize('basis', ['random', 'learned_random', 'combined'])
def test_weights_without_the_basis_are_refused(basis):
    """A learned DCT starts as the fixed one whose weights it takes; a random tensor would not be that of the training."""
    state = MultiSpectralAttention(64, 14).state_dict()
    with pytest.raises(CheckpointError, match=rf"dct_layer.weight is not in the checkpoint, .* another basis than basis='{basis}'"):
        MultiSpectralAttention(64, 14, basis=basis).load_state_dict(state, strict=False)
    MultiSpectralAttention(64, 14, basis='learned_dct').load_state_dict(state, strict=False)


def test_a_haar_basis_needs_powers_of_two():
    message = r"dct_size=56: basis='haar' needs powers of two, such as \(64, 32, 16, 8\) for the stages"
    with pytest.raises(ValueError, match=message):
        FcaResNet(50, basis='haar')


class Corner(Projected):
    """A toy: the learned brightness of each map's first pixel."""

    def __init__(self, *args):
        super().__init__(*args)
        self.brightness = nn.Parameter(torch.full((len(self.configured),), 0.5))

    def maps(self, x, valid=None):
        height, width = (torch.arange(size, device=x.device) == 0 for size in x.shape[2:])
        return self.brightness.to(x.dtype)[:, None, None, None] * (height[:, None] & width)


def test_a_new_basis_is_a_class_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(BASES, 'corner', Corner)
    backbone = with_statistics(FcaResNet(basis='corner', **SHALLOW | dict(depth=50)))
    x = torch.rand(2, 3, 65, 97)
    with folded_calls(monkeypatch) as calls, torch.no_grad():
        folded = backbone(x)
        assert len(calls) == sum(backbone.stage_blocks[:2])
    y = torch.rand(1, 64, 5, 4)
    torch.testing.assert_close(backbone.layer1[0].att.squeeze(y), y[:, :, 0, 0] / 2)
    free = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(backbone, (torch.rand(3, 3, 40, 56),), dynamic_shapes=free).module()
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    again = FcaResNet(basis='corner', fold=False, **SHALLOW | dict(depth=50))
    again.load_state_dict(torch.load(tmp_path / 'weights.pth'), strict=True)
    again.eval()
    with torch.no_grad():
        for other in (exported(x), again(x)):
            assert largest_error(other, folded) < 1e-5
    with pytest.raises(ValueError, match=r'use one of dct, .*, haar, combined, searched, corner'):
        MultiSpectralAttention(64, basis='center')


def test_a_search_that_the_first_version_stored():
    """It kept the selection of a lone attention one level up."""
    attention = searched(MultiSpectralAttention(64, frequencies='low4', basis='searched'))
    state = {name.replace('dct_layer.', ''): value for name, value in attention.state_dict().items()}
    again = MultiSpectralAttention(64, frequencies='low4', basis='searched')
    again.load_state_dict(state, strict=True)
    assert torch.equal(again.dct_layer.selection(), attention.dct_layer.selection())

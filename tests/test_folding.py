"""The folded execution against the readable one, which the other tests compare with mmdet and the reference implementation."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import FORMATS, FORMS, choose_form, evaluate, folded_calls, frozen, largest_error, saved_bytes, shortcut, with_statistics
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.backbones import ResNet
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNet, folding, projection

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> str:
    """Each form at every size, whichever the size would select."""
    choose_form(monkeypatch, request.param)
    return request.param


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    'bottleneck': lambda: FcaBottleneck(64, 16, dct_size=14),
    'bottleneck, stride 2': lambda: FcaBottleneck(32, 16, stride=2, downsample=shortcut(32, 64, 2), dct_size=7),
    'bottleneck, caffe': lambda: FcaBottleneck(32, 16, stride=2, style='caffe', downsample=shortcut(32, 64, 2)),
    'bottleneck, ResNet-D': lambda: FcaBottleneck(32, 16, stride=2, downsample=shortcut(32, 64, 2, average=True)),
    'bottleneck, dilated, top1': lambda: FcaBottleneck(64, 16, dilation=2, dct_size=7, frequencies='top1'),
    'bottleneck, pairs': lambda: FcaBottleneck(64, 16, dct_size=(14, 7), frequencies=[(0, 0), (6, 1)]),
    'bottleneck, bot8, checkpointed': lambda: FcaBottleneck(64, 16, frequencies='bot8', with_cp=True),
    'bottleneck, plugins inside': lambda: FcaBottleneck(
        64,
        16,
        plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 4, postfix=n), position=f'after_conv{n}') for n in (1, 2)],
    ),
    'basic': lambda: FcaBasicBlock(32, 32, dct_size=14),
    'basic, stride 2': lambda: FcaBasicBlock(16, 32, stride=2, downsample=shortcut(16, 32, 2), frequencies='low4'),
    'basic, checkpointed': lambda: FcaBasicBlock(32, 32, dct_size=14, with_cp=True),
}


def distance(actual: Tensor, expected: Tensor) -> float:
    """The relative error in the Euclidean norm, which a ReLU that rounds across zero hardly changes."""
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('size', [(1, 1), (5, 3), (15, 26)])
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('name', BLOCKS)
def test_outputs_and_gradients_are_those_of_the_readable_path(name, memory_format, size, dtype, form, monkeypatch):
    torch.manual_seed(0)
    block = with_statistics(BLOCKS[name]()).to(dtype, memory_format=memory_format)
    readable, precise = copy.deepcopy(block), copy.deepcopy(block).double()
    readable.fold = precise.fold = False
    for batch in (1, 2):
        x = torch.randn(batch, block.conv1.in_channels, *size, dtype=dtype).contiguous(memory_format=memory_format)
        expected = evaluate(precise, x.double())
        # Where high frequencies cancel, float32 loses as much in the readable path.
        tolerance = max(TOLERANCE[dtype], 1.5 * largest_error(evaluate(readable, x), expected))
        with folded_calls(monkeypatch) as calls:
            assert largest_error(evaluate(block, x), expected) < tolerance
            with torch.inference_mode():
                out = block(x)
        assert set(calls) == {block}
        assert largest_error([out], expected[:1]) < TOLERANCE[dtype]
        assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('name', BLOCKS)
def test_a_block_whose_normalisations_are_fused_for_good(name, form, monkeypatch):
    torch.manual_seed(0)
    block = with_statistics(BLOCKS[name]()).double()
    x = torch.randn(2, block.conv1.in_channels, 15, 26, dtype=torch.float64)
    expected = evaluate(block, x)[:2]
    fused = fuse_conv_bn(copy.deepcopy(block))
    with folded_calls(monkeypatch) as calls:
        assert largest_error(evaluate(fused, x)[:2], expected) < TOLERANCE[torch.float64]
    assert set(calls) == {fused}


def test_a_biased_convolution_before_the_last_normalisation(form, monkeypatch):
    block = with_statistics(FcaBottleneck(64, 16))
    block.conv3 = nn.Conv2d(16, 64, 1)
    readable, x = copy.deepcopy(block), torch.randn(2, 64, 15, 26)
    readable.fold = False
    with folded_calls(monkeypatch) as calls:
        assert largest_error(evaluate(block, x), evaluate(readable, x)) < TOLERANCE[torch.float32]
    assert calls == [block]


@pytest.mark.parametrize(('depth', 'size'), [(18, (97, 65)), (50, (97, 161)), (101, (64, 64))])
@pytest.mark.parametrize('train', [True, False])
def test_a_whole_backbone(depth, size, train, monkeypatch):
    torch.manual_seed(0)
    backbone = with_statistics(FcaResNet(depth, zero_init_residual=False, norm_eval=True, frozen_stages=1))
    backbone.train(train)
    readable, precise = copy.deepcopy(backbone), copy.deepcopy(backbone).double()
    for block in [*readable.modules(), *precise.modules()]:
        block.fold = False
    x = torch.randn(2, 3, *size)
    expected = evaluate(precise, x.double())
    with folded_calls(monkeypatch) as calls:
        actual = evaluate(backbone, x)
        assert len(calls) == sum(backbone.stage_blocks)
        assert largest_error(actual[:4], expected[:4]) < 1e-5
        # A ReLU whose input rounds across zero changes gradients, in the readable path too.
        assert largest_error(actual[4:], expected[4:]) < max(1e-4, 1.5 * largest_error(evaluate(readable, x)[4:], expected[4:]))
        assert largest_error(evaluate(backbone.double(), x.double()), expected) < 1e-12


def test_the_comparison_sees_a_wrong_fold(monkeypatch):
    block = with_statistics(BLOCKS['bottleneck']()).double()
    x = torch.randn(1, 64, 15, 26, dtype=torch.float64)
    folded = folding.fold_modules
    monkeypatch.setattr(folding, 'fold_modules', lambda conv, norm: [value * (1 + 1e-9) for value in folded(conv, norm)])
    actual, block.fold = evaluate(block, x), False
    assert largest_error(actual, evaluate(block, x)) > 1e-11


def after_conv3(block: nn.Module) -> nn.Module:
    return FcaBottleneck(64, 16, plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv3')])


def group_norm(block: nn.Module) -> nn.Module:
    return FcaBottleneck(64, 16, norm_cfg=dict(type='GN', num_groups=4))


def deformable(block: nn.Module) -> nn.Module:
    return FcaBottleneck(64, 16, dcn=dict(type='DCNv2', deform_groups=1))


def instance_statistics(block: nn.Module) -> nn.Module:
    block.bn2 = nn.BatchNorm2d(16, track_running_stats=False)
    return block


def batch_statistics(block: nn.Module) -> nn.Module:
    return block.train()


def synchronised(block: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(block).train()


def one_module_training(block: nn.Module) -> nn.Module:
    block.bn3.train()
    return block


def without_attention(block: nn.Module) -> nn.Module:
    block.att = nn.Identity()
    return block


def another_activation(block: nn.Module) -> nn.Module:
    block.relu = nn.SiLU()
    return block


def a_convolution_of_its_own(block: nn.Module) -> nn.Module:
    block.conv2.forward = lambda x: nn.functional.conv2d(x, block.conv2.weight, padding=1) + 1
    return block


def a_larger_last_convolution(block: nn.Module) -> nn.Module:
    block.conv3 = nn.Conv2d(16, 64, 3, padding=1, bias=False)
    return block


def a_last_convolution_with_a_stride(block: nn.Module) -> nn.Module:
    block.conv3 = nn.Conv2d(16, 64, 1, stride=2, bias=False)
    block.downsample = shortcut(64, 64, 2)
    return frozen(block)


def a_last_convolution_with_padding(block: nn.Module) -> nn.Module:
    block.conv3 = nn.Conv2d(16, 64, 1, padding=1, bias=False)
    block.downsample = nn.Sequential(nn.Conv2d(64, 64, 1, padding=1, bias=False), nn.BatchNorm2d(64))
    return frozen(block)


def a_shortcut_of_its_own(block: nn.Module) -> nn.Module:
    block.downsample = nn.Conv2d(64, 64, 1)
    return block


def unfolded(block: nn.Module) -> nn.Module:
    block.fold = False
    return block


def learned(block: nn.Module) -> nn.Module:
    return FcaBottleneck(64, 16, basis='learned_dct')


@pytest.mark.parametrize(
    'change',
    [
        after_conv3,
        group_norm,
        deformable,
        instance_statistics,
        batch_statistics,
        synchronised,
        one_module_training,
        without_attention,
        another_activation,
        a_convolution_of_its_own,
        a_larger_last_convolution,
        a_last_convolution_with_a_stride,
        a_last_convolution_with_padding,
        a_shortcut_of_its_own,
        unfolded,
        learned,
    ],
    ids=lambda change: change.__name__,
)
def test_what_cannot_be_folded_takes_the_readable_path(change, monkeypatch):
    torch.manual_seed(0)
    block = change(with_statistics(FcaBottleneck(64, 16)))
    if change in (after_conv3, group_norm, deformable, learned):
        with_statistics(block)
    twin = copy.deepcopy(block)
    twin.fold = False
    x = torch.randn(2, 64, 9, 13)
    with folded_calls(monkeypatch) as calls:
        out = block(x)
    assert calls == []
    if change is not a_convolution_of_its_own:  # a copy of it calls the original's weights
        assert torch.equal(out, twin(x))


@pytest.mark.parametrize('kind', [FcaBasicBlock, FcaBottleneck])
@pytest.mark.parametrize(
    ('register', 'name'),
    [
        *(
            (register, name)
            for register in ('register_forward_hook', 'register_forward_pre_hook')
            for name in (
                'conv1',
                'bn1',
                'conv2',
                'bn2',
                'att',
                'att.dct_layer',
                'relu',
                'downsample',
                'downsample.0',
                'downsample.1',
                'att.fc.0',
            )
        ),
        # torch refuses a backward hook on a module that an in-place ReLU follows.
        ('register_full_backward_hook', 'conv2'),
        ('register_full_backward_pre_hook', 'conv2'),
    ],
)
def test_a_hook_is_called_and_its_removal_folds_again(kind, name, register, monkeypatch):
    planes = 32 // kind.expansion
    block = with_statistics(kind(16, planes, downsample=shortcut(16, 32, 1), frequencies='low4'))
    seen = []
    x = torch.randn(1, 16, 9, 13, requires_grad=True)
    with folded_calls(monkeypatch) as calls:
        handle = getattr(block.get_submodule(name), register)(lambda *args: seen.append(args) and None)
        block(x).sum().backward()
        assert seen
        assert not calls
        handle.remove()
        block(x)
        assert calls == [block]


def test_global_hooks_are_called():
    block, seen = with_statistics(FcaBottleneck(64, 16)), []
    handle = torch_module.register_module_forward_hook(lambda module, args, out: seen.append(module))
    block(torch.randn(1, 64, 9, 13))
    handle.remove()
    assert block.conv3 in seen
    assert block.bn3 in seen


def test_a_hook_on_the_block_does_not_hinder(monkeypatch):
    block, seen = with_statistics(FcaBottleneck(64, 16)), []
    block.register_forward_hook(lambda module, args, out: seen.append(out))
    with folded_calls(monkeypatch) as calls:
        block(torch.randn(1, 64, 9, 13))
    assert calls == [block]
    assert seen


@pytest.mark.parametrize('processes', ['several', 'one'])
def test_synchronised_statistics_fold_once_frozen(processes, monkeypatch):
    block = FcaBottleneck(64, 16, norm_cfg=dict(type='SyncBN'))
    if processes == 'one':
        block = revert_sync_batchnorm(block)
    with_statistics(block)
    x = torch.randn(1, 64, 9, 13)
    with folded_calls(monkeypatch) as calls:
        out = block(x)
    assert calls == [block]
    block.fold = False
    torch.testing.assert_close(out, block(x))


def test_normalisation_without_affine_parameters_folds(form):
    block = FcaBottleneck(64, 16).double()
    block.bn1, block.bn3 = nn.BatchNorm2d(16, affine=False).double(), nn.BatchNorm2d(64, affine=False).double()
    with_statistics(block)
    x = torch.randn(1, 64, 9, 13, dtype=torch.float64)
    out, block.fold = block(x), False
    torch.testing.assert_close(out, block(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('name', ['bottleneck', 'bottleneck, stride 2', 'basic'])
def test_autocast(name, memory_format, dtype, form):
    torch.manual_seed(0)
    block = with_statistics(BLOCKS[name]()).to(memory_format=memory_format)
    x = torch.randn(2, block.conv1.in_channels, 15, 26).contiguous(memory_format=memory_format)
    precise = copy.deepcopy(block).double()
    expected = evaluate(precise, x.double())
    with torch.autocast('cpu', dtype):
        actual, block.fold = evaluate(block, x), False
        readable = evaluate(block, x)
    assert [value.dtype for value in actual] == [value.dtype for value in readable]
    assert actual[0].dtype == dtype
    assert largest_error(actual[:1], expected[:1]) < TOLERANCE[dtype]
    # In half precision a few ReLUs of each path round across zero, which is most of the gradients' error in both.
    assert max(map(distance, actual[1:], expected[1:])) < {torch.bfloat16: 0.1, torch.float16: 0.03}[dtype]


@pytest.mark.parametrize('name', ['bottleneck', 'bottleneck, stride 2', 'basic'])
def test_half_precision_weights(name, form):
    block = with_statistics(BLOCKS[name]())
    x = torch.randn(1, block.conv1.in_channels, 15, 26).bfloat16()
    expected = block.double()(x.double())
    out = block.bfloat16()(x)
    assert out.dtype == torch.bfloat16
    assert largest_error([out], [expected]) < 2 * TOLERANCE[torch.bfloat16]


class Copies(TorchDispatchMode):
    """Records the copies of tensors with at least ``size`` entries."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.found = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        names = ('aten::clone', 'aten::copy_', 'aten::_to_copy')
        if function._schema.name in names and isinstance(out, Tensor) and out.numel() >= self.size:
            self.found.append(function._schema.name)
        return out


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize(('kind', 'planes'), [(FcaBottleneck, 16), (FcaBasicBlock, 64)])
@pytest.mark.parametrize('stride', [1, 2])
def test_no_feature_map_is_copied(kind, planes, stride, memory_format, batch, form):
    downsample = shortcut(64, 64, stride) if stride > 1 else None
    block = with_statistics(kind(64, planes, stride=stride, downsample=downsample, frequencies='low2')).to(memory_format=memory_format)
    x = torch.randn(batch, 64, 30, 52).contiguous(memory_format=memory_format).requires_grad_()
    block(x)  # fills the cache of projection maps
    with Copies(size=16 * 15 * 26) as copies:
        out = block(x)
        torch.autograd.grad(out, x, torch.ones_like(out, memory_format=torch.preserve_format))
    assert copies.found == []


def test_a_training_step_keeps_less_than_without_attention():
    options = dict(frozen_stages=1, norm_eval=True)
    plain, folded = ResNet(50, **options), FcaResNet(50, **options)
    for model in (plain, folded):
        model.train()
    x = torch.rand(1, 3, 480, 640)
    assert saved_bytes(folded, x) < 0.8 * saved_bytes(plain, x)


def test_inference_then_training_and_changing_sizes(monkeypatch):
    projection.cached_projection_maps.cache_clear()
    block = with_statistics(FcaBottleneck(64, 16, dct_size=7))
    for width in range(1, projection.CACHED_MAPS + 9):
        with torch.inference_mode():
            block(torch.rand(1, 64, 2, width))
        with torch.no_grad():
            block(torch.rand(1, 64, 2, width))
        block(torch.rand(1, 64, 2, width, requires_grad=True)).sum().backward()
    assert projection.cached_projection_maps.cache_info().currsize == projection.CACHED_MAPS


def test_state_copies_pickles_and_moving_averages():
    torch.manual_seed(0)
    model = with_statistics(FcaResNet(50))
    x = torch.rand(1, 3, 65, 97)
    names = list(model.state_dict())
    expected = [feature.detach() for feature in model(x)]
    assert list(model.state_dict()) == names == list(FcaResNet(50, fold=False).state_dict())
    average = ExponentialMovingAverage(model, momentum=0.5)
    average.update_parameters(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), average.module):
        assert all(torch.equal(a, b) for a, b in zip(twin(x), expected, strict=True))


def test_weights_may_change_between_forwards():
    block = with_statistics(FcaBottleneck(64, 16))
    x = torch.rand(1, 64, 15, 26)
    before = block(x)
    with torch.no_grad():
        block.bn3.running_var.mul_(4)
        block.conv1.weight.mul_(2)
    after, block.fold = block(x), False
    torch.testing.assert_close(after, block(x))
    assert not torch.allclose(before, after)


def test_deterministic_algorithms():
    block = with_statistics(FcaBottleneck(64, 16))
    x = torch.rand(2, 64, 15, 26)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = evaluate(block, x), evaluate(block, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_distributed_data_parallel(tmp_path):
    model = with_statistics(FcaResNet(50, frozen_stages=1))
    x = torch.rand(1, 3, 65, 97)
    expected = evaluate(model, x)
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        actual = evaluate(nn.parallel.DistributedDataParallel(model), x)
    finally:
        torch.distributed.destroy_process_group()
    assert largest_error(actual, expected) < 1e-6


@pytest.mark.parametrize('name', ['bottleneck', 'bottleneck, stride 2', 'basic'])
def test_compiles_into_one_graph_for_every_size(name):
    block = with_statistics(BLOCKS[name]())
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in ((9, 13), (15, 26), (3, 40)):
        x = torch.randn(2, block.conv1.in_channels, *size)
        assert largest_error(evaluate(compiled, x), evaluate(block, x)) < 1e-5


def test_traces():
    block = with_statistics(FcaBottleneck(64, 16))
    x = torch.rand(1, 64, 15, 26)
    traced = torch.jit.trace(block, x)
    torch.testing.assert_close(traced(x), block(x))

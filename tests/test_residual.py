"""The mixins on mmdet's blocks, whose parts have the names of torchvision's; ``test_elsewhere.py`` has those of torchvision and timm."""

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from helpers import choose_form, evaluate, frozen, largest_error, shortcut, with_statistics
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn

from fca_mmdet import FcaBasicBlock, FcaBottleneck
from fca_mmdet.residual import AttendedBlock, FoldedBlock


class Basic(AttendedBlock, BasicBlock):
    pass


class Narrow(AttendedBlock, Bottleneck):
    options: ClassVar = dict(frequencies='low4', dct_size=(14, 7), reduction=8)


PAIRS = {
    'basic': (Basic, lambda **options: FcaBasicBlock(64, 64, dct_size=56, fold=False, **options), 64),
    'bottleneck': (Narrow, lambda **options: FcaBottleneck(64, 16, 'low4', (14, 7), 8, fold=False, **options), 16),
}


@pytest.fixture
def folded(monkeypatch) -> list:
    """The blocks that run folded."""
    calls: list = []
    run = FoldedBlock.run_folded
    monkeypatch.setattr(FoldedBlock, 'run_folded', lambda block, x: (calls.append(block), run(block, x))[1])
    return calls


@pytest.mark.parametrize('form', ['product', 'gate'])
@pytest.mark.parametrize('projection', [None, dict(stride=1), dict(stride=2), dict(stride=2, average=True)], ids=str)
@pytest.mark.parametrize('name', PAIRS)
def test_folded_and_readable_runs_are_mmdets(name, projection, form, folded, monkeypatch):
    choose_form(monkeypatch, form)
    kind, make, planes = PAIRS[name]
    options = dict(stride=projection['stride'], downsample=shortcut(64, 64, **projection)) if projection else {}
    block = with_statistics(kind(64, planes, **options)).double()
    theirs = frozen(make(**copy.deepcopy(options))).double()
    theirs.load_state_dict(block.state_dict())
    x = torch.randn(2, 64, 14, 26, dtype=torch.float64)
    expected = evaluate(theirs, x)
    assert largest_error(evaluate(block, x), expected) < 1e-12
    assert folded == [block]
    block.is_foldable = lambda: False
    assert largest_error(evaluate(block, x), expected) < 1e-12
    assert folded == [block]


@pytest.mark.parametrize('downsample', [None, shortcut(64, 64, 1)], ids=['identity', 'projection'])
def test_inference_leaves_the_input_as_it_is(downsample, folded):
    block, x = with_statistics(Narrow(64, 16, downsample=downsample)), torch.randn(2, 64, 14, 26)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.run_readable(x))
    assert folded == [block]
    assert torch.equal(x, before)


def test_a_grid_for_each_stage():
    assert [Basic(planes, planes).att.grid[0] for planes in (64, 128, 256, 512, 1024)] == [56, 28, 14, 7, 7]


def batch_statistics(block):
    block.train()


def batch_statistics_in_the_shortcut(block):
    block.downsample = shortcut(64, 64, 1).train()


def a_module_in_between(block):
    block.drop_path = nn.Dropout()


def another_activation(block):
    block.relu = nn.SiLU()


def an_identity_as_activation(block):
    block.relu = nn.Identity()


def a_bare_convolution_as_shortcut(block):
    block.downsample = nn.Conv2d(64, 64, 1)


def a_shortcut_without_normalisation(block):
    block.downsample = nn.Sequential(nn.Conv2d(64, 64, 1))


def a_hook_inside(block):
    block.bn2.register_forward_hook(lambda module, args, out: None)


def another_attention(block):
    block.att = nn.Identity()


CHANGES = [
    batch_statistics,
    batch_statistics_in_the_shortcut,
    a_module_in_between,
    another_activation,
    an_identity_as_activation,
    a_bare_convolution_as_shortcut,
    a_shortcut_without_normalisation,
    a_hook_inside,
    another_attention,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize('name', PAIRS)
def test_what_cannot_be_folded_takes_the_readable_path(name, change, folded):
    kind, _, planes = PAIRS[name]
    block = with_statistics(kind(64, planes))
    x = torch.randn(2, 64, 9, 13)
    block(x)
    assert folded == [block]
    change(block)
    assert torch.equal(block(x), copy.deepcopy(block).run_readable(x))
    assert folded == [block]


class Larger(Narrow):
    def __init__(self, *args):
        super().__init__(*args)
        self.conv3 = nn.Conv2d(16, 64, 3, padding=1)


def test_a_last_convolution_of_any_size(folded):
    block, x = with_statistics(Larger(64, 16)).double(), torch.randn(2, 64, 9, 13, dtype=torch.float64)
    torch.testing.assert_close(block(x), block.run_readable(x))
    assert folded == [block]


@pytest.mark.parametrize('name', PAIRS)
def test_compiles_into_one_graph_for_every_size(name):
    kind, _, planes = PAIRS[name]
    block = with_statistics(kind(64, planes))
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend='eager')
    for size in ((2, 64, 9, 13), (1, 64, 30, 21)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), block(x))


def test_copies_and_pickles():
    block, x = with_statistics(Narrow(64, 16)), torch.randn(1, 64, 9, 13)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), block(x))

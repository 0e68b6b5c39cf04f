"""mmdet's blocks with the attention; ``test_folding.py`` compares their folded execution with the readable one."""

import pytest
import torch
from helpers import evaluate, with_statistics
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNeXtBottleneck

BLOCKS = {
    'basic': lambda **options: FcaBasicBlock(64, 64, **options),
    'bottleneck': lambda **options: FcaBottleneck(64, 16, **options),
    'ResNeXt bottleneck': lambda **options: FcaResNeXtBottleneck(64, 16, groups=4, base_width=16, **options),
}


def test_plugins_come_after_the_attention():
    plugin = dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv3')
    block = FcaBottleneck(64, 16, plugins=[plugin])
    assert block.after_conv3_plugin_names == ['att', 'context_block']


def test_blocks_refuse_what_mmdets_refuse():
    for ours, theirs in ((FcaBasicBlock, BasicBlock), (FcaBottleneck, Bottleneck)):
        for bad in (dict(dcn='DCN'), dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv4')])):
            for block in (ours, theirs):
                with pytest.raises(AssertionError):
                    block(64, 64, **bad)


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('name', BLOCKS)
def test_a_checkpointed_block_keeps_its_input_alone(name, fold):
    """Each module runs again in the backward pass, once: mmdet's own checkpoint does not nest in this one."""
    torch.manual_seed(0)
    kept = with_statistics(BLOCKS[name](fold=fold))
    torch.manual_seed(0)
    frugal = with_statistics(BLOCKS[name](fold=fold, with_cp=True))
    x = torch.randn(2, 64, 9, 13)
    for one, other in zip(evaluate(kept, x), evaluate(frugal, x), strict=True):
        torch.testing.assert_close(one, other)
    runs = []
    frugal.conv1.register_forward_hook(lambda *_: runs.append(frugal.with_cp))
    evaluate(frugal, x)
    assert runs == [False, False]
    assert frugal.with_cp


@pytest.mark.parametrize('name', BLOCKS)
def test_checkpointing_that_is_switched_off_before_the_backward_pass_stays_off(name):
    block = with_statistics(BLOCKS[name](with_cp=True))
    out = block(torch.randn(1, 64, 9, 13, requires_grad=True))
    block.with_cp = False
    out.sum().backward()
    assert not block.with_cp

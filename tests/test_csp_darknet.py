"""CSPDarknet with the attention; ``test_elsewhere.py`` compares it with mmdet's, loads mmdet's weights and trains YOLOX with it."""

import pytest
import torch

from fca_mmdet import FcaCSPDarknet

TINY = dict(deepen_factor=0.33, widen_factor=0.25)


def test_options_reach_the_attention_of_each_stage():
    backbone = FcaCSPDarknet('low2', (14, (7, 9), 7, 7), reduction=4, basis='learned_dct', **TINY)
    attentions = [getattr(backbone, f'stage{stage}')[-1] for stage in (1, 2, 3, 4)]
    assert [attention.grid for attention in attentions] == [(14, 14), (7, 9), (7, 7), (7, 7)]
    assert {(attention.reduction, attention.basis, len(attention.frequencies)) for attention in attentions} == {(4, 'learned_dct', 2)}
    assert [attention.in_channels for attention in attentions] == [32, 64, 128, 256]


def test_six_levels_and_other_outputs():
    backbone = FcaCSPDarknet(dct_size=(56, 28, 14, 7, 7), arch='P6', out_indices=(1, 5), **TINY)
    assert [tuple(feature.shape) for feature in backbone(torch.rand(2, 3, 64, 128))] == [(2, 32, 16, 32), (2, 256, 1, 2)]


def test_frozen_stages_freeze_their_attention():
    backbone = FcaCSPDarknet(frozen_stages=2, **TINY)
    backbone.train()
    backbone(torch.rand(2, 3, 64, 64))[-1].sum().backward()
    trained = {name.split('.')[0] for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert trained == {'stage3', 'stage4'}


@pytest.mark.parametrize('dct_size', [7, (56, 28, 14), (56, 28, 14, 7, 7)])
def test_a_grid_for_each_stage(dct_size):
    with pytest.raises(ValueError, match=r'must give one grid for each of the 4 stages, such as \(56, 28, 14, 7\)'):
        FcaCSPDarknet(dct_size=dct_size, **TINY)

"""Fixtures for the tests with Detectron2. They import it only when a test uses them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from named_weights import named_array, named_state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
    """A function that gives a config with a backbone's options; the keys are Detectron2's, without ``MODEL.``."""
    from detectron2.config import get_cfg

    from fca_mmdet.detectron2 import add_fca_config

    def make(depth=50, norm='FrozenBN', **options):
        cfg = get_cfg()
        add_fca_config(cfg)
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.DEVICE = 'build_fca_resnet_backbone', 0, 'cpu'
        resnets = cfg.MODEL.RESNETS
        resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = depth, norm, False
        resnets.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
        resnets.OUT_FEATURES = ['res2', 'res3', 'res4', 'res5']
        for key, value in options.items():
            cfg.merge_from_list([f'MODEL.{key.replace("__", ".")}', value])
        return cfg

    return make


@pytest.fixture
def build(config):
    """A function that builds a backbone in eval mode, with weights that depend on their published names alone."""
    from detectron2.modeling import build_backbone

    def make(depth=50, norm='FrozenBN', **options):
        backbone = build_backbone(config(depth, norm, **options)).eval()
        from fca_mmdet.detectron2 import published_name

        bottom_up = getattr(backbone, 'bottom_up', backbone)
        state = {name: torch.from_numpy(named_array(published_name(name), value.shape)) for name, value in bottom_up.state_dict().items()}
        bottom_up.load_state_dict(state)
        return backbone

    return make


@pytest.fixture(scope='session')
def published():
    """FcaNet's published classifiers of depths 34 and 50, with a stored basis: all names and shapes, made-up values."""
    from fca_mmdet.dct import full_basis
    from fca_mmdet.frequency import FREQUENCY_SETS

    shapes = json.loads((ROOT / 'tests' / 'reference' / 'fcanet_state_dict_shapes.json').read_text())
    states = {}
    for depth in (34, 50):
        state = {name: torch.from_numpy(np.asarray(value)) for name, value in named_state(shapes[str(depth)]).items()}
        for name, (channels, grid, _) in ((name, shape) for name, shape in shapes[str(depth)].items() if name.endswith('dct_layer.weight')):
            state[name] = full_basis(FREQUENCY_SETS['top16'], (grid, grid), channels).float()
        states[depth] = state
    return states

"""Features and gradients of mmdet's ``FcaResNet``, for frameworks that cannot be installed beside mmdet.

    python tests/reference/mmdet_backbone.py

writes ``mmdet_backbone.npz``.
"""

from pathlib import Path

import numpy as np
import torch
from named_weights import named_array, named_input, samples

FILE = Path(__file__).with_suffix('.npz')
SHAPE = (2, 3, 97, 131)
DEPTHS = (18, 50)


def padded_input(dtype=torch.float64):
    """A batch of two images; the second is smaller and padded with zeros."""
    x = torch.from_numpy(named_input(SHAPE)).to(dtype)
    x[1, :, 60:] = 0
    x[1, :, :, 80:] = 0
    return x


def measure(backbone, name=lambda name: name):
    """Samples of the features of all stages, and of the gradients of the input and of each parameter under a fixed cotangent."""
    x = padded_input(next(backbone.parameters()).dtype).requires_grad_()
    backbone.zero_grad()
    features = backbone(x)
    features = list(features.values()) if isinstance(features, dict) else features
    sum((feature * torch.from_numpy(named_input(tuple(feature.shape), 1))).sum() for feature in features).backward()
    found = {f'stage{stage}': feature for stage, feature in enumerate(features, 1)}
    found |= {'input': x.grad} | {name(key): value.grad for key, value in backbone.named_parameters() if value.grad is not None}
    return {key: samples(value.detach(), 16) for key, value in found.items()}


def main():
    from fca_mmdet import FcaResNet

    found = {}
    for depth in DEPTHS:
        for ignore_padding in (False, True):
            backbone = FcaResNet(depth, ignore_padding=ignore_padding).double().eval()
            state = backbone.state_dict()
            backbone.load_state_dict({key: torch.from_numpy(np.asarray(named_array(key, state[key].shape))) for key in state})
            key = f'{depth}/ignore_padding' if ignore_padding else f'{depth}'
            measured = measure(backbone)
            found |= {f'{key}/names': np.array(list(measured)), f'{key}/values': np.stack(list(measured.values()))}
    np.savez_compressed(FILE, **found)


if __name__ == '__main__':
    main()

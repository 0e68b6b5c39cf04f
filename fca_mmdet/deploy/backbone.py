"""Export the backbone and neck of a detector to an ONNX file for any batch, height and width."""

from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit

import numpy as np
import onnxruntime
import torch
from torch import nn

from ..configs import read_config
from ..detector import build_detector, open_detector
from ..errors import UserError
from ..files import check_writable
from .export import write_onnx

COMPARED = [(1, 3, 97, 131), (1, 3, 480, 640), (3, 3, 65, 257), (2, 3, 333, 200), (1, 3, 800, 1333)]
"""Shapes to compare at: odd, non-square, and so small that the first stage's maps are below the grid of 56."""
TOLERANCE = 1e-4
"""The largest accepted difference from PyTorch's features, relative to the largest feature."""


def take_features(detector: nn.Module) -> nn.Sequential:
    """Take the backbone, and the neck if there is one, in eval mode: from normalised images ``[N, 3, H, W]`` to feature maps."""
    parts = {name: getattr(detector, name, None) for name in ('backbone', 'neck')}
    return nn.Sequential(OrderedDict({name: part for name, part in parts.items() if part is not None})).eval()


@torch.inference_mode()
def compare(features: nn.Module, out: Path, repeats: int) -> float:
    """Compare a module with its ONNX file at several sizes; print differences and times, and return the largest difference."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(out, options, providers=['CPUExecutionProvider'])
    worst = 0.0
    for shape in COMPARED:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        ours, theirs = partial(features, images), partial(session.run, None, {'images': images.numpy()})
        pairs = [(expected.numpy(), found) for expected, found in zip(ours(), theirs(), strict=True)]
        difference = max(float(np.abs(expected - found).max() / np.abs(expected).max()) for expected, found in pairs)
        worst = max(worst, difference)
        times = [(timeit(ours, number=1), timeit(theirs, number=1)) for _ in range(repeats)]
        before, after = (median(series) for series in zip(*times, strict=True))
        timed = f'PyTorch {before * 1e3:.0f} ms, ONNX Runtime {after * 1e3:.0f} ms ({after / before:.2f})'
        print(f'{" x ".join(map(str, shape)):16} difference {difference:.1e}   {timed}', flush=True)
    return worst


def export_backbone(config: Path, checkpoint: Path | None, out: Path, repeats: int) -> None:
    """Export the backbone and neck of a detector to ONNX, and compare the file with PyTorch. Without a checkpoint the weights are random.

    Raises:
        UserError: features differ by more than ``TOLERANCE``.
    """
    check_writable(out)
    if checkpoint is None:
        print('no checkpoint: the weights are random')
    features = take_features(open_detector(config, checkpoint) if checkpoint else build_detector(read_config(config)))
    print(f'exporting {config.stem} ...', flush=True)
    example = torch.rand(2, 3, 160, 192)
    with torch.no_grad():
        levels = [f'level{index}' for index, _ in enumerate(features(example))]
    model = write_onnx(features, out, (example,), dict(images=(0, 2, 3)), levels)
    operators = Counter(node.op_type for node in model.graph.node)
    print(f'{out}: {out.stat().st_size / 2**20:.1f} MiB, opset {model.opset_import[0].version}, {operators.total()} nodes')
    print(', '.join(f'{count} {name}' for name, count in operators.most_common()))
    if (worst := compare(features, out, repeats)) > TOLERANCE:
        raise UserError(f'features differ by {worst:.1e}, more than {TOLERANCE}: do not deploy {out}')

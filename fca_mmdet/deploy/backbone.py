"""Export the backbone and neck of a detector to an ONNX file for any height and width, and any or a fixed batch."""

from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit

import numpy as np
import onnx
import torch
from torch import nn

from ..configs import read_config
from ..detector import build_detector, open_detector
from ..errors import UserError
from ..files import check_writable
from .beside import SHAPE, peers, time_beside
from .export import write_onnx
from .runtime import NAMES, Run, open_file, served_by

COMPARED = [(1, 3, 97, 131), (1, 3, 480, 640), (3, 3, 65, 257), (2, 3, 333, 200), (1, 3, 800, 1333)]
"""Shapes to compare at: odd, non-square, and so small that the first stage's maps are below the grid of 56."""
TOLERANCE = 1e-4
"""The largest accepted difference from PyTorch's features, relative to the largest feature."""


def take_features(detector: nn.Module) -> nn.Sequential:
    """Take the backbone, and the neck if there is one, in eval mode: from normalised images ``[N, 3, H, W]`` to feature maps."""
    parts = {name: getattr(detector, name, None) for name in ('backbone', 'neck')}
    return nn.Sequential(OrderedDict({name: part for name, part in parts.items() if part is not None})).eval()


def write_features(features: nn.Module, out: Path, runtime: str, batch: int | None) -> onnx.ModelProto:
    """Export backbone and neck for any height and width, and for any batch unless ``batch`` fixes it."""
    example = torch.rand(batch or 2, 3, 160, 192)
    with torch.no_grad():
        levels = [f'level{index}' for index, _ in enumerate(features(example))]
    return write_onnx(features, out, (example,), dict(images=(2, 3) if batch else (0, 2, 3)), levels, runtime)


@torch.inference_mode()
def compare(features: nn.Module, run: Run, name: str, repeats: int, batch: int | None = None) -> float:
    """Compare a module with its ONNX file in a runtime at several sizes; print differences and times, and return the largest difference."""
    worst = 0.0
    for shape in dict.fromkeys((batch or images, *rest) for images, *rest in COMPARED):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        ours, theirs = partial(features, images), partial(run, {'images': images.numpy()})
        pairs = [(expected.numpy(), found) for expected, found in zip(ours(), theirs(), strict=True)]
        difference = max(float(np.abs(expected - found).max() / np.abs(expected).max()) for expected, found in pairs)
        worst = max(worst, difference)
        times = [(timeit(ours, number=1), timeit(theirs, number=1)) for _ in range(repeats)]
        before, after = (median(series) for series in zip(*times, strict=True))
        timed = f'PyTorch {before * 1e3:.0f} ms, {name} {after * 1e3:.0f} ms ({after / before:.2f})'
        print(f'{" x ".join(map(str, shape)):16} difference {difference:.1e}   {timed}', flush=True)
    return worst


def export_backbone(
    config: Path, checkpoint: Path | None, out: Path, repeats: int, runtime: str = 'any', batch: int | None = None, beside: bool = False
) -> None:
    """Export the backbone and neck of a detector to ONNX, and compare the file with PyTorch. Without a checkpoint the weights are random.

    Args:
        config, checkpoint, out: paths.
        repeats: timed runs of each shape.
        runtime: the file is made for it, and compared and timed in it; ``any``: in all that are installed.
        batch: fix the batch at this number of images.
        beside: time the same backbone and neck beside those with mmdet's ResNet, and with SE, at 800 x 1344.

    Raises:
        UserError: features differ by more than ``TOLERANCE``, or the runtime is not installed.
    """
    check_writable(out)
    if batch is not None and batch < 1:
        raise UserError(f'--batch {batch}: give 1 or more, or leave it out for any batch')
    cfg = read_config(config)
    others = {**peers(cfg), 'FCA': cfg} if beside else {}
    if checkpoint is None:
        print('no checkpoint: the weights are random')
    features = take_features(open_detector(config, checkpoint) if checkpoint else build_detector(cfg))
    print(f'exporting {config.stem} ...', flush=True)
    model = write_features(features, out, runtime, batch)
    operators = Counter(node.op_type for node in model.graph.node)
    print(f'{out}: {out.stat().st_size / 2**20:.1f} MiB, opset {model.opset_import[0].version}, {operators.total()} nodes')
    print(', '.join(f'{count} {name}' for name, count in operators.most_common()))
    for name in served_by(runtime):
        if (worst := compare(features, open_file(out, name), NAMES[name], repeats, batch)) > TOLERANCE:
            raise UserError(f'features differ by {worst:.1e} in {NAMES[name]}, more than {TOLERANCE}: do not deploy {out}')
    if beside:
        inputs = dict(images=torch.randn(batch or 1, 3, *SHAPE).numpy())
        time_beside(others, lambda other, path: write_features(take_features(other), path, runtime, batch), inputs, runtime, repeats)

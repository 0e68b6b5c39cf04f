"""Export the backbone and neck of a detector to an ONNX file for any height and width, and any or a fixed batch."""

import copy
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit

import numpy as np
import onnx
import torch
from mmengine.config import Config
from torch import nn

from ..configs import read_config
from ..detector import build_detector, open_detector
from ..errors import UserError
from ..files import check_writable
from .export import write_onnx
from .runtime import NAMES, Run, open_file, served_by

COMPARED = [(1, 3, 97, 131), (1, 3, 480, 640), (3, 3, 65, 257), (2, 3, 333, 200), (1, 3, 800, 1333)]
"""Shapes to compare at: odd, non-square, and so small that the first stage's maps are below the grid of 56."""
TOLERANCE = 1e-4
"""The largest accepted difference from PyTorch's features, relative to the largest feature."""
OWN_ARGUMENTS = ('frequencies', 'dct_size', 'basis', 'fold', 'ignore_padding')
"""What mmdet's ResNet does not take of an FcaResNet's arguments; ``reduction`` is SE's ``ratio``."""


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


def peers(cfg: Config) -> dict[str, Config]:
    """Write the configs of the same detector with mmdet's ResNet, and with SE in it where mmdet's blocks have a place for it.

    Raises:
        UserError: the backbone is not one of this package's.
    """
    kind = str(cfg.model.backbone.type).removeprefix('mmdet.')
    if not kind.startswith('FcaResNe'):
        raise UserError(f'--beside compares an FCA backbone with ResNet and SE, and this config has {kind}')
    options = {name: value for name, value in cfg.model.backbone.items() if name not in (*OWN_ARGUMENTS, 'reduction')}
    options |= dict(type=kind.removeprefix('Fca'), init_cfg=None)
    excitation = dict(type='SqueezeExcitation', ratio=cfg.model.backbone.get('reduction', 16))
    backbones = {'ResNet': options}
    if options['depth'] >= 50:
        backbones['+ SE'] = {**options, 'plugins': [dict(cfg=excitation, position='after_conv3')]}
    found = {}
    for name, backbone in backbones.items():
        found[name] = copy.deepcopy(cfg)
        found[name].model.backbone = backbone
    return found


def time_beside(files: Mapping[str, Path], runtime: str, shape: Sequence[int], repeats: int) -> None:
    """Time ONNX files in turns, and print each median with its ratio to the first."""
    images = {'images': torch.randn(*shape).numpy()}
    runs = {name: partial(open_file(path, runtime), images) for name, path in files.items()}
    rounds = [{name: timeit(run, number=1) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    first = next(iter(files))
    for name in files:
        ratio = median(times[name] / times[first] for times in rounds)
        print(f'{NAMES[runtime]}: {name:8} {median(times[name] for times in rounds) * 1e3:5.0f} ms  {ratio:.2f}', flush=True)


def export_backbone(
    config: Path, checkpoint: Path | None, out: Path, repeats: int, runtime: str = 'any', batch: int | None = None, beside: bool = False
) -> None:
    """Export the backbone and neck of a detector to ONNX, and compare the file with PyTorch. Without a checkpoint the weights are random.

    Args:
        config, checkpoint, out: paths.
        repeats: timed runs of each shape.
        runtime: the file is made for it, and compared and timed in it; ``any``: in all that are installed.
        batch: fix the batch at this number of images.
        beside: time the file beside those of the same detector with mmdet's ResNet, and with SE.

    Raises:
        UserError: features differ by more than ``TOLERANCE``, or the runtime is not installed.
    """
    check_writable(out)
    if batch is not None and batch < 1:
        raise UserError(f'--batch {batch}: give 1 or more, or leave it out for any batch')
    cfg = read_config(config)
    others = peers(cfg) if beside else {}
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
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for index, (name, other) in enumerate(others.items()):
                files[name] = Path(folder, f'{index}.onnx')
                write_features(take_features(build_detector(other)), files[name], runtime, batch)
            for name in served_by(runtime):
                time_beside({**files, 'FCA': out}, name, (batch or 1, 3, 800, 1333), repeats)

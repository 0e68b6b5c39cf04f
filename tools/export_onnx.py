"""Backbone and neck of a detector as an ONNX file for any batch, height and width; checked, compared with PyTorch and timed.

    python tools/export_onnx.py CONFIG [CHECKPOINT] --out FILE.onnx [--repeats 5]

The graph computes the attention's projection maps from the image's shape: it holds no pooling to a grid and does not grow with the image.
Batch normalisations are fused into the convolutions before (mmcv's ``fuse_conv_bn``). Needs the extra ``onnx``. The heads, which
choose boxes by data-dependent sizes, stay in PyTorch.
"""

import argparse
import copy
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_checkpoint
from preflight import check_out
from torch import Tensor, nn

from fca_mmdet.checkpoint import CheckpointError, refuse_pickled_code

EXPORTED = (2, 3, 160, 192)
"""The shape of the example; batch, height and width are free."""

COMPARED = [(1, 3, 97, 131), (1, 3, 480, 640), (3, 3, 65, 257), (2, 3, 333, 200), (1, 3, 800, 1333)]
"""Shapes to compare at: odd, non-square, and so small that the first stage's maps are below the grid of 56."""

TOLERANCE = 1e-4
"""The largest difference from PyTorch's features, relative to the largest of them, that is accepted."""


class Features(nn.Module):
    """Images ``[N, 3, H, W]``, normalised, to the neck's feature maps."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.backbone = cast(nn.Module, detector.backbone)
        self.neck = cast(nn.Module | None, getattr(detector, 'neck', None))
        nn.Module.train(self, False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The neck's outputs, or the backbone's where there is no neck."""
        features = self.backbone(images)
        return self.neck(features) if self.neck is not None else features


def features_of(config: Path, checkpoint: Path | None) -> Features:
    """Backbone and neck of a config with the weights of a checkpoint, or with random ones."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    cfg.model.backbone.init_cfg = None
    detector = MODELS.build(cfg.model)
    if checkpoint:
        refuse_pickled_code()
        load_checkpoint(detector, str(checkpoint), map_location='cpu')
    else:
        print('no checkpoint: the weights are random')
    return Features(detector)


def export(features: Features, out: Path) -> onnx.ModelProto:
    """Write the ONNX file, whole or not at all, and check it."""
    example = torch.rand(EXPORTED)
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    part = out.with_name(f'{out.name}.part')
    with torch.no_grad():
        levels = [f'level{index}' for index, _ in enumerate(features(example))]
        program = torch.export.export(features, (example,), dynamic_shapes=(free,))
        torch.onnx.export(program, (), part, dynamo=True, input_names=['images'], output_names=levels, external_data=False, verbose=False)
    onnx.checker.check_model(onnx.load(part), full_check=True)
    part.replace(out)
    return onnx.load(out)


def compare(features: Features, out: Path, repeats: int) -> list[tuple[tuple[int, ...], float, float, float]]:
    """Per shape: the largest relative difference, and the median seconds of PyTorch and of ONNX Runtime, taken in turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(out, options, providers=['CPUExecutionProvider'])
    rows: list[tuple[tuple[int, ...], float, float, float]] = []
    for shape in COMPARED:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        feed = {'images': images.numpy()}
        with torch.inference_mode():
            pairs = zip(features(images), session.run(None, feed), strict=True)
            error = max(float(np.abs(ours.numpy() - theirs).max() / np.abs(ours.numpy()).max()) for ours, theirs in pairs)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(repeats):
                for series, run in zip(times, (lambda: features(images), lambda: session.run(None, feed)), strict=True):  # noqa: B023
                    start = time.perf_counter()
                    run()
                    series.append(time.perf_counter() - start)
        rows.append((shape, error, statistics.median(times[0]), statistics.median(times[1])))
    return rows


def main() -> None:
    """Parse the command line, export, check, compare, print."""
    parser = argparse.ArgumentParser(description='Export backbone and neck of a detector to ONNX.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path, nargs='?')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--repeats', type=int, default=5, help='timed runs per shape')
    arguments = parser.parse_args()
    if not arguments.config.is_file():
        parser.error(f'no config at {arguments.config}')
    check_out(arguments.out)
    try:
        features = features_of(arguments.config, arguments.checkpoint)
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(f'export_onnx: {error}')
    print(f'exporting {arguments.config.stem} ...', flush=True)
    model = export(fuse_conv_bn(copy.deepcopy(features)), arguments.out)
    operators = Counter(node.op_type for node in model.graph.node)
    print(
        f'{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB, opset {model.opset_import[0].version}, {operators.total()} nodes'
    )
    print(', '.join(f'{count} {name}' for name, count in operators.most_common()))
    worst = 0.0
    for shape, difference, ours, theirs in compare(features, arguments.out, arguments.repeats):
        worst = max(worst, difference)
        label = ' x '.join(map(str, shape))
        timed = f'PyTorch {ours * 1e3:.0f} ms, ONNX Runtime {theirs * 1e3:.0f} ms ({theirs / ours:.2f})'
        print(f'{label:16} difference {difference:.1e}   {timed}', flush=True)
    if worst > TOLERANCE:
        sys.exit(f'export_onnx: features differ by {worst:.1e}, more than {TOLERANCE}: do not deploy {arguments.out}')


if __name__ == '__main__':
    main()

"""Measure how much the detections in an image change with the other image of its batch, to whose size mmdet pads it."""

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress
from torch import nn

from ..detector import find_images, load_image, open_detector
from ..files import check_writable, write_whole
from .plots import plt, spread, write_figure

SIZES = (1.0, 1.25, 1.5, 2.0)
"""Height and width of the other image, relative to the first."""
TITLES = {'without_counterpart': 'detections without a counterpart', 'score_change': 'mean change of score'}
Measures = dict[float, dict[str, float]]
"""For each size, the share of detections ``without_counterpart``, and the mean ``score_change`` of the others."""


def compare(alone: InstanceData, batched: InstanceData) -> tuple[int, list[float]]:
    """Pair detections of one class by overlap (IoU >= 0.5, best first). Returns how many have no pair, and each pair's change of score."""
    overlap = bbox_overlaps(alone.bboxes, batched.bboxes) * (alone.labels[:, None] == batched.labels)
    changes: list[float] = []
    while overlap.numel() and overlap.max() >= 0.5:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        changes.append(abs(float(alone.scores[row] - batched.scores[column])))
        overlap[row], overlap[:, column] = 0, 0
    return len(alone) + len(batched) - 2 * len(changes), changes


def _detect_in_first(model: nn.Module, batch: dict[str, Any], score: float) -> InstanceData:
    batch = dict(batch, data_samples=[sample.clone() for sample in batch['data_samples']])
    with torch.no_grad():
        instances = model.test_step(batch)[0].pred_instances  # type: ignore[operator]
    return instances[instances.scores >= score]


def _with_another(batch: dict[str, Any], size: float) -> dict[str, Any]:
    """Batch an image with a copy of itself that is ``size`` times as high and wide."""
    (image,), (sample,) = batch['inputs'], batch['data_samples']
    enlarged = mmcv.imrescale(np.ascontiguousarray(image.numpy().transpose(1, 2, 0)), size)
    other = sample.clone()
    other.set_metainfo(dict(img_shape=enlarged.shape[:2], ori_shape=enlarged.shape[:2], scale_factor=(1.0, 1.0)))
    return dict(inputs=[image, torch.from_numpy(enlarged.transpose(2, 0, 1).copy())], data_samples=[sample, other])


def _measure_detector(model: nn.Module, paths: Sequence[Path], score: float) -> Measures:
    lone: dict[float, int] = dict.fromkeys(SIZES, 0)
    changes: dict[float, list[float]] = {size: [] for size in SIZES}
    for path in track_iter_progress(paths):
        batch = load_image(model, path)
        alone = _detect_in_first(model, batch, score)
        for size in SIZES:
            without, pairs = compare(alone, _detect_in_first(model, _with_another(batch, size), score))
            lone[size] += without
            changes[size] += pairs
    totals = {size: max(lone[size] + 2 * len(changes[size]), 1) for size in SIZES}
    return {size: dict(without_counterpart=lone[size] / totals[size], score_change=float(np.mean(changes[size] or [0]))) for size in SIZES}


def name_of(config: Path) -> str:
    """Name a model by its config's file, or by its run if that file is RUN/config.py or RUN/seed-N/config.py."""
    if config.stem != 'config':
        return config.stem
    folder = config.resolve().parent
    return folder.parent.name if folder.name.startswith('seed-') else folder.name


def average(measures: Sequence[Measures]) -> Measures:
    """Compute means and sample standard deviations over detectors, such as the seeds of a run."""
    found: Measures = {size: {} for size in measures[0]}
    for size, key in itertools.product(found, TITLES):
        column = [measure[size][key] for measure in measures]
        found[size] |= {key: fmean(column), f'{key}_std': spread(column)}
    return found


def draw_changes(results: dict[str, Measures], out: Path) -> None:
    """Draw both measures against the size of the other image: a line for each name, with the spread over its detectors."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, (key, title) in zip(axes, TITLES.items(), strict=True):
        for name, result in results.items():
            means, bars = ([values[column] for values in result.values()] for column in (key, f'{key}_std'))
            axis.errorbar(list(result), means, bars if any(bars) else None, marker='o', capsize=2, label=name)
        axis.set(xlabel='size of the other image, relative to the first', title=title, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    write_figure(figure, out)


def measure_batching(model: Sequence[tuple[str, str]], images: Path, out: Path, count: int, score: float, device: str) -> None:
    """Measure detectors, each a config and its checkpoint, on a folder's images. Prints, writes and draws the averages of each name."""
    paths = find_images(images, count)
    check_writable(out)
    measures: dict[str, list[Measures]] = defaultdict(list)
    for config, checkpoint in model:
        detector = open_detector(Path(config), Path(checkpoint), device)
        measures[name_of(Path(config))].append(_measure_detector(detector, paths, score))
    results = {name: average(several) for name, several in measures.items()}
    for name, result in results.items():
        for size, values in result.items():
            deviation = ' +- {without_counterpart_std:.1%}, {score_change_std:.4f}'.format(**values) if len(measures[name]) > 1 else ''
            print(f'{name}, other image x {size}: {values["without_counterpart"]:.1%} without counterpart, ', end='')
            print(f'scores change by {values["score_change"]:.4f}{deviation}')
    write_whole(out, json.dumps(dict(images=len(paths), score=score, results=results), indent=2) + '\n')
    draw_changes(results, out.with_suffix('.png'))
    print(f'wrote {out} and {out.with_suffix(".png")}')

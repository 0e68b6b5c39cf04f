"""Watch the memory of a long training on images of random size, with mmdet's ResNet and with an FCA backbone."""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.utils import track_iter_progress

from ..configs import config_path, read_config
from ..detector import build_detector
from ..files import check_writable, write_whole
from ..projection import CACHED_MAPS, cached_projection_maps
from .machine import origin
from .plots import plt, write_figure

BACKBONES = {'ResNet': 'ResNet', '+ FCA': 'FcaResNet'}
CLASSES = 3
SIDES = (64, 160)
"""The least and the largest side of an image, in pixels. ``pad_size_divisor=1`` leaves its size as it is."""
MIB = 2**20
SMALLER = {
    'backbone.base_channels': 16,
    'backbone.norm_eval': True,
    'neck.in_channels': [16, 32, 64, 128],
    'data_preprocessor.pad_size_divisor': 1,
    'train_cfg.rpn_proposal.nms_pre': 50,
    'train_cfg.rpn_proposal.max_per_img': 20,
    'train_cfg.rcnn.sampler.num': 12,
    'roi_head.bbox_head.num_classes': CLASSES,
    'roi_head.mask_head.num_classes': CLASSES,
}
"""Changes to the model of configs/small, for many iterations in little time."""


def _train(name: str, iterations: int) -> dict[str, list]:
    """Train with a backbone. Returns, for each iteration, the image's size, the held and resident bytes and the cached maps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    cfg = read_config(config_path('small/mask-rcnn_fca-r18_fpn_small-heads'))
    cfg.merge_from_dict({f'model.{key}': value for key, value in {**SMALLER, 'backbone.type': BACKBONES[name]}.items()})
    model: Any = build_detector(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    process = psutil.Process()
    found: dict[str, list] = {'sizes': [], 'held': [], 'resident': [], 'maps': []}
    print(name)
    for _ in track_iter_progress(range(iterations)):
        height, width, objects = random.integers((*SIDES[:1] * 2, 1), (*SIDES[1:] * 2, 8), endpoint=True).tolist()
        batch = demo_mm_inputs(1, [(3, height, width)], num_items=[objects], num_classes=CLASSES, with_mask=True)
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found['sizes'].append((height, width))
        found['held'].append(sum(psutil.heap_info()))
        found['resident'].append(process.memory_info().rss)
        found['maps'].append(cached_projection_maps.cache_info().currsize)
    psutil.heap_trim()  # the heap returns what it can
    return found | {'trimmed': [process.memory_info().rss]}


def growth(series: Sequence[float]) -> tuple[float, float]:
    """Compute the median of the second tenth of a series, and how much larger the median of the last tenth is."""
    tenth = len(series) // 10
    early, late = (float(np.median(part)) for part in (series[tenth : 2 * tenth], series[-tenth:]))
    return early, late - early


def is_flat(series: Sequence[float]) -> bool:
    """Tell whether bytes grow by at most 1 % and 1 MiB."""
    early, grown = growth(series)
    return grown <= 0.01 * early + MIB


def draw_memory(found: dict[str, dict[str, list]], out: Path) -> None:
    """Draw held and resident memory over iterations, and how many projection maps are cached."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[2, 1])
    styles = zip(found.items(), ('silver', 'tab:blue'), (5, 1.5), strict=True)
    for (name, series), color, width in styles:  # one line shows beneath the other
        iterations = np.arange(1, len(series['held']) + 1)
        resident, held, trimmed = (np.array(series[key]) / MIB for key in ('resident', 'held', 'trimmed'))
        left.plot(iterations, resident, label=f'{name}, resident', color=color, lw=0.8)
        left.plot(iterations, held, label=f'{name}, held', color=color, lw=width)
        left.plot(iterations[-1:], trimmed, 'v', ms=4 + width, label=f'{name}, resident when trimmed', color=color)
        right.plot(iterations, series['maps'], label=name, color=color)
    left.set(xlabel='iteration', ylabel='memory of the process, MiB', ylim=(0, None))
    right.set(xlabel='iteration', ylabel='cached projection maps')
    right.axhline(CACHED_MAPS, color='black', lw=0.8, ls='--')
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(loc='lower right', fontsize=8, ncols=2)
    rows, columns = (f'{min(sides)} to {max(sides)}' for sides in zip(*next(iter(found.values()))['sizes'], strict=True))
    figure.suptitle(f'A small Mask R-CNN trained on images of {rows} x {columns} pixels', fontsize=10)
    write_figure(figure, out)


def soak(iterations: int, out: Path | None) -> bool:
    """Train with each backbone in a process of its own; print, write and draw its memory. Returns whether it is flat with FCA."""
    if out:
        check_writable(out)
    found = {}
    for name in BACKBONES:
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as own_process:
            found[name] = own_process.submit(_train, name, iterations).result()
    for name, series in found.items():
        print(f'{name}, {len(set(map(tuple, series["sizes"])))} sizes of image, {max(series["maps"])} maps cached')
        for kind in ('held', 'resident'):
            early, grown = growth(series[kind])
            print(f'  {kind:8} second tenth {early / MIB:.1f} MiB, last tenth {grown / MIB:+.1f} MiB ({grown / early:+.1%})')
        print(f'  resident when trimmed {series["trimmed"][0] / MIB:.1f} MiB')
        print(f'  {"flat" if is_flat(series["held"]) else "not flat"}')
    if out:
        write_whole(out, json.dumps({**origin('cpu'), **found}) + '\n')
        draw_memory(found, out.with_suffix('.png'))
    return is_flat(found['+ FCA']['held'])

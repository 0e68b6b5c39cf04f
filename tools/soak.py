"""Train a small Mask R-CNN for long on images of random size and content, and watch the memory of its process.

    python tools/soak.py [--iterations 2000] [--out docs/faults/memory.json]

The same detector with mmdet's ResNet is trained on the same images in another process: what grows there too is not the attention's.
Statistics are frozen, so that the blocks run folded.

Two figures are taken after each iteration: the bytes that the process holds, as its heap counts them, and those that are resident, among
them what was freed and lies between what is held. At the end the heap is told to give back what it can.

Memory is flat if the median of the held bytes in the last tenth is at most 1 % and 1 MiB above their median in the second tenth. If it is
not, with FCA, the command ends with 1. ``--out`` names a JSON file; a figure is drawn beside it.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from benchmark import machine
from figures import write_figure
from matplotlib import pyplot as plt
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from preflight import check_out

from fca_mmdet import config_path
from fca_mmdet.dct import CACHED_MAPS, cached_projection_maps

BACKBONES = {'ResNet': 'ResNet', '+ FCA': 'FcaResNet'}
CLASSES = 3
SIDES = (64, 160)
"""Pixels, of each side of each image; with ``pad_size_divisor=1`` nothing makes two sizes the same."""

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
"""What is changed of configs/small, for many iterations in little time."""

MIB = 2**20
SHARE, SLACK = 0.01, MIB


def soak(name: str, iterations: int) -> dict[str, list]:
    """Train; the size of each image, and after each iteration the held and resident bytes and the number of cached projection maps.

    ``trimmed`` has the resident bytes when the heap has given back what it can.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    init_default_scope('mmdet')
    config = Config(dict(Config.fromfile(config_path('small/mask-rcnn_fca-r18_fpn_small-heads')).model))
    config.merge_from_dict({**SMALLER, 'backbone.type': BACKBONES[name]})
    model = MODELS.build(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    process = psutil.Process()
    found: dict[str, list] = {'sizes': [], 'held': [], 'resident': [], 'maps': []}
    start = time.monotonic()
    for iteration in range(1, iterations + 1):
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
        if iteration % 20 == 0 or iteration == iterations:
            left = (time.monotonic() - start) / iteration * (iterations - iteration)
            print(f'\r{name}: iteration {iteration} of {iterations}, {left / 60:.1f} min left   ', end='', flush=True)
    print()
    psutil.heap_trim()
    return found | {'trimmed': [process.memory_info().rss]}


def growth(series: Sequence[int]) -> tuple[float, float]:
    """The median of the second tenth of a series, and how much larger that of the last tenth is.

    Example:
        >>> growth([9] * 10 + [1] * 50 + [2] * 40)
        (1.0, 1.0)
    """
    tenth = len(series) // 10
    early, late = (float(statistics.median(part)) for part in (series[tenth : 2 * tenth], series[-tenth:]))
    return early, late - early


def is_flat(series: Sequence[int]) -> bool:
    """Whether the growth is at most ``SHARE`` of what there was and ``SLACK`` bytes."""
    early, grown = growth(series)
    return grown <= SHARE * early + SLACK


def draw(found: dict[str, dict[str, list]], out: Path) -> None:
    """Held and resident memory over iterations, and how many projection maps are cached."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[2, 1])
    for (name, series), color, width in zip(
        found.items(), ('silver', 'tab:blue'), (5, 1.5), strict=True
    ):  # the one shows beneath the other
        iterations = np.arange(1, len(series['held']) + 1)
        left.plot(iterations, np.array(series['resident']) / MIB, label=f'{name}, resident', color=color, lw=0.8)
        left.plot(iterations, np.array(series['held']) / MIB, label=f'{name}, held', color=color, lw=width)
        left.plot(
            iterations[-1:], np.array(series['trimmed']) / MIB, 'v', ms=4 + width, label=f'{name}, resident when trimmed', color=color
        )
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


def main() -> int:
    """Parse the command line, train, print, write; 1 if the memory with FCA is not flat."""
    parser = argparse.ArgumentParser(description='Watch the memory of a long training on images of random size.')
    parser.add_argument('--iterations', type=int, default=2000, help='(default: %(default)s)')
    parser.add_argument('--out', type=Path, help='a JSON file to write; the figure is drawn beside it')
    args = parser.parse_args()
    if args.iterations < 10:
        parser.error(f'--iterations {args.iterations}: the first and the last tenth need at least 10')
    if not hasattr(psutil, 'heap_info'):
        parser.error(
            f'psutil {psutil.__version__} cannot ask the heap on this platform: it takes psutil >= 7.2, and glibc, macOS or Windows'
        )
    if args.out:
        check_out(args.out)
    found = {}
    for name in BACKBONES:
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as own_process:
            found[name] = own_process.submit(soak, name, args.iterations).result()
    for name, series in found.items():
        print(f'{name}, {len(set(map(tuple, series["sizes"])))} sizes of image, {max(series["maps"])} maps cached')
        for kind in ('held', 'resident'):
            early, grown = growth(series[kind])
            print(f'  {kind:8} second tenth {early / MIB:.1f} MiB, last tenth {grown / MIB:+.1f} MiB ({grown / early:+.1%})')
        print(f'  resident when trimmed {series["trimmed"][0] / MIB:.1f} MiB')
        print(f'  {"flat" if is_flat(series["held"]) else "not flat"}')
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({'command': ' '.join(['python', *sys.argv]), 'machine': machine('cpu'), **found}) + '\n')
        draw(found, args.out.with_suffix('.png'))
    return 0 if is_flat(found['+ FCA']['held']) else 1


if __name__ == '__main__':
    sys.exit(main())

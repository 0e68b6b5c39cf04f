"""Time frequency channel attention beside its peers, and measure what a training step keeps.

    python tools/benchmark.py backbone [--depth 50 --batch 1 --size 800 1344 --channels-last --compile --dtype bfloat16 ...]
    python tools/benchmark.py operators [...]  # where a training step's time goes
    python tools/benchmark.py sizes       # time against image area
    python tools/benchmark.py forms       # the two folded forms of a bottleneck, where one overtakes the other
    python tools/benchmark.py attention   # the layer alone, beside squeeze-and-excitation and a global average
    python tools/benchmark.py detector    # a training step of Mask R-CNN, on a GPU
    python tools/benchmark.py evaluation  # COCO's figures of 5000 images, by pycocotools and by hotcoco
    python tools/benchmark.py record --out FILE.json  # all but evaluation, in several settings; interrupted and started again, it goes on

Every alternative lives in a process of its own, as it would be trained or deployed, and they take turns: what else the machine does falls
on all of them. Since a process keeps where its heap happens to lie, all start anew every three rounds (not if compiled: that takes
minutes). A time is a median over the rounds, a ratio the median of the ratios to mmdet's ResNet within a round. Normalisations are frozen
(``norm_eval``) with statistics drawn around those of trained ResNets, ``frozen_stages=1``. On CUDA, times are taken with events.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.benchmark import BACKBONES, RECORDED
from fca_mmdet.lab.record import run_benchmark
from fca_mmdet.lab.timing import Setting


@command
def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description='Time frequency channel attention beside its peers.')
    parser.add_argument('what', choices=('backbone', 'operators', 'sizes', 'attention', 'forms', 'detector', 'evaluation', 'record'))
    parser.add_argument('--depth', type=int)
    parser.add_argument('--batch', type=int)
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), help='other than float32: autocast')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--compile', action='store_true', help='torch.compile the backbones')
    parser.add_argument('--device')
    parser.add_argument('--threads', type=int)
    parser.add_argument('--keep-pages', action='store_true', help='tell glibc to keep what is freed (MALLOC_MMAP_MAX_=0, no trimming)')
    parser.set_defaults(**asdict(Setting()))
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--images', type=int, default=5000, help='of evaluation (default: %(default)s, as COCO val)')
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, help='what to compare with ResNet; by default all that is recorded')
    parser.add_argument('--out', type=Path, help='a JSON file to write; figures and tables are written beside it')
    arguments = vars(parser.parse_args())
    what, repeats, images, names, out = (arguments.pop(key) for key in ('what', 'repeats', 'images', 'backbones', 'out'))
    setting = Setting(**arguments | {'size': tuple(arguments['size'])})
    possible = [name for name in BACKBONES if setting.depth >= 50 or name == 'ResNet' or 'FCA' in name]
    names = names or [name for name in possible if name in RECORDED]
    if not set(names) <= set(possible):
        parser.error(f"the blocks of depth {setting.depth} have no plugin slot in mmdet's ResNet: choose --backbones of {possible}")
    names = list(dict.fromkeys(['ResNet', *names]))
    run_benchmark(what, setting, names, repeats, images, out)


if __name__ == '__main__':
    main()

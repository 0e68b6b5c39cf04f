"""Time frequency channel attention beside its peers, and measure the memory of a training step.

    python tools/benchmark.py backbone [--depth 50 --batch 1 --size 800 1344 --channels-last --compile --dtype bfloat16 ...]
    python tools/benchmark.py operators [...]  # a training step's time by operator
    python tools/benchmark.py sizes       # time against image area
    python tools/benchmark.py forms       # the two folded forms of a bottleneck, at sizes around that from which the other is faster
    python tools/benchmark.py attention   # the layer alone, beside squeeze-and-excitation and a global average
    python tools/benchmark.py deployed    # inference in ONNX Runtime and OpenVINO, for any shape and for a fixed one
    python tools/benchmark.py roofline    # predict the ratios on GPUs that are not at hand, from bytes and operations
    python tools/benchmark.py detector    # a training step of Mask R-CNN, on a GPU
    python tools/benchmark.py evaluation  # COCO's figures of 5000 images, by pycocotools and by hotcoco
    python tools/benchmark.py record --out FILE.json  # all but operators, roofline and evaluation, in several settings

Each alternative runs in a process of its own, as in training or deployment. They take turns, so that other work on the machine slows all
of them alike. All processes restart every three rounds, since each keeps the placement of its heap (not if compiled: that takes minutes).
A time is a median over the rounds; a ratio is the median of the ratios to mmdet's ResNet within a round. Normalisations are frozen
(``norm_eval``) with random statistics like those of trained ResNets; ``frozen_stages=1``. CUDA events take the times on a GPU. If a record
is interrupted, the same command goes on.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.benchmark import BACKBONES, COMPARED, RECORDED
from fca_mmdet.lab.record import MEASURED, run_benchmark
from fca_mmdet.lab.timing import Setting


@command
def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description='Time frequency channel attention beside its peers.')
    parts = ['backbone', *(part for part in MEASURED if part != 'backbones')]
    parser.add_argument('what', choices=[*parts, 'evaluation', 'record'])
    parser.add_argument('--depth', type=int)
    parser.add_argument('--batch', type=int)
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), help='float16 and bfloat16 use autocast')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--compile', action='store_true', help='torch.compile the backbones')
    parser.add_argument('--device')
    parser.add_argument('--threads', type=int)
    parser.add_argument('--keep-pages', action='store_true', help='let glibc keep freed memory (MALLOC_MMAP_MAX_=0, no trimming)')
    parser.set_defaults(**asdict(Setting()))
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--images', type=int, default=5000, help='number of images for evaluation (default: %(default)s, as COCO val)')
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, help='what to compare with ResNet (default: what a record has)')
    parser.add_argument('--out', type=Path, help='a JSON file to write, with figures and tables beside it')
    arguments = vars(parser.parse_args())
    what, repeats, images, names, out = (arguments.pop(key) for key in ('what', 'repeats', 'images', 'backbones', 'out'))
    setting = Setting(**arguments | {'size': tuple(arguments['size'])})
    possible = [name for name in BACKBONES if setting.depth >= 50 or 'ResNet' in name or 'FCA' in name]
    names = names or [name for name in possible if name in (COMPARED if what == 'deployed' else RECORDED)]
    if not set(names) <= set(possible):
        parser.error(f"the blocks of depth {setting.depth} have no plugin slot in mmdet's ResNet: choose --backbones from {possible}")
    names = list(dict.fromkeys(['ResNet', *names]))
    run_benchmark(what, setting, names, repeats, images, out)


if __name__ == '__main__':
    main()

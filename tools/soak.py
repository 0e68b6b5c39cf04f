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
import sys
from pathlib import Path

import psutil

from fca_mmdet.command import command
from fca_mmdet.lab.soak import soak


@command
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
    return 0 if soak(args.iterations, args.out) else 1


if __name__ == '__main__':
    sys.exit(main())

"""Train a small Mask R-CNN for a long time on images of random size and content, and watch the memory of its process.

    python tools/soak.py [--iterations 2000] [--out docs/faults/memory.json]

The same detector with mmdet's ResNet is trained on the same images in another process: the attention does not cause what grows there too.
Statistics are frozen, so that the blocks run folded.

After each iteration the command notes the bytes that the process holds, as its heap counts them, and those that are resident, which include
freed memory between held blocks. At the end it makes the heap give back what it can.

Memory is flat if the median of the held bytes in the last tenth is at most 1 % and 1 MiB above their median in the second tenth. If it is
not flat with FCA, the command ends with 1.
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
        parser.error(f'--iterations {args.iterations}: the first and the last tenth need at least 10 iterations')
    if not hasattr(psutil, 'heap_info'):
        parser.error(f'psutil {psutil.__version__} cannot read the heap here: use psutil 7.2 or later, on glibc, macOS or Windows')
    return 0 if soak(args.iterations, args.out) else 1


if __name__ == '__main__':
    sys.exit(main())

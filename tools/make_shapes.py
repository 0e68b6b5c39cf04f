"""Make a COCO-format data set of textured shapes. The same arguments give the same data.

    python tools/make_shapes.py OUT [--train 600] [--val 80] [--seed 0]

There are three classes on a mottled ground: discs with coarse stripes, discs with fine stripes, and crosses with either. Only the outline
distinguishes a cross, and only spatial frequency the two discs. Shapes crowd and occlude each other; a mask is the visible part of a shape.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.shapes import make_shapes


@command
def main() -> None:
    """Parse the command line and make the data set."""
    parser = argparse.ArgumentParser(description='Make a COCO-format data set of textured shapes.')
    parser.add_argument('out', type=Path, help='the folder to make')
    parser.add_argument('--train', type=int, default=600, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=80, help='held-out images (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f'{args.out} exists: remove it, or name another folder')
    make_shapes(args.out, args.train, args.val, args.seed)


if __name__ == '__main__':
    main()

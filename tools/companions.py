"""How much the detections in an image change with the companions that it is batched with.

    python tools/companions.py --model CONFIG CHECKPOINT [--model ...] --images FOLDER --out FILE.json [--count 40] [--score 0.3]

An image that is batched with a larger one is padded to its size. Convolutions see that at the image's border, an attention that pools over
the feature map sees it everywhere. For each model and each size of a companion, relative to the image: the share of detections without a
counterpart (same class, IoU of at least 0.5) in the image alone, and the mean change of the scores of those that have one. Writes the
numbers, and beside them a figure. Models of one name, the seeds of a run of tools/experiment.py, are averaged.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.batching import measure_batching


@command
def main() -> None:
    """Parse the command line, measure each model, print, write and draw."""
    parser = argparse.ArgumentParser(description='Measure how much detections change with the companions of a batch.')
    parser.add_argument('--model', nargs=2, action='append', required=True, metavar=('CONFIG', 'CHECKPOINT'))
    parser.add_argument('--images', type=Path, required=True, help='a folder')
    parser.add_argument('--out', type=Path, required=True, help='a .json file; the figure lies beside it')
    parser.add_argument('--count', type=int, default=40, help='how many of the images, in the order of their names')
    parser.add_argument('--score', type=float, default=0.3, help='detections from this score on count')
    parser.add_argument('--device', default='cpu')
    measure_batching(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

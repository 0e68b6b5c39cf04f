"""Measure how much the detections in an image change with the other image of its batch.

    python tools/batching.py --model CONFIG CHECKPOINT [--model ...] --images FOLDER --out FILE.json [--count 40] [--score 0.3]

An image in a batch with a larger one is padded to its size. Convolutions see the padding at the image's border; an attention that pools
over the feature map sees it everywhere. For each model and each size of the other image, the command measures the share of detections
without a counterpart in the image alone (same class, IoU of at least 0.5), and the mean change of score of the others. It writes the
numbers and a figure beside them. Models of one name, such as the seeds of a run of tools/experiment.py, are averaged.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.batching import measure_batching


@command
def main() -> None:
    """Parse the command line, measure each model, print, write and draw."""
    parser = argparse.ArgumentParser(description='Measure how much detections change with the other image of a batch.')
    parser.add_argument('--model', nargs=2, action='append', required=True, metavar=('CONFIG', 'CHECKPOINT'))
    parser.add_argument('--images', type=Path, required=True, help='a folder')
    parser.add_argument('--out', type=Path, required=True, help='a .json file to write; the figure is drawn beside it')
    parser.add_argument('--count', type=int, default=40, help='number of images, the first by name')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a detection that counts')
    parser.add_argument('--device', default='cpu')
    measure_batching(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

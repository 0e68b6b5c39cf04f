"""Draw what a trained detector finds in an image, and what its frequency attention contributes.

    python tools/visualize.py CONFIG CHECKPOINT IMAGE --out PICTURE.png [--score 0.3] [--top 10]

The top row has the predictions, and a Grad-CAM (https://arxiv.org/abs/1610.02391) of the backbone's last feature map for the scores of the
best predictions. The bottom row has, by block and frequency (u, v), the mean gate of the frequency's channels, and the gates' part in the
scores: the sum over channels of the gate times the derivative of the scores by it. To first order, the scores would lose this part if
these gates closed and the proposals stayed (the derivative does not pass through them).
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.pictures import draw_explanation


@command
def main() -> None:
    """Parse the command line, explain and draw."""
    parser = argparse.ArgumentParser(description='Draw what a detector and its frequency attention do with an image.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('image', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--score', type=float, default=0.3, help='least score of a prediction that is drawn')
    parser.add_argument('--top', type=int, default=10, help='number of best scores to explain')
    parser.add_argument('--device', default='cpu')
    draw_explanation(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

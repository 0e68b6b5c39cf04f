"""What a trained detector sees in an image, and what its frequency attention does with it, as one picture.

    python tools/visualize.py CONFIG CHECKPOINT IMAGE --out PICTURE.png [--score 0.3] [--top 10]

Above: the predictions, and a Grad-CAM (https://arxiv.org/abs/1610.02391) of the backbone's last feature map for the scores of the best
predictions. Below, by block and frequency (u, v): the mean gate of the frequency's channels, and how much those gates decide, the sum over
channels of gate times the derivative of the scores by the gate: what the scores would lose, to first order, if these gates closed and the
proposals stayed where they are (the derivative does not pass through them).
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
    parser.add_argument('--score', type=float, default=0.3, help='predictions from this score on are drawn')
    parser.add_argument('--top', type=int, default=10, help='how many of the best scores are explained')
    parser.add_argument('--device', default='cpu')
    draw_explanation(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

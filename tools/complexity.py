"""Count parameters and floating-point operations of configs, and compare the attention with squeeze-and-excitation as published.

    python tools/complexity.py                              # the published comparison, 224 x 224
    python tools/complexity.py configs/faster_rcnn [...]    # also the configs in folders or files, 800 x 1280
    python tools/complexity.py configs --out docs/complexity.md

mmengine.analysis counts, a multiplication with its addition as one. It leaves out products, sums and means, of which attentions consist:
here they count one per element. The attention counts in its readable form. Its projection maps depend on the image's size alone and are
kept, as in training and inference, so they count nothing. A detector's count depends on its proposals: random weights give 1,000.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.complexity import tabulate_costs


@command
def main() -> None:
    """Parse the command line, count, print, write."""
    parser = argparse.ArgumentParser(description='Count parameters and FLOPs of configs.')
    parser.add_argument('configs', nargs='*', type=Path, help='config files, or folders of them')
    parser.add_argument('--out', type=Path, help='a Markdown file to write the tables to')
    tabulate_costs(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

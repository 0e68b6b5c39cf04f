"""Draw the pictures of docs/method.md.

python tools/method.py --out docs/method
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.method import draw_method


@command
def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description='Draw the pictures of docs/method.md.')
    parser.add_argument('--out', type=Path, required=True, help='a folder')
    draw_method(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

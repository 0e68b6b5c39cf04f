"""Look, before training or testing, at what a detector's config names: at what would fail hours later, or go wrong unnoticed.

    python tools/preflight.py CONFIG [--decode]

``train.py``, ``test.py`` and ``demo.py`` begin with it. A data set needs an annotation file, its categories in the order of the classes,
objects to learn from, segmentations where masks are learned or scored, and images that exist and can be decoded. The work directory needs
free space for the checkpoints. It reads the head of each image, the end of a JPEG and the checksums of a PNG; with ``--decode``, all of it.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.configs import read_config
from fca_mmdet.training.preflight import check


@command
def main() -> None:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(description="Check a detector's data and work directory.")
    parser.add_argument('config', type=Path)
    parser.add_argument('--work-dir', help='where training would write')
    parser.add_argument('--decode', action='store_true', help='decode every image')
    arguments = parser.parse_args()
    check(read_config(arguments.config), ('train', 'val', 'test'), arguments.decode, arguments.work_dir)


if __name__ == '__main__':
    main()

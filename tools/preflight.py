"""Check a detector's data and work directory before training or testing, for what would fail hours later or go wrong unnoticed.

    python tools/preflight.py CONFIG [--decode]

``train.py``, ``test.py`` and ``demo.py`` begin with this check; ``--no-preflight`` leaves it out. mmdet's own commands begin with it where
a config has ``custom_hooks = [dict(type='PreflightHook')]``.

It looks at what mmdet's loader and COCO's evaluation need of the annotation files, at the images, and at what must agree: heads, classes,
categories, the files of the data set and of the evaluator, training and validation images, the schedules of a checkpoint and of the config.
It refuses what cannot be meant, and tells what may be. It reads each image's head, a JPEG's end and a PNG's checksums, and decodes a few
images of each kind; ``--decode`` decodes them all.
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

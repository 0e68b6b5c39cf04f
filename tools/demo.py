"""Do the main job: train a small Mask R-CNN with an FCA backbone on a COCO-format folder, score it with COCO mAP, and draw it.

    python tools/demo.py [--data FOLDER] [--work-dir DIR]

FOLDER has ``annotations/train.json``, ``annotations/val.json`` and ``images/``; the classes are read from the files. Without FOLDER, the
job makes a data set of textured shapes (tools/make_shapes.py). Started again after an interruption, it goes on where it stopped. It
writes to DIR: ``config.py`` (for tools/train.py and tools/test.py), checkpoints, ``metrics.json`` and the figures.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.demo import CONFIG, run_demo


@command
def main() -> None:
    """Parse the command line and run the job."""
    parser = argparse.ArgumentParser(description='Train, test and draw a small Mask R-CNN with an FCA backbone.')
    parser.add_argument('--data', type=Path, help='a COCO-format folder (default: textured shapes, made in the work directory)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='(default: %(default)s)')
    parser.add_argument('--config', type=Path, default=CONFIG, help='(default: %(default)s)')
    parser.add_argument('--no-preflight', dest='preflight', action='store_false', help='leave out the check of data and config')
    run_demo(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

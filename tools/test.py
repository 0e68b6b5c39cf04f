"""Run the installed test.py of mmdet, or of mmpretrain for a classifier's config, with this package imported and all its options.

    python tools/test.py --help

Checkpoints are read as data. Data and config are checked first; ``--no-preflight`` leaves that out.
"""

from fca_mmdet.command import command
from fca_mmdet.training.launch import launch


@command
def main() -> None:
    """Run it."""
    launch('test.py')


if __name__ == '__main__':
    main()

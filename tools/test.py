"""The installed test.py of mmdet, or of mmpretrain for a classifier's config, with this package imported; all of its options work.

    python tools/test.py --help

Checkpoints are read as data.
"""

from fca_mmdet.command import command
from fca_mmdet.training.launch import launch


@command
def main() -> None:
    """Run it."""
    launch('test.py')


if __name__ == '__main__':
    main()

"""The installed train.py of mmdet, or of mmpretrain for a classifier's config, with this package imported; all of its options work.

    python tools/train.py --help

Checkpoints are read as data.
"""

from upstream import run_upstream

if __name__ == '__main__':
    run_upstream('train.py')

"""mmdet's own installed train.py, with this package imported first; all of its options work.

python tools/train.py --help
"""

import runpy
from pathlib import Path

import mmdet

import fca_mmdet  # noqa: F401  registers the backbones, also for a config that does not import them

if __name__ == '__main__':
    runpy.run_path(str(Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'), run_name='__main__')

"""mmdet's own installed test.py, with this package imported first; all of its options work.

python tools/test.py --help
"""

import runpy
from pathlib import Path

import mmdet

import fca_mmdet  # noqa: F401  registers the backbones, also for a config that does not import them

if __name__ == '__main__':
    runpy.run_path(str(Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'), run_name='__main__')

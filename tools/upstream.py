"""Runs the installed train.py and test.py of the library that a config is for: mmdet, or mmpretrain for a classifier."""

import importlib.util
import runpy
import sys
from pathlib import Path

from mmengine.config import Config

from fca_mmdet.checkpoint import refuse_pickled_code  # the import registers the backbones, also for a config that does not


def run_upstream(script: str) -> None:
    """Run ``script`` of the config's ``default_scope`` with this process's arguments; checkpoints are read as data."""
    configs = [argument for argument in sys.argv[1:] if argument.endswith('.py') and Path(argument).is_file()]
    library = (Config.fromfile(configs[0]).get('default_scope') if configs else None) or 'mmdet'
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        sys.exit(f"{configs[0]} is for {library}, which is not installed; mmpretrain comes with pip install '.[classification]'")
    refuse_pickled_code()
    runpy.run_path(str(Path(found.origin).parent / '.mim' / 'tools' / script), run_name='__main__')

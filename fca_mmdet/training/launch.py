"""Run the installed train.py and test.py of the library that a config is for: mmdet, or mmpretrain for a classifier."""

import argparse
import atexit
import importlib.util
import os
import runpy
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from torch import distributed

from ..checkpoint import refuse_pickled_code
from ..configs import read_config
from ..errors import UserError
from . import preflight


def launch(script: str) -> None:
    """Run ``train.py`` or ``test.py`` of the config's ``default_scope`` with this process's arguments; checkpoints are read as data.

    A config of mmdet's is checked first, as these arguments change it; of several processes, the first does that.

    Raises:
        UserError: a config without a model or for a library that is not installed, or something that ``preflight.check`` refuses.
    """
    paths = [argument for argument in sys.argv[1:] if argument.endswith('.py') and Path(argument).is_file()]
    cfg = read_config(paths[0]) if paths else Config()
    library = cfg.get('default_scope') or 'mmdet'
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        raise UserError(f"{paths[0]} is for {library}, which is not installed; mmpretrain comes with pip install '.[classification]'")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--launcher')
    parser.add_argument('--work-dir')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    options, _ = parser.parse_known_args()
    first = all(int(os.environ.get(rank, 0)) == 0 for rank in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    if first and cfg.get('default_scope') == 'mmdet':
        changed = cfg.copy()
        changed.merge_from_dict(options.cfg_options)
        preflight.check(changed, ('train', 'val') if script == 'train.py' else ('test',), work_dir=options.work_dir)
    refuse_pickled_code()
    joined = options.launcher == 'pytorch' and get_device() == 'cpu'
    if joined:
        _join_on_cpu(cfg)
    try:
        runpy.run_path(str(Path(found.origin).parent / '.mim' / 'tools' / script), run_name='__main__')
    except OSError:  # such as a full disk in the middle of a training: a command would print it without its traceback
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    if joined:
        # One process in twelve aborts while libraries are unloaded (exit status -6), with all of its work done: end without that.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _join_on_cpu(cfg: Config) -> None:
    """Join the processes that torchrun started with gloo, where mmengine would set the CUDA device of each."""
    distributed.init_process_group('gloo')
    wrapper: dict[str, bool | None] = dict(device_ids=None)
    if not cfg.get('model_wrapper_cfg'):  # mmengine's defaults, which it leaves to a config that has one
        wrapper.update(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
    # Before this process's own options, which overrule them.
    sys.argv[1:1] = [f'--cfg-options=model_wrapper_cfg.{name}={value}' for name, value in wrapper.items()]

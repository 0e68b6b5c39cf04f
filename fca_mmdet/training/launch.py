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
from .preflight_hook import PreflightHook


def launch(script: str) -> None:
    """Run ``train.py`` or ``test.py`` of the config's ``default_scope`` with this process's arguments. Checkpoints are read as data.

    Before that, the first process checks a config for mmdet, with the changes of ``--cfg-options``, unless there is ``--no-preflight``.

    Raises:
        UserError: the config has no model, its library is not installed, or ``preflight.check`` refuses it.
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
    parser.add_argument('--resume', nargs='?', const='auto')
    parser.add_argument('--auto-scale-lr', action='store_true')
    parser.add_argument('--no-preflight', action='store_true')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    options, _ = parser.parse_known_args()
    sys.argv = [argument for argument in sys.argv if argument != '--no-preflight']
    if {'-h', '--help'} & {*sys.argv}:
        print('--no-preflight leaves out the check of data and config. The other options:')
    PreflightHook.enabled = False
    first = all(int(os.environ.get(rank, 0)) == 0 for rank in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    if first and cfg.get('default_scope') == 'mmdet' and not options.no_preflight:
        changed = cfg.copy()
        changed.merge_from_dict(options.cfg_options)
        if options.resume is not None:
            changed.resume, changed.load_from = True, None if options.resume == 'auto' else options.resume
        if options.auto_scale_lr:
            changed.merge_from_dict({'auto_scale_lr.enable': True})
        preflight.check(changed, ('train', 'val') if script == 'train.py' else ('test',), work_dir=options.work_dir)
    refuse_pickled_code()
    joined = options.launcher == 'pytorch' and get_device() == 'cpu'
    if joined:
        _join_on_cpu(cfg)
    try:
        runpy.run_path(str(Path(found.origin).parent / '.mim' / 'tools' / script), run_name='__main__')
    except OSError:  # such as a full disk during training: ``@command`` would leave out the traceback
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    if joined:
        # After all of its work, one process in twelve aborts while it unloads libraries (exit status -6): do not unload them.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _join_on_cpu(cfg: Config) -> None:
    """Join torchrun's processes with gloo, since mmengine would set a CUDA device for each."""
    distributed.init_process_group('gloo')
    wrapper: dict[str, bool | None] = dict(device_ids=None)
    if not cfg.get('model_wrapper_cfg'):  # mmengine's own defaults, which it does not apply to a config with a wrapper
        wrapper.update(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
    # Put before the user's options, so that those win.
    sys.argv[1:1] = [f'--cfg-options=model_wrapper_cfg.{name}={value}' for name, value in wrapper.items()]

"""Runs the installed train.py and test.py of the library that a config is for: mmdet, or mmpretrain for a classifier."""

import argparse
import importlib.util
import runpy
import sys
from pathlib import Path

import preflight
from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed

from fca_mmdet.checkpoint import refuse_pickled_code  # the import registers the backbones, also for a config that does not


def run_upstream(script: str) -> None:
    """Run ``script`` of the config's ``default_scope`` with this process's arguments; checkpoints are read as data."""
    configs = [argument for argument in sys.argv[1:] if argument.endswith('.py') and Path(argument).is_file()]
    config = Config.fromfile(configs[0]) if configs else Config()
    library = config.get('default_scope') or 'mmdet'
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        sys.exit(f"{configs[0]} is for {library}, which is not installed; mmpretrain comes with pip install '.[classification]'")
    preflight.check_before(script, config)
    refuse_pickled_code()
    if get_device() == 'cpu' and _launcher() == 'pytorch':
        join_on_cpu(config)
    runpy.run_path(str(Path(found.origin).parent / '.mim' / 'tools' / script), run_name='__main__')


def join_on_cpu(config: Config) -> None:
    """Join the processes that torchrun started with gloo, where mmengine would set the CUDA device of each.

    The options that DistributedDataParallel then needs go before this process's own, which so prevail.
    """
    distributed.init_process_group('gloo')
    wrapper: dict[str, bool | None] = dict(device_ids=None)
    if not config.get('model_wrapper_cfg'):  # mmengine's defaults, which it leaves to a config that has one
        wrapper.update(broadcast_buffers=False, find_unused_parameters=config.get('find_unused_parameters', False))
    sys.argv[1:1] = [f'--cfg-options=model_wrapper_cfg.{name}={value}' for name, value in wrapper.items()]


def _launcher() -> str | None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--launcher')
    return parser.parse_known_args()[0].launcher

"""Checkpoints read as data: no code in them runs."""

import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader

from .errors import CheckpointError

_DATA_ONLY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
"""torch's switch: where it is 1, ``torch.load`` reads data only, even if it is asked for a full pickle."""


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint as data: tensors, plain containers, and mmengine's training log. No code in it runs.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it asks for code to be run, is truncated, or is not a checkpoint.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'weights.pth')
        >>> torch.save({'state_dict': {'weight': torch.ones(2)}}, path)
        >>> read_checkpoint(path)
        {'state_dict': {'weight': tensor([1., 1.])}}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _explained(path, error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a state dict: save model.state_dict()')
    return checkpoint


def _explained(path: object, error: Exception) -> CheckpointError:
    """Say why torch does not read a file as data."""
    if asked := re.search(r'(?:Unsupported (?:global: GLOBAL|class)|attribute) (\S+)', str(error)):
        return CheckpointError(
            f'{path} holds more than data: it asks for {asked[1]}, which could run code, so it is not read. Have who made it save '
            'the state dict alone'
        )
    return CheckpointError(f'{path} is truncated or no checkpoint of torch.save ({type(error).__name__}): fetch it again')


def refuse_pickled_code() -> None:
    """From now on, in this process, mmengine reads every checkpoint as data: files with ``read_checkpoint``, downloads likewise.

    A checkpoint of mmdet 2.x also gets the empty log that mmengine's ``--resume`` asks for.
    """
    os.environ[_DATA_ONLY] = '1'
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        CheckpointLoader.register_scheme(prefix, _as_data(loader), force=True)


@contextmanager
def data_only() -> Iterator[None]:
    """Within it, mmengine reads checkpoints as after ``refuse_pickled_code``."""
    schemes, former = CheckpointLoader._schemes.copy(), os.environ.get(_DATA_ONLY)
    refuse_pickled_code()
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes
        os.environ.pop(_DATA_ONLY)
        if former is not None:
            os.environ[_DATA_ONLY] = former


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a file for mmengine, which logs what follows ``load_from_`` in the name of this function."""
    checkpoint = read_checkpoint(filename, map_location or 'cpu')
    if 'optimizer' in checkpoint and 'message_hub' not in checkpoint:
        checkpoint['message_hub'] = dict(log_scalars={}, runtime_info={}, resumed_keys={})
        print_log(
            f'{filename} is a checkpoint of mmdet 2.x, which holds no learning rate schedule: resumed, the schedule starts anew. '
            'To fine-tune, name it in load_from instead',
            logger='current',
            level=logging.WARNING,
        )
    return checkpoint


def _as_data(loader: Callable) -> Callable:
    """A loader of mmengine's that says why it refuses what it has fetched."""

    @wraps(loader)
    def load(filename: str, map_location: Any = None) -> dict[str, Any]:
        try:
            return loader(filename, map_location)
        except pickle.UnpicklingError as error:
            raise _explained(filename, error) from error

    return loader if hasattr(loader, '__wrapped__') else load

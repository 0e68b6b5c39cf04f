"""Lets mmengine read checkpoints as data: no code in them runs."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader

from .reading import check_checkpoint, load_data, read_checkpoint

_LOCK = threading.RLock()
"""Held while ``torch.load`` or mmengine's loaders are replaced: the whole process shares them."""


def refuse_pickled_code() -> None:
    """From now on, let mmengine read every checkpoint as data, from a file or an address.

    ``torch.load`` too reads nothing but data. A checkpoint of mmdet 2.x also gets the empty log that mmengine's ``--resume`` needs.
    """
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    _register()


@contextmanager
def data_only() -> Iterator[None]:
    """Let mmengine read checkpoints as data until the end of the context. Threads take turns."""
    with _LOCK:
        schemes = CheckpointLoader._schemes.copy()
        _register()
        try:
            yield
        finally:
            CheckpointLoader._schemes = schemes


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a file for mmengine, whose log names the backend by what follows ``load_from_`` in this name."""
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


def _register() -> None:
    """Replace mmengine's loader of files, and guard those of addresses."""
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        CheckpointLoader.register_scheme(prefix, _as_data(loader), force=True)


def _as_data(loader: Callable) -> Callable:
    """Guard a loader of mmengine's: it fetches as before, and ``torch.load`` reads what it has fetched as data."""

    @wraps(loader)
    def load(filename: str, map_location: Any = None) -> dict[str, Any]:
        statistics = HistoryBuffer._statistics_methods.copy()  # of the class: a checkpoint's training log can change them
        with _LOCK, patch.object(torch, 'load', _load):
            try:
                checkpoint = loader(filename, map_location)
            finally:
                HistoryBuffer._statistics_methods.clear()
                HistoryBuffer._statistics_methods.update(statistics)
        check_checkpoint(checkpoint, filename)
        return checkpoint

    return loader if hasattr(loader, '__wrapped__') else load


def _load(file: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """Take the place of ``torch.load``.

    OneDL's mmengine allows ``getattr`` while it loads a checkpoint, by which a pickle reaches any attribute. That is undone here.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([entry for entry in allowed if entry is not getattr])
    try:
        return load_data(file, map_location)
    finally:
        torch.serialization.add_safe_globals(allowed)

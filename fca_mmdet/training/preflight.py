"""Look, before training or testing, at what a detector's config names: at what would fail hours later, or go wrong unnoticed."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from . import agreement, disk
from .data_sets import DataChecker

INTERVAL = 5.0
"""Seconds between two lines on how far it is."""


def check(
    cfg: Config, splits: Sequence[str] = ('train', 'val'), decode: bool = False, work_dir: str | None = None, model: nn.Module | None = None
) -> None:
    """Check what a config names, and print what there is.

    Args:
        cfg: a detector's config, as it is run.
        splits: which of ``train``, ``val`` and ``test`` are run. With ``train``, checkpoints are written.
        decode: whether to decode every image. Without it the head is read, the end of a JPEG and the checksums of a PNG.
        work_dir: where files are written, if not where the config says.
        model: the config's, if it is built already.

    Raises:
        UserError: something is wrong; the message says what.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')  # where a config's own types are looked up
    folder = Path(work_dir or cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename).stem}')
    disk.check_writable(folder)
    model = model or agreement.build_on_meta(cfg)
    if 'train' in splits and cfg.get('train_dataloader'):
        disk.check_space(cfg, folder, model)
        for found in agreement.check_schedule(cfg, folder):
            print(f'preflight: train: {found}', flush=True)
    with _show_progress() as note:
        checker = DataChecker(cfg, model, decode, note)
        for split in splits:
            for found in checker.check_split(split):
                print(f'preflight: {split}: {found}', flush=True)


@contextlib.contextmanager
def _show_progress() -> Iterator[Callable[[str], None]]:
    """Print what was noted last, every ``INTERVAL`` seconds. Python's garbage collector rests: it would look at millions of new objects."""
    noted, over, out = ['the config'], threading.Event(), sys.stdout

    def show() -> None:
        while not over.wait(INTERVAL):
            print(f'preflight: looking at {noted[0]}', file=out, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    collected = gc.isenabled()
    gc.disable()
    try:
        yield partial(noted.__setitem__, 0)
    finally:
        over.set()
        thread.join()
        if collected:
            gc.enable()

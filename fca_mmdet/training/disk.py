"""The work directory: whether it can be written to, and has space for the checkpoints of a training."""

import shutil
import tempfile
from pathlib import Path

from mmengine.config import Config
from torch import nn

from ..errors import UserError
from .agreement import build_on_meta


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'\0' * 4096)
    except OSError as error:
        raise UserError(f'the work directory {folder} cannot be written to ({error.strerror}): name another with --work-dir') from error


def check_space(cfg: Config, folder: Path, model: nn.Module) -> None:
    """Refuse a disk without enough free space for the checkpoints that a training still writes."""
    count = max(checkpoints_to_keep(cfg) - len(list(folder.glob('*.pth'))), 1)
    size, free = checkpoint_bytes(cfg, model), shutil.disk_usage(folder).free
    if count * size > free:
        raise UserError(
            f'{free / 2**20:.1f} MiB are free in {folder}, and {count} checkpoints of {size / 2**20:.1f} MiB are to be kept there: free '
            'some, keep fewer (default_hooks.checkpoint.max_keep_ckpts), or name another place with --work-dir'
        )


def checkpoints_to_keep(cfg: Config) -> int:
    """Count how many checkpoints mmengine's hook keeps at most."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    steps = (cfg.get('train_cfg') or {}).get('max_epochs' if hook.get('by_epoch', True) else 'max_iters') or 0
    written = steps // hook['interval'] if hook.get('interval', -1) > 0 else 1
    keep = hook.get('max_keep_ckpts', -1)
    return min(written, keep) if keep > 0 else written


def checkpoint_bytes(cfg: Config, model: nn.Module | None = None) -> int:
    """Compute the size of a checkpoint: the weights, and for each one more number in SGD, two in Adam and its kin."""
    weights = sum(value.nbytes for value in (model or build_on_meta(cfg)).state_dict().values())
    return weights * (2 if cfg.optim_wrapper.optimizer.type == 'SGD' else 3)

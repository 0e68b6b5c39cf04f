"""Read the log that mmengine writes of a training."""

import json
from pathlib import Path

from mmengine.config import Config


def log_early(cfg: Config) -> None:
    """Let a training of few iterations log its steps: mmengine logs nothing of one that is shorter than the logger's interval."""
    interval = cfg.default_hooks.logger.get('interval', 10)
    cfg.default_hooks.logger.interval = min(interval, cfg.train_cfg.get('max_iters') or interval)


def read_scalars(work_dir: Path) -> list[dict]:
    """Read the logs of all runs in a work directory as one. If several runs logged the same step, the latest entry counts."""
    merged: dict[tuple, dict] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        *lines, _ = path.read_text().split('\n')  # the last one may be half-written
        for line in lines:
            entry = json.loads(line)
            merged[entry['step'], 'loss' in entry] = entry
    return [merged[key] for key in sorted(merged)]


def read_steps(work_dir: Path) -> list[dict]:
    """Read the entries of the training's own steps, which have a loss."""
    return [entry for entry in read_scalars(work_dir) if 'loss' in entry]

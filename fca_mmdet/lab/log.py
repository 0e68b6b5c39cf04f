"""The log that mmengine writes of a training."""

import json
from pathlib import Path


def read_scalars(work_dir: Path) -> list[dict]:
    """Read the log of a work directory, all its runs merged: if several logged the same step, the latest one's entry stands."""
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

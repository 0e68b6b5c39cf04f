"""Results of trainings that never ran."""

import csv
import json
from pathlib import Path

AP = {
    'plain': {0: 0.30, 1: 0.31, 2: 0.35, 3: 0.33},
    'low2': {0: 0.31, 1: 0.34, 2: 0.36, 3: 0.37},
    'low4': {0: 0.32, 1: 0.30, 3: 0.36, 4: 0.50},
    'se': {2: 0.36},
}
"""For each run, AP by seed: one with the baseline's seeds, one that lacks one of them and has another, one with one seed."""
PLAN = """\
seeds: 4
runs:
  plain: {config: plain.py, published: {bbox_mAP: 0.374, source: 'FcaNet, table 4'}}
  low2: {config: fca.py, frequencies: low2}
  low4: {config: fca.py, selected_by: low2}
  se: {config: se.py}
  gc: {config: gc.py}
"""
VERSIONS = dict(fca_mmdet='0.1.0', torch='2.13.0', mmdet='3.5.1', mmengine='0.10.12', mmcv='2.3.6', python='3.11.2')
PAIRS = {'low2': '[[0, 0], [0, 1]]', 'low4': '[[0, 0], [0, 1], [6, 0], [0, 5]]'}


def row(name: str, seed: int, ap: float, **others: object) -> dict:
    seconds = 0.5 if name == 'plain' else 0.55
    cost = dict(parameters=4_211_000 if name == 'plain' else 4_402_000, iterations=40, seconds_per_iteration=seconds + 0.01 * seed)
    figures = dict(bbox_mAP=ap, bbox_mAP_50=ap + 0.2, bbox_mAP_75=ap + 0.1, bbox_mAP_s=-1, segm_mAP=-1 if name == 'low4' else ap - 0.02)
    start = dict(name=name, seed=seed, digest=f'12e4567{len(name)}', config=f'{name}.py', frequencies=PAIRS.get(name, ''))
    return start | cost | figures | VERSIONS | dict(device='2 cores') | others


def all_rows() -> list[dict]:
    return [row(name, seed, ap) for name, aps in AP.items() for seed, ap in aps.items()]


def write(folder: Path, rows: list[dict], plan: str = PLAN) -> Path:
    """A folder as ``tools/experiment.py`` leaves it, without the runs' own."""
    folder.mkdir(exist_ok=True)
    (folder / 'plan.yml').write_text(plan)
    with (folder / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def finish(out: Path, name: str, figure: float, seed: int = 0, **more: object) -> None:
    """A result, as a finished run leaves it."""
    folder = out / name / f'seed-{seed}'
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text(json.dumps(dict(name=name, seed=seed, bbox_mAP=figure, **more)))


def log(folder: Path, entries: list[dict], time: str = '20250101_000000') -> None:
    """A work directory's log, as mmengine writes it."""
    path = folder / time / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{json.dumps(entry)}\n' for entry in entries))

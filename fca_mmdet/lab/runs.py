"""Write the configs of a plan's runs, train each in a process of its own, and read its result."""

import fcntl
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
from mmengine.config import Config

from ..configs import CONFIGS, config_path
from ..detector import build_detector
from ..errors import UserError
from ..files import write_whole
from ..frequency import resolve_frequencies
from ..version import __version__
from .data import adapt_config, read_classes
from .log import read_scalars, read_steps
from .machine import machine
from .plan import choose_frequencies

TRAIN = CONFIGS.parent / 'tools' / 'train.py'
METRIC_ITEMS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
"""All COCO figures, as mmdet names them."""


@dataclass(frozen=True)
class Run:
    """One training: a run of a plan with one seed."""

    name: str
    seed: int
    folder: Path
    facts: dict[str, Any] = field(hash=False)  # columns of its results that are known before it runs; ``digest`` is of its config
    schedule: dict[str, Any] = field(compare=False)  # the config's ``train_cfg``

    @property
    def result(self) -> Path:
        """Return the path of its row of the results, which exists once it has finished."""
        return self.folder / 'result.json'


def write_configs(names: Sequence[str], plan: dict, out: Path, data: Path | None, options: dict, seeds: int | None) -> list[Run]:
    """Write the configs of a plan's runs with these ``names``, one for each seed. One that cannot be built is a ``UserError``.

    ``data``, a COCO-format folder, replaces the configs' own. ``options`` are added to the plan's, ``seeds`` replaces the plan's.
    """
    classes = read_classes(data) if data else []
    runs = []
    for name in names:
        entry = plan['runs'][name]
        frequencies = choose_frequencies(entry, plan, out)
        try:
            base = Config.fromfile(entry['config'] if Path(entry['config']).is_file() else config_path(entry['config']))
            if data:
                adapt_config(base, data, classes)
            merged = {**plan.get('options', {}), **entry.get('options', {}), **options}
            base.merge_from_dict({key: _as_tuple(value) for key, value in merged.items()})
            if frequencies is not None:
                base.model.backbone.frequencies = frequencies
            model = build_detector(base)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f'the run {name}: {error}') from error
        for evaluator in (base.val_evaluator, base.test_evaluator):
            evaluator.metric_items = METRIC_ITEMS
        _make_resumable(base)
        digest = hashlib.sha256(base.pretty_text.encode()).hexdigest()[:12]
        facts = dict(
            digest=digest,
            config=entry['config'],
            frequencies=json.dumps(resolve_frequencies(base.model.backbone.get('frequencies', 'top16'))) if frequencies is not None else '',
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        for seed in range(seeds or entry.get('seeds', plan.get('seeds', 1))):
            run = Run(name, seed, out / name / f'seed-{seed}', facts, base.train_cfg.to_dict())
            known = run.folder / 'digest'
            found = known.read_text() if known.exists() else digest
            if found != digest:
                raise UserError(f'{run.folder} holds a run of another config ({found}, not {digest}): name another --out, or remove it')
            cfg = base.copy()
            cfg.merge_from_dict({'randomness.seed': seed, 'work_dir': str(run.folder)})
            write_whole(known, digest)
            cfg.dump(run.folder / 'config.py')
            runs.append(run)
    return runs


def _as_tuple(value: Any) -> Any:
    """Turn a list of numbers into a tuple: mmcv's transforms require one, and YAML has none."""
    return tuple(value) if isinstance(value, list) and all(isinstance(item, int | float) for item in value) else value


def _make_resumable(cfg: Config) -> None:
    """Let an interrupted run end as an uninterrupted one would (``fca_mmdet/training/resume.py``)."""
    hook = cfg.default_hooks.checkpoint
    hook.type = 'mmdet.ResumableCheckpointHook'
    if hook.get('max_keep_ckpts', -1) == 1:
        hook.max_keep_ckpts = 2
    sampler = cfg.train_dataloader.sampler
    if sampler.type in ('DefaultSampler', 'InfiniteSampler'):
        sampler.type = f'mmdet.Resumable{sampler.type}'


def train_once(run: Run, variables: dict[str, str]) -> dict:
    """Train and evaluate in a process of its own, with ``variables`` added to its environment, from its last checkpoint on.

    Returns the row of the results; or name, seed and ``error`` if it failed.
    """
    if run.result.exists():
        return json.loads(run.result.read_text())
    with open(run.folder / 'lock', 'w') as lock, open(run.folder / 'output.log', 'a') as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return dict(name=run.name, seed=run.seed, error='another process is training it: wait for that to end, then start again')
        command = [sys.executable, str(TRAIN), str(run.folder / 'config.py'), '--resume', '--work-dir', str(run.folder)]
        # The training inherits the lock: if it outlives this command, it is not started a second time.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables}, pass_fds=[lock.fileno()])
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        return dict(name=run.name, seed=run.seed, error=(run.folder / 'output.log').read_text()[-1500:])
    row = read_result(run) | dict(peak_memory_mib=usage.ru_maxrss // 1024)
    write_whole(run.result, json.dumps(row, indent=2))
    return row


def is_running(run: Run) -> bool:
    """Tell whether a process holds the run's lock."""
    try:
        with open(run.folder / 'lock') as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_result(run: Run) -> dict:
    """Collect the logged figures of a finished training, and the versions and the device that it ran on."""
    steps = read_steps(run.folder)
    figures = [entry for entry in read_scalars(run.folder) if any(key.startswith('coco/') for key in entry)][-1]
    times = [entry['time'] for entry in steps]
    here = machine('cuda' if torch.cuda.is_available() else 'cpu')
    return {
        'name': run.name,
        'seed': run.seed,
        **run.facts,
        'iterations': figures['step'],
        'seconds_per_iteration': statistics.median(times),
        'training_minutes': statistics.mean(times) * figures['step'] / 60,
        'cuda_memory_mib': max((entry.get('memory', 0) for entry in steps), default=0) or None,
        **{key.removeprefix('coco/'): value for key, value in figures.items() if key.startswith('coco/')},
        'fca_mmdet': __version__,
        **{module.__name__: module.__version__ for module in (torch, mmdet, mmengine, mmcv)},
        'python': here['python'],
        'device': here['gpu'] or here['cpu'],
        'finished': datetime.now().astimezone().isoformat(timespec='seconds'),
    }


def fraction_done(run: Run) -> float:
    """Compute the share of a run that its log covers, 0 to 1."""
    if not (steps := read_steps(run.folder)):
        return 0.0
    if run.schedule.get('max_iters'):
        return steps[-1]['step'] / run.schedule['max_iters']
    return (steps[-1]['epoch'] - 1) / run.schedule['max_epochs']

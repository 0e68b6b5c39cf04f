"""Write the configs of a plan's runs, train each in a process of its own, and read its result."""

import fcntl
import hashlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import time
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
from mmengine.runner import Runner

from ..configs import CONFIGS, config_path, read_config
from ..detector import build_detector
from ..errors import UserError
from ..files import write_whole
from ..frequency import resolve_frequencies
from ..version import __version__
from .data import Folder, adapt_config
from .log import log_early, read_scalars, read_steps
from .machine import machine
from .plan import METRIC_ITEMS, choose_frequencies

TRAIN = CONFIGS.parent / 'tools' / 'train.py'
SETTINGS = [*inspect.signature(Runner).parameters, 'compile', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn']
"""What a training reads of a config. Another entry is a variable from which others were computed, so a change of it would do nothing."""


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


def configure(name: str, plan: dict, folder: Folder | None, options: dict, frequencies: Any) -> tuple[Config, dict[str, Any]]:
    """Make the config of a plan's run, and the columns of its results that are known before it runs.

    Args:
        folder: replaces the config's own data.
        options: added to the plan's.
        frequencies: of its backbone; None leaves those of its config.

    Raises:
        UserError: the config cannot be made or built, or its evaluation does not give what the plan needs.
    """
    entry = plan['runs'][name]
    merged = {**plan.get('options', {}), **entry.get('options', {}), **options}
    if unread := [key for key in merged if key.partition('.')[0] not in SETTINGS]:
        raise UserError(f'the run {name}: nothing reads the option {unread[0]}: its first part must be one of {", ".join(SETTINGS)}')
    if {'work_dir', 'randomness.seed'} & merged.keys() or 'seed' in (merged.get('randomness') or ()):
        raise UserError(f'the run {name}: leave work_dir and randomness.seed out of the options: --out and seeds decide them')
    try:
        cfg = read_config(entry['config'] if Path(entry['config']).is_file() else config_path(entry['config']))
        if folder:
            adapt_config(cfg, folder)
        cfg.merge_from_dict({key: _as_tuple(value) for key, value in merged.items()})
        if frequencies is not None:
            cfg.model.backbone.frequencies = frequencies
        model = build_detector(cfg)
        log_early(cfg)
        _make_resumable(cfg)
        _score_all(cfg, plan)
    except Exception as error:  # a config is code, so of any type
        kind = '' if isinstance(error, UserError | OSError) else f'{type(error).__name__}: '
        raise UserError(f'the run {name}: {kind}{error}') from error
    hooks = [str(hook.get('type')) for hook in cfg.get('custom_hooks') or ()]
    if any(run.get('selected_by') == name for run in plan['runs'].values()) and not any('FrequencySearchHook' in hook for hook in hooks):
        raise UserError(f'the run {name} is to select frequencies, but its config has no FrequencySearchHook: add it to custom_hooks')
    return cfg, dict(
        digest=hashlib.sha256(cfg.pretty_text.encode()).hexdigest()[:12],
        config=entry['config'],
        frequencies=json.dumps(resolve_frequencies(cfg.model.backbone.get('frequencies', 'top16'))) if frequencies is not None else '',
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def write_configs(names: Sequence[str], plan: dict, out: Path, folder: Folder | None, options: dict, seeds: int | None) -> list[Run]:
    """Write the configs of a plan's runs with these ``names``, one for each seed. ``seeds`` replaces the plan's.

    Raises:
        UserError: as ``configure``, or a run of another config has begun in ``out``.
    """
    runs = []
    for name in names:
        entry = plan['runs'][name]
        base, facts = configure(name, plan, folder, options, choose_frequencies(entry, plan, out))
        for seed in range(seeds or entry.get('seeds', plan.get('seeds', 1))):
            run = Run(name, seed, out / name / f'seed-{seed}', facts, base.train_cfg.to_dict())
            known, digest = run.folder / 'digest', facts['digest']
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


def _score_all(cfg: Config, plan: dict) -> None:
    """Ask for all COCO figures; refuse evaluators that do not give those that the plan needs."""
    needed = {'bbox', plan.get('metric', 'bbox_mAP').partition('_')[0]}
    for split in ('val', 'test'):
        evaluator = cfg[f'{split}_evaluator']
        given = evaluator.get('metric', 'bbox') if isinstance(evaluator, dict) and 'CocoMetric' in str(evaluator.get('type')) else ()
        if not needed <= {*([given] if isinstance(given, str) else given)}:
            raise UserError(f'{split}_evaluator must be one CocoMetric or FastCocoMetric with metric={sorted(needed)} for this plan')
        evaluator.metric_items = METRIC_ITEMS


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
        start = time.monotonic()
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
    try:
        row = read_result(run)
    except UserError as error:
        return dict(name=run.name, seed=run.seed, error=str(error))
    # An interrupted training has taken longer than this process.
    row['minutes'] = max((time.monotonic() - start) / 60, row['training_minutes'])
    row['peak_memory_mib'] = usage.ru_maxrss // 1024
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
    """Collect the logged figures of a finished training, and the versions and the device that it ran on.

    Raises:
        UserError: it has logged no step or no COCO figures.
    """
    steps = read_steps(run.folder)
    scored = [entry for entry in read_scalars(run.folder) if any(key.startswith('coco/') for key in entry)]
    if not steps or not scored:
        raise UserError(f'{run.folder} logged {"no COCO figures" if steps else "no step"}: see its output.log, remove it and start again')
    figures, times, here = scored[-1], [entry['time'] for entry in steps], machine('cpu')
    # As mmengine logs the environment: this process may see other devices than the training.
    gpus = re.findall(r'^ +GPU 0[\d,]*: (.+)$', (run.folder / 'output.log').read_text(errors='replace'), re.MULTILINE)
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
        'device': gpus[-1] if gpus else here['cpu'],
        'finished': datetime.now().astimezone().isoformat(timespec='seconds'),
    }


def fraction_done(run: Run) -> float:
    """Compute the share of a run that its log covers, 0 to 1."""
    if not (steps := read_steps(run.folder)):
        return 0.0
    if run.schedule.get('max_iters'):
        return steps[-1]['step'] / run.schedule['max_iters']
    return (steps[-1]['epoch'] - 1) / run.schedule['max_epochs']

"""Run a plan of experiments: each config of it with each seed, a training and COCO evaluation in a process of its own.

    python tools/experiment.py PLAN [--out FOLDER] [--data FOLDER] [--seeds 5] [--jobs 2] [--devices 0 1] [--ray [ADDRESS]]

A plan is a YAML file; ``configs/plans`` holds some, and its README says what may stand in one:

    seeds: 5
    baseline: plain                          # what differences are taken to
    options: {train_cfg.max_iters: 400}      # of every run, as --cfg-options of tools/train.py
    runs:
      plain: {config: small/mask-rcnn_r50-thin_fpn_small-heads.py}
      low2: {config: small/mask-rcnn_fca-r50-thin_fpn_small-heads.py, frequencies: low2}

A run lies in OUT/NAME/seed-N with its config, log and checkpoints. Interrupted and started again, the command leaves out what is done and
goes on with what was begun, to the same numbers on a CPU. A run that fails is told of and hinders no other. OUT/results.csv and
results.json have a row for each finished run; tools/report.py makes tables and figures of them.
"""

import argparse
import csv
import fcntl
import hashlib
import io
import json
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import mmcv
import mmdet
import mmengine
import torch
import yaml
from benchmark import machine
from demo import adapt_config, read_classes
from figures import read_scalars
from make_shapes import make_shapes
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fca_mmdet import __version__, config_path
from fca_mmdet.configs import CONFIGS
from fca_mmdet.frequency import resolve_frequencies
from fca_mmdet.resume import WholeFileBackend
from fca_mmdet.selection import CANDIDATES

TRAIN = Path(__file__).with_name('train.py')
PLAN_KEYS = {'seeds', 'baseline', 'options', 'data', 'singles', 'metric', 'runs'}
RUN_KEYS = {'config', 'options', 'seeds', 'baseline', 'frequencies', 'best', 'selected_by', 'published'}
METRIC_ITEMS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
"""All COCO figures, as mmdet names them."""
CHOSEN = 'frequencies.json'
"""What a selection writes: a list in the form that ``frequencies=`` takes, under that key."""

ONE_THREAD = {'OMP_NUM_THREADS': '1'}
"""On a CPU: torch's threads wait actively, and those of several runs for each other; and one thread repeats itself to the last bit."""


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    seed: int
    folder: Path
    digest: str
    facts: tuple[tuple[str, Any], ...]
    """What the results say of it beside what it measures."""

    @property
    def config(self) -> Path:
        """Its config, complete."""
        return self.folder / 'config.py'

    @property
    def result(self) -> Path:
        """Its row of the results, there once it is finished."""
        return self.folder / 'result.json'


def read_plan(path: Path) -> dict:
    """A plan, checked, with what it takes from its base; its singles stand among its runs.

    Raises:
        SystemExit: with a sentence on what is wrong.
    """
    plan = load_plan(path)
    if not isinstance(plan.get('runs'), dict) or not plan['runs']:
        refuse(f'{path} is no plan: it needs runs, each a name with a config')
    if unknown := plan.keys() - PLAN_KEYS:
        refuse(f'{path} has {", ".join(sorted(unknown))}; a plan has {", ".join(sorted(PLAN_KEYS))}')
    plan.setdefault('baseline', next(iter(plan['runs'])))
    if singles := plan.get('singles'):
        plan['runs'] = {f'single-{u}{v}': {'seeds': 1, **singles, 'frequencies': [[u, v]]} for u, v in CANDIDATES} | plan['runs']
    for name, run in plan['runs'].items():
        if not isinstance(run, dict) or 'config' not in run or run.keys() - RUN_KEYS:
            refuse(f'the run {name} of {path} is {run}: it needs a config, and may have {", ".join(sorted(RUN_KEYS - {"config"}))}')
        if len(run.keys() & {'frequencies', 'best', 'selected_by'}) > 1:
            refuse(f'the run {name} of {path} names its frequencies more than once: keep one of frequencies, best, selected_by')
        if 'best' in run and not singles:
            refuse(f'the run {name} of {path} takes the best {run["best"]} of the singles, and the plan has no singles')
        for key, other in {'baseline': plan['baseline'], **run}.items():
            if key in ('baseline', 'selected_by') and other not in plan['runs']:
                refuse(f'the {key} {other} of the run {name} of {path} is none of its runs: {", ".join(plan["runs"])}')
    return plan


def load_plan(path: Path) -> dict:
    """A plan's file over its base's: options are added to the base's, anything else replaces it.

    Raises:
        SystemExit: no such file, or no mapping in YAML.
    """
    try:
        plan = yaml.safe_load(path.read_text())  # mmengine's load would run what a YAML file tells it to
    except (OSError, ValueError, yaml.YAMLError) as error:
        refuse(f'{path} is no plan: {error}')
    if not isinstance(plan, dict):
        refuse(f'{path} is no plan: it needs runs, each a name with a config')
    base = load_plan(path.parent / plan.pop('base')) if 'base' in plan else {}
    return {**base, **plan, 'options': {**base.get('options', {}), **plan.get('options', {})}}


def refuse(sentence: str) -> NoReturn:
    """End with what is wrong."""
    sys.exit(f'experiment: {sentence}')


def is_decided(run: dict) -> bool:
    """Whether the frequencies of a plan's run are known before anything has run."""
    return not run.keys() & {'best', 'selected_by'}


def choose(run: dict, plan: dict, out: Path) -> Any:
    """The frequencies of a plan's run, or None for those of its config.

    Raises:
        SystemExit: what they are chosen from has failed.
    """
    if 'best' in run:
        return rank_singles(plan, out)[: run['best']]
    if 'selected_by' in run:
        chosen = out / run['selected_by'] / 'seed-0' / CHOSEN
        if not chosen.exists():
            refuse(f'{run["selected_by"]} has written no {chosen}: its output.log says why; mend that and start again')
        return json.loads(chosen.read_text())['frequencies']
    return run.get('frequencies')


def rank_singles(plan: dict, out: Path) -> list[list[int]]:
    """The 49 frequencies, the one that alone reaches the highest figure first (the first step of FcaNet-TS).

    Raises:
        SystemExit: one has no result.
    """
    figure = plan.get('metric', 'bbox_mAP')
    scores: dict[tuple[int, int], float] = {}
    for name, run in plan['runs'].items():
        if name.startswith('single-'):
            rows = [json.loads(path.read_text()) for path in sorted((out / name).glob('seed-*/result.json'))]
            if not rows:
                refuse(f'{name} has no result, so the singles cannot be ranked: its output.log says why; mend that and start again')
            ((u, v),) = run['frequencies']
            scores[u, v] = statistics.mean(row[figure] for row in rows)
    return [list(pair) for pair in sorted(scores, key=lambda pair: -scores[pair])]


def prepare(names: Sequence[str], plan: dict, out: Path, data: Path | None, options: dict, seeds: int | None) -> list[Run]:
    """Write the config of every run, and check that what lies there is of the same.

    Raises:
        SystemExit: no such config, no such model, or a run of another config lies in the folder.
    """
    classes = read_classes(data) if data else []
    runs = []
    for name in names:
        entry = plan['runs'][name]
        try:
            base = Config.fromfile(entry['config'] if Path(entry['config']).is_file() else config_path(entry['config']))
            if data:
                adapt_config(base, data, classes)
            merged = {**plan.get('options', {}), **entry.get('options', {}), **options}
            base.merge_from_dict({key: as_tuple(value) for key, value in merged.items()})
            frequencies = choose(entry, plan, out)
            if frequencies is not None:
                base.model.backbone.frequencies = frequencies
            init_default_scope(base.default_scope)
            model = MODELS.build(base.model)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            refuse(f'the run {name}: {error}')
        for evaluator in (base.val_evaluator, base.test_evaluator):
            evaluator.metric_items = METRIC_ITEMS
        make_resumable(base)
        digest = hashlib.sha256(base.pretty_text.encode()).hexdigest()[:12]
        facts = dict(
            config=entry['config'],
            frequencies=json.dumps(resolve_frequencies(base.model.backbone.get('frequencies', 'top16'))) if frequencies is not None else '',
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        for seed in range(seeds or entry.get('seeds', plan.get('seeds', 1))):
            folder = out / name / f'seed-{seed}'
            run = Run(name, seed, folder, digest, tuple(facts.items()))
            known = folder / 'digest'
            if known.exists() and known.read_text() != digest:
                refuse(f'{folder} holds a run of another config ({known.read_text()}, not {digest}): name another --out, or remove it')
            folder.mkdir(parents=True, exist_ok=True)
            cfg = base.copy()
            cfg.merge_from_dict({'randomness.seed': seed, 'work_dir': str(folder)})
            cfg.dump(run.config)
            write_whole(known, digest)
            runs.append(run)
    return runs


def as_tuple(value: Any) -> Any:
    """A list of numbers as the tuple that mmcv's transforms insist on, and YAML has no word for."""
    return tuple(value) if isinstance(value, list) and all(isinstance(item, int | float) for item in value) else value


def make_resumable(cfg: Config) -> None:
    """Let an interrupted run end as an uninterrupted one would (``fca_mmdet/resume.py``)."""
    cfg.default_hooks.checkpoint.type = 'mmdet.ResumableCheckpointHook'
    if cfg.default_hooks.checkpoint.get('max_keep_ckpts', -1) == 1:
        cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    sampler = cfg.train_dataloader.sampler
    if sampler.type in ('DefaultSampler', 'InfiniteSampler'):
        sampler.type = f'mmdet.Resumable{sampler.type}'


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or absent at any time."""
    WholeFileBackend().put(text.encode(), path)


def execute(run: Run, environment: dict[str, str]) -> dict:
    """Train and evaluate, going on from the last checkpoint. Returns the row of the results, or one with what went wrong."""
    if run.result.exists():
        return json.loads(run.result.read_text())
    with open(run.folder / 'lock', 'w') as lock, open(run.folder / 'output.log', 'a') as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return dict(name=run.name, seed=run.seed, error='another process is at it: wait for that one, then start again')
        command = [sys.executable, str(TRAIN), str(run.config), '--resume', '--work-dir', str(run.folder)]
        # The training inherits the lock, so that one that outlives this command is not started a second time.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}, pass_fds=[lock.fileno()]
        )
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


def read_result(run: Run) -> dict:
    """What a finished training has logged, and what it ran on."""
    entries = read_scalars(run.folder)
    steps = [entry for entry in entries if 'loss' in entry]
    figures = [entry for entry in entries if any(key.startswith('coco/') for key in entry)][-1]
    times = [entry['time'] for entry in steps]
    cuda = torch.cuda.is_available()
    return {
        'name': run.name,
        'seed': run.seed,
        'digest': run.digest,
        **dict(run.facts),
        'iterations': figures['step'],
        'seconds_per_iteration': statistics.median(times),
        'training_minutes': statistics.mean(times) * figures['step'] / 60,
        'cuda_memory_mib': max((entry.get('memory', 0) for entry in steps), default=0) or None,
        **{key.removeprefix('coco/'): value for key, value in figures.items() if key.startswith('coco/')},
        'fca_mmdet': __version__,
        **{module.__name__: module.__version__ for module in (torch, mmdet, mmengine, mmcv)},
        'python': sys.version.split()[0],
        'device': torch.cuda.get_device_name() if cuda else machine('cpu')['cpu'],
        'finished': datetime.now().astimezone().isoformat(timespec='seconds'),
    }


@cache
def train_loop(config: Path) -> dict:
    """A config's ``train_cfg``, read once: the board asks for it every few seconds."""
    return Config.fromfile(config).train_cfg


def fraction_done(run: Run) -> float:
    """How much of a run its log has, 0 to 1."""
    steps = [entry for entry in read_scalars(run.folder) if 'loss' in entry]
    if not steps:
        return 0.0
    loop = train_loop(run.config)
    if loop.get('max_iters'):
        return steps[-1]['step'] / loop['max_iters']
    return (steps[-1]['epoch'] - 1) / loop['max_epochs']


class Board:
    """What is done, running and left, as a table that a terminal shows live."""

    def __init__(self, runs: Sequence[Run], plan: dict):
        self.runs = runs
        self.undecided = [name for name, run in plan['runs'].items() if not is_decided(run)]
        self.rows: dict[Run, dict] = {}
        self.running: set[Run] = set()
        self.before = {run: fraction_done(run) for run in runs if not run.result.exists()}
        self.start = time.monotonic()

    def __rich__(self) -> Table:
        """The table as it stands."""
        finished = sum('error' not in row for row in self.rows.values())
        table = Table(title=f'{finished} of {len(self.runs)} runs finished')
        for column in ('run', 'finished', 'now', 'box AP', 'mask AP'):
            table.add_column(column)
        now = {run: fraction_done(run) for run in self.running}
        for name in dict.fromkeys(run.name for run in self.runs):
            mine = [run for run in self.runs if run.name == name]
            rows = [row for run, row in self.rows.items() if run.name == name and 'error' not in row]
            failed = sum('error' in row for run, row in self.rows.items() if run.name == name)
            state = [f'seed {run.seed}: {100 * now[run]:.0f} %' for run in mine if run in now]
            if failed:
                state.append(f'{failed} failed')
            figures = [[row[key] for row in rows if key in row] for key in ('bbox_mAP', 'segm_mAP')]
            means = [f'{100 * statistics.mean(values):.1f}' if values else '' for values in figures]
            table.add_row(name, f'{len(rows)} of {len(mine)}', ', '.join(state), *means)
        for name in self.undecided:
            if name not in {run.name for run in self.runs}:
                table.add_row(name, '', 'chosen later', '', '')
        table.caption = self.time_left(now)
        return table

    def time_left(self, now: dict[Run, float]) -> str:
        """From the pace of this start; runs differ in cost, so a guess."""
        done = sum(1 - before for run, before in self.before.items() if run in self.rows)
        done += sum(fraction - self.before[run] for run, fraction in now.items())
        left = sum(1 - before for before in self.before.values()) - done
        elapsed = time.monotonic() - self.start
        return f'about {elapsed * left / done / 60:.0f} min left' if done > 0 else 'the time left shows when something has been logged'


Submit = Callable[[Run], Future[dict]]


@contextmanager
def submit_here(jobs: int, devices: Sequence[str]) -> Iterator[Submit]:
    """Run on this machine: one on each device at a time, or ``jobs`` on its CPU. A device given twice takes two."""
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for environment in [{'CUDA_VISIBLE_DEVICES': device} for device in devices] or [ONE_THREAD] * jobs:
        free.put(environment)

    def run_on_free_device(run: Run) -> dict:
        device = free.get()
        try:
            return execute(run, device)
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(free.qsize())
    try:
        yield lambda run: pool.submit(run_on_free_device, run)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def submit_to_ray(address: str, gpus: float) -> Iterator[Submit]:
    """Run on Ray: ``local``, or a cluster's address, where OUT and the data have the same paths on every machine."""
    try:
        import ray
    except ModuleNotFoundError:
        refuse("--ray needs Ray: pip install 'fca_mmdet[ray]'")
    ray.init(address=None if address == 'local' else address, log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(execute)
    try:
        yield lambda run: task.remote(run, {} if gpus else ONE_THREAD).future()
    finally:
        ray.shutdown()


def perform(runs: Sequence[Run], plan: dict, out: Path, submit: Submit) -> list[Run]:
    """Run all that is not done, and keep the results written. Returns those that failed."""
    console = Console()
    board = Board(runs, plan)
    futures: dict[Future, Run] = {}
    for run in sorted(runs, key=lambda run: run.seed):  # so that a plan that is cut short has all its runs with some seeds
        if run.result.exists():
            board.rows[run] = json.loads(run.result.read_text())
        else:
            futures[submit(run)] = run
    write_results(plan, out)
    with Live(board, console=console, auto_refresh=False) as live:
        while futures:
            done, _ = wait(futures, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                run = futures.pop(future)
                board.rows[run] = row = future.result()
                if 'error' in row:
                    console.print(f'{run.name}, seed {run.seed} failed:\n{row["error"]}', markup=False, highlight=False)
                elif not console.is_terminal:
                    said = f'{run.name}, seed {run.seed}: box AP {100 * row["bbox_mAP"]:.1f}; {board.time_left({})}'
                    console.print(said, highlight=False)
            if done:
                write_results(plan, out)
            board.running = {run for run in futures.values() if is_running(run)}
            live.update(board, refresh=console.is_terminal)
        live.update(board, refresh=console.is_terminal)
    if not console.is_terminal:
        console.print(board)
    return [run for run, row in board.rows.items() if 'error' in row]


def is_running(run: Run) -> bool:
    """Whether a process holds the run's lock."""
    lock = run.folder / 'lock'
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_results(plan: dict, out: Path) -> None:
    """``results.json`` and ``results.csv``: a row for each finished run, in the plan's order."""
    rows = [json.loads(path.read_text()) for name in plan['runs'] for path in sorted((out / name).glob('seed-*/result.json'), key=seed_of)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_whole(out / 'results.json', json.dumps(rows, indent=1))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / 'results.csv', table.getvalue())


def seed_of(result: Path) -> int:
    """The seed of a run, by its folder."""
    return int(result.parent.name.removeprefix('seed-'))


def write_chosen(plan: dict, out: Path) -> None:
    """``frequencies.json``: the ranking of the singles, and of the best k the list that reached the highest figure."""
    figure = plan.get('metric', 'bbox_mAP')
    ranking = rank_singles(plan, out)
    sizes = {name: run['best'] for name, run in plan['runs'].items() if 'best' in run}
    results = {name: [json.loads(path.read_text())[figure] for path in (out / name).glob('seed-*/result.json')] for name in sizes}
    means = {name: statistics.mean(values) for name, values in results.items() if values}
    chosen = ranking[: sizes[max(means, key=lambda name: means[name])]] if means else ranking
    write_whole(out / CHOSEN, json.dumps(dict(metric=figure, ranking=ranking, frequencies=chosen)))


def main() -> None:
    """Parse the command line and run the plan."""
    parser = argparse.ArgumentParser(description='Run a plan of experiments.')
    parser.add_argument('plan', help="a YAML file, or the name of one of configs/plans, such as 'small'")
    parser.add_argument('--out', type=Path, help='(default: work_dirs/experiments/PLAN)')
    parser.add_argument('--data', type=Path, help="a COCO-format folder in the place of the configs' data")
    parser.add_argument('--seeds', type=int, help="of every run, in the place of the plan's")
    parser.add_argument('--only', nargs='+', metavar='RUN', help='these runs of the plan alone')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at once on a CPU (default: its cores, %(default)s)')
    parser.add_argument('--devices', nargs='+', default=[], metavar='GPU', help='one run on each at a time (default: the first)')
    parser.add_argument('--ray', nargs='?', const='local', metavar='ADDRESS', help='run on Ray: here, or on the cluster at ADDRESS')
    parser.add_argument('--gpus', type=float, default=float(torch.cuda.is_available()), help='GPUs of a run on Ray (default: %(default)g)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='for every run, as in mmdet')
    args = parser.parse_args()
    path = Path(args.plan) if Path(args.plan).is_file() else CONFIGS / 'plans' / f'{args.plan}.yml'
    plan = read_plan(path)
    out = (args.out or Path('work_dirs/experiments', path.stem)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if unknown := set(args.only or ()) - plan['runs'].keys():
        refuse(f'--only {", ".join(sorted(unknown))}: the runs of {path} are {", ".join(plan["runs"])}')
    names = args.only or list(plan['runs'])
    data = args.data
    if data is None and plan.get('data') == 'shapes':
        data = out / 'shapes'
        if not data.exists():
            make_shapes(data)
    write_whole(out / 'plan.yml', yaml.safe_dump(plan, sort_keys=False))
    devices = args.devices or ['0'] * torch.cuda.is_available()
    submitting = submit_to_ray(args.ray, args.gpus) if args.ray else submit_here(args.jobs, devices)
    data = data and data.resolve()
    failed = []
    with submitting as submit:
        for decided in (True, False):
            stage = [name for name in names if is_decided(plan['runs'][name]) is decided]
            if not stage:
                continue
            runs = prepare(stage, plan, out, data, args.cfg_options, args.seeds)
            failed += perform(runs, plan, out, submit)
    if plan.get('singles') and not args.only:
        write_chosen(plan, out)
    print(f'{out / "results.csv"}\nnext: python tools/report.py {out}')
    if failed:
        sys.exit(f'experiment: {len(failed)} runs failed; mended, the same command runs them alone')


if __name__ == '__main__':
    main()

"""Run a plan of experiments on this machine or on Ray, go on after an interruption, and keep the results up to date."""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pandas as pd
import torch
import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..configs import CONFIGS
from ..errors import UserError
from ..files import write_whole
from .data import Folder, read_folder
from .plan import SHAPES, SINGLES, is_decided, read_finished, read_plan, write_chosen
from .runs import Run, configure, fraction_done, is_running, train_once, write_configs
from .shapes import make_shapes

ONE_THREAD = {'OMP_NUM_THREADS': '1'}
"""For runs on a CPU: busy threads of several runs slow each other down, and one thread repeats its results to the last bit."""

Submit = Callable[[Run], Future[dict]]
Submitting = AbstractContextManager[Submit]


def run_plan(
    plan: str, submitting: Submitting, out: Path | None, data: Path | None, seeds: int | None, only: Sequence[str] | None, options: dict
) -> None:
    """Run what is left of a plan, as ``tools/experiment.py`` describes. ``submitting`` is ``submit_here(...)`` or ``submit_to_ray(...)``.

    Raises:
        UserError: the plan or an option is wrong; or some runs failed, after the others have run.
    """
    entries, out = locate(plan, out)
    check_names(only or (), entries)
    if seeds is not None and seeds < 1:
        raise UserError(f'--seeds {seeds}: give 1 or more')
    with submitting as submit:
        folder = find_data(entries, data, out)
        names = only or list(entries['runs'])
        first = [name for name in names if is_decided(entries['runs'][name])]
        last = [name for name in names if name not in first]
        for name in last:  # to find a mistake before the first stage has run: with as many frequencies as will be chosen
            configure(name, entries, folder, options, [*SINGLES.values()][: entries['runs'][name].get('best', 0)] or None)
        write_whole(out / 'plan.yml', yaml.safe_dump(entries, sort_keys=False))
        failed = []
        for stage in filter(None, (first, last)):
            failed += run_all(write_configs(stage, entries, out, folder, options, seeds), entries, out, submit)
    if entries.get('singles') and not only:
        write_chosen(entries, out)
    print(f'{out / "results.csv"}\nnext: python tools/report.py {out}')
    if failed:
        raise UserError(f'{len(failed)} runs failed: mend the errors above, and the same command runs only these again')


def locate(plan: str, out: Path | None) -> tuple[dict, Path]:
    """Read a plan, by the path of its file or by a name in ``configs/plans``, and choose the folder of its results."""
    path = Path(plan) if Path(plan).is_file() else CONFIGS / 'plans' / f'{plan}.yml'
    return read_plan(path), (out or Path('work_dirs/experiments', path.stem)).resolve()


def check_names(only: Iterable[str], entries: dict) -> None:
    """Raise a ``UserError`` for a name that the plan has no run of."""
    if unknown := set(only) - entries['runs'].keys():
        raise UserError(f'--only {", ".join(sorted(unknown))}: the runs of the plan are {", ".join(entries["runs"])}')


def find_data(entries: dict, data: Path | None, out: Path) -> Folder | None:
    """Read the folder ``data``; without it, make the shapes that a plan asks for. None: the configs have their own data."""
    if data is None and entries.get('data') == SHAPES:
        data = out / SHAPES
        make_shapes(data)
    return read_folder(data.resolve()) if data else None


@contextmanager
def submit_here(jobs: int, devices: Sequence[str]) -> Iterator[Submit]:
    """Train on this machine: one run at a time on each device, or ``jobs`` on its CPU. A device that is listed twice takes two.

    Devices are numbered as this process sees them: with CUDA_VISIBLE_DEVICES=2,3 device 0 is the machine's 2.
    """
    if jobs < 1:
        raise UserError(f'--jobs {jobs}: give 1 or more')
    visible = [name.strip() for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name.strip()]
    count = torch.cuda.device_count()
    if absent := [device for device in devices if device not in map(str, range(count))]:
        raise UserError(f'--devices {absent[0]}: this process sees {count} GPUs; they are numbered from 0, also under CUDA_VISIBLE_DEVICES')
    free = [{'CUDA_VISIBLE_DEVICES': visible[int(device)] if visible else device} for device in devices] or [ONE_THREAD] * jobs
    own = threading.local()  # each thread of the pool has one device for all its runs

    def take_device() -> None:
        own.device = free.pop(0)

    pool = ThreadPoolExecutor(len(free), initializer=take_device)
    try:
        yield lambda run: pool.submit(lambda: train_once(run, own.device))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def submit_to_ray(address: str, gpus: float) -> Iterator[Submit]:
    """Train on Ray, ``local`` or at a cluster's address. OUT and the data need the same paths on all machines of the cluster."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs Ray: pip install 'fca_mmdet[ray]'") from error
    if gpus < 0 or (address == 'local' and gpus > torch.cuda.device_count()):
        raise UserError(f'--gpus {gpus:g}: this machine has {torch.cuda.device_count()} GPUs')  # Ray would wait for more without a word
    ray.init(address=None if address == 'local' else address, log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(train_once)
    try:
        yield lambda run: task.remote(run, {} if gpus else ONE_THREAD).future()
    finally:
        ray.shutdown()


def run_all(runs: Sequence[Run], plan: dict, out: Path, submit: Submit) -> list[Run]:
    """Train what is not done, show the progress, and write the results after each run. Returns the runs that failed."""
    console = Console()
    board = Board(runs, plan)
    # By seed: if the plan is cut short, every run then has some seeds.
    futures = {submit(run): run for run in sorted(board.before, key=lambda run: run.seed)}
    write_results(plan, out)
    with Live(board, console=console, auto_refresh=False) as live:
        while futures:
            for future in wait(futures, timeout=5, return_when=FIRST_COMPLETED).done:
                run = futures.pop(future)
                try:
                    row = future.result()
                except Exception as error:  # such as a full disk, or a lost machine of Ray's: the other runs go on
                    row = dict(name=run.name, seed=run.seed, error=f'{type(error).__name__}: {error}')
                board.rows[run] = row
                title = f'{run.name}, seed {run.seed}'
                if 'error' in row:
                    console.print(f'{title} failed:\n{row["error"]}', markup=False, highlight=False)
                elif not console.is_terminal:
                    console.print(f'{title}: box AP {100 * row["bbox_mAP"]:.1f}; {board.time_left({})}', highlight=False)
                write_results(plan, out)
            board.running = {run for run in futures.values() if is_running(run)}
            live.refresh()
    if not console.is_terminal:
        console.print()  # Live has written the table, and ends no line in a file
    return [run for run, row in board.rows.items() if 'error' in row]


def write_results(plan: dict, out: Path) -> None:
    """Write ``results.json`` and ``results.csv``: a row for each finished run, in the plan's order."""
    rows = [row for name in plan['runs'] for row in read_finished(out, name)]
    write_whole(out / 'results.json', json.dumps(rows, indent=1))
    write_whole(out / 'results.csv', pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator='\r\n'))


class Board:
    """A table of finished, running and remaining runs of a plan, which a terminal shows live."""

    def __init__(self, runs: Sequence[Run], plan: dict):
        self.runs = runs
        self.later = [name for name, run in plan['runs'].items() if not is_decided(run) and name not in {run.name for run in runs}]
        self.rows: dict[Run, dict] = {run: json.loads(run.result.read_text()) for run in runs if run.result.exists()}
        self.running: set[Run] = set()
        self.before = {run: fraction_done(run) for run in runs if run not in self.rows}
        self.start = time.monotonic()

    def __rich__(self) -> Table:
        """Make the current table."""
        finished = sum('error' not in row for row in self.rows.values())
        table = Table('run', 'finished', 'now', 'box AP', 'mask AP', title=f'{finished} of {len(self.runs)} runs finished')
        now = {run: fraction_done(run) for run in self.running}
        for name in dict.fromkeys(run.name for run in self.runs):
            mine = [run for run in self.runs if run.name == name]
            ended = [self.rows[run] for run in mine if run in self.rows]
            rows = [row for row in ended if 'error' not in row]
            state = [f'seed {run.seed}: {100 * now[run]:.0f} %' for run in mine if run in now]
            if len(ended) > len(rows):
                state.append(f'{len(ended) - len(rows)} failed')
            figures = [[row[key] for row in rows if key in row] for key in ('bbox_mAP', 'segm_mAP')]
            means = [f'{100 * statistics.mean(values):.1f}' if values else '' for values in figures]
            table.add_row(name, f'{len(rows)} of {len(mine)}', ', '.join(state), *means)
        for name in self.later:
            table.add_row(name, '', 'chosen later', '', '')
        table.caption = self.time_left(now)
        return table

    def time_left(self, now: dict[Run, float]) -> str:
        """Estimate the time left from the pace so far. It is a rough estimate, since runs differ in cost."""
        done = sum(1 - before for run, before in self.before.items() if run in self.rows)
        done += sum(fraction - self.before[run] for run, fraction in now.items())
        left = sum(1 - before for before in self.before.values()) - done
        elapsed = time.monotonic() - self.start
        return f'about {elapsed * left / done / 60:.0f} min left' if done > 0 else 'the time left is known after the first log entry'

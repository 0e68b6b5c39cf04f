"""A plan of experiments, run: on the devices of this machine or on Ray, as often as it takes, with the results kept written."""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..configs import CONFIGS
from ..errors import UserError
from ..files import write_whole
from .plan import is_decided, read_finished, read_plan, write_chosen
from .runs import Run, fraction_done, is_running, train_once, write_configs
from .shapes import make_shapes

ONE_THREAD = {'OMP_NUM_THREADS': '1'}
"""On a CPU: torch's threads wait actively, and those of several runs for each other; and one thread repeats itself to the last bit."""

Submit = Callable[[Run], Future[dict]]
Submitting = AbstractContextManager[Submit]


def run_plan(
    plan: str, submitting: Submitting, out: Path | None, data: Path | None, seeds: int | None, only: Sequence[str] | None, options: dict
) -> None:
    """Run what is not done of a plan, as ``tools/experiment.py`` says. ``submitting`` is ``submit_here`` or ``submit_to_ray``.

    Raises:
        UserError: a mistake in the plan or the options; or, after all others have run, that runs failed.
    """
    path = Path(plan) if Path(plan).is_file() else CONFIGS / 'plans' / f'{plan}.yml'
    entries = read_plan(path)
    out = (out or Path('work_dirs/experiments', path.stem)).resolve()
    if unknown := set(only or ()) - entries['runs'].keys():
        raise UserError(f'--only {", ".join(sorted(unknown))}: the runs of {path} are {", ".join(entries["runs"])}')
    if data is None and entries.get('data') == 'shapes':
        data = out / 'shapes'
        make_shapes(data)
    write_whole(out / 'plan.yml', yaml.safe_dump(entries, sort_keys=False))
    failed = []
    with submitting as submit:
        for decided in (True, False):
            stage = [name for name in only or entries['runs'] if is_decided(entries['runs'][name]) is decided]
            if stage:
                runs = write_configs(stage, entries, out, data and data.resolve(), options, seeds)
                failed += run_all(runs, entries, out, submit)
    if entries.get('singles') and not only:
        write_chosen(entries, out)
    print(f'{out / "results.csv"}\nnext: python tools/report.py {out}')
    if failed:
        raise UserError(f'{len(failed)} runs failed; mended, the same command runs them alone')


@contextmanager
def submit_here(jobs: int, devices: Sequence[str]) -> Iterator[Submit]:
    """Train on this machine: one run on each device at a time, or ``jobs`` on its CPU. A device given twice takes two."""
    free = [{'CUDA_VISIBLE_DEVICES': device} for device in devices] or [ONE_THREAD] * jobs
    own = threading.local()  # of each thread of the pool: the device that it starts all its runs on

    def take_device() -> None:
        own.device = free.pop(0)

    pool = ThreadPoolExecutor(len(free), initializer=take_device)
    try:
        yield lambda run: pool.submit(lambda: train_once(run, own.device))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def submit_to_ray(address: str, gpus: float) -> Iterator[Submit]:
    """Train on Ray: ``local``, or a cluster's address, where OUT and the data have the same paths on every machine."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs Ray: pip install 'fca_mmdet[ray]'") from error
    ray.init(address=None if address == 'local' else address, log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(train_once)
    try:
        yield lambda run: task.remote(run, {} if gpus else ONE_THREAD).future()
    finally:
        ray.shutdown()


def run_all(runs: Sequence[Run], plan: dict, out: Path, submit: Submit) -> list[Run]:
    """Train what is not done, show how it goes, and keep the results written. Returns the runs that failed."""
    console = Console()
    board = Board(runs, plan)
    # By seed, so that a plan that is cut short has all its runs with some seeds.
    futures = {submit(run): run for run in sorted(board.before, key=lambda run: run.seed)}
    write_results(plan, out)
    with Live(board, console=console, auto_refresh=False) as live:
        while futures:
            for future in wait(futures, timeout=5, return_when=FIRST_COMPLETED).done:
                run = futures.pop(future)
                board.rows[run] = row = future.result()
                title = f'{run.name}, seed {run.seed}'
                if 'error' in row:
                    console.print(f'{title} failed:\n{row["error"]}', markup=False, highlight=False)
                elif not console.is_terminal:
                    console.print(f'{title}: box AP {100 * row["bbox_mAP"]:.1f}; {board.time_left({})}', highlight=False)
                write_results(plan, out)
            board.running = {run for run in futures.values() if is_running(run)}
            live.refresh()
    if not console.is_terminal:
        console.print(board)
    return [run for run, row in board.rows.items() if 'error' in row]


def write_results(plan: dict, out: Path) -> None:
    """Write ``results.json`` and ``results.csv``: a row for each finished run, in the plan's order."""
    rows = [row for name in plan['runs'] for row in read_finished(out, name)]
    write_whole(out / 'results.json', json.dumps(rows, indent=1))
    write_whole(out / 'results.csv', pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator='\r\n'))


class Board:
    """What is done, running and left of some runs of a plan, as a table that a terminal shows live."""

    def __init__(self, runs: Sequence[Run], plan: dict):
        self.runs = runs
        self.later = [name for name, run in plan['runs'].items() if not is_decided(run) and name not in {run.name for run in runs}]
        self.rows: dict[Run, dict] = {run: json.loads(run.result.read_text()) for run in runs if run.result.exists()}
        self.running: set[Run] = set()
        self.before = {run: fraction_done(run) for run in runs if run not in self.rows}
        self.start = time.monotonic()

    def __rich__(self) -> Table:
        """Make the table as it stands."""
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
        """Estimate from the pace of this start; runs differ in cost, so it is a guess."""
        done = sum(1 - before for run, before in self.before.items() if run in self.rows)
        done += sum(fraction - self.before[run] for run, fraction in now.items())
        left = sum(1 - before for before in self.before.values()) - done
        elapsed = time.monotonic() - self.start
        return f'about {elapsed * left / done / 60:.0f} min left' if done > 0 else 'the time left shows when something has been logged'

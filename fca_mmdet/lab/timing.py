"""Time alternatives in turns, round by round, so that other work on the machine slows all of them alike."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from ..errors import UserError


@dataclass(frozen=True)
class Setting:
    """The conditions of a measurement.

    A ``dtype`` other than float32 means autocast; ``keep_pages`` tells glibc to return no memory. ``fixed`` tells a ``runtime`` other than
    torch the shape of the images beforehand.
    """

    depth: int = 50
    batch: int = 1
    size: tuple[int, int] = (800, 1344)
    dtype: str = 'float32'
    channels_last: bool = False
    compile: bool = False
    device: str = 'cpu'
    threads: int = torch.get_num_threads()
    keep_pages: bool = False
    runtime: str = 'torch'
    fixed: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the memory format of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def seconds(action: Callable[[], object], device: str | torch.device) -> float:
    """Time one call: by the wall clock on a CPU, by events on CUDA."""
    if torch.device(device).type != 'cuda':
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def rounds(ask: Callable[[], Mapping[str, float]], repeats: int, label: str) -> dict[str, list[float]]:
    """Collect ``repeats`` answers of ``ask`` by name, after a first that does not count, and print an estimate of the time left."""
    answers = []
    start = time.monotonic()
    for index in range(repeats + 1):
        answers.append(ask())
        left = (time.monotonic() - start) / (index + 1) * (repeats - index)
        print(f'\r{label}: round {index} of {repeats}, {left / 60:.1f} min left   ', end='', flush=True)
    print('\r', end='')
    return {name: [answer[name] for answer in answers[1:]] for name in answers[0]}


def summary(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Compute each name's median, and the median and quartiles of its ratios to the first name in the same round."""
    first = next(iter(values.values()))
    rows = {}
    for name, series in values.items():
        ratios = [value / base for value, base in zip(series, first, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
        rows[name] = {'median': statistics.median(series), 'ratio': statistics.median(ratios), 'quartiles': quartiles}
    return rows


def in_turns(actions: Mapping[str, Callable[[], object]], repeats: int, device: str | torch.device, label: str) -> dict[str, dict]:
    """Time small actions in turns within this process. Returns their ``summary``."""
    return summary(rounds(lambda: {name: seconds(action, device) for name, action in actions.items()}, repeats, label))


_subject: object = None  # in a worker process


def _start(kind: Callable[[str, Setting], object], name: str, setting: Setting) -> None:
    global _subject
    _subject = kind(name, setting)


def _call(action: str) -> Any:
    return getattr(_subject, action)()


@contextmanager
def workers(names: Sequence[str], setting: Setting, kind: Callable[[str, Setting], object]) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Start a process with ``kind(name, setting)`` for each name. Yields a function that calls a method in each, one after the other."""
    allocator = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**40)} if setting.keep_pages else {}
    spawn = multiprocessing.get_context('spawn')  # a forked process would profit from memory that its parent's allocator keeps
    pools = {name: ProcessPoolExecutor(1, spawn, _start, (kind, name, setting)) for name in names}
    with ExitStack() as stack, patch.dict(os.environ, allocator):  # glibc reads it when a process starts, at its first task
        for pool in pools.values():
            stack.enter_context(pool).submit(int)

        def ask(action: str) -> dict[str, Any]:
            answers = {}
            try:
                for name, pool in pools.items():
                    answers[name] = pool.submit(_call, action).result()
            except BrokenProcessPool as error:
                raise UserError(f'the process of {name!r} has ended: see its traceback above') from error
            return answers

        yield ask

"""Resume a training as if it had not been interrupted: whole checkpoints, and random numbers that depend on the iteration alone.

mmengine's ``--resume`` restores weights, optimiser, schedules, the training log and the order of the data. But it draws new random numbers
in steps and augmentations, it leaves out an evaluation that was cut short, and its files can be left half-written. With

    default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
    train_dataloader = dict(sampler=dict(type='ResumableInfiniteSampler'))  # in an epoch-based loop ResumableDefaultSampler
    randomness = dict(seed=0)

in a config, a training that was killed and resumed continues with the same numbers, with any number of data loading workers. On a CPU with
one thread they are the same to the last bit.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import DATA_SAMPLERS, HOOKS
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, set_random_seed

from ..files import write_whole

STEP, EVALUATION, SAMPLE = range(3)
"""Uses of random numbers; each has its own."""


def _seed_generators(*entropy: int) -> None:
    """Seed Python's, numpy's and torch's global generators with some integers."""
    set_random_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class _Position(int):
    """An index into a data set that also carries its position in the sampler's stream, for the worker that loads it."""

    position: int

    def __new__(cls, index: int, position: int = 0) -> '_Position':  # pickle gives only the index, and then restores the position
        self = super().__new__(cls, index)
        self.position = position
        return self


def _load(dataset: Any, seed: int, rank: int, indices: Sequence[_Position]) -> list:
    items = []
    for index in indices:
        _seed_generators(SAMPLE, seed, rank, index.position)
        items.append(dataset[int(index)])
    return items


class _SeededSamples:
    """A sampler that makes a sample's augmentation depend only on its position and the seed, in any process."""

    def __init__(self: Any, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # torch's data loader loads a batch with this method.
        self.dataset.__getitems__ = partial(_load, self.dataset, self.seed, self.rank)


@DATA_SAMPLERS.register_module()
class ResumableInfiniteSampler(_SeededSamples, InfiniteSampler):
    """mmengine's ``InfiniteSampler``; a sample's augmentation depends only on its position in the stream and the seed."""

    position = 0

    def skip(self, num_samples: int) -> None:
        """Skip ``num_samples``. OneDL's mmengine calls this when it resumes; OpenMMLab's loads them all."""
        super().skip(num_samples)
        self.position = num_samples

    def __iter__(self) -> Iterator[int]:
        """Yield the indices, each with its position."""
        for index in super().__iter__():
            yield _Position(index, self.position)
            self.position += 1


@DATA_SAMPLERS.register_module()
class ResumableDefaultSampler(_SeededSamples, DefaultSampler):
    """mmengine's ``DefaultSampler``; a sample's augmentation depends only on its position over all epochs and the seed."""

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of an epoch, each with its position over all epochs."""
        for position, index in enumerate(super().__iter__(), self.epoch * len(self)):
            yield _Position(index, position)


class WholeFileBackend(LocalBackend):
    """mmengine's local files, each whole or absent at any time."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file. An older file of that name stays until all of it is on the disk."""
        write_whole(filepath, obj)


register_backend('whole_file', WholeFileBackend, force=True)


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for a training that may be killed at any point, with the same arguments. It also

    - writes whole checkpoints (``WholeFileBackend``), unless ``backend_args`` or an ``out_dir`` with ``://`` name another backend;
    - resumes from the newest checkpoint if a kill left ``last_checkpoint`` empty;
    - seeds each iteration and evaluation from the seed and the iteration. (Samples are seeded by their sampler,
      ``ResumableInfiniteSampler`` or ``ResumableDefaultSampler``);
    - runs the evaluation that was due after the checkpoint, if the kill came before its end.

    Raises:
        ValueError: ``max_keep_ckpts=1``, or checkpoints by iteration in an epoch-based loop, or by epoch in an iteration-based one.
    """

    backend_args: dict | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.max_keep_ckpts == 1:
            raise ValueError(
                'max_keep_ckpts=1: mmengine removes the last checkpoint before it writes the next, and a kill between the two leaves none; '
                'set max_keep_ckpts to 2 or more'
            )
        if not (self.backend_args or self.file_client_args or '://' in str(self.out_dir)):
            self.backend_args = dict(backend='whole_file')

    def before_run(self, runner: Runner) -> None:
        """Name the newest checkpoint in ``last_checkpoint`` if a kill left that empty: mmengine writes it in place."""
        pointer = Path(runner.work_dir, 'last_checkpoint')
        if is_main_process() and pointer.is_file() and not pointer.read_text().strip():
            folder = Path(self.out_dir, pointer.parent.name) if self.out_dir else pointer.parent
            newest = max(folder.glob(self.filename_tmpl.format('*')), key=os.path.getmtime, default=None)
            if newest:
                runner.logger.warning(f'{pointer} was left empty; the newest checkpoint is {newest}')
                write_whole(pointer, str(newest))
        barrier()

    def before_train(self, runner: Runner) -> None:
        """Warn of settings that make a resumed training differ, and run the evaluation that a kill cut short."""
        super().before_train(runner)
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop if self.by_epoch else EpochBasedTrainLoop):
            raise ValueError(
                f'checkpoints with by_epoch={self.by_epoch} under {type(loop).__name__}: mmengine resumes such a loop at the wrong place; '
                f'set by_epoch={not self.by_epoch}'
            )
        sampler = getattr(runner.train_dataloader.batch_sampler, 'sampler', None)
        if not isinstance(sampler, ResumableInfiniteSampler | ResumableDefaultSampler):
            runner.logger.warning(
                f'With sampler {type(sampler).__name__}, augmentation will differ after a resume: set train_dataloader.sampler.type to '
                f'{"ResumableDefaultSampler" if self.by_epoch else "ResumableInfiniteSampler"}'
            )
        if runner.cfg.get('randomness', {}).get('seed') is None:
            runner.logger.warning('Without a seed, the order of the images will differ after a resume: set randomness.seed')
        self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
        done = self._done(runner)
        if runner.val_loop is not None and done not in (0, runner.message_hub.runtime_info.get('evaluated')):
            # The training loop does the same after each step, but not when it resumes.
            loop._decide_current_val_interval()
            last = runner.max_epochs if self.by_epoch else runner.max_iters
            if done >= runner.val_begin and (done % runner.val_interval == 0 or done == last):
                runner.val_loop.run()

    def _done(self, runner: Runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the model draws in this iteration."""
        _seed_generators(STEP, runner.seed, get_rank(), runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed what the model draws in this evaluation."""
        _seed_generators(EVALUATION, runner.seed, get_rank(), runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Record in the training log, which is part of each checkpoint, that the evaluation is done."""
        runner.message_hub.update_info('evaluated', self._done(runner))
        super().after_val_epoch(runner, metrics)

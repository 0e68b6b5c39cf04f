"""Training that is killed and resumed ends as the uninterrupted one, bit for bit; checkpoints are whole or absent."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY, TOOLS
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from fca_mmdet import CheckpointError
from fca_mmdet.lab.log import read_scalars
from fca_mmdet.lab.shapes import make_shapes
from fca_mmdet.reading import read_checkpoint
from fca_mmdet.training.resume import ResumableCheckpointHook, ResumableDefaultSampler, ResumableInfiniteSampler, WholeFileBackend

# The tiny detector, whose images, proposals and regions are drawn at random, and its moving average.
CONFIG = f"""
_base_ = {str(TINY)!r}
custom_imports = dict(imports=['fca_mmdet', 'killer'], allow_failed_imports=False)
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', scales=[(64, 64), (80, 80), (96, 96)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(data_root=DATA, pipeline=pipeline), SAMPLER)
val_dataloader = dict(dataset=dict(data_root=DATA))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=DATA + 'annotations/val.json')
test_evaluator = val_evaluator
train_cfg = LOOP
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', max_keep_ckpts=2, save_best='coco/bbox_mAP', CHECKPOINTS))
custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='Killer')]
randomness = dict(seed=0)
"""
BY_ITERATION = dict(
    LOOP='dict(max_iters=24, val_interval=8)',
    SAMPLER="sampler=dict(type='ResumableInfiniteSampler')",
    CHECKPOINTS='interval=4',
)
BY_EPOCH = dict(
    LOOP="dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=4, val_interval=2)",
    SAMPLER="sampler=dict(type='ResumableDefaultSampler'), batch_sampler=dict(_delete_=True, type='AspectRatioBatchSampler')",
    CHECKPOINTS='by_epoch=True, interval=1',
)


HALF = 2_000_000  # bytes; a checkpoint of weights alone has more


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(folder, train=8, val=4)
    return folder


def write_config(path: Path, data: Path, loop: dict[str, str]) -> Path:
    text = CONFIG.replace('DATA', repr(f'{data}/'))
    for name, value in loop.items():
        text = text.replace(name, value)
    path.write_text(text)
    return path


def train(config: Path, work_dir: Path, kill: str | None = None, workers: int = 0) -> str:
    """Start or resume in a process of its own, which is killed at ``kill`` or ends well; its output."""
    command = [sys.executable, TOOLS / 'train.py', config, '--work-dir', work_dir, '--resume', '--cfg-options']
    options = [f'train_dataloader.num_workers={workers}', f'train_dataloader.persistent_workers={workers > 0}']
    path = f'{Path(__file__).parent}:{os.environ.get("PYTHONPATH", "")}'  # where killer.py lies
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=path, HALF=str(HALF), KILL=kill or 'never 0')
    log = work_dir.with_suffix('.log')  # and no pipe: workers whose parent is killed hold it open for seconds
    with log.open('w') as file:
        result = subprocess.run([*command, *options], env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=120)
    output = log.read_text()
    assert result.returncode == (-signal.SIGKILL if kill else 0), output[-3000:]
    return output


def resumed_at(output: str) -> tuple[int, int] | None:
    found = re.search(r'resumed epoch: (\d+), iter: (\d+)', output)
    return found and (int(found[1]), int(found[2]))


def flatten(value: object, key: str = '') -> dict[str, object]:
    """Nested containers as one dictionary; the training log's buffers as arrays."""
    if isinstance(value, HistoryBuffer):
        value = torch.from_numpy(value._log_history)
    if not isinstance(value, dict | list | tuple):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for name, inner in items for path, leaf in flatten(inner, f'{key}/{name}').items()}


OF_THE_RUN = r'/meta/(time|cfg|experiment_name)$|/runtime_info/(last_ckpt|best_ckpt|cfg|experiment_name|eta|epoch|iter)$|/(data_)?time$'
"""What differs between two runs: clocks, paths, and the log's count where an evaluation is made up for; meta has the count."""


def assert_same_training(one: Path, other: Path) -> None:
    """The same checkpoints with the same numbers in them, and the same log."""
    names = sorted(path.name for path in one.glob('*.pth*'))
    assert names == sorted(path.name for path in other.glob('*.pth*'))
    assert len(names) == 3  # two, and the best
    for name in names:
        first, second = (flatten(read_checkpoint(folder / name)) for folder in (one, other))
        assert list(first) == list(second)
        assert len(first) > 300
        differ = [
            key
            for key, value in first.items()
            if not (torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key])
        ]
        assert [key for key in differ if not re.search(OF_THE_RUN, key)] == []
    logs = [
        [{key: value for key, value in entry.items() if key not in ('time', 'data_time')} for entry in read_scalars(folder)]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]
    assert sum('coco/segm_mAP' in entry for entry in logs[0]) >= 2


KILLS = {
    'backward 2': None,
    'half iter_4.pth.part': None,
    'emptied last_checkpoint': None,
    'before last_checkpoint': 4,
    'evaluation 8': 4,
    'half best_coco_bbox_mAP_iter_8.pth.part': 8,
    'half iter_8.pth.part': 8,  # written again, with what is the best
    'backward 11': 8,
    'loading 15': 8,
    'evaluation 24': 12,
}
"""The ten points, in turn, and the iteration that each process resumes at."""


@pytest.mark.slow
def test_a_training_killed_ten_times_ends_as_the_uninterrupted_one(data, tmp_path):
    config = write_config(tmp_path / 'config.py', data, BY_ITERATION)
    train(config, tmp_path / 'whole')
    killed = tmp_path / 'killed'
    for turn, (kill, start) in enumerate(KILLS.items()):
        output = train(config, killed, kill, workers=2 * (turn % 2))
        assert resumed_at(output) == (start and (0, start))
        if kill.startswith('half'):
            assert (killed / kill.split()[1]).stat().st_size == HALF
        assert ('last_checkpoint was left empty; the newest checkpoint is' in output) == (kill == 'before last_checkpoint')
        assert 'after a resume' not in output  # no warning
    assert resumed_at(train(config, killed)) == (0, 24)
    assert_same_training(tmp_path / 'whole', killed)


@pytest.mark.slow
def test_a_training_by_epoch(data, tmp_path):
    config = write_config(tmp_path / 'config.py', data, BY_EPOCH)
    train(config, tmp_path / 'whole', workers=2)
    assert resumed_at(train(config, tmp_path / 'killed', 'backward 10')) is None
    assert resumed_at(train(config, tmp_path / 'killed', 'evaluation 16', workers=2)) == (2, 8)
    assert resumed_at(train(config, tmp_path / 'killed')) == (4, 16)
    assert_same_training(tmp_path / 'whole', tmp_path / 'killed')


class Noisy(BaseModel):
    """A weight that every step and every evaluation moves or sees through noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, mode: str) -> object:
        noisy = self.weight * torch.rand(1) - x.mean() * np.random.rand() + random.random()  # noqa: NPY002
        return dict(loss=noisy**2) if mode == 'loss' else [noisy]


class Augmented:
    """Seven samples, each with noise of all three generators."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict:
        return dict(x=index + torch.rand(1) + np.random.rand() + random.random())  # noqa: NPY002


class Mean(BaseMetric):
    """The mean of what the model says."""

    def process(self, data_batch: object, data_samples: list) -> None:
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(mean=np.mean(results))


class Interrupt(Hook):
    """An interruption before an iteration, or in an evaluation. It draws random numbers, as any hook may."""

    def __init__(self, iteration: int | None = None, evaluation: int | None = None):
        self.iteration, self.evaluation = iteration, evaluation

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        torch.rand(1)
        if runner.iter == self.iteration:
            raise KeyboardInterrupt

    def after_val_iter(self, runner: Runner, *_: object, **__: object) -> None:
        if runner.iter == self.evaluation:
            raise KeyboardInterrupt


LOOPS = {
    'iterations': (
        dict(type='IterBasedTrainLoop', max_iters=13, val_interval=8, dynamic_intervals=[(9, 2)]),
        ResumableInfiniteSampler,
        dict(by_epoch=False, interval=2),
    ),
    'iterations of epochs': (
        dict(type='IterBasedTrainLoop', max_iters=9, val_interval=3),
        ResumableDefaultSampler,
        dict(by_epoch=False, interval=3),
    ),
    'epochs': (dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1), ResumableDefaultSampler, dict(by_epoch=True, interval=1)),
}
names = count()


def toy(
    work_dir: Path, loop: str = 'iterations', resume: bool = False, hooks: list | None = None, seed: int | None = 0, **options: object
) -> Runner:
    """A runner of one of the loops; ``options`` are of the hook, but for ``train_dataloader``."""
    train_cfg, sampler, checkpoint = LOOPS[loop]
    loader = dict(dataset=Augmented(), batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'))
    return Runner(
        model=Noisy(),
        work_dir=str(work_dir),
        train_dataloader=loader | dict(sampler=dict(type=sampler)) | options.pop('train_dataloader', {}),
        val_dataloader=loader | dict(sampler=dict(type=DefaultSampler, shuffle=False)),
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=Evaluator(Mean()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type=ResumableCheckpointHook) | checkpoint | options),
        custom_hooks=hooks,
        randomness=dict(seed=seed),
        cfg=dict(randomness=dict(seed=seed)),
        resume=resume,
        experiment_name=f'toy{next(names)}',
        log_level='WARNING',
    )


def outcome(runner: Runner) -> dict[str, object]:
    state = flatten(dict(state=runner.model.state_dict(), optimizer=runner.optim_wrapper.state_dict(), hub=runner.message_hub.log_scalars))
    return {key: value for key, value in state.items() if not key.endswith('time')}


def assert_same_outcome(one: Runner, other: Runner) -> None:
    first, second = outcome(one), outcome(other)
    assert list(first) == list(second)
    assert '/hub/val/mean' in first
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key], key


def interrupted(work_dir: Path, loop: str, iteration: int | None = None, evaluation: int | None = None, **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy(work_dir, loop, resume=True, hooks=[Interrupt(iteration, evaluation)], **options).train()


@pytest.mark.parametrize(
    ('loop', 'iteration', 'evaluation', 'last'),
    [('iterations', 7, 10, 13), ('iterations of epochs', 5, 6, 9), ('epochs', 6, 8, 12)],
)
def test_an_interrupted_training_in_either_loop(loop, iteration, evaluation, last, tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time', SimpleNamespace(sleep=lambda _: None))  # two seconds at each end of the data
    whole = toy(tmp_path / 'whole', loop)
    whole.train()
    interrupted(tmp_path / 'other', loop, iteration=iteration)
    interrupted(tmp_path / 'other', loop, evaluation=evaluation)
    interrupted(tmp_path / 'other', loop, evaluation=last)
    other = toy(tmp_path / 'other', loop, resume=True)
    other.train()
    assert other.iter == last
    assert_same_outcome(whole, other)


def test_the_order_is_mmengines_and_the_number_of_workers_does_not_matter():
    def batches(sampler, workers: int) -> list[float]:
        loader = dict(
            dataset=Augmented(), batch_size=2, num_workers=workers, sampler=dict(type=sampler), collate_fn=dict(type='default_collate')
        )
        return [batch['x'].tolist() for batch in islice(Runner.build_dataloader(loader, seed=0), 4)]

    for ours, mmengines in ((ResumableInfiniteSampler, InfiniteSampler), (ResumableDefaultSampler, DefaultSampler)):
        assert list(islice(ours(Augmented(), seed=3), 7)) == list(islice(mmengines(Augmented(), seed=3), 7))
        alone = batches(ours, 0)
        assert alone == batches(ours, 2)
        assert len({value for batch in alone for (value,) in batch}) == 7 if ours is ResumableDefaultSampler else 8
    epochs = ResumableDefaultSampler(Augmented(), seed=0)
    positions = [index.position for epoch in (0, 1) for index in (epochs.set_epoch(epoch), *epochs)[1:]]
    assert positions == list(range(14))


BEST = dict(save_best='mean', rule='greater')


def test_the_same_checkpoints_are_kept(tmp_path):
    """Also those that are written between two, since they are the best."""
    options = dict(interval=5, max_keep_ckpts=3, **BEST)
    toy(tmp_path / 'whole', **options).train()
    interrupted(tmp_path / 'other', 'iterations', iteration=7, **options)
    toy(tmp_path / 'other', resume=True, **options).train()
    kept, other = ({path.name for path in (tmp_path / name).glob('*.pth')} for name in ('whole', 'other'))
    assert kept == other == {f'{name}.pth' for name in ('best_mean_iter_8', 'iter_8', 'iter_10', 'iter_13')}


def test_no_second_evaluation(tmp_path):
    """The checkpoint that is written after an evaluation, since it was the best, knows of it."""
    first, second = (toy(tmp_path, resume=resume, hooks=[Interrupt(iteration=8)], **BEST) for resume in (False, True))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert read_checkpoint(tmp_path / 'iter_8.pth')['message_hub']['runtime_info']['evaluated'] == 8
    with pytest.raises(KeyboardInterrupt):
        second.train()
    assert len(second.message_hub.get_scalar('val/mean').data[0]) == 1


def limited_put(backend: LocalBackend, path: Path, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends the process in the middle of its writing
    backend.put(b'new' * 1000, path)


@pytest.mark.parametrize(('backend', 'left'), [(WholeFileBackend, b'old'), (LocalBackend, b'new' * 500)])
def test_a_file_that_is_being_replaced(backend, left, tmp_path):
    path = tmp_path / 'iter_4.pth'
    path.write_bytes(b'old')
    process = get_context('fork').Process(target=limited_put, args=(backend(), path, 1500))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGXFSZ
    assert path.read_bytes() == left
    backend().put(b'new', path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {'iter_4.pth': b'new'}


def test_a_part_of_a_checkpoint_is_never_taken_for_a_whole(tmp_path):
    toy(tmp_path).train()
    content = (tmp_path / 'iter_13.pth').read_bytes()
    part = tmp_path / 'part.pth'
    for size in range(1, len(content), 97):
        part.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r'part.pth is truncated or no checkpoint of torch.save \(\w+\): fetch it again'):
            read_checkpoint(part)


def warnings_of(runner: Runner) -> list[str]:
    lines: list[str] = []
    runner.logger.addFilter(lambda record: lines.append(record.getMessage()) or True)
    runner.train()
    return [line for line in lines if 'after a resume' in line]


def test_what_stands_against_an_exact_resumption_is_said(tmp_path):
    assert warnings_of(toy(tmp_path / 'none')) == []
    order = 'Without a seed, the order of the images will differ after a resume: set randomness.seed'
    assert warnings_of(toy(tmp_path / 'seed', seed=None)) == [order]
    augmentation = 'With sampler InfiniteSampler, augmentation will differ after a resume: set train_dataloader.sampler.type to '
    plain = dict(sampler=dict(type=InfiniteSampler))
    assert warnings_of(toy(tmp_path / 'sampler', train_dataloader=plain)) == [f'{augmentation}ResumableInfiniteSampler']


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'^max_keep_ckpts=1: mmengine removes .* leaves none; set max_keep_ckpts to 2 or more$'):
        ResumableCheckpointHook(max_keep_ckpts=1)
    for loop, by_epoch in (('epochs', False), ('iterations', True)):
        with pytest.raises(ValueError, match=rf'with by_epoch={by_epoch} under .*Loop: .* wrong place; set by_epoch={not by_epoch}$'):
            toy(tmp_path, loop, by_epoch=by_epoch).train()


def test_another_backend_stays(tmp_path):
    assert ResumableCheckpointHook().backend_args == dict(backend='whole_file')
    assert ResumableCheckpointHook(backend_args=dict(backend='local')).backend_args == dict(backend='local')
    assert ResumableCheckpointHook(out_dir='s3://bucket').backend_args is None


def test_an_empty_last_checkpoint_in_another_folder(tmp_path):
    work_dir, out = tmp_path / 'run', tmp_path / 'out'
    first = toy(work_dir, out_dir=str(out), hooks=[Interrupt(iteration=7)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert (work_dir / 'last_checkpoint').read_text() == str(out / 'run' / 'iter_6.pth')
    (work_dir / 'last_checkpoint').write_text('')
    second = toy(work_dir, out_dir=str(out), resume=True, hooks=[Interrupt(iteration=6)])
    with pytest.raises(KeyboardInterrupt):
        second.train()
    assert (work_dir / 'last_checkpoint').read_text() == str(out / 'run' / 'iter_6.pth')

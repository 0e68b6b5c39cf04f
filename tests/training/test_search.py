"""The hook of a learned selection under mmengine's own training."""

import json
import math

import pytest
import torch
from helpers import SHALLOW
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from fca_mmdet import FcaResNet, FrequencySearchHook, FrequencySelection, MultiSpectralAttention
from fca_mmdet.lab.log import read_scalars


class Regression(BaseModel):
    """Learns a number per image from a shallow backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = FcaResNet(basis='searched', frequencies='low4', **SHALLOW)

    def forward(self, image, target, mode='tensor'):
        out = self.backbone(image)[1].mean((1, 2, 3))
        return dict(loss=(out - target).square().mean()) if mode == 'loss' else out


@HOOKS.register_module()
class Temperatures(Hook):
    """Keeps the temperature of each forward."""

    def before_run(self, runner):
        self.seen = {}
        selection = runner.model.backbone.selection
        selection.register_forward_pre_hook(lambda *_: self.seen.update({runner.iter: selection.temperature.item()}))


def train(work_dir, resume: bool = False, **train_cfg) -> Runner:
    """Six steps of two images, or what is left of them."""
    generator = torch.Generator().manual_seed(0)
    data = [dict(image=torch.rand(3, 32, 40, generator=generator), target=torch.rand((), generator=generator)) for _ in range(6)]
    torch.manual_seed(0)
    runner = Runner(
        Regression(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=2, dataset=data, sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate')
        ),
        train_cfg=train_cfg or dict(by_epoch=False, max_iters=6),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2), checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
        custom_hooks=[dict(type='FrequencySearchHook', start=2.0, end=0.5), dict(type='Temperatures')],
        log_processor=dict(by_epoch=False, window_size=1),
        resume=resume,
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}-{resume}',
        default_scope='mmdet',
    )
    runner.train()
    return runner


def temperatures(runner: Runner) -> dict[int, float]:
    """By iteration."""
    return next(hook.seen for hook in runner.hooks if isinstance(hook, Temperatures))


def test_the_hook_anneals_logs_writes_and_resumes(tmp_path):
    runner = train(tmp_path)
    seen = temperatures(runner)
    expected = {iteration: 2 * 0.25 ** (iteration / 5) for iteration in range(6)}
    assert {iteration: seen[iteration] for iteration in range(6)} == pytest.approx(expected)

    written = json.loads((tmp_path / 'frequencies.json').read_text())
    assert not list(tmp_path.glob('*.part'))
    selection = runner.model.backbone.selection
    assert [tuple(pair) for pair in written['frequencies']] == selection.chosen()
    torch.testing.assert_close(torch.tensor(written['probabilities']), selection().detach())
    assert len(MultiSpectralAttention(64, frequencies=written['frequencies']).frequencies) == 4
    assert f'frequencies={[tuple(pair) for pair in selection.chosen()]}' in next(tmp_path.glob('*/*.log')).read_text()

    logged = [entry['selection_entropy'] for entry in read_scalars(tmp_path)]
    assert len(logged) == 3
    assert math.log(49) > logged[0] > logged[2] > 0
    assert logged[2] == pytest.approx(selection.entropy().item(), rel=1e-5)

    (tmp_path / 'frequencies.json').unlink()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    resumed = train(tmp_path, resume=True)
    again = temperatures(resumed)
    assert again == {iteration: seen[iteration] for iteration in again}
    assert min(again) == 3
    assert torch.equal(resumed.model.backbone.selection.logits, selection.logits)
    assert json.loads((tmp_path / 'frequencies.json').read_text()) == written


def test_the_schedule_of_a_loop_by_epoch(tmp_path):
    runner = train(tmp_path, by_epoch=True, max_epochs=2)
    seen = temperatures(runner)
    assert [seen[0], seen[5]] == pytest.approx([2, 0.5])


def test_the_hook_wants_one_selection(tmp_path):
    for model, count in ((nn.Identity(), 0), (nn.ModuleList(FrequencySelection(1) for _ in range(2)), 2)):
        with pytest.raises(
            ValueError, match=f"anneals one selection, but the model has {count}: give it one FcaResNet with basis='searched'"
        ):
            FrequencySearchHook().before_train(type('Running', (), dict(model=model)))


@pytest.mark.parametrize('given', [dict(start=0), dict(end=0), dict(end=2), dict(end=None), dict(start=math.nan), dict(start=math.inf)])
def test_temperatures_that_are_none(given):
    with pytest.raises(ValueError, match=r'start=.* and end=.* must be temperatures, start >= end > 0, such as 1\.0 and 0\.05'):
        FrequencySearchHook(**given)

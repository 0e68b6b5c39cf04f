"""A learned selection of frequencies: one training with a mixture of the whole 7x7 spectrum per group, which ends as a list of pairs.

In the spirit of the NAS variant of FcaNet (ICCV 2021, https://arxiv.org/abs/2012.11879), of which no code is published. Each group of
channels is squeezed with

    map_f = sum_k softmax(logits[f] / T)[k] map_k,    k over the 49 frequencies,

and the temperature T falls until about one frequency per group is left. A projection is linear in its map, so the maps are mixed and not
the components: a search keeps no feature map more than a fixed selection does.

The logits are trained with the weights, on the same images. All blocks of a backbone share one selection, as they share a published set.
"""

import json
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .frequency import SPECTRUM, Frequency, whole_number
from .resume import WholeFileBackend

CANDIDATES = tuple(Frequency(u, v) for u in range(SPECTRUM) for v in range(SPECTRUM))
"""What is chosen from: the 49 frequencies of the spectrum, the last index fastest."""


class FrequencySelection(nn.Module):
    """A distribution over the 49 frequencies for each group of channels.

    State: the parameter ``logits``, ``[F, 49]``, zeros at first, and the buffer ``temperature``, so that a checkpoint predicts as it did in
    training. ``FrequencySearchHook`` lowers the temperature.

    Args:
        groups: F.

    Raises:
        TypeError, ValueError: ``groups`` is no number of groups.

    Example:
        >>> selection = FrequencySelection(2)
        >>> selection().shape
        torch.Size([2, 49])
        >>> with torch.no_grad():
        ...     selection.logits[1, 9] = 1
        >>> selection.chosen()
        [Frequency(u=0, v=0), Frequency(u=1, v=2)]
    """

    logits: nn.Parameter
    temperature: Tensor

    def __init__(self, groups: int):
        super().__init__()
        groups = whole_number('groups', groups)
        if groups < 1:
            raise ValueError(f'groups={groups} leaves no group to select a frequency for: use 1 or more')
        self.logits = nn.Parameter(torch.zeros(groups, len(CANDIDATES)))
        self.register_buffer('temperature', torch.ones(()))

    def forward(self) -> Tensor:
        """The weights of the mixtures, ``softmax(logits / T)``: ``[F, 49]``, in float32 at least."""
        precise = torch.promote_types(self.logits.dtype, torch.float32)
        return (self.logits.to(precise) / self.temperature.to(precise)).softmax(1)

    def chosen(self) -> list[Frequency]:
        """The most probable frequency of each group, repetitions allowed: what ``frequencies=`` takes."""
        return [CANDIDATES[index] for index in self.logits.argmax(1).tolist()]

    def entropy(self) -> Tensor:
        """The mean entropy of the groups' weights in nats: ln 49 = 3.89 where all are equal, 0 where each group has one frequency."""
        return torch.special.entr(self()).sum(1).mean()

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:
        """Refuse the selection of another number of groups, which mmengine would leave out with a warning."""
        stored = state_dict.get(f'{prefix}logits')
        if stored is not None and stored.shape != self.logits.shape:
            raise CheckpointError(
                f'{prefix}logits of the checkpoint is {list(stored.shape)}, configured is {list(self.logits.shape)}: give frequencies as '
                'many entries as the checkpoint has groups'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The sizes, as the repr of the module shows them."""
        return 'groups={}, candidates={}'.format(*self.logits.shape)


def check_selection(state_dict: MutableMapping[str, Tensor], prefix: str, frequencies: Sequence[Frequency], basis: str) -> None:
    """Compare a stored selection with the frequencies of an attention, or a backbone, that does not search, and drop it.

    Raises:
        CheckpointError: the weights were trained with other frequencies.
    """
    stored = state_dict.get(f'{prefix}selection.logits')
    if stored is None:
        return
    chosen = [tuple(CANDIDATES[index]) for index in stored.argmax(1).tolist()]
    if basis != 'dct' or chosen != [tuple(pair) for pair in frequencies]:
        raise CheckpointError(
            f'{prefix}selection.logits of the checkpoint selects frequencies={chosen}: configure these, or basis="searched" to search on'
        )
    for name in ('logits', 'temperature'):
        state_dict.pop(f'{prefix}selection.{name}', None)


@HOOKS.register_module()
class FrequencySearchHook(Hook):
    """Anneals the ``FrequencySelection`` of the model that is trained, and writes down what it ends with.

    In iteration i of n the temperature is ``start (end / start)^(i / (n - 1))``, a function of the iteration alone, so that a resumed
    training goes on as it was. ``selection_entropy`` is logged beside the losses. After training, ``frequencies.json`` in the work
    directory holds ``frequencies``, the (u, v) pairs for ``frequencies=``, and ``probabilities``, the 49 weights of each group at the last
    temperature.

    Args:
        start: the temperature of the first iteration.
        end: that of the last.

    Raises:
        ValueError: the temperatures are not ``start >= end > 0``; when training begins, a model with no selection or with several.
    """

    def __init__(self, start: float = 1.0, end: float = 0.05):
        if not (all(isinstance(value, (int, float)) for value in (start, end)) and float('inf') > start >= end > 0):
            raise ValueError(f'start={start!r} and end={end!r} must be temperatures, start >= end > 0, such as 1.0 and 0.05')
        self.start = start
        self.end = end

    def before_train(self, runner: Runner) -> None:
        """Find the selection."""
        found = [module for module in runner.model.modules() if isinstance(module, FrequencySelection)]
        if len(found) != 1:
            raise ValueError(
                f"FrequencySearchHook anneals one selection, and the model has {len(found)}: give it one FcaResNet with basis='searched', "
                'or take the hook out of custom_hooks'
            )
        self.selection = found[0]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the temperature."""
        progress = runner.iter / max(runner.max_iters - 1, 1)
        self.selection.temperature.fill_(self.start * (self.end / self.start) ** progress)

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """Log the entropy."""
        runner.message_hub.update_scalar('train/selection_entropy', self.selection.entropy())

    @torch.no_grad()
    def after_train(self, runner: Runner) -> None:
        """Write and log the list."""
        if not is_main_process():
            return
        path = Path(runner.work_dir, 'frequencies.json')
        chosen = self.selection.chosen()
        content = dict(frequencies=chosen, probabilities=self.selection().tolist())
        WholeFileBackend().put(json.dumps(content).encode(), path)
        runner.logger.info(f'frequencies={[tuple(pair) for pair in chosen]}, with their probabilities in {path}')

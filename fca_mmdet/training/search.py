"""The hook for a search: in training, the mixture of frequencies of each group (``squeeze.SearchedDct``) becomes one frequency."""

import json
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..files import write_whole
from ..squeeze import FrequencySelection


@HOOKS.register_module()
class FrequencySearchHook(Hook):
    """Anneal the ``FrequencySelection`` of the model in training, and write the frequencies that it ends with.

    In iteration i of n the temperature is ``start (end / start)^(i / (n - 1))``. It depends on the iteration alone, so a resumed training
    continues as before. ``selection_entropy`` is logged beside the losses. After training, ``frequencies.json`` in the work directory holds
    ``frequencies``, the (u, v) pairs for ``frequencies=``, and ``probabilities``, the 49 weights of each group at the last temperature.

    Args:
        start, end: the temperatures of the first and the last iteration.

    Raises:
        ValueError: the temperatures are not ``start >= end > 0``; when training begins, the model does not have exactly one selection.
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
                f"FrequencySearchHook anneals one selection, but the model has {len(found)}: give it one FcaResNet with basis='searched', "
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
        write_whole(path, json.dumps(content))
        runner.logger.info(f'frequencies={[tuple(pair) for pair in chosen]}, with their probabilities in {path}')

"""Measure what a backbone costs beside others: the time of inference and of a training step, and memory."""

import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .timing import Setting, rounds, seconds, summary, workers

ROUNDS_PER_PROCESS = 3
MODES = {
    'inference': (1e3, 'ms', 'inference'),
    'training': (1e3, 'ms', 'training step'),
    'saved': (2**-20, 'MiB', 'kept for backward'),
    'peak': (2**-20, 'MiB', 'peak memory of the process'),
}
"""For each measure, the factor from seconds or bytes to its unit, the unit, and the title of its panel."""


class Subject:
    """One backbone under one setting, with a method for each measurement. A subclass builds it."""

    def __init__(self, name: str, setting: Setting):
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.setting = setting
        self.model = self.build(name)
        norms: list[Any] = [module for module in self.model.modules() if hasattr(module, 'running_var')]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.1, 0.5)
            nn.init.normal_(norm.bias, 0, 0.2)
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.3, 2)
        self.model.to(setting.device, memory_format=setting.memory_format).train()  # type: ignore[call-overload]
        self.x = torch.randn(setting.batch, 3, *setting.size, device=setting.device).to(memory_format=setting.memory_format)
        self.run: Callable[[Tensor], Any] = torch.compile(self.model) if setting.compile else self.model

    def build(self, name: str) -> nn.Module:
        """Build the backbone of that name with ``self.setting.depth``; in training, its statistics stay frozen."""
        raise NotImplementedError

    def _forward(self) -> Sequence[Tensor]:
        dtype = self.setting.dtype
        with torch.autocast(self.x.device.type, getattr(torch, dtype), enabled=dtype != 'float32'):
            return self.run(self.x)

    @torch.inference_mode()
    def inference(self) -> float:
        """Time one forward pass, in seconds."""
        return seconds(self._forward, self.x.device)

    def training(self) -> float:
        """Time one forward and backward pass, in seconds."""
        self.model.zero_grad()
        return seconds(lambda: torch.stack([feature.mean() for feature in self._forward()]).sum().backward(), self.x.device)

    def saved(self) -> float:
        """Count the bytes that a forward pass keeps for backward, without parameters and buffers."""
        kept: dict[int, int] = {}
        own = {tensor.untyped_storage().data_ptr() for tensor in [*self.model.parameters(), *self.model.buffers()]}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._forward()
        return float(sum(kept.values()))

    def operators(self) -> dict[str, float]:
        """Time a training step by operator, in seconds: the mean of three steps."""
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                self.training()
        return {event.key: event.self_cpu_time_total / 3e6 for event in profiler.key_averages()}

    def peak(self) -> float:
        """Read the peak so far, in bytes: of CUDA's allocator, or of the process's resident memory."""
        if self.x.is_cuda:
            return float(torch.cuda.max_memory_allocated(self.x.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def describe_setting(setting: dict) -> str:
    """Describe a setting in words."""
    switches = {'channels_last': 'channels_last', 'compile': 'compiled', 'keep_pages': 'allocator keeps pages'}
    options = [words for name, words in switches.items() if setting[name]]
    if setting['runtime'] != 'torch':
        options += [setting['runtime'], 'fixed shape' if setting['fixed'] else 'any shape']
    height, width = setting['size']
    return ', '.join([f'depth {setting["depth"]}', f'{setting["batch"]} x 3 x {height} x {width}', setting['dtype'], *options])


def measure_table(
    setting: Setting, names: Sequence[str], times: Sequence[str], once: Sequence[str], repeats: int, kind: Callable[[str, Setting], Subject]
) -> dict:
    """Measure and print one setting's table. The methods in ``times`` are called in every round, those in ``once`` at the end."""
    series: dict[str, dict[str, list[float]]] = {action: {name: [] for name in names} for action in times}
    starts = 1 if setting.compile else -(-repeats // ROUNDS_PER_PROCESS)
    for start in range(starts):
        count = (repeats + start) // starts  # these add up to repeats
        with workers(names, setting, kind) as ask:
            for action in times:
                label = f'processes {start + 1} of {starts}, {action}'
                for name, values in rounds(partial(ask, action), count, label).items():
                    series[action][name] += values
            last = {action: ask(action) for action in once if start == starts - 1}
    series |= {action: {name: [value] for name, value in answers.items()} for action, answers in last.items()}
    table = {action: summary(values) for action, values in series.items()}
    print(f'\n{describe_setting(asdict(setting))}')
    for name in names:
        cells = []
        for mode, rows in table.items():
            (scale, unit, _), row = MODES[mode], rows[name]
            spread = '' if mode in once else f' ({row["quartiles"][0]:.2f} - {row["quartiles"][1]:.2f})'
            cells.append(f'{mode} {row["median"] * scale:6.0f} {unit} {row["ratio"]:.2f}{spread}')
        print(f'  {name:16} ' + '   '.join(cells), flush=True)
    return {'setting': asdict(setting), 'repeats': repeats, 'table': table}

"""Predict a backbone's time on a machine that is not at hand, from the bytes and the operations of each operator.

An eager operator reads its inputs, computes, and writes its outputs; it takes at least the longer of moving its bytes at the memory's
bandwidth and doing its operations at the peak rate (the roofline model, https://doi.org/10.1145/1498765.1498785). Nothing is executed:
the operators run on torch's meta device, which has shapes alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .benchmark import Subject
from .timing import Setting


class Machine(NamedTuple):
    """A machine's memory bandwidth in bytes per second, and its peak rate in operations per second."""

    bandwidth: float
    rate: float


GPUS = {'H100 SXM': Machine(3.35e12, 989e12), 'A100 SXM 80 GB': Machine(2.04e12, 312e12), 'T4': Machine(320e9, 65e12)}
"""Published by NVIDIA in the data sheets: memory bandwidth, and dense half-precision tensor cores."""


class Operators(TorchDispatchMode):
    """Note the bytes and the floating-point operations of each operator that runs within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operator. A view, and memory that nothing is written to, cost nothing."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view and 'empty' not in str(func):
            functional = getattr(torch.ops.aten, func.overloadpacket.__name__.rstrip('_'), None)  # add_ is counted as add
            count = flop_registry.get(functional)
            tensors = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor)]
            operations = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self.noted.append((sum(tensor.nbytes for tensor in tensors), operations))
        return out

    def seconds(self, machine: Machine) -> float:
        """Predict the time on a machine."""
        return sum(max(size / machine.bandwidth, operations / machine.rate) for size, operations in self.noted)


def note(name: str, setting: Setting, mode: str) -> Operators:
    """Note the operators of one forward pass (``mode`` 'inference'), or of a training step, in the setting's dtype throughout."""
    subject = Subject(name, replace(setting, device='meta', dtype='float32', compile=False))
    dtype = getattr(torch, setting.dtype)
    subject.model.to(dtype)
    subject.x = subject.x.to(dtype)
    with Operators() as operators:
        if mode == 'training':
            torch.stack([feature.mean() for feature in subject.run(subject.x)]).sum().backward()
        else:
            with torch.no_grad():
                subject.run(subject.x)
    return operators


def this_machine(dtype: torch.dtype) -> Machine:
    """Measure the bandwidth of a copy, and the rate of a convolution like those of the backbones."""

    def best(action: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.inference_mode():
        source, target = torch.ones(2, 2**26, dtype=dtype)
        x, weight = (torch.ones(shape, dtype=dtype).to(memory_format=torch.channels_last) for shape in ((1, 256, 50, 84), (256, 256, 3, 3)))
        operations = 2 * x.numel() * weight[0].numel()
        moving, computing = best(lambda: target.copy_(source)), best(lambda: torch.conv2d(x, weight, padding=1))
    return Machine(2 * source.nbytes / moving, operations / computing)


def predict(setting: Setting, names: Sequence[str]) -> list[dict]:
    """Predict and print each backbone's cost in ratios to the first, on this machine and on ``GPUS``, in half precision."""
    setting = replace(setting, dtype='bfloat16' if setting.dtype == 'float32' else setting.dtype)
    machines = {'this CPU': this_machine(getattr(torch, setting.dtype)), **GPUS}
    found = []
    for mode in ('inference', 'training'):
        noted = {name: note(name, setting, mode) for name in names}
        first = noted[names[0]]
        print(f'\n{setting.dtype}, {setting.batch} x 3 x {setting.size[0]} x {setting.size[1]}, {mode}: computed, not measured')
        for name, operators in noted.items():
            size, operations = (sum(values) for values in zip(*operators.noted, strict=True))
            ratios = {label: operators.seconds(machine) / first.seconds(machine) for label, machine in machines.items()}
            found.append({'mode': mode, 'name': name, 'bytes': size, 'operations': operations, 'ratios': ratios})
            listed = '   '.join(f'{label} {ratio:.2f}' for label, ratio in ratios.items())
            print(f'  {name:22} {size / 2**30:5.2f} GiB {operations / 1e9:5.0f} G operations   {listed}', flush=True)
    return found

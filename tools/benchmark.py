"""Time the attention layer beside squeeze-and-excitation and the global average, at the stage shapes of an image.

    python tools/benchmark.py [--image 800 1344] [--batch 1 2] [--repeats 15] [--device cpu] [--out FILE.json]

The layers run interleaved in one process. A time is a median over the repeats; a ratio is the median of the ratios within a repeat, so
that what else the machine does falls on both sides. ``forward`` is inference, ``training`` is forward and backward.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmdet.models.layers import SELayer
from torch import Tensor, nn

from fca_mmdet import MultiSpectralAttention

STAGES = {'stage1': (256, 4, 56), 'stage2': (512, 8, 28), 'stage3': (1024, 16, 14), 'stage4': (2048, 32, 7)}
"""Channels, stride and grid of each stage of a ResNet with bottlenecks."""


class GlobalAverage(nn.Module):
    """Reads the feature map once and does nothing else: what memory allows."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C]``."""
        return x.mean((2, 3))


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, with the device's work done."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(actions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """The times of each action, taken in turns after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            elapsed = seconds(action, device)
            if repeat:
                times[name].append(elapsed)
    return times


def attention_actions(layers: dict[str, nn.Module], x: Tensor, mode: str) -> dict[str, Callable[[], object]]:
    """One call per layer: inference, or forward and backward into the input."""

    def forward(layer: nn.Module) -> object:
        with torch.inference_mode():
            return layer(x)

    def training(layer: nn.Module) -> object:
        leaf = x.detach().requires_grad_()
        out = layer(leaf)
        return torch.autograd.grad(out, leaf, torch.ones_like(out))

    run = forward if mode == 'forward' else training
    return {name: partial(run, layer) for name, layer in layers.items()}


def benchmark_attention(image: tuple[int, int], batches: list[int], repeats: int, device: torch.device) -> list[dict]:
    """A row per stage, batch and mode: medians in milliseconds and ratios to SE."""
    rows = []
    for stage, (channels, stride, grid) in STAGES.items():
        layers: dict[str, nn.Module] = {'SE': SELayer(channels), 'FCA': MultiSpectralAttention(channels, grid), 'mean': GlobalAverage()}
        layers = {name: layer.to(device) for name, layer in layers.items()}
        for batch in batches:
            x = torch.randn(batch, channels, image[0] // stride, image[1] // stride, device=device)
            for mode in ('forward', 'training'):
                times = interleaved(attention_actions(layers, x, mode), repeats, device)
                row: dict = {'shape': list(x.shape), 'stage': stage, 'mode': mode}
                for name, values in times.items():
                    row[f'{name} ms'] = 1e3 * statistics.median(values)
                    ratios = [value / se for value, se in zip(values, times['SE'], strict=True)]
                    row[f'{name} / SE'] = statistics.median(ratios)
                    row[f'{name} / SE quartiles'] = statistics.quantiles(ratios, n=4)[::2]
                rows.append(row)
                print(
                    f'{stage} {x.shape[0]}x{channels}x{x.shape[2]}x{x.shape[3]} {mode:8} '
                    f'SE {row["SE ms"]:8.2f} ms   FCA / SE {row["FCA / SE"]:.2f} '
                    f'({row["FCA / SE quartiles"][0]:.2f} - {row["FCA / SE quartiles"][1]:.2f})   mean / SE {row["mean / SE"]:.2f}',
                    flush=True,
                )
    return rows


def machine(device: torch.device) -> dict:
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'python': platform.python_version()}


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description='Time the attention layer beside its peers.')
    parser.add_argument('--image', type=int, nargs=2, default=(800, 1344), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--device', type=torch.device, default=torch.device('cpu'))
    parser.add_argument('--out', type=Path, help='a JSON file to write')
    args = parser.parse_args()
    rows = benchmark_attention(tuple(args.image), args.batch, args.repeats, args.device)
    if args.out:
        args.out.write_text(
            json.dumps({'machine': machine(args.device), 'arguments': vars(args) | {'out': None}, 'rows': rows}, default=str)
        )


if __name__ == '__main__':
    main()

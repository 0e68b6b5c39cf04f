"""Pictures of a trained detector: what it finds in images, and how its attentions gate the channels of each frequency."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn

from ..attention import MultiSpectralAttention
from ..dct import dct_basis
from ..frequency import Frequency
from .plots import plt, write_figure


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as a detector's pipeline does, but in the order red, green, blue: ``[H, W, 3]``, uint8."""
    return mmcv.imread(path, channel_order='rgb')


def show_detections(axis: plt.Axes, sample: DetDataSample, dataset_meta: dict | None, score: float, truth: bool) -> None:
    """Show an image with its predictions from ``score`` on, and if asked for with the ground truth to their left."""
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset_meta
    visualizer.add_datasample('', read_image(sample.img_path), sample.cpu(), draw_gt=truth, pred_score_thr=score)
    axis.imshow(visualizer.get_image())
    axis.set_title(f'{Path(sample.img_path).name}: {"ground truth | " if truth else ""}predictions >= {score}', fontsize=9)


def draw_predictions(runner: Runner, out: Path, images: int = 6, score: float = 0.5) -> None:
    """Draw ground truth (left) beside predictions (right), two images a row, of the runner's test set."""
    dataset = runner.test_dataloader.dataset
    indices = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int).tolist()
    rows = (len(indices) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(14, 3.7 * rows), squeeze=False)
    runner.model.eval()
    for axis, index in zip(axes.flat, indices, strict=False):
        with torch.no_grad():
            (sample,) = runner.model.test_step(pseudo_collate([dataset[index]]))
        show_detections(axis, sample, dataset.metainfo, score, truth=True)
    for axis in axes.flat:
        axis.axis('off')
    write_figure(figure, out)


def draw_bases(frequencies: Sequence[Frequency], out: Path, size: int = 56) -> None:
    """Draw the DCT basis functions of a set of frequencies, in its order, on a grid of ``size`` cells."""
    columns = min(8, len(frequencies))
    rows = -(-len(frequencies) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.4 * columns, 0.4 + 1.8 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, (u, v) in zip(axes.flat, frequencies, strict=False):
        axis.imshow(dct_basis([u], size).T @ dct_basis([v], size), cmap='RdBu_r', vmin=-2 / size, vmax=2 / size)
        axis.set_title(f'({u}, {v})', fontsize=9)
    figure.suptitle('DCT bases (u along the height, v along the width)', fontsize=10)
    write_figure(figure, out)


def find_attentions(model: nn.Module) -> dict[str, MultiSpectralAttention]:
    """List a model's attentions by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MultiSpectralAttention)}


@contextmanager
def collect_gates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the gates of every attention, ``[N, C]`` by module name in the order of the forward pass; of several passes the last one's.

    Where gradients are recorded, all of them have one, those of frozen stages too.
    """
    gates: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, attention in find_attentions(model).items():

            def keep(module: nn.Module, inputs: tuple, output: Tensor, name: str = name) -> None:
                gates[name] = output.requires_grad_(torch.is_grad_enabled())

            hooks.enter_context(attention.fc.register_forward_hook(keep))
        yield gates


def by_frequency(channels: Tensor, attention: MultiSpectralAttention) -> Tensor:
    """Group what belongs to the channels of one image, ``[1, C]``, by frequency: ``[F, C / F]`` on the CPU."""
    return channels[0].detach().float().cpu().unflatten(0, (len(attention.frequencies), -1))


def draw_gate_table(axis: plt.Axes, title: str, rows: Mapping[str, Tensor], frequencies: Sequence[Frequency], **style: Any) -> None:
    """Draw numbers by block and frequency as colours; ``rows`` has ``[F]`` for each attention by module name."""
    picture = axis.imshow(torch.stack(list(rows.values())), aspect='auto', **style)
    axis.set_xticks(range(len(frequencies)), [f'{u},{v}' for u, v in frequencies], rotation=90, fontsize=8)
    axis.set_yticks(range(len(rows)), [name.removeprefix('backbone.').removesuffix('.att') for name in rows], fontsize=8)
    axis.set(title=title, xlabel='frequency (u, v) of the channel group')
    axis.figure.colorbar(picture, ax=axis)


def draw_gates(runner: Runner, out: Path, index: int = 0) -> None:
    """Draw how an image of the test set gates the channels of each frequency: per block the mean gate of a group, and its spread."""
    item = runner.test_dataloader.dataset[index]
    runner.model.eval()
    with collect_gates(runner.model) as gates, torch.no_grad():
        runner.model.test_step(pseudo_collate([item]))
    attentions = find_attentions(runner.model)
    groups = {name: by_frequency(gate, attentions[name]) for name, gate in gates.items()}
    frequencies = next(iter(attentions.values())).frequencies
    figure, axes = plt.subplots(1, 3, figsize=(16, 2 + 0.35 * len(groups)), width_ratios=[1, 2, 2])
    axes[0].imshow(item['inputs'].numpy().transpose(1, 2, 0)[..., ::-1])
    axes[0].set_title(Path(item['data_samples'].img_path).name, fontsize=9)
    axes[0].axis('off')
    draw_gate_table(axes[1], 'mean gate', {name: group.mean(1) for name, group in groups.items()}, frequencies)
    draw_gate_table(axes[2], 'spread (std)', {name: group.std(1, correction=0) for name, group in groups.items()}, frequencies)
    write_figure(figure, out)

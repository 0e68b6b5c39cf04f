"""Pictures of a trained detector: what it finds in images, how its attentions gate the channels of each frequency, and what decides."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from matplotlib import color_sequences
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer, get_palette
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import MultiSpectralAttention
from ..dct import dct_basis
from ..detector import load_image, open_detector
from ..errors import UserError
from ..files import check_writable
from ..frequency import Frequency
from .plots import plt, write_figure


class _Shapes(DetLocalVisualizer):
    """Draws boxes and masks without their names and scores, which would cover what is small and near."""

    def draw_texts(self, *args: Any, **kwargs: Any) -> '_Shapes':
        """Draw nothing."""
        return self


def _show_detections(axis: plt.Axes, sample: DetDataSample, dataset_meta: Mapping, score: float, truth: bool) -> None:
    classes = dataset_meta['classes']
    distinct = [tuple(round(255 * part) for part in to_rgb(colour)) for colour in color_sequences['tab10']]
    palette = get_palette(distinct if len(classes) <= len(distinct) else 'random', len(classes))
    visualizer = _Shapes(line_width=2, alpha=0.6)
    visualizer.dataset_meta = dict(classes=classes, palette=palette)
    visualizer.add_datasample('', mmcv.imread(sample.img_path, channel_order='rgb'), sample.cpu(), draw_gt=truth, pred_score_thr=score)
    axis.imshow(visualizer.get_image())
    axis.set_title(f'{Path(sample.img_path).name}: {"ground truth | " if truth else ""}predictions >= {score}', fontsize=9)
    found = sample.pred_instances.labels[sample.pred_instances.scores >= score].unique().tolist()
    handles = [Patch(color=np.divide(palette[label], 255), label=classes[label]) for label in found]
    axis.legend(handles=handles, loc='upper center', bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8)


def draw_predictions(runner: Runner, out: Path, images: int = 6, score: float = 0.5) -> None:
    """Draw ground truth (left) beside predictions (right), two images a row, of the runner's test set."""
    dataset = runner.test_dataloader.dataset
    indices = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int).tolist()
    rows = (len(indices) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.9 * rows), squeeze=False)
    runner.model.eval()
    for axis, index in zip(axes.flat, indices, strict=False):
        with torch.no_grad():
            (sample,) = runner.model.test_step(pseudo_collate([dataset[index]]))
        _show_detections(axis, sample, dataset.metainfo, score, truth=True)
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


def _by_frequency(channels: Tensor, attention: MultiSpectralAttention) -> Tensor:
    """Group what belongs to the channels of one image, ``[1, C]``, by frequency: ``[F, C / F]`` on the CPU."""
    return channels[0].detach().float().cpu().unflatten(0, (len(attention.frequencies), -1))


def draw_gate_table(axis: plt.Axes, title: str, rows: Mapping[str, Tensor], frequencies: Sequence[Frequency], **style: Any) -> None:
    """Draw numbers by block and frequency as colours; ``rows`` has ``[F]`` for each attention by module name."""
    picture = axis.imshow(torch.stack(list(rows.values())), aspect='auto', **style)
    axis.set_xticks(range(len(frequencies)), [f'{u},{v}' for u, v in frequencies], rotation=90, fontsize=8)
    axis.set_yticks(range(len(rows)), [name.removeprefix('backbone.').removesuffix('.att') for name in rows], fontsize=8)
    axis.set(title=title, xlabel='frequency (u, v) of the channel group')
    axis.figure.colorbar(picture, ax=axis)


def draw_gates(runner: Runner, out: Path) -> None:
    """Draw how the test set's first image gates the channels of each frequency: per block the mean gate of a group, and its spread."""
    item = runner.test_dataloader.dataset[0]
    runner.model.eval()
    with collect_gates(runner.model) as gates, torch.no_grad():
        runner.model.test_step(pseudo_collate([item]))
    attentions = find_attentions(runner.model)
    groups = {name: _by_frequency(gate, attentions[name]) for name, gate in gates.items()}
    frequencies = next(iter(attentions.values())).frequencies
    figure, axes = plt.subplots(1, 3, figsize=(16, 2 + 0.35 * len(groups)), width_ratios=[1, 2, 2])
    axes[0].imshow(item['inputs'].numpy().transpose(1, 2, 0)[..., ::-1])
    axes[0].set_title(Path(item['data_samples'].img_path).name, fontsize=9)
    axes[0].axis('off')
    draw_gate_table(axes[1], 'mean gate', {name: group.mean(1) for name, group in groups.items()}, frequencies)
    draw_gate_table(axes[2], 'spread (std)', {name: group.std(1, correction=0) for name, group in groups.items()}, frequencies)
    write_figure(figure, out)


def explain(model: nn.Module, batch: dict, top: int) -> tuple[DetDataSample, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Predict a batch of one image with a detector in eval mode, and take the gradients of its ``top`` best scores.

    Returns the predictions; the Grad-CAM ``[H, W]`` of the last feature map; and by attention, ``[F]`` each, the mean gate of every
    frequency and its part in the scores.
    """
    last: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: last.append(output[-1]))  # type: ignore[union-attr]
    with torch.enable_grad(), hook, collect_gates(model) as gates:
        (sample,) = model.test_step(batch)  # type: ignore[operator]
        scores = sample.pred_instances.scores.topk(min(top, len(sample.pred_instances))).values
        total = scores.sum() + 0 * last[0].sum()  # which has a gradient without predictions, too
        to_last, *to_gates = torch.autograd.grad(total, [*last, *gates.values()], materialize_grads=True)
    cam = F.relu((to_last.mean((2, 3), keepdim=True) * last[0]).sum(1))[0].detach().float().cpu()
    attentions = find_attentions(model)
    means = {name: _by_frequency(gate, attentions[name]).mean(1) for name, gate in gates.items()}
    weighted = {name: gate * gradient for (name, gate), gradient in zip(gates.items(), to_gates, strict=True)}
    parts = {name: _by_frequency(value, attentions[name]).sum(1) for name, value in weighted.items()}
    return sample.detach(), cam, means, parts


def draw_explanation(config: Path, checkpoint: Path, image: Path, out: Path, score: float, top: int, device: str) -> None:
    """Draw to ``out`` the predictions from ``score`` on, and what explains the ``top`` best; print the frequencies that decide most."""
    if not image.is_file():
        raise UserError(f'there is no {image}')
    try:
        pixels = mmcv.imread(image, channel_order='rgb')
    except cv2.error as error:
        raise UserError(f'{image} cannot be decoded') from error
    check_writable(out)
    model: Any = open_detector(config, checkpoint, device)
    if not (attentions := find_attentions(model)):
        raise UserError(f'the model of {config} has no frequency channel attention')
    sample, cam, means, parts = explain(model, load_image(model, image), top)
    figure, axes = plt.subplots(2, 2, figsize=(15, 6 + 0.3 * len(means)), height_ratios=[5, 1 + 0.3 * len(means)])
    _show_detections(axes[0, 0], sample, model.dataset_meta, score, truth=False)
    height, width = sample.img_shape[:2]
    padded = F.interpolate(cam[None, None], size=tuple(sample.batch_input_shape), mode='bilinear')
    axes[0, 1].imshow(pixels)
    axes[0, 1].imshow(F.interpolate(padded[..., :height, :width], size=pixels.shape[:2], mode='bilinear')[0, 0], cmap='jet', alpha=0.45)
    axes[0, 1].set_title(f'Grad-CAM of the {top} best scores', fontsize=9)
    for axis in axes[0]:
        axis.axis('off')
    frequencies = next(iter(attentions.values())).frequencies
    limit = max(float(part.abs().max()) for part in parts.values()) or 1.0
    draw_gate_table(axes[1, 0], 'mean gate', means, frequencies)
    draw_gate_table(axes[1, 1], 'part in the scores', parts, frequencies, cmap='RdBu_r', vmin=-limit, vmax=limit)
    write_figure(figure, out)
    total = torch.stack(list(parts.values())).sum(0)
    most = total.abs().argsort(descending=True)[:5].tolist()
    named = ', '.join(f'({frequencies[i].u}, {frequencies[i].v}) {float(total[i]):+.3f}' for i in most)
    print(f'{len(sample.pred_instances)} predictions; frequencies that decide most: {named}; wrote {out}')

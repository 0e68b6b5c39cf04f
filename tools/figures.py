"""Figures of a trained detector with an FCA backbone. Each function draws one and writes it to a file."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import numpy as np
import torch
from matplotlib import pyplot as plt
from mmdet.visualization import DetLocalVisualizer
from mmengine.runner import Runner
from torch import Tensor, nn

from fca_mmdet import Frequency, MultiSpectralAttention
from fca_mmdet.dct import dct_basis


def draw_predictions(runner: Runner, out: Path, images: int = 6, score: float = 0.5) -> None:
    """Ground truth (left) beside predictions above ``score`` (right), two images a row, of the runner's test set."""
    dataset = runner.test_dataloader.dataset
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset.metainfo
    indices = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int)
    figure, axes = plt.subplots((len(indices) + 1) // 2, 2, figsize=(14, 3.7 * ((len(indices) + 1) // 2)), squeeze=False)
    runner.model.eval()
    for axis, index in zip(axes.flat, indices, strict=False):
        item = dataset[int(index)]
        with torch.no_grad():
            (sample,) = runner.model.test_step(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
        image = plt.imread(sample.img_path)[..., :3]
        image = (image * 255).astype(np.uint8) if image.dtype != np.uint8 else image.copy()
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        visualizer.add_datasample('', image, sample.cpu(), draw_gt=True, pred_score_thr=score)
        axis.imshow(visualizer.get_image())
        axis.set_title(f'{Path(sample.img_path).name}: ground truth | predictions >= {score}', fontsize=9)
    for axis in axes.flat:
        axis.axis('off')
    write_figure(figure, out)


def read_scalars(work_dir: Path) -> list[dict]:
    """mmengine's log of a work directory, all its runs merged: of several entries for a step the latest run's stands."""
    merged: dict[tuple, dict] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            merged[entry['step'], 'loss' in entry] = entry
    return [merged[key] for key in sorted(merged)]


def draw_curves(work_dir: Path, out: Path) -> None:
    """The training losses and the AP on the held-out split against iterations, from mmengine's log."""
    entries = read_scalars(work_dir)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    losses = [entry for entry in entries if 'loss' in entry]
    for name in sorted({key for entry in losses for key in entry if 'loss' in key}):
        left.plot(
            [entry['step'] for entry in losses], [entry.get(name, np.nan) for entry in losses], label=name, lw=2.5 if name == 'loss' else 1
        )
    left.set(xlabel='iteration', ylabel='loss', yscale='log')
    evaluations = [entry for entry in entries if 'coco/bbox_mAP' in entry]
    for kind, label in {'bbox': 'box', 'segm': 'mask'}.items():
        for suffix, style in {'mAP': '-o', 'mAP_50': '--o'}.items():
            key = f'coco/{kind}_{suffix}'
            points = [(entry['step'], entry[key]) for entry in evaluations if key in entry]
            if points:
                right.plot(*zip(*points, strict=True), style, label=f'{label} {suffix.replace("mAP", "AP").replace("_", "")}')
    right.set(xlabel='iteration', ylabel='AP', ylim=(0, 1))
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    write_figure(figure, out)


def draw_bases(frequencies: Sequence[Frequency], out: Path, size: int = 56) -> None:
    """The DCT basis functions of a frequency set, rank by rank, each scaled to its own range."""
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


def collect_gates(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    """The gates that one image gives every attention: ``{module name: [F, C / F]}``, in the order of the forward pass."""
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, MultiSpectralAttention)}
    gates: dict[str, Tensor] = {}

    def keep(name: str, groups: int):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            gates[name] = output[0].detach().float().cpu().unflatten(0, (groups, -1))

        return hook

    handles = [module.fc.register_forward_hook(keep(name, len(module.frequencies))) for name, module in attentions.items()]
    try:
        with torch.no_grad():
            model.test_step(batch)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    return gates


def draw_gates(runner: Runner, out: Path, index: int = 0) -> None:
    """How one image gates the channels of each frequency: per block the mean gate of a group, and its spread over channels."""
    item = runner.test_dataloader.dataset[index]
    runner.model.eval()
    gates = collect_gates(runner.model, dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
    attention = next(module for module in runner.model.modules() if isinstance(module, MultiSpectralAttention))
    names = [name.removeprefix('backbone.').removesuffix('.att') for name in gates]
    figure, axes = plt.subplots(1, 3, figsize=(16, 2 + 0.35 * len(names)), width_ratios=[1, 2, 2])
    axes[0].imshow(item['inputs'].numpy().transpose(1, 2, 0)[..., ::-1])
    axes[0].set_title(Path(item['data_samples'].img_path).name, fontsize=9)
    axes[0].axis('off')
    summaries = {
        'mean gate': [gate.mean(1) for gate in gates.values()],
        'spread (std)': [gate.std(1, correction=0) for gate in gates.values()],
    }
    for axis, (title, values) in zip(axes[1:], summaries.items(), strict=True):
        picture = axis.imshow(torch.stack(values), aspect='auto', cmap='viridis')
        axis.set_xticks(range(len(attention.frequencies)), [f'{u},{v}' for u, v in attention.frequencies], rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set(title=title, xlabel='frequency (u, v) of the channel group')
        figure.colorbar(picture, ax=axis)
    write_figure(figure, out)


def draw_costs(tables: Sequence[dict], out: Path) -> None:
    """Bars of ``tools/benchmark.py``'s tables: each backbone's cost as a ratio to ResNet's, a row of panels per setting."""
    modes = [mode for mode in ('inference', 'training', 'saved', 'peak') if any(mode in table['table'] for table in tables)]
    titles = {'inference': 'inference', 'training': 'training step', 'saved': 'kept for backward', 'peak': 'peak memory of the process'}
    figure, axes = plt.subplots(len(tables), len(modes), figsize=(3.6 * len(modes) + 2, 0.5 + 1.9 * len(tables)), squeeze=False)
    for table, row in zip(tables, axes, strict=True):
        for mode, axis in zip(modes, row, strict=True):
            figures = table['table'].get(mode)
            if figures is None:
                axis.axis('off')
                continue
            names = list(figures)[::-1]
            ratios = [figures[name]['ratio'] for name in names]
            spread = [[abs(figures[name]['quartiles'][side] - figures[name]['ratio']) for name in names] for side in (0, 1)]
            colors = ['tab:blue' if 'folded' in name else 'lightsteelblue' if 'FCA' in name else 'silver' for name in names]
            axis.barh(names, ratios, xerr=spread if any(map(any, spread)) else None, color=colors, error_kw=dict(lw=1))
            for position, ratio in enumerate(ratios):
                axis.text(0.02, position, f'{ratio:.2f}', va='center', fontsize=7)
            axis.axvline(1, color='black', lw=0.8)
            axis.tick_params(labelsize=7)
            axis.set_title(titles[mode], fontsize=8)
            if mode != modes[0]:
                axis.set_yticklabels([])
        row[0].set_ylabel(
            describe_setting(table['setting']).replace(', ', '\n'), fontsize=7, rotation=0, ha='right', va='center', labelpad=8
        )
    write_figure(figure, out)


def draw_sizes(tables: Sequence[dict], out: Path) -> None:
    """Inference over image size: the time per megapixel, and the ratio to ResNet."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    sides = [table['setting']['size'][0] for table in tables]
    megapixels = [np.prod(table['setting']['size']) * table['setting']['batch'] / 1e6 for table in tables]
    for name in tables[0]['table']['inference']:
        rows = [table['table']['inference'][name] for table in tables]
        style = dict(marker='o', ms=4, lw=2.5 if 'folded' in name else 1.2, label=name)
        left.plot(sides, [1e3 * row['median'] / area for row, area in zip(rows, megapixels, strict=True)], **style)
        right.plot(sides, [row['ratio'] for row in rows], **style)
    left.set(xlabel='side of a square image, pixels', ylabel='ms per megapixel', ylim=(0, None))
    right.set(xlabel='side of a square image, pixels', ylabel='ratio to ResNet')
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_xticks(sides)
    left.legend(fontsize=8)
    figure.suptitle(f'inference, {describe_setting(tables[0]["setting"] | {"size": ["side", "side"]})}', fontsize=10)
    write_figure(figure, out)


def describe_setting(setting: dict) -> str:
    """A benchmark's setting in words."""
    switches = {'channels_last': 'channels_last', 'compile': 'compiled', 'keep_pages': 'allocator keeps pages'}
    options = [words for name, words in switches.items() if setting[name]]
    height, width = setting['size']
    return ', '.join([f'depth {setting["depth"]}', f'{setting["batch"]} x 3 x {height} x {width}', setting['dtype'], *options])


def write_figure(figure: plt.Figure, out: Path) -> None:
    """Lay out, write and close."""
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)

"""Figures of trained detectors and of what they cost. Each function draws one and writes it to a file."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.transforms import Bbox
from mmdet.visualization import DetLocalVisualizer
from mmengine.runner import Runner
from torch import Tensor, nn

from fca_mmdet import Frequency, MultiSpectralAttention
from fca_mmdet.dct import dct_basis
from fca_mmdet.frequency import SPECTRUM

MARKED_POINTS = 20
"""A curve of up to so many points shows them."""
LEGEND_ROWS = 16
"""That fit beside a figure."""
LEADER_DISTANCE = 10
"""A name that is further from its point, in points of 1/72 inch, gets a line to it."""


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
        *lines, _ = path.read_text().split('\n')  # the last one may be half-written
        for line in lines:
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


def draw_ap_against_cost(
    aps: Mapping[str, Sequence[float]], costs: Mapping[str, Mapping[str, Sequence[float]]], ap_label: str, out: Path
) -> None:
    """A point per run: mean AP against mean cost, with standard deviations over seeds; a panel for each cost.

    Args:
        aps: of each run the AP of its seeds.
        costs: for the label of each cost what it is in the runs, a number per seed or one.
    """
    figure, axes = plt.subplots(1, len(costs), figsize=(6.5 * len(costs), 5), squeeze=False, sharey=True)
    for axis, (label, cost) in zip(axes.flat, costs.items(), strict=True):
        points = {name: (float(np.mean(cost[name])), float(np.mean(values))) for name, values in aps.items() if cost.get(name)}
        colors = dict(zip(aps, run_colors(len(aps)), strict=True))
        for name, (x, y) in points.items():
            axis.errorbar(x, y, spread(aps[name]), spread(cost[name]), fmt='none', ecolor=colors[name], elinewidth=1, alpha=0.4)
            axis.plot(x, y, 'o', color=colors[name])
        axis.set_xlabel(label)
        axis.margins(0.2)
        axis.grid(alpha=0.3)
        place_labels(figure, axis, points, colors)
    axes[0, 0].set_ylabel(ap_label)
    write_figure(figure, out)


def draw_ap_against_frequencies(
    families: Mapping[str, Mapping[int, Sequence[float]]], baseline: tuple[str, Sequence[float]], ap_label: str, out: Path
) -> None:
    """AP against the number of frequencies, a line per family of sets, with standard deviations over seeds.

    Args:
        families: of each family the AP of the seeds by number of frequencies.
        baseline: the name of a run without frequencies, drawn as a line across, and the AP of its seeds.
    """
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for index, (color, (name, family)) in enumerate(zip(run_colors(len(families)), families.items(), strict=True)):
        counts = sorted(family)
        means, spreads = [np.mean(family[count]) for count in counts], [spread(family[count]) for count in counts]
        beside = 1.03 ** (index - (len(families) - 1) / 2)  # so that no bar hides another
        axis.errorbar(np.array(counts) * beside, means, spreads, fmt='-o', ms=4, color=color, elinewidth=1, capsize=2, label=name)
    name, values = baseline
    if values:
        mean, width = float(np.mean(values)), spread(values)
        axis.axhline(mean, color='black', ls='--', lw=1, label=name)
        axis.axhspan(mean - width, mean + width, color='black', alpha=0.08, lw=0)
    axis.set_xscale('log', base=2)
    counts = sorted({count for family in families.values() for count in family})
    axis.set_xticks(counts, list(map(str, counts)))
    axis.minorticks_off()
    axis.set(xlabel='number of frequencies', ylabel=ap_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    write_figure(figure, out)


def draw_heat_map(aps: Mapping[Frequency, float], chosen: Sequence[Frequency], ap_label: str, out: Path) -> None:
    """AP of each frequency alone, on the 7 x 7 spectrum. The ``chosen`` are framed, and numbered in their order."""
    values = np.full((SPECTRUM, SPECTRUM), np.nan)
    for pair, ap in aps.items():
        values[pair] = ap
    figure, axis = plt.subplots(figsize=(7, 6))
    axis.set_facecolor('lightgray')
    picture = axis.imshow(values, cmap='viridis')
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (u, v), ap in aps.items():
        axis.text(v, u, f'{ap:.1f}', ha='center', va='center', fontsize=10, color='white' if ap < middle else 'black')
    for rank, (u, v) in enumerate(chosen, 1):
        axis.add_patch(plt.Rectangle((v - 0.46, u - 0.46), 0.92, 0.92, fill=False, color='red', lw=2))
        color = 'white' if values[u, v] < middle else 'black'
        axis.text(v - 0.4, u - 0.4, str(rank), ha='left', va='top', fontsize=7, color=color, weight='bold')
    axis.set(xlabel='v, along the width', ylabel='u, along the height', xticks=range(SPECTRUM), yticks=range(SPECTRUM))
    axis.set_title('each frequency alone' + ('; framed: chosen, in this order' if chosen else ''), fontsize=10)
    figure.colorbar(picture, ax=axis, label=ap_label)
    write_figure(figure, out)


def draw_seeds(
    aps: Mapping[str, Mapping[int, float]],
    baselines: Mapping[str, str],
    intervals: Mapping[str, tuple[float, float]],
    ap_label: str,
    out: Path,
) -> None:
    """A dot per seed and run (left), and what each seed gains over the baseline's run of that seed (right).

    Args:
        aps: of each run the AP by seed.
        baselines: of each run the one that its differences are taken to; itself for none.
        intervals: of the mean differences, by run; those that are missing are not drawn.
    """
    names = list(aps)
    seeds = sorted({seed for values in aps.values() for seed in values})
    colors = dict(zip(seeds, run_colors(len(seeds)), strict=True))
    offsets = dict(zip(seeds, np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) > 1 else [0], strict=True))
    differences = {
        name: {seed: ap - base[seed] for seed, ap in values.items() if seed in base}
        for name, values in aps.items()
        if name != baselines[name] and (base := aps.get(baselines[name]))
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.6 + 0.42 * len(names)), sharey=True)
    for axis, shown in ((left, aps), (right, differences)):
        for name, values in shown.items():
            row = names.index(name)
            for seed, value in values.items():
                axis.plot(value, row + offsets[seed], 'o', ms=4, color=colors[seed])
            if values:
                axis.vlines(np.mean(list(values.values())), row - 0.36, row + 0.36, color='black', lw=1.5)
    for name, interval in intervals.items():
        right.fill_betweenx([names.index(name) - 0.36, names.index(name) + 0.36], *interval, color='black', alpha=0.12, lw=0)
    right.axvline(0, color='black', lw=0.8, ls='--')
    left.set(xlabel=f'{ap_label}; bar: mean over seeds')
    right.set(xlabel=f'minus that of {name_baseline(baselines)} with the same seed; band: 95 % interval')
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    for axis in (left, right):
        axis.grid(alpha=0.3, axis='x')
    handles = [plt.Line2D([], [], marker='o', ls='', ms=4, color=colors[seed], label=f'seed {seed}') for seed in seeds]
    right.legend(handles=handles, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    write_figure(figure, out)


def draw_learning(logs: Mapping[str, Sequence[list[dict]]], metric: str, ap_label: str, out: Path) -> None:
    """The training loss, and the AP where it is taken more than once, against iterations: means over seeds, and standard deviations.

    Args:
        logs: of each run the entries of its seeds, as ``read_scalars`` gives them.
        metric: of mmdet's, such as ``bbox_mAP``.
    """
    curves = {'training loss': collect_curves(logs, 'loss'), ap_label: collect_curves(logs, f'coco/{metric}', 100)}
    curves = {label: runs for label, runs in curves.items() if any(len(curve) > 1 for curve in runs.values())}
    columns = -(-len(logs) // LEGEND_ROWS)
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves) + 1.2 * columns, 4.5), squeeze=False)
    styles = {
        name: dict(color=color, ls=('-', '--', ':')[index // 10 % 3])
        for index, (name, color) in enumerate(zip(logs, run_colors(len(logs)), strict=True))
    }
    for axis, (label, runs) in zip(axes.flat, curves.items(), strict=True):
        for name, curve in runs.items():
            steps, means = list(curve), np.array([np.mean(values) for values in curve.values()])
            width = np.array([spread(values) for values in curve.values()])
            marker = 'o' if len(steps) <= MARKED_POINTS else ''
            axis.plot(steps, means, marker=marker, ms=4, lw=1.5, label=name, **styles[name])
            axis.fill_between(steps, means - width, means + width, color=styles[name]['color'], alpha=0.12, lw=0)
        axis.set(xlabel='iteration', ylabel=label)
        axis.grid(alpha=0.3)
    if 'training loss' in curves:
        axes[0, 0].set_yscale('log')
    axes[0, -1].legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5), ncols=columns)
    write_figure(figure, out)


def collect_curves(logs: Mapping[str, Sequence[list[dict]]], key: str, scale: float = 1) -> dict[str, dict[int, list[float]]]:
    """Of each run the seeds' values of a scalar, by iteration; what COCO gives as -1 for none is left out."""
    curves: dict[str, dict[int, list[float]]] = {}
    for name, seeds in logs.items():
        curve: dict[int, list[float]] = {}
        for entry in (entry for entries in seeds for entry in entries if entry.get(key, -1) >= 0):
            curve.setdefault(entry['step'], []).append(scale * entry[key])
        curves[name] = dict(sorted(curve.items()))
    return {name: curve for name, curve in curves.items() if curve}


def name_baseline(baselines: Mapping[str, str]) -> str:
    """What differences are taken to, in words, given of each run its baseline."""
    names = set(baselines.values())
    return names.pop() if len(names) == 1 else "the run's baseline"


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of a single value, for which no bar is drawn."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def run_colors(count: int) -> list[tuple[float, float, float]]:
    """As many colours, different as far as there are."""
    colors = plt.colormaps['tab10'].colors  # type: ignore[attr-defined]
    return [colors[index % len(colors)] for index in range(count)]


def place_labels(
    figure: plt.Figure, axis: plt.Axes, points: Mapping[str, tuple[float, float]], colors: Mapping[str, tuple[float, float, float]]
) -> None:
    """Write each point's name beside it, at the nearest place that covers neither another name nor a point."""
    figure.tight_layout()  # as it will be written: places depend on it
    frame, unit = axis.get_window_extent(), figure.dpi / 72
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axis.transData.transform(list(points.values()))]
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for name, point in points.items():
        style: dict[str, Any] = dict(ha='center', va='center', fontsize=8, color=colors[name], in_layout=False)
        label = axis.annotate(name, point, (0, 0), textcoords='offset points', **style)
        size = label.get_window_extent()
        for distance, angle in itertools.product(range(6, 200, 6), angles):
            place = np.cos(angle) * (distance + size.width / unit / 2), np.sin(angle) * (distance + size.height / unit / 2)
            box = size.translated(unit * place[0], unit * place[1])
            if frame.count_contains(box.corners()) == 4 and not box.count_overlaps(taken):
                break
        taken.append(box)
        label.set_position(place)
        if distance > LEADER_DISTANCE:
            line = dict(arrowstyle='-', lw=0.5, color=colors[name], shrinkA=0, shrinkB=2)
            axis.annotate('', point, place, textcoords='offset points', arrowprops=line, in_layout=False)


def write_figure(figure: plt.Figure, out: Path) -> None:
    """Lay out, write and close. The file is whole or, where there is no room for it, as it was."""
    figure.tight_layout()
    part = out.with_name(f'{out.name}.part')
    try:
        figure.savefig(part, dpi=120, format=out.suffix.removeprefix('.') or 'png')
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
        plt.close(figure)

"""Draw results. Each ``draw_...`` function writes one figure to the file ``out``; ``ap_label`` is its label for AP."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.transforms import Bbox

from ..files import whole_file
from ..frequency import SPECTRUM, Frequency

BESIDE: dict[str, Any] = dict(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))  # a legend at the right of its axes
MARKED_POINTS = 20  # a curve with up to this many points marks them
LEGEND_ROWS = 16  # as many as fit beside a figure
LEADER_DISTANCE = 10  # in points (1/72 inch); a name further from its point gets a line to it

PerSeed = Sequence[float]  # a number for each seed of a run


def draw_curves(entries: Sequence[dict], out: Path) -> None:
    """Draw a training's losses, and its AP on the held-out split, against iterations. ``read_scalars`` returns the ``entries``."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    losses = sorted({key for entry in entries if 'loss' in entry for key in entry if 'loss' in key})
    curves: list[tuple] = [(left, key, key, dict(lw=2.5 if key == 'loss' else 1)) for key in losses]
    for kind, label in {'bbox': 'box AP', 'segm': 'mask AP'}.items():
        curves += [(right, f'coco/{kind}_mAP', label, dict(ls='-', marker='o'))]
        curves += [(right, f'coco/{kind}_mAP_50', f'{label}50', dict(ls='--', marker='o'))]
    for axis, key, label, style in curves:
        if points := [(entry['step'], entry[key]) for entry in entries if key in entry]:
            axis.plot(*zip(*points, strict=True), label=label, **style)
    left.set(xlabel='iteration', ylabel='loss', yscale='log')
    right.set(xlabel='iteration', ylabel='AP', ylim=(0, 1))
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    write_figure(figure, out)


def draw_ap_against_cost(aps: Mapping[str, PerSeed], costs: Mapping[str, Mapping[str, PerSeed]], ap_label: str, out: Path) -> None:
    """Draw each run's mean AP against its mean cost, with standard deviations over seeds, in a panel for each label of ``costs``."""
    figure, axes = plt.subplots(1, len(costs), figsize=(6.5 * len(costs), 5), squeeze=False, sharey=True)
    colors = run_colors(aps)
    for axis, (label, cost) in zip(axes.flat, costs.items(), strict=True):
        points = {name: (float(np.mean(cost[name])), float(np.mean(values))) for name, values in aps.items() if cost.get(name)}
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
    families: Mapping[str, Mapping[int, PerSeed]], baseline: tuple[str, PerSeed], ap_label: str, out: Path
) -> None:
    """Draw AP against the number of frequencies: a line for each family of sets, one for the baseline, standard deviations over seeds."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    colors = run_colors(families)
    for index, (name, family) in enumerate(families.items()):
        counts = sorted(family)
        means, spreads = [np.mean(family[count]) for count in counts], [spread(family[count]) for count in counts]
        beside = 1.03 ** (index - (len(families) - 1) / 2)  # so no bar hides another
        axis.errorbar(np.array(counts) * beside, means, spreads, fmt='-o', ms=4, color=colors[name], elinewidth=1, capsize=2, label=name)
    name, values = baseline
    if values:
        mean, width = float(np.mean(values)), spread(values)
        axis.axhline(mean, color='black', ls='--', lw=1, label=name)
        axis.axhspan(mean - width, mean + width, color='black', alpha=0.08, lw=0)
    axis.set_xscale('log', base=2)
    counts = sorted({count for family in families.values() for count in family})
    axis.set(xlabel='number of frequencies', ylabel=ap_label, xticks=counts, xticklabels=list(map(str, counts)))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(**BESIDE)
    write_figure(figure, out)


def draw_heat_map(aps: Mapping[Frequency, float], chosen: Sequence[Frequency], ap_label: str, out: Path) -> None:
    """Draw AP of each frequency alone, on the 7 x 7 spectrum. The ``chosen`` are framed and numbered in order."""
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
    aps: Mapping[str, Mapping[int, float]], baselines: Mapping[str, str], intervals: Mapping[str, Sequence[float]], ap_label: str, out: Path
) -> None:
    """Draw AP by seed and run (left), and each seed's difference to the baseline's run of the same seed (right).

    ``aps`` has each run's AP by seed, ``baselines`` its baseline (itself if none), ``intervals`` that of its mean difference if it has one.
    """
    names = list(aps)
    seeds = sorted({seed for values in aps.values() for seed in values})
    colors = run_colors(seeds)
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
    left.set(xlabel=f'{ap_label}; bar: mean over seeds', yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    right.set(xlabel=f'minus that of {name_baseline(baselines)} with the same seed; band: 95 % interval')
    for axis in (left, right):
        axis.grid(alpha=0.3, axis='x')
    handles = [plt.Line2D([], [], marker='o', ls='', ms=4, color=colors[seed], label=f'seed {seed}') for seed in seeds]
    right.legend(handles=handles, **BESIDE)
    write_figure(figure, out)


def draw_learning(logs: Mapping[str, Sequence[list[dict]]], metric: str, ap_label: str, out: Path) -> None:
    """Draw training loss, and AP if it was measured more than once, against iterations: means and standard deviations over seeds.

    ``logs`` has what ``read_scalars`` returns for each seed of each run; ``metric`` is one of mmdet's, such as ``bbox_mAP``.
    """
    curves = {'training loss': collect_curves(logs, 'loss'), ap_label: collect_curves(logs, f'coco/{metric}', 100)}
    curves = {label: runs for label, runs in curves.items() if any(len(curve) > 1 for curve in runs.values())}
    columns = -(-len(logs) // LEGEND_ROWS)
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves) + 1.2 * columns, 4.5), squeeze=False)
    colors = run_colors(logs)
    styles = {name: ('-', '--', ':')[index // 10 % 3] for index, name in enumerate(logs)}
    for axis, (label, runs) in zip(axes.flat, curves.items(), strict=True):
        for name, curve in runs.items():
            steps, means = list(curve), np.array([np.mean(values) for values in curve.values()])
            width = np.array([spread(values) for values in curve.values()])
            marker = 'o' if len(steps) <= MARKED_POINTS else ''
            axis.plot(steps, means, marker=marker, ms=4, lw=1.5, label=name, color=colors[name], ls=styles[name])
            axis.fill_between(steps, means - width, means + width, color=colors[name], alpha=0.12, lw=0)
        axis.set(xlabel='iteration', ylabel=label)
        axis.grid(alpha=0.3)
    if 'training loss' in curves:
        axes[0, 0].set_yscale('log')
    axes[0, -1].legend(**BESIDE, ncols=columns)
    write_figure(figure, out)


def collect_curves(logs: Mapping[str, Sequence[list[dict]]], key: str, scale: float = 1) -> dict[str, dict[int, list[float]]]:
    """Collect a scalar by iteration over the seeds of each run. COCO's -1, which means no such objects, is left out."""
    curves: dict[str, dict[int, list[float]]] = {}
    for name, seeds in logs.items():
        curve: dict[int, list[float]] = {}
        for entry in (entry for entries in seeds for entry in entries if entry.get(key, -1) >= 0):
            curve.setdefault(entry['step'], []).append(scale * entry[key])
        if curve:
            curves[name] = dict(sorted(curve.items()))
    return curves


def name_baseline(baselines: Mapping[str, str]) -> str:
    """Name the common baseline of the runs, or put it into words if they have several."""
    names = set(baselines.values())
    return names.pop() if len(names) == 1 else "the run's baseline"


def spread(values: Sequence[float]) -> float:
    """Compute the sample standard deviation; 0 for a single value, which gets no bar."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def run_colors(names: Iterable) -> dict[Any, tuple[float, float, float]]:
    """Give each name a colour; up to ten are all different."""
    return dict(zip(names, itertools.cycle(plt.colormaps['tab10'].colors), strict=False))  # type: ignore[attr-defined]


def place_labels(figure: plt.Figure, axis: plt.Axes, points: Mapping[str, tuple[float, float]], colors: Mapping[str, Any]) -> None:
    """Write each point's name at the nearest place that covers no other name and no point."""
    figure.tight_layout()  # places depend on the final layout
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
    """Lay out a figure, write it whole or not at all, and close it. The suffix names the format; without one it is PNG."""
    figure.tight_layout()
    try:
        with whole_file(out) as part:
            figure.savefig(part, dpi=120, format=out.suffix.removeprefix('.') or 'png')
    finally:
        plt.close(figure)

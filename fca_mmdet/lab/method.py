"""Draw the pictures of ``docs/method.md``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..dct import dct_basis, projection_maps
from ..frequency import CANDIDATES, FREQUENCY_SETS, SPECTRUM, Frequency
from .plots import plt, write_figure
from .shapes import make_image

WAVE = Frequency(1, 2)  # the one that is drawn on several grids
GRIDS = [((grid, grid), (56, 56)) for grid in (7, 14, 28, 56, 20)] + [((14, 14), (56, 84)), ((14, 21), (56, 84)), ((56, 56), (14, 14))]
"""Grid and size of the feature map in each panel, (height, width) each."""


def _show(axis: plt.Axes, values: Tensor, title: str, **style: Any) -> None:
    axis.imshow(values.numpy(), cmap='gray', **style)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])


def draw_components(out: Path, size: int = 28) -> None:
    """Draw the 49 components on a grid of ``size`` cells: top16 framed and numbered by rank, low16 with a dashed frame."""
    figure, axis = plt.subplots(figsize=(7, 7))
    for u, v in CANDIDATES:
        component = (dct_basis([u], size).T @ dct_basis([v], size)).numpy()
        extent = (v - 0.36, v + 0.36, u + 0.36, u - 0.36)
        axis.imshow(component, cmap='gray', vmin=-2 / size, vmax=2 / size, extent=extent, interpolation='nearest')
    for name, reach, color, line in (('top16', 0.46, 'tab:red', '-'), ('low16', 0.4, 'tab:blue', '--')):
        for u, v in FREQUENCY_SETS[name]:
            frame = axis.add_patch(plt.Rectangle((v - reach, u - reach), 2 * reach, 2 * reach, fill=False, ec=color, ls=line, lw=2))
        frame.set_label(name)
    for rank, (u, v) in enumerate(FREQUENCY_SETS['top16'], 1):
        axis.text(v - 0.33, u - 0.33, str(rank), ha='left', va='top', fontsize=9, bbox=dict(facecolor='white', edgecolor='none', pad=1))
    axis.set(xlim=(-0.5, 6.5), ylim=(6.5, -0.5), xlabel='v, along the width', ylabel='u, along the height')
    axis.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    write_figure(figure, out)


def draw_inverse(out: Path) -> None:
    """Draw an image, its local contrast pooled to 7x7, the spectrum of that, and what the inverse rebuilds from some of the frequencies."""
    image = torch.from_numpy(make_image(np.random.default_rng(3))[0]).double().mean(2)[None]
    pooled = F.adaptive_avg_pool2d((image - F.avg_pool2d(image, 9, 1, 4)).abs(), SPECTRUM)[0]
    basis = dct_basis(range(SPECTRUM), SPECTRUM)
    spectrum = basis @ pooled @ basis.T
    kept = {'top16': FREQUENCY_SETS['top16']} | {f'u, v < {n}': [pair for pair in CANDIDATES if max(pair) < n] for n in (1, 2, 4, 7)}
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.4))
    limits = dict(vmin=float(pooled.min()), vmax=float(pooled.max()))
    _show(axes[0, 0], image[0], 'image')
    _show(axes[0, 1], pooled, 'local contrast, 7x7', **limits)
    _show(axes[0, 2], spectrum.abs().log10(), 'its spectrum, log scale')
    for axis, (name, frequencies) in zip(axes.flat[3:], kept.items(), strict=True):
        part = spectrum * torch.tensor([pair in frequencies for pair in CANDIDATES]).view_as(spectrum)
        _show(axis, basis.T @ part @ basis, f'{name}: {100 * float(part.square().sum() / spectrum.square().sum()):.0f} %', **limits)
    write_figure(figure, out)


def draw_grids(out: Path) -> None:
    """Draw one frequency's projection map for several grids and sizes of the feature map."""
    figure, axes = plt.subplots(2, 4, figsize=(8, 5))
    for axis, (grid, size) in zip(axes.flat, GRIDS, strict=True):
        _show(axis, projection_maps([WAVE], grid, *size)[0], 'grid {} x {}\nmap {} x {}'.format(*grid, *size), interpolation='nearest')
    write_figure(figure, out)


def draw_channels(out: Path, size: int = 28) -> None:
    """Draw three channels with a mean of 1, and their components of top16 on a grid of 7."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing='ij')
    spot, coarse, fine = 3 * torch.exp(-((x - 9) ** 2 + (y - 12) ** 2) / 60), torch.sin((x + y / 2) / 3), torch.sin((x + y / 5) / 1.6)
    maps = projection_maps(FREQUENCY_SETS['top16'], (SPECTRUM, SPECTRUM), size, size).flatten(1)
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.8), width_ratios=[1, 1, 1, 3])
    for axis, name, channel, marker in zip(axes, ('spot', 'coarse stripes', 'fine stripes'), (spot, coarse, fine), 'os^', strict=False):
        channel = 1 + 0.8 * (channel - channel.mean())
        _show(axis, channel, name, vmin=0, vmax=2)
        axes[3].plot((maps @ channel.flatten()).numpy(), ls=':', marker=marker, ms=4, lw=1, label=name)
    axes[3].set_xticks(range(16), [f'({u}, {v})' for u, v in FREQUENCY_SETS['top16']], rotation=90, fontsize=8)
    axes[3].legend(title='component of (u, v)', fontsize=8)
    write_figure(figure, out)


def draw_method(out: Path) -> None:
    """Write the four pictures to the folder ``out``."""
    for name, draw in dict(components=draw_components, inverse=draw_inverse, grids=draw_grids, channels=draw_channels).items():
        draw(out / f'{name}.png')
        print(out / f'{name}.png')

"""Measure the energy of a trained detector's feature maps in the 7x7 spectrum, and check theorem 1 of FcaNet on them."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.apis import inference_detector
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.nn import functional as F

from ..dct import projection_maps
from ..detector import find_images, open_detector
from ..errors import UserError
from ..files import check_writable
from ..frequency import CANDIDATES, FREQUENCY_SETS
from .pictures import find_attentions
from .plots import plt, write_figure

SETS = ('low1', 'low2', 'low16', 'top16', 'bot16')  # the columns of the table


def energy_shares(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute each of the 49 components' share of the energy of ``x`` pooled to ``grid``, over all channels.

    ``x`` is ``[N, C, H, W]``, the grid (height, width) in cells, 7 or more, and the result ``[7, 7]``, u down and v across.
    """
    maps = projection_maps(CANDIDATES, grid, x.shape[2], x.shape[3], x.device)
    components = torch.einsum('fhw,nchw->ncf', maps, x.double())
    pooled = F.adaptive_avg_pool2d(x.double(), grid)
    return (components.square().sum((0, 1)) / pooled.square().sum()).view(7, 7)


class Spectrum(NamedTuple):
    """The share of energy by component, ``[7, 7]``; by channel, the average and the component that theorem 1 equates with it."""

    shares: Tensor
    averages: Tensor  # times sqrt(h w) of the grid
    lowest: Tensor  # the component (0, 0), as the attention computes it


def _watch(model: nn.Module) -> dict[str, list[Spectrum]]:
    """Collect spectra of every attention's input from now on, by stage. A watched attention does not run folded."""
    seen: dict[str, list[Spectrum]] = defaultdict(list)
    for name, attention in find_attentions(model).items():
        layer = re.search(r'layer(\d)', name)
        stage = f'stage {layer[1]}' if layer else name

        def look(module: Any, inputs: tuple[Tensor, ...], stage: str = stage) -> None:
            x, grid = inputs[0], module.grid
            lowest = projection_maps(CANDIDATES[:1], grid, x.shape[2], x.shape[3], x.device).to(x.dtype)
            average = x.mean((2, 3)).flatten() * (grid[0] * grid[1]) ** 0.5
            seen[stage].append(Spectrum(energy_shares(x, grid), average, (x * lowest).sum((2, 3)).flatten()))

        attention.register_forward_pre_hook(look)
    return seen


def draw_spectra(spectra: dict[str, Spectrum], out: Path) -> None:
    """Draw for each stage a heat map of shares, in per cent on a logarithmic scale, and below it component (0, 0) against the average."""
    figure, axes = plt.subplots(2, len(spectra), figsize=(3.6 * len(spectra), 7), squeeze=False)
    for (name, spectrum), (above, below) in zip(spectra.items(), axes.T, strict=True):
        shares, averages, lowest = 100 * spectrum.shares, spectrum.averages.cpu(), spectrum.lowest.cpu()
        above.imshow(shares.clamp_min(1e-4).log10(), cmap='viridis', vmin=-3, vmax=2)
        for u, v in CANDIDATES:
            share = float(shares[u, v])
            text = f'{share:.0f}' if share >= 9.5 else f'{share:.1f}' if share >= 0.095 else f'{share:.2f}'.removeprefix('0')
            above.text(v, u, text, ha='center', va='center', fontsize=6.5, color='black' if share > 3 else 'white')
        above.set(title=f'{name}: share of energy, %', xlabel='v', ylabel='u', xticks=range(7), yticks=range(7))
        some = torch.linspace(0, len(averages) - 1, min(2000, len(averages))).long()
        ends = [float(averages.min()), float(averages.max())]
        below.plot(ends, ends, color='black', lw=0.8)
        below.plot(averages[some], lowest[some], '.', ms=2)
        below.set(xlabel='global average x sqrt(h w)', ylabel='component (0, 0)')
        below.grid(alpha=0.3)
    write_figure(figure, out)


def measure_spectrum(config: Path, checkpoint: Path, images: Path, out: Path, count: int, device: str) -> None:
    """Run a detector over the first ``count`` images of a folder, print its stages' spectra, and draw them to ``out``."""
    paths = find_images(images, count)
    check_writable(out)
    model = open_detector(config, checkpoint, device)
    if min((min(attention.grid) for attention in find_attentions(model).values()), default=0) < 7:
        raise UserError(f'{config} needs a MultiSpectralAttention, and each with a dct_size of 7 or more')
    seen = _watch(model)
    for path in track_iter_progress(paths):
        inference_detector(model, str(path))
    print(f'\n{"":10}' + ''.join(f'{name:>8}' for name in (*SETS, 'all 49')) + '   share of energy, %')
    spectra = {}
    for name, several in seen.items():
        shares = torch.stack([one.shares for one in several]).mean(0)
        averages, lowest = torch.cat([one.averages for one in several]), torch.cat([one.lowest for one in several])
        spectra[name] = Spectrum(shares, averages, lowest)
        covered = [sum(100 * float(shares[pair]) for pair in FREQUENCY_SETS[chosen]) for chosen in SETS]
        print(f'{name:10}' + ''.join(f'{share:8.1f}' for share in (*covered, 100 * float(shares.sum()))))
        print(f'{"":10}component (0, 0) and the scaled average differ by {(averages - lowest).norm() / averages.norm():.1e} of their norm')
    draw_spectra(spectra, out)
    print(out)

"""Where the energy of a trained detector's feature maps lies in the 7x7 spectrum, and theorem 1 of FcaNet on them.

    python tools/spectrum.py CONFIG CHECKPOINT --images FOLDER --out FILE.png [--count 40]

For every feature map that an attention squeezes, pooled to the attention's grid: the energy of each of the 49 DCT components that FcaNet
chooses from, as a share of the energy of all components of the grid. The DCT is orthonormal, so that the shares of all components add up to
1 (Parseval); those of the 49 to less. Theorem 1 (FcaNet, ICCV 2021, section 3.2) says that the component (0, 0) is global average pooling,
up to the constant sqrt(h w) of the grid: exactly so on maps whose size is a multiple of the grid's; on others adaptive pooling weighs
pixels unequally. Draws the mean shares of each stage, and component (0, 0) against the global average; prints what published sets cover.
"""

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from companions import SUFFIXES
from figures import plt, write_figure
from mmdet.apis import inference_detector, init_detector
from mmengine.utils import track_iter_progress
from preflight import check_out
from torch import Tensor, nn
from torch.nn import functional as F

from fca_mmdet import FREQUENCY_SETS, CheckpointError, MultiSpectralAttention
from fca_mmdet.checkpoint import refuse_pickled_code
from fca_mmdet.dct import projection_maps
from fca_mmdet.selection import CANDIDATES

SETS = ('low1', 'low2', 'low16', 'top16', 'bot16')
"""What the table has a column for."""


def energy_shares(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The energy of each of the 49 components of ``x`` pooled to ``grid``, as a share of the pooled map's, over all its channels.

    Args:
        x: ``[N, C, H, W]``.
        grid: (height, width) in cells, 7 or more.

    Returns:
        ``[7, 7]``, u down and v across.

    Example:
        >>> energy_shares(torch.ones(1, 4, 14, 14), (7, 7))[0, 0]
        tensor(1., dtype=torch.float64)
    """
    maps = projection_maps(CANDIDATES, grid, x.shape[2], x.shape[3], x.device)
    components = torch.einsum('fhw,nchw->ncf', maps, x.double())
    pooled = F.adaptive_avg_pool2d(x.double(), grid)
    return (components.square().sum((0, 1)) / pooled.square().sum()).view(7, 7)


@dataclass
class Spectrum:
    """What one stage's feature maps have shown."""

    shares: list[Tensor] = field(default_factory=list)
    averages: list[Tensor] = field(default_factory=list)
    """The global average of each channel times sqrt(h w)."""
    lowest: list[Tensor] = field(default_factory=list)
    """Its component (0, 0), as the attention computes it."""


def watch(model: nn.Module, spectra: dict[str, Spectrum]) -> None:
    """Collect from every attention's input, by stage; an attention that is watched runs unfolded."""

    def collect(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, MultiSpectralAttention)
            (x,) = inputs
            lowest = projection_maps(CANDIDATES[:1], module.grid, x.shape[2], x.shape[3], x.device).to(x.dtype)
            spectra[name].shares.append(energy_shares(x, module.grid))
            spectra[name].averages.append(x.mean((2, 3)).flatten() * (module.grid[0] * module.grid[1]) ** 0.5)
            spectra[name].lowest.append((x * lowest).sum((2, 3)).flatten())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, MultiSpectralAttention):
            stage = re.search(r'layer(\d)', name)
            module.register_forward_pre_hook(collect(f'stage {stage[1]}' if stage else name))


def draw(spectra: dict[str, Spectrum], out: Path) -> None:
    """A heat map of shares for each stage, in per cent on a logarithmic scale, above component (0, 0) against the average."""
    figure, axes = plt.subplots(2, len(spectra), figsize=(3.6 * len(spectra), 7), squeeze=False)
    for (name, spectrum), (above, below) in zip(spectra.items(), axes.T, strict=True):
        shares = 100 * torch.stack(spectrum.shares).mean(0)
        above.imshow(shares.clamp_min(1e-4).log10(), cmap='viridis', vmin=-3, vmax=2)
        for u, v in CANDIDATES:
            share = float(shares[u, v])
            text = f'{share:.0f}' if share >= 9.5 else f'{share:.1f}' if share >= 0.095 else f'{share:.2f}'.removeprefix('0')
            above.text(v, u, text, ha='center', va='center', fontsize=6.5, color='black' if share > 3 else 'white')
        above.set(title=f'{name}: share of energy, %', xlabel='v', ylabel='u', xticks=range(7), yticks=range(7))
        averages, lowest = torch.cat(spectrum.averages).cpu(), torch.cat(spectrum.lowest).cpu()
        some = torch.linspace(0, len(averages) - 1, min(2000, len(averages))).long()
        ends = [float(averages.min()), float(averages.max())]
        below.plot(ends, ends, color='black', lw=0.8)
        below.plot(averages[some], lowest[some], '.', ms=2)
        below.set(xlabel='global average x sqrt(h w)', ylabel='component (0, 0)')
        below.grid(alpha=0.3)
    write_figure(figure, out)


def main() -> None:
    """Parse the command line, run the detector over the images, print and draw."""
    parser = argparse.ArgumentParser(description="Measure the energy of a detector's feature maps over the DCT spectrum.")
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--images', type=Path, required=True, help='a folder')
    parser.add_argument('--out', type=Path, required=True, help='a picture')
    parser.add_argument('--count', type=int, default=40, help='how many of the images, in the order of their names')
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args()
    if not arguments.config.is_file():
        parser.error(f'no config at {arguments.config}')
    paths = sorted(path for path in arguments.images.glob('*') if path.suffix.lower() in SUFFIXES)[: arguments.count]
    if not paths:
        sys.exit(f'spectrum: there is no image ({", ".join(SUFFIXES)}) in {arguments.images}')
    check_out(arguments.out)
    refuse_pickled_code()
    try:
        model = init_detector(str(arguments.config), str(arguments.checkpoint), device=arguments.device)
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(f'spectrum: {error}')
    attentions = [module for module in model.modules() if isinstance(module, MultiSpectralAttention)]
    if not attentions or min(min(module.grid) for module in attentions) < 7:
        sys.exit(f'spectrum: {arguments.config} has no MultiSpectralAttention with grids of 7 or more: there is nothing to look at')
    spectra: dict[str, Spectrum] = defaultdict(Spectrum)
    watch(model, spectra)
    for path in track_iter_progress(paths):
        inference_detector(model, str(path))
    print(f'\n{"":10}' + ''.join(f'{name:>8}' for name in (*SETS, 'all 49')) + '   share of energy, %')
    for name, spectrum in spectra.items():
        shares = 100 * torch.stack(spectrum.shares).mean(0)
        covered = [sum(float(shares[pair]) for pair in FREQUENCY_SETS[chosen]) for chosen in SETS]
        print(f'{name:10}' + ''.join(f'{share:8.1f}' for share in (*covered, float(shares.sum()))))
        averages, lowest = torch.cat(spectrum.averages), torch.cat(spectrum.lowest)
        print(f'{"":10}component (0, 0) and the scaled average differ by {(averages - lowest).norm() / averages.norm():.1e} of their norm')
    draw(spectra, arguments.out)
    print(arguments.out)


if __name__ == '__main__':
    main()

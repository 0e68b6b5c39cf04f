"""The spectrum against scipy's DCT, and the command on a small detector."""

import sys

import numpy as np
import pytest
import torch
from helpers import load_command
from matplotlib import pyplot as plt
from mmengine.config import Config
from scipy.fft import dctn

from fca_mmdet import config_path
from fca_mmdet.detector import build_detector
from fca_mmdet.lab.shapes import make_shapes
from fca_mmdet.lab.spectrum import Spectrum, draw_spectra, energy_shares


def scipy_shares(x: np.ndarray) -> np.ndarray:
    """The shares of every component of the grid of ``x``, ``[N, C, h, w]``: an orthonormal DCT by another hand."""
    energy = np.square(dctn(x, axes=(2, 3), norm='ortho')).sum((0, 1))
    return energy / energy.sum()


def test_shares_are_those_of_an_orthonormal_dct():
    x = torch.rand(2, 5, 7, 7, dtype=torch.float64)
    shares = energy_shares(x, (7, 7))
    np.testing.assert_allclose(shares, scipy_shares(x.numpy()), atol=1e-12)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert energy_shares(torch.ones(1, 4, 14, 14), (7, 7))[0, 0] == pytest.approx(1)


def test_a_finer_grid_has_every_second_component():
    x = torch.rand(1, 3, 28, 42, dtype=torch.float64)  # pooled to 14 x 14, its frequencies are (2u, 2v)
    pooled = x.unflatten(2, (14, 2)).unflatten(4, (14, 3)).mean((3, 5))
    np.testing.assert_allclose(energy_shares(x, (14, 14)), scipy_shares(pooled.numpy())[::2, ::2], atol=1e-12)


def test_a_heat_map_above_theorem_1(drawn, tmp_path):
    shares = torch.full((7, 7), 0.0004)
    shares[0, 0], shares[2, 5] = 0.8, 0.031
    averages = torch.linspace(-3, 5, 64)
    draw_spectra({'stage 1': Spectrum(shares, averages, averages + 1), 'stage 2': Spectrum(shares, averages, averages)}, tmp_path / 'a.png')
    above, _, below, _ = drawn[0].axes
    assert above.get_title() == 'stage 1: share of energy, %'
    texts = {text.get_position(): text for text in above.texts}
    assert [texts[v, u].get_text() for u, v in ((0, 0), (2, 5), (6, 6))] == ['80', '3.1', '.04']
    assert [texts[v, u].get_color() for u, v in ((0, 0), (2, 5), (6, 6))] == ['black', 'black', 'white']
    picture = above.images[0].get_array()
    assert picture[2, 5] == pytest.approx(np.log10(3.1))
    line, points = below.lines
    assert [*line.get_xdata(), *line.get_ydata()] == [-3, 5] * 2
    np.testing.assert_allclose(points.get_ydata(), points.get_xdata() + 1, rtol=1e-6)
    red, green, blue = plt.imread(tmp_path / 'a.png')[..., :3].reshape(-1, 3).T
    assert ((red > 0.6) & (green > 0.8) & (blue < 0.3)).sum() > 1000  # (0, 0), near the yellow end of the colours


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A config, its untrained weights, and images whose stages are multiples of their grids."""
    folder = tmp_path_factory.mktemp('detector')
    make_shapes(folder / 'data', train=2, val=1)
    config = Config.fromfile(config_path('small/mask-rcnn_fca-r18_fpn_small-heads.py'))
    config.test_dataloader.dataset.pipeline[1].scale = (224, 224)
    config.dump(folder / 'config.py')
    torch.save(dict(state_dict=build_detector(config).state_dict(), meta={}), folder / 'weights.pth')
    return folder


def run(folder, monkeypatch, *more: str, config: str = 'config.py') -> None:
    command = ['spectrum.py', config, 'weights.pth', '--images', 'data/images', '--out', 'out/spectrum.png', '--count', '1', *more]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', command)
    load_command('spectrum').main()


def test_the_command_shows_theorem_1(detector, monkeypatch, capsys, drawn):
    run(detector, monkeypatch)
    said = capsys.readouterr().out.split('share of energy, %')[1].splitlines()
    tables = [line.split() for line in said if line.startswith('stage')]
    assert [line[1] for line in tables] == ['1', '2', '3', '4']
    for _, _, *shares in tables:
        low1, low2, low16, *_, everything = map(float, shares)
        assert 0 < low1 <= low2 <= low16 <= everything <= 100
    # 224 pixels give 56, 28, 14 and 7 cells: the average exactly.
    deviations = [float(line.split('differ by ')[1].split()[0]) for line in said if 'differ by' in line]
    assert len(deviations) == 4
    assert max(deviations) < 1e-5
    assert said[-1] == 'out/spectrum.png'
    assert [axis.get_title() for axis in drawn[0].axes[:4]] == [f'stage {stage}: share of energy, %' for stage in (1, 2, 3, 4)]
    assert plt.imread(detector / 'out' / 'spectrum.png').shape[:2] == (840, 1728)


def test_mistakes(detector, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r'spectrum: there is no image \(.png, .*\) in '):
        run(detector, monkeypatch, '--images', str(tmp_path))
    config = Config.fromfile(detector / 'config.py')
    config.model.backbone.update(dct_size=(5, 5, 5, 5), frequencies=[(0, 0)])
    config.dump(tmp_path / 'coarse.py')
    torch.save(dict(state_dict=build_detector(config).state_dict(), meta={}), tmp_path / 'weights.pth')
    (tmp_path / 'data').symlink_to(detector / 'data')
    with pytest.raises(SystemExit, match=r'coarse.py needs a MultiSpectralAttention, and each with a dct_size of 7 or more'):
        run(tmp_path, monkeypatch, config='coarse.py')

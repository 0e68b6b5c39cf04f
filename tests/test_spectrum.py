"""tools/spectrum.py against scipy's DCT, and the command on a small detector."""

import sys

import numpy as np
import pytest
import spectrum
import torch
from make_shapes import make_shapes
from matplotlib import pyplot as plt
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.fft import dctn

from fca_mmdet import config_path


def scipy_shares(x: np.ndarray) -> np.ndarray:
    """The shares of every component of the grid of ``x``, ``[N, C, h, w]``: an orthonormal DCT by another hand."""
    energy = np.square(dctn(x, axes=(2, 3), norm='ortho')).sum((0, 1))
    return energy / energy.sum()


def test_shares_are_those_of_an_orthonormal_dct():
    x = torch.rand(2, 5, 7, 7, dtype=torch.float64)
    shares = spectrum.energy_shares(x, (7, 7))
    np.testing.assert_allclose(shares, scipy_shares(x.numpy()), atol=1e-12)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_finer_grid_has_every_second_component():
    x = torch.rand(1, 3, 28, 42, dtype=torch.float64)  # pooled to 14 x 14, its frequencies are (2u, 2v)
    pooled = x.unflatten(2, (14, 2)).unflatten(4, (14, 3)).mean((3, 5))
    np.testing.assert_allclose(spectrum.energy_shares(x, (14, 14)), scipy_shares(pooled.numpy())[::2, ::2], atol=1e-12)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A config, its untrained weights, and images whose stages are multiples of their grids."""
    folder = tmp_path_factory.mktemp('detector')
    make_shapes(folder / 'data', train=2, val=1)
    config = Config.fromfile(config_path('small/mask-rcnn_fca-r18_fpn_small-heads.py'))
    config.test_dataloader.dataset.pipeline[1].scale = (224, 224)
    config.dump(folder / 'config.py')
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict(), meta={}), folder / 'weights.pth')
    return folder


def run(folder, monkeypatch, *more: str) -> None:
    command = ['spectrum.py', 'config.py', 'weights.pth', '--images', 'data/images', '--out', 'out/spectrum.png', '--count', '1', *more]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', command)
    spectrum.main()


def test_the_command_shows_theorem_1(detector, monkeypatch, capsys):
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
    picture = plt.imread(detector / 'out' / 'spectrum.png')
    assert min(picture.shape[:2]) > 500
    assert picture.std() > 0.1


def test_mistakes(detector, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r'spectrum: there is no image \(.png, .*\) in '):
        run(detector, monkeypatch, '--images', str(tmp_path))
    config = Config.fromfile(detector / 'config.py')
    config.model.backbone.update(dct_size=(5, 5, 5, 5), frequencies=[(0, 0)])
    config.dump(detector / 'coarse.py')
    command = ['spectrum.py', 'coarse.py', 'weights.pth', '--images', 'data/images', '--out', 'out/none.png']
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(SystemExit, match=r'coarse.py has no MultiSpectralAttention with grids of 7 or more'):
        spectrum.main()

"""docs/method.md: its blocks run, its claims about grids hold against scipy, its commands build, and its pictures show what it says."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, load_command, read_picture
from mmdet.registry import MODELS
from mmengine.config import Config
from scipy.fft import dctn

from fca_mmdet import FREQUENCY_SETS, FcaResNet, MultiSpectralAttention
from fca_mmdet.dct import full_basis, projection_maps
from fca_mmdet.frequency import CANDIDATES, Frequency
from fca_mmdet.lab import method
from fca_mmdet.lab.plan import read_plan

DOCS = ROOT / 'docs'
PAGE = (DOCS / 'method.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in re.findall(r'^```bash\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines() if line]
TOP16 = np.array(FREQUENCY_SETS['top16'])


def run(block: str) -> dict:
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(block, 'method.md', 'exec'), names)
    return names


def row(case: str) -> str:
    """The rule for a case, from the table of grids."""
    return re.search(rf'^\| {re.escape(case)}.*?\| (.*) \|$', PAGE, re.MULTILINE)[1]


def component(x: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    return dctn(x, axes=(-2, -1), norm='ortho')[..., pair[0], pair[1]]


@pytest.mark.parametrize('block', BLOCKS)
def test_a_block_runs_as_it_stands(block, capsys):
    run(block)
    printed = capsys.readouterr().out.strip()
    assert not printed or f'`{printed}`' in PAGE


def test_the_changed_line_is_the_dct_of_scipy():
    names = run(BLOCKS[0])
    expected = [component(names['x'][:, c], 8 * TOP16[c // 4]) for c in range(64)]
    np.testing.assert_allclose(names['freq'], np.stack(expected, 1), atol=1e-4)
    reduce, expand = (names['attention'].fc[layer].weight.detach() for layer in (0, 2))
    torch.testing.assert_close(names['gate'], ((names['freq'] @ reduce.T).relu() @ expand.T).sigmoid())


def test_the_spectrum_is_the_dct_of_scipy():
    names = run(BLOCKS[1])
    np.testing.assert_allclose(names['spectrum'], dctn(names['x'], norm='ortho'), atol=1e-12)


@pytest.mark.parametrize('grid', [(7, 7), (14, 14), (56, 56), (14, 21), (20, 20), (16, 13)])
def test_a_frequency_is_u_k_over_2_waves_on_any_map(grid):
    for size in (grid, (4 * grid[0], 4 * grid[1]), (61, 97)):
        for u, v in CANDIDATES:
            spectrum = np.abs(dctn(projection_maps([Frequency(u, v)], grid, *size)[0].numpy(), norm='ortho'))
            half_waves = np.unravel_index(spectrum.argmax(), size)
            assert half_waves == (u * (grid[0] // 7), v * (grid[1] // 7))


@pytest.mark.parametrize('grid', [(14, 14), (56, 56), (14, 21)])
def test_on_a_multiple_of_7_a_component_is_that_of_its_tiles(grid):
    x = np.random.default_rng(0).standard_normal(grid)
    down, across = grid[0] // 7, grid[1] // 7
    tiles = dctn(x.reshape(down, 7, across, 7), axes=(1, 3), norm='ortho')
    for u, v in CANDIDATES:
        signs = np.outer((-1.0) ** (u * np.arange(down)), (-1.0) ** (v * np.arange(across)))
        ours = (projection_maps([Frequency(u, v)], grid, *grid)[0].numpy() * x).sum()
        np.testing.assert_allclose(ours, (signs * tiles[:, u, :, v]).sum() / (down * across) ** 0.5, atol=1e-12)


def test_a_grid_for_maps_that_are_not_square():
    assert '2:3, (14, 21)' in row('maps that are not square')
    down, across = projection_maps([Frequency(2, 0), Frequency(0, 2)], (14, 21), 56, 84)
    torch.testing.assert_close(down[:, 0] / down[0, 0], across[0, :56] / across[0, 0])


def test_the_grid_of_a_stride_or_of_a_map():
    grids = {int(stride): int(grid) for stride, grid in re.findall(r'(\d+): (\d+)', row('a network of your own'))}
    assert grids == {stride: 224 // stride for stride in (4, 8, 16, 32)}
    default = [getattr(FcaResNet(18), f'layer{stage}')[0].att.grid for stage in (1, 2, 3, 4)]
    assert default == [(grid, grid) for grid in grids.values()]
    sizes, rounded = re.search(r'maps of ([\d, ]+) take ([\d, ]+)', row('the same, from scratch')).groups()
    assert [int(size) // 7 * 7 for size in sizes.split(', ')] == [int(size) for size in rounded.split(', ')]


def test_a_grid_below_7_takes_pairs_alone():
    arguments = re.search(r'`(dct_size=.*?)`', row('maps smaller than 7 x 7'))[1]
    attention = eval(f'MultiSpectralAttention(16, {arguments})')
    x = torch.rand(1, 16, 4, 4)
    expected = [component(x[0, c], attention.frequencies[c // 4]) for c in range(16)]
    np.testing.assert_allclose(attention.squeeze(x)[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match='dct_size=4'):
        MultiSpectralAttention(16, dct_size=4)


def test_weights_of_another_grid():
    coarse, fine = MultiSpectralAttention(64, dct_size=7), MultiSpectralAttention(64, dct_size=56)
    with pytest.raises(ValueError, match=r'dct_size=\(7, 7\) in the checkpoint, but \(56, 56\)'):
        fine.load_state_dict(coarse.state_dict())
    fine.fc.load_state_dict(coarse.fc.state_dict())
    x = torch.rand(1, 64, 56, 56)
    assert not torch.allclose(fine(x), coarse(x), rtol=1e-3)
    with pytest.raises(ValueError, match=r'dct_size=56.*dct_size=7'):
        coarse.load_state_dict({**coarse.state_dict(), 'dct_layer.weight': full_basis(fine.frequencies, (56, 56), 64)})


def test_the_figures_of_complexity_stand_in_its_page():
    table = (DOCS / 'complexity.md').read_text()
    fields = re.search(r'^\| 50 \|(.*)\|$', table, re.MULTILINE)[1].split('|')
    assert [field.strip() for field in fields[-3:]] == ['0', *re.findall(r'0\.\d+ %', PAGE)]
    named = re.search(r'counts the same.*for `(.*?)`, `(.*?)`, `(.*?)` \(the default\) and `(.*?)`', PAGE).groups()
    assert len({re.search(rf'faster-rcnn_fca-r50_fpn_1x_coco_{name} (.*)', table)[1] for name in named}) == 1


@pytest.mark.parametrize('line', [line for line in COMMANDS if not line.startswith('#')])
def test_a_command_builds(line):
    python, tool, subject, *more = shlex.split(line, comments=True)
    assert python == 'python'
    assert (ROOT / tool).exists()
    if tool == 'tools/train.py':
        backbone = Config.fromfile(ROOT / subject).model.backbone
        built = MODELS.build({**backbone, 'init_cfg': None})
        chosen = {'LF': ('low2', 'dct'), 'TS': ('top16', 'dct'), 'NAS': ('top16', 'searched')}[line.split()[-1]]
        assert (built.layer1[0].att.dct_layer.configured, built.layer1[0].att.basis) == (FREQUENCY_SETS[chosen[0]], chosen[1])
        return
    runs = read_plan(ROOT / 'configs' / 'plans' / f'{subject}.yml')['runs']
    assert set(more[1:]) <= set(runs)
    assert all((ROOT / 'configs' / run['config']).exists() for run in runs.values())
    assert more or {'best-16', 'search', 'learned', 'single-66'} <= set(runs)


def test_the_command_draws_the_pictures_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['method.py', '--out', str(tmp_path)])
    load_command('method').main()
    written = {Path(line).name: read_picture(Path(line)) for line in capsys.readouterr().out.split()}
    kept = {path.name: path for path in (DOCS / 'method').iterdir()}
    assert set(written) == set(kept) == set(re.findall(r'\(method/(.*?)\)', PAGE))
    for name, picture in written.items():
        assert kept[name].stat().st_size < 120_000
        assert picture.shape == read_picture(kept[name]).shape


def test_components_are_framed_and_numbered(drawn, tmp_path):
    method.draw_components(tmp_path / 'a.png', size=14)
    (axis,) = drawn[0].axes
    for image, (u, v) in zip(axis.images, CANDIDATES, strict=True):
        spectrum = np.zeros((14, 14))
        spectrum[u, v] = 1
        np.testing.assert_allclose(dctn(image.get_array(), norm='ortho'), spectrum, atol=1e-12)
        assert image.get_extent() == pytest.approx((v - 0.36, v + 0.36, u + 0.36, u - 0.36))
    assert [tuple(np.round(frame.get_center()[::-1])) for frame in axis.patches] == [*FREQUENCY_SETS['top16'], *FREQUENCY_SETS['low16']]
    ranks = {tuple(np.round(text.get_position()[::-1])): text.get_text() for text in axis.texts}
    assert ranks == {pair: str(rank) for rank, pair in enumerate(FREQUENCY_SETS['top16'], 1)}


def test_the_inverse_rebuilds_the_share_it_says(drawn, tmp_path):
    method.draw_inverse(tmp_path / 'a.png')
    _, pooled, spectrum, top, *lowest = drawn[0].axes
    whole = pooled.images[0].get_array()
    np.testing.assert_allclose(10 ** spectrum.images[0].get_array(), np.abs(dctn(whole, norm='ortho')))
    np.testing.assert_allclose(lowest[-1].images[0].get_array(), whole, atol=1e-10)
    np.testing.assert_allclose(lowest[0].images[0].get_array(), np.full((7, 7), whole.mean()))
    for axis, count in zip([top, *lowest], (16, 1, 4, 16, 49), strict=True):
        rebuilt = axis.images[0].get_array()
        assert axis.get_title().endswith(f': {100 * np.square(rebuilt).sum() / np.square(whole).sum():.0f} %')
        assert (np.abs(dctn(rebuilt, norm='ortho')) > 1e-9).sum() == count


def test_one_wave_on_several_grids(drawn, tmp_path):
    method.draw_grids(tmp_path / 'a.png')
    for axis in drawn[0].axes:
        *grid, height, width = map(int, re.findall(r'\d+', axis.get_title()))
        wave = axis.images[0].get_array()
        assert wave.shape == (height, width)
        changes = [np.count_nonzero(np.diff(np.sign(line[np.abs(line) > 1e-9]))) for line in (wave[:, 0], wave[0])]
        if height >= grid[0]:
            assert changes == [grid[0] // 7, 2 * (grid[1] // 7)]  # a wave changes its sign twice


def test_channels_with_one_mean(drawn, tmp_path):
    method.draw_channels(tmp_path / 'a.png')
    *panels, right = drawn[0].axes
    assert [label.get_text() for label in right.get_xticklabels()] == [f'({u}, {v})' for u, v in TOP16]
    for panel, line in zip(panels, right.lines, strict=True):
        channel = np.asarray(panel.images[0].get_array())
        assert channel.mean() == pytest.approx(1)
        pooled = channel.reshape(7, 4, 7, 4).mean((1, 3))
        np.testing.assert_allclose(line.get_ydata(), [component(pooled, pair) for pair in TOP16], atol=1e-12)
    values = np.array([line.get_ydata() for line in right.lines])
    assert values[:, 0] == pytest.approx(7)
    assert (np.ptp(values, axis=0) > 0.5).sum() > 6

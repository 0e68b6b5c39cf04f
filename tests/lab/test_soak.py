"""The watch on memory as a command, too short to say anything about memory, and what it calls flat."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import TOOLS, load_command
from matplotlib import pyplot as plt

from fca_mmdet.lab import soak
from fca_mmdet.projection import CACHED_MAPS


def test_flat_is_up_to_one_per_cent_and_one_mib():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4 * soak.MIB, 2000)  # images of other sizes
    ramp = np.arange(2000) / 2000 / 0.8  # from the middle of the second tenth to the middle of the last it grows by 1
    start = 500 * soak.MIB
    for grown, flat in ((0, True), (4, True), (12, False), (-30, True)):
        series = (start + noise + grown * soak.MIB * ramp).tolist()
        assert soak.growth(series)[1] == pytest.approx(grown * soak.MIB, abs=soak.MIB)
        assert soak.is_flat(series) == flat
    assert soak.growth([9] * 10 + [1] * 50 + [2] * 40) == (1, 1)
    warmed = [float(start)] * 200 + [2.0 * start] * 1800  # what the first iterations take is not growth
    assert soak.growth(warmed) == (2 * start, 0)


def test_curves_of_memory(drawn, tmp_path):
    sizes = [(64, 80), (160, 70), (100, 90)]
    found = {
        name: dict(
            sizes=sizes, held=[mib * soak.MIB for mib in (1, 2, 3)], resident=[9 * soak.MIB] * 3, maps=[4, 8, 12], trimmed=[soak.MIB]
        )
        for name in soak.BACKBONES
    }
    soak.draw_memory(found, tmp_path / 'memory.png')
    left, right = drawn[0].axes
    assert drawn[0].get_suptitle() == 'A small Mask R-CNN trained on images of 64 to 160 x 70 to 90 pixels'
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == [f'{name}, {kind}' for name in found for kind in ('resident', 'held', 'resident when trimmed')]
    assert lines['+ FCA, held'].get_ydata().tolist() == [1, 2, 3]
    assert lines['ResNet, resident'].get_ydata().tolist() == [9, 9, 9]
    assert lines['+ FCA, resident when trimmed'].get_xydata().tolist() == [[3, 1]]
    assert list(right.lines[1].get_ydata()) == [4, 8, 12]
    assert set(right.lines[2].get_ydata()) == {CACHED_MAPS}


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / 'record' / 'memory.json'
    command = [sys.executable, TOOLS / 'soak.py', '--iterations', '30', '--out', out]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.exists(), result.stderr
    assert '] 30/30, ' in result.stdout
    record = json.loads(out.read_text())
    assert record['machine']['torch']
    plain, fca = record['ResNet'], record['+ FCA']
    assert plain['sizes'] == fca['sizes']
    for found in (plain, fca):
        assert {name: len(series) for name, series in found.items()} == dict(sizes=30, held=30, resident=30, maps=30, trimmed=1)
        assert all(0 < held < resident for held, resident in zip(found['held'], found['resident'], strict=True))
        assert found['trimmed'][0] <= found['resident'][-1]
    assert max(plain['maps']) == 0
    assert fca['maps'][0] == 4  # one for each stage
    assert fca['maps'][-1] == CACHED_MAPS
    assert f'+ FCA, 30 sizes of image, {CACHED_MAPS} maps cached' in result.stdout
    assert result.stdout.endswith('  flat\n' if soak.is_flat(fca['held']) else '  not flat\n')
    assert result.returncode == (not soak.is_flat(fca['held']))
    assert plt.imread(out.with_suffix('.png')).shape[:2] == (480, 1320)


def test_too_few_iterations(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['soak.py', '--iterations', '9'])
    with pytest.raises(SystemExit):
        load_command('soak').main()
    assert '--iterations 9: the first and the last tenth need at least 10 iterations' in capsys.readouterr().err

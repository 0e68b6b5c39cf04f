"""The watch on memory as a command, too short to say anything about memory, and what it calls flat."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soak

from fca_mmdet.dct import CACHED_MAPS

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'soak.py'


def test_flat_is_up_to_one_per_cent_and_one_mib():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4 * soak.MIB, 2000)  # images of other sizes
    ramp = np.arange(2000) / 2000 / 0.8  # from the middle of the second tenth to the middle of the last it grows by 1
    start = 500 * soak.MIB
    for grown, flat in ((0, True), (4, True), (12, False), (-30, True)):
        series = (start + noise + grown * soak.MIB * ramp).tolist()
        assert soak.growth(series)[1] == pytest.approx(grown * soak.MIB, abs=soak.MIB)
        assert soak.is_flat(series) == flat
    warmed = [float(start)] * 200 + [2.0 * start] * 1800  # what the first iterations take is not growth
    assert soak.growth(warmed) == (2 * start, 0)


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / 'record' / 'memory.json'
    command = [sys.executable, TOOL, '--iterations', '30', '--out', out]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.exists(), result.stderr
    assert 'iteration 20 of 30, ' in result.stdout
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
    assert out.with_suffix('.png').stat().st_size > 10_000


def test_too_few_iterations(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['soak.py', '--iterations', '9'])
    with pytest.raises(SystemExit):
        soak.main()
    assert '--iterations 9: the first and the last tenth need at least 10' in capsys.readouterr().err

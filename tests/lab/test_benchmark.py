"""The benchmark as a command, at a size that says nothing about speed."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from helpers import TOOLS, needs_a_later_compiler
from matplotlib import pyplot as plt

from fca_mmdet import folding
from fca_mmdet.lab import benchmark
from fca_mmdet.lab.timing import Setting


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOLS / 'benchmark.py', *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_a_table_is_measured_printed_and_written(tmp_path):
    out = tmp_path / 'record' / 'cpu.json'
    result = run('backbone', '--size', 64, 96, '--repeats', 2, '--backbones', '+ SE', '+ FCA, folded', '--channels-last', '--out', out)
    assert result.returncode == 0, result.stderr
    assert 'depth 50, 1 x 3 x 64 x 96, float32, channels_last' in result.stdout
    record = json.loads(out.read_text())
    assert record['machine']['torch']
    assert record['command'].endswith(f'--out {out}')
    (measured,) = record['backbones']
    assert measured['setting']['size'] == [64, 96]
    assert measured['setting']['depth'] == 50  # the default
    for mode in ('inference', 'training', 'saved', 'peak'):
        assert list(measured['table'][mode]) == ['ResNet', '+ SE', '+ FCA, folded']
        assert measured['table'][mode]['ResNet']['ratio'] == 1
        assert all(row['median'] > 0 for row in measured['table'][mode].values())
    # What SE keeps beyond ResNet is its input and its output's factor, at every block behind the frozen stage.
    assert measured['table']['saved']['+ SE']['ratio'] > 1.2
    height, width = plt.imread(out.with_suffix('.png')).shape[:2]
    assert height == 288
    assert abs(width - 1968) <= 2  # a row of four panels; it depends on the font
    assert '| + FCA, folded | ' in out.with_suffix('.md').read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ['cpu.json', 'cpu.md', 'cpu.png']


def test_a_detectors_training_step():
    result = run('detector', '--size', 64, 96, '--repeats', 1, '--batch', 2, '--backbones', '+ FCA, folded')
    assert result.returncode == 0, result.stderr
    assert re.search(r'\+ FCA, folded +training +\d+ ms \d\.\d\d .* peak +\d+ MiB', result.stdout)


def test_where_a_training_step_spends_its_time(monkeypatch, capsys):
    @contextmanager
    def here(names, setting, kind):
        subjects = {name: kind(name, setting) for name in names}
        yield lambda action: {name: getattr(subject, action)() for name, subject in subjects.items()}

    monkeypatch.setattr(benchmark, 'workers', here)
    names = ['ResNet', '+ FCA, folded']
    (found,) = benchmark.measure_operators(Setting(depth=18, size=(64, 96), threads=torch.get_num_threads()), names)
    said = capsys.readouterr().out
    assert 'depth 18, 1 x 3 x 64 x 96, float32: ms of a training step by operator' in said
    assert found['setting']['size'] == (64, 96)
    for name in names:
        assert found['seconds'][name]['aten::convolution_backward'] > 0
        assert re.search(rf'^  {re.escape(name)} .*convolution_backward \d+', said, re.MULTILINE)


@pytest.mark.slow
@needs_a_later_compiler
def test_deployed_backbones(tmp_path):
    out = tmp_path / 'deployed.json'
    result = run('deployed', '--size', 64, 96, '--repeats', 1, '--backbones', '+ FCA, folded', '--out', out)
    assert result.returncode == 0, result.stderr
    modes = [
        (row['setting']['runtime'], row['setting']['dtype'], row['setting']['fixed']) for row in json.loads(out.read_text())['deployed']
    ]
    runtimes = [('onnxruntime', 'float32'), ('openvino', 'float32'), ('openvino', 'bfloat16')]
    assert modes == [(*runtime, fixed) for runtime in runtimes for fixed in (False, True)]
    assert 'depth 50, 1 x 3 x 64 x 96, bfloat16, openvino, fixed shape' in result.stdout
    assert len(re.findall(r'\+ FCA, folded +inference +\d+ ms \d\.\d\d', result.stdout)) == 6


def test_the_peer_of_the_fold_computes_what_resnet_does():
    setting = Setting(depth=18, size=(64, 96), threads=torch.get_num_threads())
    plain, fused = (benchmark.Subject(name, setting) for name in ('ResNet', 'ResNet, efficient eval'))
    fused.model.load_state_dict(plain.model.state_dict())
    for ours, theirs in zip(fused.model(plain.x), plain.model(plain.x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert 'aten::native_batch_norm' in plain.operators()
    assert 'aten::native_batch_norm' not in fused.operators()


def test_a_backbone_that_a_depth_does_not_allow():
    result = run('backbone', '--depth', 18, '--backbones', '+ SE')
    assert result.returncode == 2
    assert (
        "the blocks of depth 18 have no plugin slot in mmdet's ResNet: choose --backbones from ['ResNet', 'ResNet, efficient eval', "
        in result.stderr
    )


def test_the_layer_alone(capsys):
    found = benchmark.measure_attention(Setting(size=(64, 96)), repeats=1)
    assert [row['shape'] for row in found[::2]] == [[1, 256, 16, 24], [1, 512, 8, 12], [1, 1024, 4, 6], [1, 2048, 2, 3]]
    assert [row['mode'] for row in found] == ['inference', 'training'] * 4
    assert all(list(row['rows']) == ['SE', 'FCA', 'mean'] for row in found)
    assert re.search(r'stage4 1x2048x2x3 +training +SE +\d+\.\d\d ms 1\.00   FCA +\d', capsys.readouterr().out)


def test_both_forms_of_a_folded_block(monkeypatch, capsys):
    taken, convolve = [], folding.F.conv2d

    def time_layers(layers, x, mode, repeats, label):
        gate, product = (layer(x[..., :8, :8]) for layer in layers.values())
        torch.testing.assert_close(gate, product, rtol=1e-4, atol=1e-4)
        return {'product': {'ratio': 0.5}}

    monkeypatch.setattr(benchmark, 'time_layers', time_layers)
    monkeypatch.setattr(folding.F, 'conv2d', lambda *args, **kwargs: (taken.append(folding.PRODUCT_PIXELS), convolve(*args, **kwargs))[1])
    before = folding.PRODUCT_PIXELS
    found = benchmark.measure_forms(Setting(), repeats=1)
    assert set(taken) == {0, 1e9}
    assert before == folding.PRODUCT_PIXELS
    assert [(row['planes'], row['pixels per channel']) for row in found] == [(n, r) for n in (128, 256, 512) for r in (1, 2, 4, 8, 16, 32)]
    assert 'z 512 x 128 x 128, 32 pixels per channel: product / gate   inference 0.50   training 0.50' in capsys.readouterr().out

"""The benchmark as a command, at a size that says nothing about speed."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'benchmark.py'


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=300)


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
    for mode in ('inference', 'training', 'saved', 'peak'):
        assert list(measured['table'][mode]) == ['ResNet', '+ SE', '+ FCA, folded']
        assert measured['table'][mode]['ResNet']['ratio'] == 1
        assert all(row['median'] > 0 for row in measured['table'][mode].values())
    # What SE keeps beyond ResNet is its input and its output's factor, at every block behind the frozen stage.
    assert measured['table']['saved']['+ SE']['ratio'] > 1.2
    assert out.with_suffix('.png').stat().st_size > 10_000
    assert '| + FCA, folded | ' in out.with_suffix('.md').read_text()


def test_a_detectors_training_step():
    result = run('detector', '--size', 64, 96, '--repeats', 1, '--batch', 2, '--backbones', '+ FCA, folded')
    assert result.returncode == 0, result.stderr
    assert re.search(r'\+ FCA, folded +training +\d+ ms \d\.\d\d .* peak +\d+ MiB', result.stdout)


def test_evaluators_on_the_same_detections(tmp_path):
    out = tmp_path / 'evaluation.json'
    result = run('evaluation', '--images', 20, '--repeats', 1, '--threads', 1, '--out', out)
    assert result.returncode == 0, result.stderr
    assert '20 images, 144 objects, 80 classes, 100 detections an image, 1 threads' in result.stdout
    for kind, measured in zip(('segm', 'bbox'), json.loads(out.read_text())['evaluation'], strict=True):
        assert re.search(rf'{kind}  FastCocoMetric +\d+\.\d\d s \d\.\d+ ', result.stdout)
        assert measured['equal']
        assert 0.05 < measured['figures']['CocoMetric'][f'coco/{kind}_mAP'] < 0.95
        assert measured['rows']['CocoMetric']['ratio'] == 1


def test_a_backbone_that_a_depth_does_not_allow():
    result = run('backbone', '--depth', 18, '--backbones', '+ SE')
    assert result.returncode == 2
    assert "the blocks of depth 18 have no plugin slot in mmdet's ResNet: choose --backbones of ['ResNet', " in result.stderr


def test_ratios_are_taken_within_a_round():
    rows = benchmark.summary({'ResNet': [1.0, 2.0, 4.0], 'other': [2.0, 2.0, 2.0]})
    assert rows['ResNet'] == {'median': 2.0, 'ratio': 1.0, 'quartiles': [1.0, 1.0]}
    assert rows['other']['median'] == 2.0
    assert rows['other']['ratio'] == pytest.approx(1.0)
    assert rows['other']['quartiles'] == pytest.approx([0.5, 2.0])


def test_an_interrupted_record_goes_on(monkeypatch):
    measured, saved = [], {}

    def table(setting, names, repeats):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(setting)
        return {'setting': json.loads(json.dumps(dataclasses.asdict(setting)))}

    monkeypatch.setattr(benchmark, 'benchmark_backbones', table)
    for name in ('sizes', 'attention', 'forms'):
        monkeypatch.setattr(benchmark, f'benchmark_{name}', lambda *_, name=name: [name])
    with pytest.raises(KeyboardInterrupt):
        benchmark.record(benchmark.Setting(), 3, saved, saved.update)
    assert len(saved['backbones']) == 2
    measured.append('so that nothing interrupts again')
    benchmark.record(benchmark.Setting(), 3, saved, saved.update)
    settings = [row['setting'] for row in saved['backbones']]
    assert all(settings.count(setting) == 1 for setting in settings)
    assert len(settings) > 2
    assert saved['forms'] == ['forms']


def test_a_record_of_another_machine_is_not_continued(tmp_path):
    out = tmp_path / 'cpu.json'
    out.write_text(json.dumps({'command': '', 'machine': {'cpu': 'abacus'}}))
    result = run('record', '--out', out)
    assert result.returncode == 2
    assert "cpu.json is the record of another machine, {'cpu': 'abacus'}: name another file with --out, or delete it" in result.stderr

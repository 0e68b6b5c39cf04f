"""Records that go on, and what is written beside them."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, TOOLS
from matplotlib.colors import to_rgba

from fca_mmdet.errors import UserError
from fca_mmdet.lab import record
from fca_mmdet.lab.timing import Setting

PUBLISHED = ROOT / 'docs' / 'benchmark' / 'cpu.json'


def test_an_interrupted_record_goes_on(monkeypatch):
    measured, saved = [], {}

    def backbones(setting, names, repeats):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(setting)
        return [{'setting': json.loads(json.dumps(dataclasses.asdict(setting)))}]

    monkeypatch.setitem(record.MEASURED, 'backbones', backbones)
    for name in ('deployed', 'sizes', 'attention', 'forms'):
        monkeypatch.setitem(record.MEASURED, name, lambda *_, name=name: [name])
    with pytest.raises(KeyboardInterrupt):
        record.record(Setting(), 3, saved, saved.update)
    assert len(saved['backbones']) == 2
    measured.append('so that nothing interrupts again')
    record.record(Setting(), 3, saved, saved.update)
    settings = [row['setting'] for row in saved['backbones']]
    assert all(settings.count(setting) == 1 for setting in settings)
    assert len(settings) == 10
    assert saved['forms'] == ['forms']


def test_a_gpus_record_has_the_detector_too(monkeypatch):
    asked, found = [], {}
    for name in record.MEASURED:
        monkeypatch.setitem(
            record.MEASURED, name, lambda setting, names, repeats, name=name: asked.append((name, setting, names, repeats)) or [name]
        )
    record.record(Setting(device='cuda'), 3, found, lambda found: None)
    assert {name: len(rows) for name, rows in found.items()} == dict(backbones=12, sizes=1, attention=1, forms=1, detector=2)
    assert [setting.dtype for name, setting, *_ in asked if name == 'detector'] == ['float32', 'float16']
    assert all(setting.batch == 2 for name, setting, *_ in asked if name in ('detector', 'backbones'))
    assert [names for name, _, names, _ in asked if name == 'detector'] == [['ResNet', '+ SE', '+ FCA, readable', '+ FCA, folded']] * 2
    assert [repeats for name, *_, repeats in asked if name == 'attention'] == [9]


def test_the_published_record_is_complete(monkeypatch):
    monkeypatch.setattr(record, 'machine', lambda device: json.loads(PUBLISHED.read_text())['machine'])
    for name in record.MEASURED:
        monkeypatch.setitem(record.MEASURED, name, lambda *_, name=name: pytest.fail(f'{name} would be measured again'))
    found = record.read_record(PUBLISHED, 'cpu')
    assert list(found) == ['backbones', 'deployed', 'sizes', 'attention', 'forms']
    record.record(Setting(threads=2), 9, found, lambda found: None)


def test_a_record_of_another_machine_is_not_continued(tmp_path):
    out = tmp_path / 'cpu.json'
    out.write_text(json.dumps({'command': '', 'machine': {'cpu': 'abacus'}}))
    result = subprocess.run([sys.executable, TOOLS / 'benchmark.py', 'record', '--out', out], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.strip().endswith(
        f"benchmark: {out} is of another machine or other versions, {{'cpu': 'abacus'}}: name another file with --out, or delete it"
    )


@pytest.mark.parametrize('option', ['repeats', 'images', 'threads', 'batch', 'size'])
def test_nothing_to_measure(option):
    counts = dict(repeats=1, images=1) | ({option: 0} if option in ('repeats', 'images') else {})
    changed = {option: (64, 0) if option == 'size' else 0} if option not in counts else {}
    with pytest.raises(UserError, match=rf'^--{option} 0: give 1 or more$'):
        record.run_benchmark('backbone', Setting(**changed), ['ResNet'], out=None, **counts)


def test_a_part_does_not_replace_a_record(tmp_path):
    out = tmp_path / 'cpu.json'
    for text, message in {
        PUBLISHED.read_text(): r'cpu.json has attention, deployed, forms, sizes too, which would be lost: name another file with --out$',
        '{"sizes": [1': r'cpu.json is not a record \(.*\): name another file with --out$',
        '[]\n[': r'cpu.json is not a record \(.*\): name another file with --out$',
        '["a"]': r'cpu.json is not a record: name another file with --out$',
    }.items():
        out.write_text(text)
        with pytest.raises(UserError, match=message):
            record.run_benchmark('backbone', Setting(), ['ResNet'], 1, 1, out)
        assert out.read_text() == text
        if 'command' not in text:
            with pytest.raises(UserError, match=message):
                record.run_benchmark('record', Setting(), ['ResNet'], 1, 1, out)


def test_a_record_is_written_with_tables_and_figures(tmp_path, monkeypatch):
    found = {key: value for key, value in json.loads(PUBLISHED.read_text()).items() if key not in ('command', 'machine')}
    monkeypatch.setattr(sys, 'argv', ['tools/benchmark.py', 'record'])
    record.write_record(found, 'cpu', tmp_path / 'new' / 'cpu.json')
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['cpu-sizes.png', 'cpu.json', 'cpu.md', 'cpu.png']
    written = json.loads((tmp_path / 'new' / 'cpu.json').read_text())
    assert written['command'] == 'python tools/benchmark.py record'
    assert {key: written[key] for key in found} == found


def test_the_published_page_is_that_of_the_record():
    assert record.markdown(json.loads(PUBLISHED.read_text())) == PUBLISHED.with_suffix('.md').read_text()


def test_bars_are_ratios(drawn, tmp_path):
    measurements = json.loads(PUBLISHED.read_text())['backbones']
    record.draw_costs(measurements, tmp_path / 'costs.png')
    axes = np.reshape(drawn[0].axes, (len(measurements), 4))
    assert [axis.get_title() for axis in axes[0]] == ['inference', 'training step', 'kept for backward', 'peak memory of the process']
    for measured, row in zip(measurements, axes, strict=True):
        for mode, axis in zip(('inference', 'training', 'saved', 'peak'), row, strict=True):
            if mode not in measured['table']:  # compiled code keeps its own
                assert not axis.axison
                continue
            rows = dict(reversed(measured['table'][mode].items()))
            assert [bar.get_width() for bar in axis.patches] == [figures['ratio'] for figures in rows.values()]
            assert [text.get_text() for text in axis.texts] == [f'{figures["ratio"]:.2f}' for figures in rows.values()]
            colors = ['tab:blue' if name == '+ FCA, folded' else 'lightsteelblue' if 'FCA' in name else 'silver' for name in rows]
            assert [bar.get_facecolor() for bar in axis.patches] == list(map(to_rgba, colors))
            spread = any(figures['quartiles'] != [figures['ratio']] * 2 for figures in rows.values())
            assert len(axis.containers) == 1 + spread  # with error bars
        assert [label.get_text() for label in row[0].get_yticklabels()] == list(reversed(measured['table']['inference']))
        assert not any(label.get_text() for label in row[1].get_yticklabels())
        assert row[0].get_ylabel() == record.describe_setting(measured['setting']).replace(', ', '\n')
    assert axes[5, 0].get_ylabel() == 'depth 50\n1 x 3 x 800 x 1344\nfloat32\nchannels_last\ncompiled'


def test_lines_over_image_size(drawn, tmp_path):
    measurements = json.loads(PUBLISHED.read_text())['sizes']
    record.draw_sizes(measurements, tmp_path / 'sizes.png')
    left, right = drawn[0].axes
    assert drawn[0].get_suptitle() == 'inference, depth 50, 1 x 3 x side x side, float32'
    assert left.get_xticks().tolist() == [320, 480, 640, 800, 1120, 1600]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ['ResNet', '+ FCA, readable', '+ FCA, folded']
    for time, ratio in zip(left.lines, right.lines, strict=True):
        rows = [measured['table']['inference'][time.get_label()] for measured in measurements]
        np.testing.assert_allclose(ratio.get_ydata(), [row['ratio'] for row in rows])
        np.testing.assert_allclose(time.get_ydata()[3], 1e3 * rows[3]['median'] / 0.64)

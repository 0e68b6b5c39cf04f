"""The set-up ends in a sentence where it could not end well, and reuses what it compiled."""

import shutil
from collections import namedtuple

import prepare
import pytest
import yaml

Usage = namedtuple('Usage', 'total used free')


def test_an_old_python_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare.sys, 'version_info', (3, 9, 0, 'final', 0))
    with pytest.raises(SystemExit, match=r'environment: Python .* is too old: use 3.10 or later \(name it with: make PYTHON=python3.11'):
        prepare.check_machine(tmp_path)


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: Usage(2**40, 2**40 - 2**30, 2**30))
    with pytest.raises(SystemExit, match=r'environment: 1.0 GiB are free where .* lies, and 4 are needed'):
        prepare.check_machine(tmp_path)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler -O2')
    with pytest.raises(SystemExit, match=r'environment: no C\+\+ compiler \(no-such-compiler\): install one'):
        prepare.check_compiler()


def test_missing_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare.sysconfig, 'get_path', lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r'environment: no .*Python.h: install the headers of this Python'):
        prepare.check_compiler()


def test_little_memory_is_named(monkeypatch):
    monkeypatch.setattr(prepare, 'available_memory_gib', lambda: 1.5)
    with pytest.raises(SystemExit, match=r'environment: 1.5 GiB of memory are available and one compiler needs 2'):
        prepare.check_compiler()


def test_jobs_fit_in_memory(monkeypatch):
    monkeypatch.setattr(prepare.os, 'cpu_count', lambda: 16)
    monkeypatch.setattr(prepare, 'available_memory_gib', lambda: 7.0)
    assert prepare.check_compiler() == 3


def test_a_wheel_is_kept_per_version_of_torch(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    kept = tmp_path / 'fca_mmdet' / 'wheels' / 'torch-1' / 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl'
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert prepare.build_ops('python', 'onedl-mmcv==2.3.6', 'torch-1') == kept
    with pytest.raises(SystemExit, match='compiler'):
        prepare.build_ops('python', 'onedl-mmcv==2.3.6', 'torch-2')


def test_a_failing_step_shows_its_output(capsys):
    with pytest.raises(SystemExit, match=r'environment: the step failed \(the end of its output is above\): sh'):
        prepare.run(['sh', '-c', 'echo the reason; exit 3'], 'the step')
    assert 'the reason' in capsys.readouterr().out


def test_the_matrix_names_what_the_set_up_takes():
    workflow = yaml.safe_load((prepare.ROOT / '.github' / 'workflows' / 'test.yml').read_text())
    rows = workflow['jobs']['test']['strategy']['matrix']['include']
    for row in rows:
        assert tuple(map(int, row['python'].split('.'))) >= prepare.OLDEST_PYTHON
        assert row['stack'] in prepare.STACKS
        assert tuple(map(int, row['torch'].split('.'))) >= (2, 6, 0)  # setup.py's
    tested = '.'.join(map(str, prepare.TESTED_PYTHON))
    assert all(dict(python=tested, torch=prepare.TESTED_TORCH, stack=stack) in rows for stack in prepare.STACKS)

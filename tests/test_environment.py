"""The set-up ends in a sentence where it could not end well, and reuses what it compiled."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
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


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """An empty cache and no compiler: to compile is an error that names the compiler."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('CXX', 'no-such-compiler')


def write_wheel(folder, name='onedl_mmcv-2.3.6-py3-none-any.whl', modules=('__init__.py', '_ext.py')):
    """Write a wheel of mmcv with empty modules, which pip takes for the real one."""
    with zipfile.ZipFile(folder / name, 'w') as wheel:
        files = {f'mmcv/{module}': '' for module in modules}
        files['onedl_mmcv-2.3.6.dist-info/METADATA'] = 'Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 2.3.6\n'
        files['onedl_mmcv-2.3.6.dist-info/WHEEL'] = 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        files['onedl_mmcv-2.3.6.dist-info/RECORD'] = ''
        for file, text in files.items():
            wheel.writestr(file, text)


@pytest.fixture(scope='module')
def venv(tmp_path_factory):
    """A virtual environment with a module called torch."""
    folder = tmp_path_factory.mktemp('path with blanks') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    (packages,) = folder.glob('lib/python*/site-packages')
    (packages / 'torch.py').touch()
    return folder


def install(venv, wheels):
    prepare.install_ops([str(venv / 'bin' / 'python'), '-m', 'pip', 'install', '--quiet'], 'onedl-mmcv==2.3.6', 'torch-1', str(wheels))


def test_a_prebuilt_wheel_that_fits_is_taken(venv, no_cache, tmp_path, capsys):
    write_wheel(tmp_path)
    install(venv, tmp_path)
    assert 'compiling' not in capsys.readouterr().out
    assert prepare.explain_ops(str(venv / 'bin' / 'python')) is None


def test_a_folder_without_a_wheel_that_fits_is_named(venv, no_cache, tmp_path, capsys):
    write_wheel(tmp_path, 'onedl_mmcv-2.3.6-cp27-cp27m-linux_x86_64.whl')
    with pytest.raises(SystemExit, match='no-such-compiler'):
        install(venv, tmp_path)
    assert f'environment: compiling onedl-mmcv==2.3.6: {tmp_path} has no wheel of it for Python 3.' in capsys.readouterr().out


@pytest.mark.parametrize('wheels', ['http://127.0.0.1:9/simple', '/no/such/folder'])
def test_wheels_that_cannot_be_read_are_named(venv, no_cache, wheels, capsys):
    with pytest.raises(SystemExit, match='no-such-compiler'):
        install(venv, wheels)
    assert f'environment: compiling onedl-mmcv==2.3.6: {wheels} cannot be read' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('modules', 'cause'),
    [
        (['__init__.py'], r"built where torch was missing, and so without its ops \(ModuleNotFoundError: No module named 'mmcv._ext'\)"),
        (['__init__.py', '_ext.cpython-27.so'], r"compiled for another Python \(ModuleNotFoundError: No module named 'mmcv._ext'\)"),
        (
            ['__init__.py', f'_ext{sysconfig.get_config_var("EXT_SUFFIX")}'],
            r'compiled for another torch than the installed one \(ImportError',
        ),
    ],
)
def test_ops_that_do_not_run_are_explained(venv, no_cache, tmp_path, modules, cause, capsys):
    write_wheel(tmp_path, modules=modules)
    with pytest.raises(SystemExit, match='no-such-compiler'):
        install(venv, tmp_path)
    assert re.search(f'compiling onedl-mmcv==2.3.6: with .*whl of {tmp_path}, mmcv was {cause}', capsys.readouterr().out)


def test_a_kept_wheel_that_does_not_run_is_an_error(venv, no_cache, tmp_path):
    kept = tmp_path / 'cache' / 'fca_mmdet' / 'wheels' / 'torch-1'
    kept.mkdir(parents=True)
    write_wheel(kept, modules=['__init__.py'])
    with pytest.raises(SystemExit, match=r'without its ops .*: remove .*whl and start again'):
        prepare.install_ops([str(venv / 'bin' / 'python'), '-m', 'pip', 'install', '--quiet'], 'onedl-mmcv==2.3.6', 'torch-1', None)


@pytest.mark.parametrize('version', ['2.5.1', '1.13', 'nightly', '2', '2.13.0.1'])
def test_a_torch_that_is_not_taken_is_named(version):
    with pytest.raises(SystemExit, match=rf'environment: torch {version!r} cannot be installed: name a version from 2.6 on'):
        prepare.check_torch(version)


@pytest.mark.parametrize('version', ['2.6', '2.13', '2.13.0'])
def test_a_torch_that_is_taken(version):
    prepare.check_torch(version)


def test_make_keeps_paths_whole(tmp_path):
    """Blanks and quotes in a path reach the command as they are."""
    (tmp_path / 'show').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'show').chmod(0o755)
    data, work_dir, wheels = "/data/my cells' folder", '/out/run "1" of $HOME', '/some wheels'
    stand_ins = [f'PYTHON={tmp_path}/show', f'RUN={tmp_path}/show']
    paths = [f'DATA={data}', f'WORK_DIR={work_dir.replace("$", "$$")}', f'WHEELS={wheels}']
    said = subprocess.run(
        ['make', '-s', 'demo', *stand_ins, *paths], cwd=prepare.ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    assert f'--wheels\n{wheels}\n' in said
    assert said.endswith(f'tools/demo.py\n--work-dir\n{work_dir}\n--data\n{data}\n')


def test_the_demo_works_in_a_folder_of_its_own():
    shown = 'show: ; @printf %s "$$WORK_DIR"'
    environment = {name: value for name, value in os.environ.items() if name != 'WORK_DIR'}
    said = subprocess.run(
        ['make', '-s', '--no-print-directory', '--eval', shown, 'show'],
        cwd=prepare.ROOT,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert said.stdout == 'work_dirs/demo'


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
    pinned = '.'.join(map(str, prepare.PINNED_PYTHON))
    assert all(dict(python=pinned, torch=prepare.TESTED_TORCH, stack=stack) in rows for stack in prepare.STACKS)

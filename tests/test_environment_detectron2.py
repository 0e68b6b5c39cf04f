"""The set-up with Detectron2 takes a folder or an address, and builds of torch and torchvision that fit each other."""

from pathlib import Path
from subprocess import CompletedProcess

import prepare_detectron2
import pytest
import yaml


@pytest.fixture
def commands(monkeypatch):
    """The arguments of each command that the set-up would run."""
    run = []
    monkeypatch.setattr(prepare_detectron2, 'run', lambda command, what: run.append(command[2:]))
    monkeypatch.setattr(prepare_detectron2, 'check_compiler', lambda: 2)
    monkeypatch.setattr(prepare_detectron2.os, 'environ', {})
    return run


def installed(commands):
    return [[word for word in command if word[0] != '-'][2:] for command in commands if 'install' in command]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'source'
    folder.mkdir()
    (folder / 'setup.py').touch()
    return folder


@pytest.mark.parametrize(('imported', 'signs'), [(True, ['==']), (False, ['==', '==='])])
def test_torchvision_is_of_torchs_build(commands, source, tmp_path, monkeypatch, imported, signs):
    monkeypatch.setattr(prepare_detectron2, 'capture', lambda command: CompletedProcess(command, int(not imported)))
    prepare_detectron2.prepare(str(source), tmp_path / 'venv', '2.7.1')
    pairs = [command for command in installed(commands) if command[0].startswith('torch=')]
    assert pairs == [[f'torch{sign}2.7.1', f'torchvision{sign}0.22.1'] for sign in signs]
    assert [str(source)] in installed(commands)


def test_a_finished_environment_is_left_as_it_is(commands, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_detectron2, 'capture', lambda command: CompletedProcess(command, 0))
    prepare_detectron2.prepare(str(source), tmp_path / 'venv')
    commands.clear()
    prepare_detectron2.prepare(str(source), tmp_path / 'venv')
    assert commands == []
    assert capsys.readouterr().out.endswith('venv is ready\n')
    prepare_detectron2.prepare(str(source), tmp_path / 'venv', '2.7.1')
    assert commands


def test_a_relative_folder_is_not_taken_for_a_package(commands, source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_detectron2, 'capture', lambda command: CompletedProcess(command, 0))
    monkeypatch.chdir(tmp_path)
    prepare_detectron2.prepare('source', tmp_path / 'venv')
    assert [str(source)] in installed(commands)


def test_a_folder_without_the_source_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r'environment: .*nowhere is not the source of Detectron2: name a folder with its setup.py'):
        prepare_detectron2.prepare(str(tmp_path / 'nowhere'), tmp_path / 'venv')


def test_the_workflow_takes_it_from_its_address():
    workflow = yaml.safe_load(Path(prepare_detectron2.ROOT, '.github', 'workflows', 'test.yml').read_text())
    (command,) = (step['run'] for step in workflow['jobs']['detectron2']['steps'] if 'run' in step)
    assert command == f'make test-detectron2 PYTHON=python DETECTRON2={prepare_detectron2.ADDRESS}'

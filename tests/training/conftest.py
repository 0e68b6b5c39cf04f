"""Fixtures that tests of preflight's rooms share."""

import shutil
from pathlib import Path

import coco_folder
import pytest


@pytest.fixture(scope='session')
def origin(tmp_path_factory) -> Path:
    """A sound data set and its config."""
    folder = tmp_path_factory.mktemp('origin')
    coco_folder.make(folder)
    return folder


@pytest.fixture
def folder(origin, tmp_path, monkeypatch) -> Path:
    """A copy to break, and to be in."""
    shutil.copytree(origin, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'here'

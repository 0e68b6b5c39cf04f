"""Fixtures that tests of several rooms share."""

import logging
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import Payload, published_classifier
from mmdet.visualization import DetLocalVisualizer
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Published classifiers of depths 34 and 50 on disk."""
    folder = tmp_path_factory.mktemp('published')
    paths = {depth: folder / f'fca{depth}.pth' for depth in ('34', '50')}
    for depth, path in paths.items():
        torch.save(published_classifier(depth), path)
    return paths


@pytest.fixture
def log():
    """What mmengine's logger says."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Keep()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A checkpoint whose unpickling writes ``executed`` beside it."""
    path = tmp_path / 'hostile.pth'
    torch.save({'state_dict': {}, 'meta': Payload(str(tmp_path / 'executed'))}, path)
    return path


@pytest.fixture(autouse=True)
def nothing_of_other_tests(monkeypatch) -> None:
    """Give each test instances of its own of what mmengine keeps by name for a process.

    mmdet's configs give all visualizers one name, by which a second runner would log into the first one's folder. A default scope that
    another test has set decides in which registry a name is looked up.
    """
    for kept in (DetLocalVisualizer, DefaultScope):
        monkeypatch.setattr(kept, '_instance_dict', OrderedDict())

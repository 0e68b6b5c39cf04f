"""Fixtures of the experiments' tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mmengine.logging import MMLogger

from fca_mmdet.lab import plots
from fca_mmdet.lab.shapes import make_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """Eight training and four held-out images."""
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(folder, train=8, val=4)
    return folder


@pytest.fixture
def write_plan(tmp_path) -> Callable[..., Path]:
    """Writes a plan and returns its path."""

    def write(**plan: object) -> Path:
        path = tmp_path / 'plan.yml'
        path.write_text(yaml.safe_dump(plan, sort_keys=False))
        return path

    return write


@pytest.fixture
def drawn(monkeypatch) -> list[plots.plt.Figure]:
    """The figures that are written, whose axes can still be asked."""
    figures = []
    close = plots.plt.close
    monkeypatch.setattr(plots.plt, 'close', lambda figure: (figures.append(figure), close(figure)))
    return figures


@pytest.fixture(autouse=True)
def own_loggers(monkeypatch) -> None:
    """Commands that measure silence mmengine's logger, for the rest of their process."""
    monkeypatch.setattr(MMLogger, '_instance_dict', MMLogger._instance_dict.copy())

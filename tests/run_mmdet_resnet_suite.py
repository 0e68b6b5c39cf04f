"""Run mmdet's own tests of its ResNet with this package's classes instead of mmdet's.

    python tests/run_mmdet_resnet_suite.py PATH_TO_AN_MMDETECTION_CHECKOUT

The tests are not part of mmdet's distributions: the checkout provides ``tests/test_models/test_backbones/test_resnet.py`` and the
``utils.py`` beside it. Many of them build backbones of 1 to 3 base channels, too narrow for 16 frequencies: those get one frequency and
no reduction, every other its defaults.

The names are exchanged in the test modules: in mmdet's own, ``super(Bottleneck, self)`` would find the subclass.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d

NARROW = dict(frequencies='top1', reduction=1)


class AnyWidthResNet(FcaResNet):
    """FcaResNet that also builds where the channels do not divide by 16."""

    def __init__(self, depth: int, **kwargs: Any):
        super().__init__(depth, **(NARROW if kwargs.get('base_channels', 64) % 4 else {}), **kwargs)


class AnyWidthResNetV1d(FcaResNetV1d):
    """FcaResNetV1d that also builds where the channels do not divide by 16."""

    def __init__(self, depth: int, **kwargs: Any):
        super().__init__(depth, **(NARROW if kwargs.get('base_channels', 64) % 4 else {}), **kwargs)


EXCHANGE = dict(ResNet=AnyWidthResNet, ResNetV1d=AnyWidthResNetV1d, BasicBlock=FcaBasicBlock, Bottleneck=FcaBottleneck)


class Exchange:
    """A pytest plugin that exchanges the classes where the tests look them up."""

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Rebind the names that the collected test modules, and the ``utils`` beside them, imported."""
        for module in {item.module for item in items}:
            for owner in (module, sys.modules[f'{module.__package__}.utils']):
                for name in EXCHANGE.keys() & vars(owner).keys():
                    setattr(owner, name, EXCHANGE[name])


def main() -> int:
    """Run the tests with the classes exchanged."""
    (checkout,) = sys.argv[1:]
    path = Path(checkout, 'tests', 'test_models', 'test_backbones', 'test_resnet.py')
    options = ['-v', '-p', 'no:cacheprovider', '-c', '/dev/null', '--rootdir', checkout, str(path)]
    return int(pytest.main(options, plugins=[Exchange()]))


if __name__ == '__main__':
    sys.exit(main())

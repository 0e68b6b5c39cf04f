"""Run mmdet's own tests of its ResNet with this package's classes in the place of mmdet's.

    python tests/run_mmdet_resnet_suite.py PATH_TO_AN_MMDETECTION_CHECKOUT

The tests are not part of mmdet's distributions: the checkout provides ``tests/test_models/test_backbones/test_resnet.py`` and the
``utils.py`` beside it. Many of them build backbones of 1 to 3 base channels, too narrow for 16 frequencies: those get one frequency and
no reduction, every other its defaults.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from mmdet.models import backbones
from mmdet.models.backbones import resnet

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d

NARROW = dict(frequencies='top1', reduction=1)


class AnyWidthResNet(FcaResNet):
    """FcaResNet that also builds where the channels do not divide by 16."""

    def __init__(self, depth: int, **kwargs: Any):
        super().__init__(depth, **(NARROW if kwargs.get('base_channels', 64) % 16 else {}), **kwargs)


class AnyWidthResNetV1d(FcaResNetV1d):
    """FcaResNetV1d that also builds where the channels do not divide by 16."""

    def __init__(self, depth: int, **kwargs: Any):
        super().__init__(depth, **(NARROW if kwargs.get('base_channels', 64) % 16 else {}), **kwargs)


def main() -> int:
    """Exchange the classes and run the tests."""
    (checkout,) = sys.argv[1:]
    backbones.ResNet, backbones.ResNetV1d = AnyWidthResNet, AnyWidthResNetV1d  # type: ignore[misc]
    resnet.BasicBlock, resnet.Bottleneck = FcaBasicBlock, FcaBottleneck  # type: ignore[misc]
    path = Path(checkout, 'tests', 'test_models', 'test_backbones', 'test_resnet.py')
    return int(pytest.main(['-v', '-p', 'no:cacheprovider', '-c', '/dev/null', '--rootdir', checkout, str(path)]))


if __name__ == '__main__':
    sys.exit(main())

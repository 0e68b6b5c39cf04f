"""Frequency channel attention (FcaNet, ICCV 2021) for MMDetection.

Importing the package checks the versions of mmdet, mmengine and mmcv, registers ``FcaResNet``, ``FcaResNetV1d``,
``MultiSpectralAttention`` and the attentions to compare it with in ``mmdet.registry.MODELS``, and lets torch load mmengine's
checkpoints as data.
"""

from .stack import allow_mmengine_checkpoints, check_versions
from .version import __version__

check_versions()
allow_mmengine_checkpoints()

from .attention import MultiSpectralAttention  # noqa: E402
from .baselines import EfficientChannelAttention, SqueezeExcitation  # noqa: E402
from .frequency import FREQUENCY_SETS, Frequency  # noqa: E402
from .resnet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d  # noqa: E402

__all__ = [
    'FREQUENCY_SETS',
    'EfficientChannelAttention',
    'FcaBasicBlock',
    'FcaBottleneck',
    'FcaResNet',
    'FcaResNetV1d',
    'Frequency',
    'MultiSpectralAttention',
    'SqueezeExcitation',
    '__version__',
]

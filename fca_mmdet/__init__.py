"""Frequency channel attention (FcaNet, ICCV 2021) for MMDetection.

Importing the package checks the versions of mmdet, mmengine and mmcv, registers ``FcaResNet``, ``FcaResNetV1d``,
``MultiSpectralAttention``, the attentions to compare it with and the padding of the published detectors in
``mmdet.registry.MODELS``, and lets torch load mmengine's checkpoints as data.
"""

from .stack import allow_mmengine_checkpoints, check_versions
from .version import __version__

check_versions()
allow_mmengine_checkpoints()

from .attention import MultiSpectralAttention  # noqa: E402
from .baselines import EfficientChannelAttention, SqueezeExcitation  # noqa: E402
from .checkpoint import CheckpointError  # noqa: E402
from .frequency import FREQUENCY_SETS, Frequency  # noqa: E402
from .padding import OrientedDetDataPreprocessor  # noqa: E402
from .resnet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d  # noqa: E402

__all__ = [
    'FREQUENCY_SETS',
    'CheckpointError',
    'EfficientChannelAttention',
    'FcaBasicBlock',
    'FcaBottleneck',
    'FcaResNet',
    'FcaResNetV1d',
    'Frequency',
    'MultiSpectralAttention',
    'OrientedDetDataPreprocessor',
    'SqueezeExcitation',
    '__version__',
]

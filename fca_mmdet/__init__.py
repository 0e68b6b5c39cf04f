"""Frequency channel attention (FcaNet, ICCV 2021) for MMDetection.

Importing the package checks the versions of mmdet, mmengine and mmcv, registers ``FcaResNet``, its relatives, ``MultiSpectralAttention``,
the attentions to compare it with and the padding of the published detectors in ``mmdet.registry.MODELS``, and ``FastCocoMetric``, hooks and
samplers in the registries of theirs, lets torch load mmengine's checkpoints as data, and lets mmengine resolve ``fca_mmdet::...``.
"""

from .stack import allow_mmengine_checkpoints, check_versions
from .version import __version__

check_versions()
allow_mmengine_checkpoints()

from .configs import config_path, register_configs  # noqa: E402

register_configs()

from . import resume  # noqa: E402, F401
from .attention import MultiSpectralAttention, stage_plugins  # noqa: E402
from .baselines import EfficientChannelAttention, SqueezeExcitation  # noqa: E402
from .checkpoint import CheckpointError  # noqa: E402
from .evaluation import FastCocoMetric  # noqa: E402
from .frequency import FREQUENCY_SETS, Frequency  # noqa: E402
from .padding import OrientedDetDataPreprocessor  # noqa: E402
from .resnet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d, FcaResNeXt, FcaResNeXtBottleneck  # noqa: E402
from .selection import FrequencySearchHook, FrequencySelection  # noqa: E402

__all__ = [
    'FREQUENCY_SETS',
    'CheckpointError',
    'EfficientChannelAttention',
    'FastCocoMetric',
    'FcaBasicBlock',
    'FcaBottleneck',
    'FcaResNeXt',
    'FcaResNeXtBottleneck',
    'FcaResNet',
    'FcaResNetV1d',
    'Frequency',
    'FrequencySearchHook',
    'FrequencySelection',
    'MultiSpectralAttention',
    'OrientedDetDataPreprocessor',
    'SqueezeExcitation',
    '__version__',
    'config_path',
    'stage_plugins',
]

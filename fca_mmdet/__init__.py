"""Frequency channel attention (FcaNet, ICCV 2021): the attention for torch, and backbones for MMDetection.

With torch alone, the import gives the attention. With mmdet, it also checks the versions of mmdet, mmengine and mmcv, registers the
backbones, attentions, preprocessor, metric, hooks and samplers in mmdet's registries, lets torch load mmengine's checkpoints as data, and
lets mmengine resolve ``fca_mmdet::...``.
"""

from .attention import MultiSpectralAttention, stage_plugins
from .errors import CheckpointError, UserError
from .frequency import FREQUENCY_SETS, Frequency
from .squeeze import FrequencySelection
from .stack import INSTALL, allow_mmengine_checkpoints, check_versions, is_missing
from .version import __version__

__all__ = [
    'FREQUENCY_SETS',
    'CanvasDetDataPreprocessor',
    'CheckpointError',
    'EfficientChannelAttention',
    'FastCocoMetric',
    'FcaBasicBlock',
    'FcaBottleneck',
    'FcaCSPDarknet',
    'FcaResNeXt',
    'FcaResNeXtBottleneck',
    'FcaResNet',
    'FcaResNetV1d',
    'Frequency',
    'FrequencySearchHook',
    'FrequencySelection',
    'MultiSpectralAttention',
    'OrientedDetDataPreprocessor',
    'PreflightHook',
    'SqueezeExcitation',
    'UserError',
    '__version__',
    'config_path',
    'stage_plugins',
]

if is_missing():
    _absent = [name for name in __all__ if name not in globals()]
    __all__ = [name for name in __all__ if name in globals()]

    def __getattr__(name: str) -> object:
        """Say what to install for a name that needs mmdet."""
        if name in _absent:
            raise ImportError(f'fca_mmdet.{name} needs mmdet, which is not installed; {INSTALL}')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

else:
    check_versions()
    allow_mmengine_checkpoints()

    from .configs import config_path, register_configs

    register_configs()

    from .baselines import EfficientChannelAttention, SqueezeExcitation
    from .blocks import FcaBasicBlock, FcaBottleneck, FcaResNeXtBottleneck
    from .csp_darknet import FcaCSPDarknet
    from .preprocessor import CanvasDetDataPreprocessor, OrientedDetDataPreprocessor
    from .resnet import FcaResNet, FcaResNetV1d, FcaResNeXt
    from .training import resume  # noqa: F401 (registers)
    from .training.evaluation import FastCocoMetric
    from .training.preflight_hook import PreflightHook
    from .training.search import FrequencySearchHook

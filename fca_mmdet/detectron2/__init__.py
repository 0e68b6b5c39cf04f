"""Frequency channel attention for Detectron2. It needs Detectron2, and neither mmdet nor mmcv.

The import registers ``build_fca_resnet_backbone``, ``build_fca_resnet_fpn_backbone`` and ``build_fca_retinanet_resnet_fpn_backbone`` in
Detectron2's ``BACKBONE_REGISTRY``, and lets a YAML config inherit Detectron2's model zoo: ``_BASE_: !model_zoo COCO-Detection/...yaml``.
"""

from .backbone import FcaBasicBlock, FcaBottleneckBlock, FcaResNet, add_fca_config, published_name
from .training import FcaCheckpointer, FcaTrainer, use_folder

__all__ = [
    'FcaBasicBlock',
    'FcaBottleneckBlock',
    'FcaCheckpointer',
    'FcaResNet',
    'FcaTrainer',
    'add_fca_config',
    'published_name',
    'use_folder',
]

"""Weights, configs and data for Detectron2's training."""

import json
import os
import weakref
from pathlib import Path
from typing import Any

import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.model_zoo import get_config_file

from ..reading import read_checkpoint
from ..weights import FIRST_BLOCK, adopt_backbone, state_dict_of, with_metadata
from .backbone import FcaResNet, published_name

# For ``_BASE_`` of a config: Detectron2 only knows paths.
yaml.SafeLoader.add_constructor('!model_zoo', lambda loader, node: get_config_file(node.value))


class FcaCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also loads FcaNet's published weights, and the backbone of a detector of mmdet.

    A ``.pth`` file is read as data: no code in it runs. ``load`` raises ``CheckpointError`` for one that is unusable, of another
    architecture, or of another basis.
    """

    def _torch_load(self, f: str) -> dict[str, Any]:
        """Read a file, and put the weights of a backbone where the model has it."""
        checkpoint = read_checkpoint(f)
        if 'model' in checkpoint:
            return checkpoint
        weights = state_dict_of(checkpoint)
        adopt_backbone(weights)
        backbones = {name: module for name, module in self.model.named_modules() if isinstance(module, FcaResNet)}
        if FIRST_BLOCK not in weights or not backbones:
            return {'model': weights}
        (name, backbone), *_ = backbones.items()
        prefix = name and f'{name}.'
        placed = {prefix + key: value for key, value in weights.items()}
        # Our weights say beside torch's version numbers which grid and frequencies they were trained for.
        metadata = getattr(weights, '_metadata', {})
        names = {published_name(key): prefix + key for key, module in backbone.named_modules() if hasattr(module, 'settings')}
        return {'model': with_metadata(placed, {names[key]: value for key, value in metadata.items() if key in names})}


class FcaTrainer(DefaultTrainer):
    """Detectron2's trainer with ``FcaCheckpointer``, which scores with COCO's metric."""

    def build_hooks(self) -> list:
        """Replace the checkpointer before the hooks take it."""
        self.checkpointer = FcaCheckpointer(self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return super().build_hooks()

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """Score with COCO's metric, as Detectron2 computes it."""
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, 'inference'))


def use_folder(cfg: CfgNode, folder: str) -> None:
    """Train and score on a COCO-format folder: ``annotations/train.json``, ``annotations/val.json``, ``images/``."""
    for split in ('train', 'val'):
        register_coco_instances(f'{folder}/{split}', {}, f'{folder}/annotations/{split}.json', f'{folder}/images')
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f'{folder}/train',), (f'{folder}/val',)
    classes = json.loads(Path(folder, 'annotations', 'train.json').read_text())['categories']
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(classes)

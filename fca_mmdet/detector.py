"""Build a detector from a config, open a trained one, and load images for it."""

from pathlib import Path
from typing import Any

from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from .checkpoint import refuse_pickled_code
from .configs import read_config
from .errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')


def build_detector(cfg: Config) -> nn.Module:
    """Build the model of a config with random weights, without its backbone's ``init_cfg``."""
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    backbone = {**cfg.model.backbone, 'init_cfg': None}
    return MODELS.build({**cfg.model, 'backbone': backbone})


def open_detector(config: Path, checkpoint: Path, device: str = 'cpu') -> nn.Module:
    """Build a detector with trained weights, in eval mode. This checkpoint and all later ones are read as data.

    Raises:
        UserError: there is no such config or checkpoint, the config has no model, or the checkpoint cannot be used.
    """
    cfg = read_config(config)
    refuse_pickled_code()
    try:
        return init_detector(cfg, str(checkpoint), device=device)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error


def find_images(folder: Path, count: int) -> list[Path]:
    """List the first ``count`` images of a folder in the order of their names.

    Raises:
        UserError: it has no image.
    """
    paths = sorted(path for path in folder.glob('*') if path.suffix.lower() in SUFFIXES)[:count]
    if not paths:
        raise UserError(f'there is no image ({", ".join(SUFFIXES)}) in {folder}')
    return paths


def load_image(detector: nn.Module, path: Path) -> dict[str, Any]:
    """Load an image with a detector's test pipeline, as the ``inputs`` and ``data_samples`` of its ``test_step``."""
    pipeline = Compose(get_test_pipeline_cfg(detector.cfg.copy()))  # type: ignore[operator, union-attr]
    item = pipeline(dict(img_path=str(path), img_id=0))
    return dict(inputs=[item['inputs']], data_samples=[item['data_samples']])

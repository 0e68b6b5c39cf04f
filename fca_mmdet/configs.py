"""Where this package's configs lie, and their short names for ``_base_``.

Another project's config inherits one by its path, ``_base_ = __import__('fca_mmdet').config_path('mask_rcnn/...')``, under any command; or
by its name, ``_base_ = 'fca_mmdet::mask_rcnn/...'``, where this package is imported before the config is read, as in its own tools.
"""

import difflib
import os
from pathlib import Path, PurePath

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .errors import UserError

CONFIGS = Path(__file__).parent / '.mim' / 'configs'


def config_path(name: str | os.PathLike[str]) -> str:
    """Find a config of this package, and return its path.

    Args:
        name: relative to the configs' folder, with or without ``.py``.

    Raises:
        TypeError: neither a str nor a path.
        FileNotFoundError: there is no such config; the message has the nearest names.

    Example:
        >>> Path(config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')).name
        'mask-rcnn_fca-r50_fpn_1x_coco.py'
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f'name={name!r} must be a str, such as mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')
    name = PurePath(name).as_posix()
    # Looked up, not joined, so that no name leads out of the folder.
    paths = {found.relative_to(CONFIGS).with_suffix('').as_posix(): found for found in sorted(CONFIGS.rglob('*.py'))}
    path = paths.get(name.removesuffix('.py'))
    if path is None:
        nearest = difflib.get_close_matches(name, paths, n=3, cutoff=0) or ['none at all: install the package again']
        raise FileNotFoundError(f'fca_mmdet has no config {name!r}; the nearest are {", ".join(nearest)}')
    return str(path.resolve())


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a config that configures a model.

    Raises:
        UserError: no such file, or no model in it.
    """
    if not Path(path).is_file():
        raise UserError(f'no config at {path}')
    cfg = Config.fromfile(path)
    if 'model' not in cfg:
        raise UserError(f'{path} configures no model')
    return cfg


def register_configs() -> None:
    """Let mmengine resolve ``fca_mmdet::...``, which it does for the packages that it knows."""
    # The name of no distribution: mmengine then asks Python where the module lies. For a distribution, OpenMMLab's looks in the folder of
    # its metadata, which is not where an editable install's package is.
    MODULE2PACKAGE.setdefault('fca_mmdet', 'fca_mmdet.configs')

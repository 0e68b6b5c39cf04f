"""Find this package's configs, for ``_base_`` in another project's config.

``_base_ = __import__('fca_mmdet').config_path('mask_rcnn/...')`` works with any command. ``_base_ = 'fca_mmdet::mask_rcnn/...'`` works
where this package is imported before the config is read, as in its own tools.
"""

import difflib
import os
from pathlib import Path, PurePath

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .errors import UserError

CONFIGS = Path(__file__).parent / '.mim' / 'configs'


def config_path(name: str | os.PathLike[str]) -> str:
    """Return the path of one of this package's configs, named as in its configs folder, with or without ``.py``.

    Raises:
        TypeError: neither a str nor a path.
        FileNotFoundError: there is no such config. The message has the nearest names.

    Example:
        >>> Path(config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')).name
        'mask-rcnn_fca-r50_fpn_1x_coco.py'
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f'name={name!r} must be a str or a path, such as mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')
    name = PurePath(name).as_posix()
    # Looked up, not joined, so that no name leads outside the folder.
    paths = {found.relative_to(CONFIGS).with_suffix('').as_posix(): found for found in sorted(CONFIGS.rglob('*.py'))}
    path = paths.get(name.removesuffix('.py'))
    if path is None:
        nearest = difflib.get_close_matches(name, paths, n=3, cutoff=0) or ['none: install fca_mmdet again']
        raise FileNotFoundError(f'fca_mmdet has no config {name!r}; the nearest are {", ".join(nearest)}')
    return str(path.resolve())


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a config, which must have a model.

    Raises:
        UserError: there is no such file, or no model in it.
    """
    if not Path(path).is_file():
        raise UserError(f'no config at {path}')
    cfg = Config.fromfile(path)
    if 'model' not in cfg:
        raise UserError(f'{path} configures no model')
    return cfg


def register_configs() -> None:
    """Let mmengine resolve ``fca_mmdet::...``."""
    # A module's name, not a distribution's: mmengine then asks Python where it is. OpenMMLab's looks for a distribution in its metadata's
    # folder, where the package of an editable install is not.
    MODULE2PACKAGE.setdefault('fca_mmdet', 'fca_mmdet.configs')

"""Time an exported model beside the same model with mmdet's ResNet, and with SE."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit

import numpy as np
from mmengine.config import Config
from torch import nn

from ..detector import build_detector
from ..errors import UserError
from .runtime import NAMES, open_file, served_by

SHAPE = (800, 1344)
"""Height and width of the timed image: one of COCO's, padded to a multiple of 32."""
OWN_ARGUMENTS = ('frequencies', 'dct_size', 'basis', 'fold', 'ignore_padding')
"""What mmdet's ResNet does not take of an FcaResNet's arguments; ``reduction`` is SE's ``ratio``."""


def peers(cfg: Config) -> dict[str, Config]:
    """Write the configs of the same detector with mmdet's ResNet, and with SE in it where mmdet's blocks have a place for it.

    Raises:
        UserError: the backbone is not one of this package's.
    """
    kind = str(cfg.model.backbone.type).removeprefix('mmdet.')
    if not kind.startswith('FcaResNe'):
        raise UserError(f'--beside compares an FCA backbone with ResNet and SE, and this config has {kind}')
    options = {name: value for name, value in cfg.model.backbone.items() if name not in (*OWN_ARGUMENTS, 'reduction')}
    options |= dict(type=kind.removeprefix('Fca'), init_cfg=None)
    excitation = dict(type='SqueezeExcitation', ratio=cfg.model.backbone.get('reduction', 16))
    backbones = {'ResNet': options}
    if options['depth'] >= 50:
        backbones['+ SE'] = {**options, 'plugins': [dict(cfg=excitation, position='after_conv3')]}
    found = {}
    for name, backbone in backbones.items():
        found[name] = copy.deepcopy(cfg)
        found[name].model.backbone = backbone
    return found


def time_beside(
    configs: Mapping[str, Config], write: Callable[[nn.Module, Path], object], inputs: Mapping[str, np.ndarray], runtime: str, repeats: int
) -> None:
    """Export detectors of random weights, time them in turns, and print each median with its ratio to the first.

    With random weights none finds more objects than another, so the heads have the same work.

    Args:
        configs: the detectors by name.
        write: exports a detector to a file.
        inputs: of the files, by name.
        runtime: as of ``export_backbone``.
        repeats: timed rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f'{index}.onnx') for index, name in enumerate(configs)}
        for name, path in files.items():
            write(build_detector(configs[name]), path)
        for served in served_by(runtime):
            runs = {name: partial(open_file(path, served), inputs) for name, path in files.items()}
            rounds = [{name: timeit(run, number=1) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
            for name in files:
                ratio = median(times[name] / times[next(iter(files))] for times in rounds)
                print(f'{NAMES[served]}: {name:8} {median(times[name] for times in rounds) * 1e3:5.0f} ms  {ratio:.2f}', flush=True)

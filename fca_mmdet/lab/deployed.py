"""Time deployed backbones: the same ONNX files in ONNX Runtime and OpenVINO, for any shape and for a fixed one."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..deploy.export import write_onnx
from ..deploy.runtime import open_file
from .benchmark import Subject
from .cost import measure_table
from .timing import Setting

MODES: list[dict[str, Any]] = [
    dict(runtime=runtime, dtype=dtype, fixed=fixed)
    for runtime, dtype in (('onnxruntime', 'float32'), ('openvino', 'float32'), ('openvino', 'bfloat16'))
    for fixed in (False, True)
]
"""What is measured. ONNX Runtime's CPU kernels for convolutions have no bfloat16."""


class Deployed(Subject):
    """One of ``BACKBONES`` in the runtime that its setting names. ``folder`` keeps its files."""

    def __init__(self, name: str, setting: Setting, folder: Path):
        super().__init__(name, setting)
        self.model.eval()
        path = folder / f'{name}, {setting.runtime}, {"fixed" if setting.fixed else "any"} shape.onnx'
        if not path.exists():
            example = self.x if setting.fixed else torch.rand(2, 3, 160, 192)
            levels = [f'level{index}' for index in range(4)]
            write_onnx(self.model, path, (example,), dict(images=() if setting.fixed else (0, 2, 3)), levels, setting.runtime)
        run, images = open_file(path, setting.runtime, setting.dtype), {'images': self.x.numpy()}

        def serve(_: Tensor) -> list[np.ndarray]:
            return run(images)

        self.run = serve


def measure_deployed(setting: Setting, names: Sequence[str], repeats: int) -> list[dict]:
    """Time inference in each of ``MODES``."""
    with TemporaryDirectory() as folder:
        kind = partial(Deployed, folder=Path(folder))
        return [measure_table(replace(setting, **mode), names, ['inference'], [], repeats, kind) for mode in MODES]

"""Run an ONNX file on a CPU: in ONNX Runtime, or in OpenVINO."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ..errors import UserError

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""Computes a file's outputs, in its order, from its inputs by name. They are valid until the next call."""
NAMES = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}


def open_file(path: Path, runtime: str, dtype: str = 'float32') -> Run:
    """Open an ONNX file in a runtime of ``NAMES``, with as many threads as torch has.

    Args:
        dtype: float32; in OpenVINO also bfloat16, in which it then computes what it can.

    Raises:
        UserError: OpenVINO is not installed.
    """
    if runtime == 'onnxruntime':
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return partial(onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider']).run, None)
    if not find_spec('openvino'):
        raise UserError("OpenVINO is not installed: pip install openvino, or the extra 'openvino' of fca_mmdet")
    import openvino

    precision = {'float32': 'f32', 'bfloat16': 'bf16'}[dtype]
    hints = {'INFERENCE_PRECISION_HINT': precision, 'INFERENCE_NUM_THREADS': torch.get_num_threads(), 'PERFORMANCE_HINT': 'LATENCY'}
    model = openvino.Core().compile_model(str(path), 'CPU', hints)
    request = model.create_infer_request()

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer(dict(inputs), share_outputs=True)
        return [found[output] for output in model.outputs]

    return run


def served_by(runtime: str) -> list[str]:
    """List the runtimes that a file for ``runtime`` is compared in; for ``any``, those that are installed."""
    return [name for name in NAMES if find_spec(name)] if runtime == 'any' else [runtime]

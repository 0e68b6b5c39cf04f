"""Export a PyTorch module to an ONNX file."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor, nn

from ..files import whole_file
from ..folding import product_for_one_image


def write_onnx(
    model: nn.Module,
    out: Path,
    example: tuple[Tensor, ...],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    runtime: str = 'any',
    **options: Any,
) -> onnx.ModelProto:
    """Export a module to one ONNX file, whole or not at all, and check it. Batch normalisations are first fused into the convolutions.

    For ONNX Runtime, a bottleneck that sees a single image is written in the product form (``folding.py``), which is faster there and
    slower in OpenVINO.

    Args:
        model: in eval mode; it stays as it is.
        out: the file.
        example: inputs of the module.
        inputs: the names of these inputs in the file, each with its dimensions of any size.
        outputs: the names of the module's outputs.
        runtime: ``onnxruntime``, ``openvino`` or ``any``.
        options: other arguments of ``torch.onnx.export``.
    """
    shapes = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in inputs.values())
    options |= dict(input_names=list(inputs), output_names=outputs, dynamo=True, external_data=False, verbose=False)
    with torch.no_grad(), whole_file(out) as part, product_for_one_image(runtime == 'onnxruntime'):
        program = torch.export.export(fuse_conv_bn(copy.deepcopy(model)), example, dynamic_shapes=shapes)
        torch.onnx.export(program, (), part, **options)
        written = onnx.load(part)
        onnx.checker.check_model(written, full_check=True)
    return written

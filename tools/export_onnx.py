"""Export a detector's backbone and neck to ONNX for any batch, height and width; check, compare with PyTorch and time the file.

    python tools/export_onnx.py CONFIG [CHECKPOINT] --out FILE.onnx [--runtime any --batch 1 --beside --repeats 5]

The graph computes the attention's projection maps from the image's shape: it has no pooling to a grid and does not grow with the image.
Batch normalisations are first fused into the convolutions (mmcv's ``fuse_conv_bn``). The heads, which choose boxes by data-dependent
sizes, stay in PyTorch. ``--beside`` times them beside the same ones with mmdet's ResNet and with SE. Needs the extra
``onnx``, and ``openvino`` for that runtime.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.deploy.backbone import export_backbone
from fca_mmdet.deploy.runtime import NAMES


@command
def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description='Export backbone and neck of a detector to ONNX.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path, nargs='?')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--runtime', choices=('any', *NAMES), default='any', help='make the file for this runtime (default: %(default)s)')
    parser.add_argument('--batch', type=int, help='fix the batch (default: any batch)')
    parser.add_argument('--beside', action='store_true', help="time it beside mmdet's ResNet and SE")
    parser.add_argument('--repeats', type=int, default=5, help='timed runs per shape')
    export_backbone(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

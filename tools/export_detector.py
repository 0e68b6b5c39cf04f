"""Export a whole Faster R-CNN or Mask R-CNN, from image to boxes, scores, labels and masks, to ONNX, and compare it with PyTorch.

    python tools/export_detector.py CONFIG CHECKPOINT --out FILE.onnx --images FOLDER [--runtime any --count 10 --beside]

The file has standard operators only; ``fca_mmdet/deploy/detector.py`` describes its inputs and outputs. ``--beside`` times the
detector beside the same one with mmdet's ResNet and with SE. Needs the extra ``onnx``, and ``openvino`` for that runtime.

NMS goes by the order of scores, which is undefined for equal ones, in mmdet too. Random weights give nearly equal scores, so their
detections need not agree.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.deploy.detector import export_detector
from fca_mmdet.deploy.runtime import NAMES


@command
def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description='Export a two-stage detector to ONNX.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--images', type=Path, required=True, help='folder of images to compare on')
    parser.add_argument('--runtime', choices=('any', *NAMES), default='any', help='make the file for this runtime (default: %(default)s)')
    parser.add_argument('--count', type=int, default=10, help='number of images, the first by name')
    parser.add_argument('--beside', action='store_true', help="time it beside mmdet's ResNet and SE")
    parser.add_argument('--repeats', type=int, default=5, help='timed rounds (default: %(default)s)')
    export_detector(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

"""A whole Faster R-CNN or Mask R-CNN, from the image to boxes, scores, labels and masks, as one ONNX file; compared with PyTorch on images.

    python tools/export_detector.py CONFIG CHECKPOINT --out FILE.onnx --images FOLDER [--count 10]

The file holds standard operators only; ``fca_mmdet/deploy/detector.py`` describes its inputs and outputs. Needs the extra ``onnx``.

NMS follows the order of scores, and neither mmdet nor this says which of equal scores comes first: with random weights, whose scores are
nearly equal, detections need not agree.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.deploy.detector import export_detector


@command
def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description='Export a two-stage detector to ONNX.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--images', type=Path, required=True, help='folder of the images to compare on')
    parser.add_argument('--count', type=int, default=10, help='images to compare on, the first by name')
    export_detector(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

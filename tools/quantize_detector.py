"""Quantise a Faster R-CNN or Mask R-CNN to int8 for OpenVINO, and print the AP of both.

    python tools/quantize_detector.py CONFIG CHECKPOINT --out FOLDER/detector.xml [--count 300]

NNCF's post-training quantisation, on the training images of the config. The float32 file, ``detector.onnx``, stays beside it. Both are
scored on the config's test data, with its evaluator. Needs the extras ``onnx`` and ``int8``.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.deploy.quantization import quantize_detector


@command
def main() -> None:
    """Parse the command line and quantise."""
    parser = argparse.ArgumentParser(description='Quantise a two-stage detector to int8 for OpenVINO.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='a file that ends in .xml')
    parser.add_argument('--count', type=int, default=300, help='number of training images to calibrate on (default: %(default)s)')
    quantize_detector(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

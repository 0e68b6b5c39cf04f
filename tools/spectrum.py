"""Measure the energy of a trained detector's feature maps in the 7x7 spectrum, and check theorem 1 of FcaNet on them.

    python tools/spectrum.py CONFIG CHECKPOINT --images FOLDER --out FILE.png [--count 40]

Every feature map that an attention squeezes is pooled to the attention's grid. Measured is the energy of each of the 49 DCT components that
FcaNet chooses from, as a share of the energy of all components of the grid. The DCT is orthonormal, so the shares of all components add up
to 1 (Parseval), those of the 49 to less. Theorem 1 (FcaNet, ICCV 2021, section 3.2) says that component (0, 0) is global average pooling,
up to the constant sqrt(h w) of the grid. This is exact on maps whose size is a multiple of the grid's; on others, adaptive pooling weighs
pixels unequally. The command draws the mean shares of each stage and component (0, 0) against the global average, and prints the shares
of published sets.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.spectrum import measure_spectrum


@command
def main() -> None:
    """Parse the command line, measure, print and draw."""
    parser = argparse.ArgumentParser(description="Measure the energy of a detector's feature maps over the DCT spectrum.")
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--images', type=Path, required=True, help='a folder')
    parser.add_argument('--out', type=Path, required=True, help='a picture')
    parser.add_argument('--count', type=int, default=40, help='number of images, the first by name')
    parser.add_argument('--device', default='cpu')
    measure_spectrum(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()

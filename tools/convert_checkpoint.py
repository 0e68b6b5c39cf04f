"""Convert weights between FcaNet's published format, which stores every attention's DCT basis, and ours, which computes it.

    python tools/convert_checkpoint.py published.pth --to ours --out weights.pth       # checks the stored basis, and drops it
    python tools/convert_checkpoint.py ours.pth --to published --out published.pth     # computes the basis, and adds it
    python tools/convert_checkpoint.py FILE --to ours --dry-run                         # only says what would change

Neither is needed to load published weights: ``FcaResNet`` takes them as they are. A classifier trained with mmpretrain also gets the
published names. Files are read as data: one that asks for code to be run is refused, so a dry run is also a check of a file from a
stranger. What is written is the state dict alone.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.weights import convert_checkpoint


@command
def main() -> None:
    """Parse the command line, convert, print what changes."""
    parser = argparse.ArgumentParser(description="Convert weights between FcaNet's published format and ours.")
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--to', choices=('ours', 'published'), required=True)
    parser.add_argument('--out', type=Path, help='the file to write; must not exist')
    parser.add_argument('--dry-run', action='store_true', help='print what would change, and write nothing')
    parser.add_argument('--frequencies', default='top16', help='the set of all stages (default: %(default)s)')
    parser.add_argument('--dct-size', type=int, nargs='+', default=[56, 28, 14, 7], help='the grid of each stage (default: 56 28 14 7)')
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.dry_run:
        parser.error('name the file to write with --out, or look first with --dry-run')
    if arguments.out and arguments.out.exists():
        parser.error(f'{arguments.out} exists: name another file with --out, or delete it')
    out = None if arguments.dry_run else arguments.out
    print(convert_checkpoint(arguments.checkpoint, arguments.to, out, arguments.frequencies, arguments.dct_size))
    if out:
        print(f'wrote {out}')


if __name__ == '__main__':
    main()

"""Convert weights between FcaNet's published format, which stores every attention's DCT basis, and ours, which computes it; publish them.

    python tools/convert_checkpoint.py published.pth --to ours --out weights.pth       # checks the stored basis, and drops it
    python tools/convert_checkpoint.py ours.pth --to published --out published.pth     # adds the basis; one that is stored stays as it is
    python tools/convert_checkpoint.py work/epoch_12.pth --to release --out name.pth   # writes name-HASH.pth, without optimiser and log
    python tools/convert_checkpoint.py FILE --to ours --dry-run                         # only prints what would change

``FcaResNet`` loads published weights without conversion. A classifier trained with mmpretrain also gets the published names. A release
keeps weights and metadata, with which mmdet opens a detector; HASH is what torch.hub checks. Files are read as data: one that would run
code is refused, so a dry run also checks a stranger's file.
"""

import argparse
import ast
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.frequency import Frequencies
from fca_mmdet.weights import convert_checkpoint


def frequencies(text: str) -> Frequencies:
    """Read a set's name, or (u, v) pairs as Python writes them."""
    try:
        return ast.literal_eval(text) if text.startswith(('[', '(')) else text
    except SyntaxError as error:
        raise ValueError(text) from error


@command
def main() -> None:
    """Parse the command line, convert, print what changes."""
    parser = argparse.ArgumentParser(description="Convert weights between FcaNet's published format and ours, or publish them.")
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--to', choices=('ours', 'published', 'release'), required=True)
    parser.add_argument('--out', type=Path, help='the file to write, which must not exist')
    parser.add_argument('--dry-run', action='store_true', help='print what would change, and write nothing')
    parser.add_argument('--frequencies', type=frequencies, help='of all stages: a set, or a list of pairs (default: as stored, or top16)')
    parser.add_argument('--dct-size', type=int, nargs='+', help='the grid of each stage (default: as stored, or 56 28 14 7)')
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.dry_run:
        parser.error('name the file to write with --out, or print what would change with --dry-run')
    if arguments.out and arguments.out.exists():
        parser.error(f'{arguments.out} exists: name another file with --out, or delete it')
    out = None if arguments.dry_run else arguments.out
    print(convert_checkpoint(arguments.checkpoint, arguments.to, out, arguments.frequencies, arguments.dct_size))


if __name__ == '__main__':
    main()

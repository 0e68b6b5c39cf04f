"""Convert weights between FcaNet's published format, which stores every attention's DCT basis, and ours, which computes it.

    python tools/convert_checkpoint.py published.pth --to ours --out weights.pth       # checks the stored basis, and drops it
    python tools/convert_checkpoint.py ours.pth --to published --out published.pth     # computes the basis, and adds it
    python tools/convert_checkpoint.py FILE --to ours --dry-run                         # only says what would change

Neither is needed to load published weights: ``FcaResNet`` takes them as they are. A classifier trained with mmpretrain also gets the
published names. Files are read as data: one that asks for code to be run is refused, so a dry run is also a check of a file from a
stranger. What is written is the state dict alone.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fca_mmdet.checkpoint import BASIS, CheckpointError, describe_basis, full_basis, read_checkpoint, same_basis, state_dict_of
from fca_mmdet.frequency import resolve_frequencies

EXCITATION = 'att.fc.2.weight'
"""How the key of an attention's last layer ends, whose rows are its channels."""


def expected_bases(weights: Mapping[str, Tensor], frequencies: str, grids: list[int]) -> dict[str, Tensor]:
    """The key and the tensor of each attention's basis, its grid chosen by its stage."""
    bases = {}
    for key, weight in weights.items():
        if match := re.search(r'layer(\d+)\.\d+\.att\.fc\.2\.weight$', key):
            stage = int(match[1])
            if stage > len(grids):
                raise CheckpointError(f'{key} is of stage {stage}, and --dct-size names {len(grids)} grids: name one for each stage')
            grid = grids[stage - 1]
            bases[key.removesuffix(EXCITATION) + BASIS] = full_basis(resolve_frequencies(frequencies), (grid, grid), len(weight))
    if not bases:
        raise CheckpointError(f'no key ends in layerI.J.{EXCITATION}: this is no FcaNet')
    return bases


def to_ours(weights: Mapping[str, Tensor], bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the stored bases, each compared with the computed one."""
    for key, basis in bases.items():
        if key in weights and not same_basis(weights[key], basis):
            raise CheckpointError(
                f'{key} is not what --frequencies and --dct-size compute, but {describe_basis(weights[key])}. A fixed basis: name its '
                'frequencies and grids; a learned or random one is part of the weights, and such a checkpoint loads as it is'
            )
    return {key: value for key, value in weights.items() if key not in bases}


def published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier of mmpretrain under the published names; anything else as it is."""
    if 'head.fc.weight' not in weights:
        return dict(weights)
    return {re.sub(r'^(backbone\.|head\.(?=fc\.))', '', key): value for key, value in weights.items()}


def to_published(weights: Mapping[str, Tensor], bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a basis before the excitation of each attention."""
    converted = {}
    for key, value in weights.items():
        if key.endswith('att.fc.0.weight'):
            basis = key.removesuffix('att.fc.0.weight') + BASIS
            converted[basis] = bases[basis]
        converted[key] = value
    return converted


def report(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """What a conversion changes."""
    lines = []
    for sign, keys, of in (('-', before.keys() - after.keys(), before), ('+', after.keys() - before.keys(), after)):
        lines += [f'{sign} {key} {list(of[key].shape)}' for key in sorted(keys)]
    size = [sum(value.nbytes for value in weights.values()) / 2**20 for weights in (before, after)]
    lines.append(f'{len(before)} tensors, {size[0]:.1f} MiB -> {len(after)} tensors, {size[1]:.1f} MiB')
    return '\n'.join(lines)


def main() -> None:
    """Parse the command line, convert, report, write."""
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
    try:
        before = state_dict_of(read_checkpoint(arguments.checkpoint))
        after, convert = (before, to_ours) if arguments.to == 'ours' else (published_names(before), to_published)
        after = convert(after, expected_bases(after, arguments.frequencies, arguments.dct_size))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'convert_checkpoint: {error}')
    print(report(before, after))
    if not arguments.dry_run:
        part = arguments.out.with_name(arguments.out.name + '.part')
        try:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            whole = io.BytesIO()  # torch, given a file, does not say that the disk is full
            torch.save(after, whole)
            part.write_bytes(whole.getbuffer())
            part.replace(arguments.out)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            sys.exit(f'convert_checkpoint: {arguments.out} cannot be written ({error.strerror}): name another file with --out')
        print(f'wrote {arguments.out}')


if __name__ == '__main__':
    main()

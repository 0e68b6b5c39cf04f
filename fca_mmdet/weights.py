"""Published weights under our names, and back.

FcaNet's published checkpoints (https://github.com/cfzd/FcaNet) store the DCT basis of every attention as ``*.att.dct_layer.weight``,
``[C, h, w]``. This package computes it, so a stored one is compared with the configured one and dropped: weights trained with one
basis say nothing under another.
"""

import io
import re
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import read_checkpoint
from .dct import describe_basis, full_basis, same_basis
from .errors import CheckpointError, UserError
from .files import unwritable, write_whole
from .frequency import resolve_frequencies

FIRST_BLOCK = 'layer1.0.conv1.weight'
"""A key that every ResNet has: what stands before it is the prefix of the backbone."""


def state_dict_of(checkpoint: MutableMapping[str, Any]) -> MutableMapping[str, Tensor]:
    """Take the weights out of a checkpoint, wrapped in ``state_dict`` or not, without DDP's ``module.``.

    Raises:
        CheckpointError: it holds something else than tensors by name.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f'state_dict is a {type(weights).__name__}, not a state dict: save model.state_dict()')
    if other := next((key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, Tensor)), None):
        raise CheckpointError(f'{other!r} of the checkpoint names a {type(weights[other]).__name__}, not a tensor: save model.state_dict()')
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def adopt_backbone(state_dict: MutableMapping[str, Tensor]) -> None:
    """Take the backbone out of a larger model's weights, in place: ``backbone.layer1...`` becomes ``layer1...``, the rest goes.

    Nothing happens where the weights are a backbone's own, or where no single backbone is found.
    """
    prefixes = {key.removesuffix(FIRST_BLOCK) for key in state_dict if key.endswith(FIRST_BLOCK)}
    if len(prefixes) != 1 or '' in prefixes:
        return
    (prefix,) = prefixes
    inner = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    state_dict.clear()
    state_dict.update(inner)


def check_architecture(state_dict: MutableMapping[str, Tensor], own: MutableMapping[str, Tensor], prefix: str, name: str) -> None:
    """Compare the residual blocks of a checkpoint, whose keys begin with ``prefix``, with those of the backbone ``name``.

    Raises:
        CheckpointError: another block, other numbers of blocks, or other shapes in a block. mmengine would leave them out with a warning.
    """
    stored = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(f'{prefix}layer')}
    if not stored:
        return
    found, expected = _blocks(stored), _blocks(own)
    if found[0] != expected[0] or found[1][: len(expected[1])] != expected[1]:
        raise CheckpointError(
            f'the checkpoint holds stages of {list(found[1])} blocks with {found[0]} convolutions each, and {name} has '
            f'{list(expected[1])} with {expected[0]}: choose the depth that it was trained with, or the weights of this depth'
        )
    for key, value in own.items():
        if key in stored and stored[key].shape != value.shape:
            raise CheckpointError(
                f'{prefix}{key} is {list(stored[key].shape)} in the checkpoint and {list(value.shape)} in {name}: give the backbone '
                "the checkpoint's width, groups and reduction"
            )


def _blocks(keys: Iterable[str]) -> tuple[int, tuple[int, ...]]:
    """Convolutions per block, and blocks per stage."""
    blocks = {match.groups() for key in keys if (match := re.match(r'layer(\d+)\.(\d+)\.conv', key))}
    stages = sorted({stage for stage, _ in blocks})
    convolutions = {match[1] for key in keys if (match := re.match(r'layer1\.0\.conv(\d)\.', key))}
    return len(convolutions), tuple(sum(stage == other for other, _ in blocks) for stage in stages)


def compute_bases(weights: Mapping[str, Tensor], frequencies: str, grids: list[int]) -> dict[str, Tensor]:
    """Compute each attention's basis under its key; its stage decides its grid."""
    try:
        pairs = resolve_frequencies(frequencies)
    except ValueError as error:
        raise UserError(str(error)) from error
    bases = {}
    for key, weight in weights.items():
        if match := re.search(r'layer(\d+)\.\d+\.att\.fc\.2\.weight$', key):
            stage = int(match[1])
            if stage > len(grids):
                raise CheckpointError(f'{key} is of stage {stage}, and --dct-size names {len(grids)} grids: name one for each stage')
            basis = full_basis(pairs, (grids[stage - 1], grids[stage - 1]), len(weight))
            bases[key.replace('fc.2.weight', 'dct_layer.weight')] = basis
    if not bases:
        raise CheckpointError('no key ends in layerI.J.att.fc.2.weight: this is not an FcaNet')
    return bases


def to_ours(weights: Mapping[str, Tensor], frequencies: str, grids: list[int]) -> dict[str, Tensor]:
    """Leave out the stored bases, each compared with the computed one."""
    bases = compute_bases(weights, frequencies, grids)
    for key, basis in bases.items():
        if key in weights and not same_basis(weights[key], basis):
            raise CheckpointError(
                f'{key} is not what --frequencies and --dct-size compute, but {describe_basis(weights[key])}. A fixed basis: name its '
                'frequencies and grids; a learned or random one is part of the weights, and such a checkpoint loads as it is'
            )
    return {key: value for key, value in weights.items() if key not in bases}


def to_published(weights: Mapping[str, Tensor], frequencies: str, grids: list[int]) -> dict[str, Tensor]:
    """Put a basis before the excitation of each attention; a classifier of mmpretrain gets the published names."""
    if 'head.fc.weight' in weights:
        weights = {re.sub(r'^(backbone\.|head\.(?=fc\.))', '', key): value for key, value in weights.items()}
    bases, converted = compute_bases(weights, frequencies, grids), {}
    for key, value in weights.items():
        if key.endswith('att.fc.0.weight'):
            basis = key.replace('fc.0.weight', 'dct_layer.weight')
            converted[basis] = bases[basis]
        converted[key] = value
    return converted


def convert_checkpoint(path: Path, to: str, out: Path | None, frequencies: str, grids: list[int]) -> str:
    """Convert a checkpoint's weights between FcaNet's format, which stores every attention's basis, and ours, which computes it.

    Args:
        path: of the checkpoint, which is read as data.
        to: ``ours`` or ``published``.
        out: the file to write, the state dict alone; None writes nothing.
        frequencies: the set of all stages.
        grids: one for each stage.

    Returns:
        What it changes, a line for each tensor.

    Raises:
        UserError, FileNotFoundError: no such checkpoint, one that is not an FcaNet, another basis, or ``out`` cannot be written.
    """
    before = state_dict_of(read_checkpoint(path))
    after = (to_ours if to == 'ours' else to_published)(before, frequencies, grids)
    if out:
        whole = io.BytesIO()  # torch, given a file, does not say that the disk is full
        torch.save(after, whole)
        try:
            write_whole(out, whole.getvalue())
        except OSError as error:
            raise unwritable(out, error) from error
    changes = [f'- {key} {list(before[key].shape)}' for key in sorted(before.keys() - after.keys())]
    changes += [f'+ {key} {list(after[key].shape)}' for key in sorted(after.keys() - before.keys())]
    sizes = [f'{len(weights)} tensors, {sum(value.nbytes for value in weights.values()) / 2**20:.1f} MiB' for weights in (before, after)]
    return '\n'.join([*changes, ' -> '.join(sizes)])

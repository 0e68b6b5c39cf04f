"""Convert weights between FcaNet's published format and ours.

FcaNet's published checkpoints (https://github.com/cfzd/FcaNet) store the DCT basis of every attention as ``*.att.dct_layer.weight``,
``[C, h, w]``. This package computes it, so a stored one is compared with the configured one and dropped: weights that were trained with
one basis do not work with another.
"""

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dct import describe_basis, full_basis, same_basis
from .errors import CheckpointError, UserError
from .files import unwritable, write_whole
from .frequency import CANDIDATES, Frequencies, resolve_frequencies
from .reading import read_checkpoint
from .squeeze import FixedDct

FREQUENCIES, GRIDS = 'top16', (56, 28, 14, 7)
"""Of FcaNet's published weights, and ``FcaResNet``'s defaults."""
FIRST_BLOCK = 'layer1.0.conv1.weight'
"""A key that every ResNet has. The text before it is the prefix of the backbone."""


def state_dict_of(checkpoint: MutableMapping[str, Any]) -> OrderedDict[str, Tensor]:
    """Take the weights out of a checkpoint, wrapped in ``state_dict`` or not, without DDP's ``module.``.

    torch's ``_metadata`` goes along, in which a squeeze says what its weights are trained for.

    Raises:
        CheckpointError: it holds anything but named tensors.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f'state_dict is a {type(weights).__name__}, not a state dict: save model.state_dict()')
    if other := next((key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, Tensor)), None):
        raise CheckpointError(f'{other!r} in the checkpoint is a {type(weights[other]).__name__}, not a tensor: save model.state_dict()')
    return with_metadata(
        {key.removeprefix('module.'): value for key, value in weights.items()},
        {key.removeprefix('module.'): value for key, value in getattr(weights, '_metadata', {}).items()},
    )


def with_metadata(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """Make a state dict as torch does: the weights, with the ``metadata`` of each module as an attribute."""
    state_dict: Any = OrderedDict(weights)
    if metadata:
        state_dict._metadata = OrderedDict(metadata)
    return state_dict


def adopt_backbone(state_dict: MutableMapping[str, Tensor]) -> None:
    """Reduce a larger model's weights to its backbone's, in place: ``backbone.layer1...`` becomes ``layer1...``.

    The weights of a backbone alone, or of a model without exactly one backbone, stay as they are.
    """
    prefixes = {key.removesuffix(FIRST_BLOCK) for key in state_dict if key.endswith(FIRST_BLOCK)}
    if len(prefixes) != 1 or '' in prefixes:
        return
    (prefix,) = prefixes
    inner = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    state_dict.clear()
    state_dict.update(inner)
    metadata = getattr(state_dict, '_metadata', {})  # torch and mmengine look into this one while they load
    metadata.update({key.removeprefix(prefix): value for key, value in list(metadata.items()) if key.startswith(prefix)})


def check_architecture(state_dict: MutableMapping[str, Tensor], own: MutableMapping[str, Tensor], prefix: str, name: str) -> None:
    """Compare the residual blocks of a checkpoint, whose keys begin with ``prefix``, with those of the backbone ``name``.

    Raises:
        CheckpointError: another block, other numbers of blocks, or other shapes or kinds of tensors in a block. mmengine would leave these
            out with a warning. A part of the weights, such as one stage, is accepted.
    """
    stored = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(f'{prefix}layer')}
    if not stored:
        return
    found, expected = _blocks(stored), _blocks(own)
    whole = all(f'layer{stage}.0.conv1.weight' in stored for stage in range(1, len(expected[1]) + 1))  # else a part is meant
    if whole and (found[0] != expected[0] or found[1][: len(expected[1])] != expected[1]):
        raise CheckpointError(
            f'the checkpoint has stages of {list(found[1])} blocks with {found[0]} convolutions each, but {name} has '
            f'{list(expected[1])} with {expected[0]}: configure the depth of the checkpoint, or use weights of this depth'
        )
    for key, value in stored.items():
        if key not in own and not key.endswith('att.dct_layer.weight'):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            kind = f'{value.layout} tensor of {value.dtype}' if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f'{prefix}{key} is a {kind} in the checkpoint: save dense floating-point tensors')
        if key in own and value.shape != own[key].shape:
            raise CheckpointError(
                f'{prefix}{key} is {list(value.shape)} in the checkpoint, but {list(own[key].shape)} in {name}: configure '
                "the checkpoint's width, groups and reduction"
            )


def _blocks(keys: Iterable[str]) -> tuple[int, tuple[int, ...]]:
    """Count the convolutions per block, and the blocks of each stage."""
    blocks = {match.groups() for key in keys if (match := re.match(r'layer(\d+)\.(\d+)\.conv', key))}
    stages = sorted({stage for stage, _ in blocks})
    convolutions = {match[1] for key in keys if (match := re.match(r'layer1\.0\.conv(\d)\.', key))}
    return len(convolutions), tuple(sum(stage == other for other, _ in blocks) for stage in stages)


def compute_bases(weights: Mapping[str, Tensor], frequencies: Frequencies, grids: Sequence[int]) -> dict[str, Tensor]:
    """Compute the basis of each attention, under its key, on the grid of its stage."""
    try:
        pairs = resolve_frequencies(frequencies)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    bases = {}
    for key, weight in weights.items():
        match = re.search(r'layer(\d+)\.\d+\.att\.fc\.2\.weight$', key)
        if match and weight.dim():
            stage = int(match[1])
            if not 1 <= stage <= len(grids):
                raise CheckpointError(f'{key} is in stage {stage}, but --dct-size gives {len(grids)} grids: give one for each stage')
            if len(weight) % len(pairs):
                raise CheckpointError(f'{key} has {len(weight)} channels, which {len(pairs)} frequencies do not divide: give its own')
            basis = full_basis(pairs, (grids[stage - 1], grids[stage - 1]), len(weight))
            bases[key.replace('fc.2.weight', 'dct_layer.weight')] = basis
    if not bases:
        raise CheckpointError('no key ends in layerI.J.att.fc.2.weight: this is not an FcaNet')
    return bases


def settings_of(basis: Tensor, frequencies: Frequencies | None) -> dict[str, str]:
    """Return what a squeeze with this computed basis, ``[C, h, w]``, stores beside its weights."""
    channels, height, width = basis.shape
    return FixedDct(channels, (height, width), resolve_frequencies(frequencies or FREQUENCIES)).settings()


def to_ours(weights: Mapping[str, Tensor], frequencies: Frequencies | None, grids: Sequence[int] | None) -> OrderedDict[str, Tensor]:
    """Compare the stored bases with the computed ones, and name their frequencies and grids in their place."""
    bases = compute_bases(weights, frequencies or FREQUENCIES, grids or GRIDS)
    for key, basis in bases.items():
        if key in weights and not same_basis(weights[key], basis):
            raise CheckpointError(
                f'{key} is {describe_basis(weights[key])}, unlike --frequencies and --dct-size. For a fixed basis, give its frequencies '
                'and grids. A checkpoint with a learned or random one needs no conversion: load it as it is'
            )
    metadata = dict(getattr(weights, '_metadata', {}))
    for key in bases.keys() & weights.keys():
        name = key.removesuffix('.weight')
        metadata[name] = metadata.get(name, {}) | settings_of(bases[key], frequencies)
    return with_metadata({key: value for key, value in weights.items() if key not in bases}, metadata)


def to_published(weights: Mapping[str, Tensor], frequencies: Frequencies | None, grids: Sequence[int] | None) -> dict[str, Tensor]:
    """Insert a basis before the excitation of each attention, and give a classifier of mmpretrain the published names.

    A stored basis stays as it is. Frequencies and grids must be those of stored bases, and those that the weights were trained for.
    """
    metadata = getattr(weights, '_metadata', {})
    if 'head.fc.weight' in weights:
        weights = {re.sub(r'^(backbone\.|head\.(?=fc\.))', '', key): value for key, value in weights.items()}
        metadata = {key.removeprefix('backbone.'): value for key, value in metadata.items()}
    if searched := next((key for key in weights if key.endswith('selection.logits')), None):
        chosen = [tuple(CANDIDATES[index]) for index in weights[searched].argmax(-1).flatten().tolist() if index < len(CANDIDATES)]
        raise CheckpointError(
            f'{searched} belongs to a search, which mixes all frequencies; the published format has one for each group. Train with the '
            f'most probable, frequencies={chosen}, and convert that checkpoint'
        )
    stored = {key: value for key, value in weights.items() if '.att.dct_layer.' in f'.{key}'}
    if other := next((key for key, value in stored.items() if not key.endswith('.weight') or value.dim() != 3), None):
        raise CheckpointError(f'{other} belongs to a basis that the published format does not have: load the checkpoint as it is')
    complete = bool(stored) and all(key.replace('att.fc.2.weight', 'att.dct_layer.weight') in weights for key in weights)
    if not complete or frequencies or grids:
        bases = compute_bases(weights, frequencies or FREQUENCIES, grids or GRIDS)
        for key, basis in stored.items():
            if key not in bases or not same_basis(basis, bases[key]):
                raise CheckpointError(f'{key} is {describe_basis(basis)}, unlike --frequencies and --dct-size: leave them out to keep it')
        check_trained(bases, frequencies, metadata)
        stored = bases | stored
    converted = {}
    for key, value in weights.items():
        basis_key = key.replace('att.fc.0.weight', 'att.dct_layer.weight')
        if basis_key in stored:
            converted[basis_key] = stored[basis_key]
        converted[key] = value
    return converted


def check_trained(bases: Mapping[str, Tensor], frequencies: Frequencies | None, metadata: Mapping[str, Mapping[str, str]]) -> None:
    """Compare computed bases with the frequencies and grids that a state dict's metadata names.

    Raises:
        CheckpointError: the weights were trained for others.
    """
    for key, basis in bases.items():
        name = key.removesuffix('.weight')
        trained = metadata.get(name, {})
        for setting, own in settings_of(basis, frequencies).items():
            if trained.get(setting, own) != own:
                raise CheckpointError(
                    f'{name} was trained with {setting}={trained[setting]}, but --frequencies and --dct-size say {own}: '
                    'give what it was trained with'
                )


def check_config(meta: Any, frequencies: Frequencies, grids: Sequence[int]) -> None:
    """Compare with the config that mmengine stores in a checkpoint as text. It is searched, not run.

    Raises:
        CheckpointError: the config has other frequencies or grids.
    """
    text = meta.get('cfg') if isinstance(meta, dict) else None
    for option, given in (('frequencies', frequencies), ('dct_size', grids)):
        for found in re.findall(rf"\b{option}=('\w+'|[\[(][^\]]*)", text if isinstance(text, str) else ''):
            words, expected = re.findall(r'\w+', found), re.findall(r'\w+', str(given))
            if any(one != other for one, other in zip(words, expected, strict=False)):
                raise CheckpointError(
                    f'the config in the checkpoint has {option} {" ".join(words[:4])}, unlike --{option.replace("_", "-")}: '
                    'give what it was trained with'
                )


def convert_checkpoint(
    path: Path, to: str, out: Path | None, frequencies: Frequencies | None = None, grids: list[int] | None = None
) -> str:
    """Convert a checkpoint's weights between FcaNet's format, which stores every attention's basis, and ours, which computes it.

    Or reduce it to what others need: the weights and the metadata, such as the classes, in a file whose name has its hash.

    Args:
        path: the checkpoint, which is read as data.
        to: ``ours`` or ``published``, the state dict alone; or ``release``.
        out: the file to write; None writes nothing.
        frequencies, grids: the set of all stages, and the grid of each. None is what is stored, or else ``top16`` and FcaNet's grids.

    Returns:
        The changes, one line per tensor, the sizes, and the name of the file.

    Raises:
        UserError, FileNotFoundError: there is no such checkpoint, it is not an FcaNet or has another basis, or ``out`` cannot be written.
    """
    checkpoint = read_checkpoint(path)
    before = state_dict_of(checkpoint)
    after: Mapping[str, Tensor] = before
    if to == 'ours':
        after = to_ours(before, frequencies, grids)
    elif to == 'published':
        after = to_published(before, frequencies, grids)
        if not any(key.endswith('att.dct_layer.weight') for key in before):
            check_config(checkpoint.get('meta'), frequencies or FREQUENCIES, grids or GRIDS)
    release = to == 'release' and 'state_dict' in checkpoint
    whole = io.BytesIO()  # if torch writes the file itself, it does not say that the disk is full
    torch.save(dict(meta=checkpoint.get('meta', {}), state_dict=after) if release else after, whole)
    lines = [f'- {key}' for key in checkpoint if release and key not in ('meta', 'state_dict')]
    lines += [f'- {key} {list(before[key].shape)}' for key in sorted(before.keys() - after.keys())]
    lines += [f'+ {key} {list(after[key].shape)}' for key in sorted(after.keys() - before.keys())]
    sizes = (len(before), path.expanduser().stat().st_size), (len(after), len(whole.getvalue()))
    lines.append(' -> '.join(f'{count} tensors, {size / 2**20:.1f} MiB' for count, size in sizes))
    if out:
        if to == 'release':
            out = out.with_name(f'{out.name.removesuffix(".pth")}-{hashlib.sha256(whole.getvalue()).hexdigest()[:8]}.pth')
        try:
            write_whole(out, whole.getvalue())
        except OSError as error:
            raise unwritable(out, error) from error
        lines.append(f'wrote {out}')
    return '\n'.join(lines)

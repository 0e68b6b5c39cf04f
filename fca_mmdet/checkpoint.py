"""Published weights as they are, and checkpoints read as data.

FcaNet's published checkpoints (https://github.com/cfzd/FcaNet) store the DCT basis of every attention as ``*.att.dct_layer.weight``,
``[C, h, w]``. This package computes it, so a stored one is compared with the configured one and dropped: weights trained with one
basis say nothing under another.
"""

import logging
import math
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from .dct import dct_basis, grid_indices
from .frequency import FREQUENCY_SETS, SPECTRUM, Frequency

BASIS = 'att.dct_layer.weight'
"""How the state-dict key of a stored basis ends."""

FIRST_BLOCK = 'layer1.0.conv1.weight'
"""A key that every ResNet has: what stands before it is the prefix of the backbone."""

_DATA_ONLY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. Raised in the middle of loading, it leaves a model that is loaded in part."""


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint as data: tensors, plain containers, and mmengine's training log. No code in it runs.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it asks for code to be run, is truncated, or is no checkpoint.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'weights.pth')
        >>> torch.save({'state_dict': {'weight': torch.ones(2)}}, path)
        >>> read_checkpoint(path)
        {'state_dict': {'weight': tensor([1., 1.])}}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _explained(path, error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a state dict: save model.state_dict()')
    return checkpoint


def _explained(path: object, error: Exception) -> CheckpointError:
    if asked := re.search(r'(?:Unsupported (?:global: GLOBAL|class)|attribute) (\S+)', str(error)):
        return CheckpointError(
            f'{path} holds more than data: it asks for {asked[1]}, which could run code, so it is not read. Have who made it save '
            'the state dict alone'
        )
    return CheckpointError(f'{path} is truncated or no checkpoint of torch.save ({type(error).__name__}): fetch it again')


@contextmanager
def checkpoints_as_data(checkpoint: str) -> Iterator[None]:
    """Within it, whatever loads ``checkpoint`` with ``torch.load`` reads data only, even where it asks for a full pickle.

    A local file is checked first, so that the error is a ``CheckpointError``.
    """
    if '://' not in checkpoint:
        read_checkpoint(checkpoint)
    former = os.environ.get(_DATA_ONLY)
    os.environ[_DATA_ONLY] = '1'
    try:
        yield
    except pickle.UnpicklingError as error:
        raise _explained(checkpoint, error) from error
    finally:
        if former is None:
            del os.environ[_DATA_ONLY]
        else:
            os.environ[_DATA_ONLY] = former


def refuse_pickled_code() -> None:
    """From now on, in this process, mmengine reads every checkpoint as data: files with ``read_checkpoint``, downloads likewise.

    A checkpoint of mmdet 2.x also gets the empty log that mmengine's ``--resume`` asks for.
    """

    def load(filename: str, map_location: Any = None) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename, map_location or 'cpu')
        if 'optimizer' in checkpoint and 'message_hub' not in checkpoint:
            checkpoint['message_hub'] = dict(log_scalars={}, runtime_info={}, resumed_keys={})
            print_log(
                f'{filename} is a checkpoint of mmdet 2.x, which holds no learning rate schedule: resumed, the schedule starts anew. '
                'To fine-tune, name it in load_from instead',
                logger='current',
                level=logging.WARNING,
            )
        return checkpoint

    os.environ[_DATA_ONLY] = '1'
    CheckpointLoader.register_scheme('', load, force=True)


def full_basis(frequencies: Iterable[Frequency], grid: tuple[int, int], channels: int) -> Tensor:
    """The DCT components of C channels in equal groups as one tensor, ``[C, h, w]`` float32: what published checkpoints store.

    Example:
        >>> full_basis([Frequency(0, 0)], (2, 2), 1)
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    frequencies = tuple(frequencies)
    u, v = grid_indices(frequencies, grid)
    components = dct_basis(u, grid[0])[:, :, None] * dct_basis(v, grid[1])[:, None, :]
    return components.float().repeat_interleave(channels // len(frequencies), dim=0)


def describe_basis(weight: Tensor) -> str:
    """What a stored ``[C, h, w]`` tensor is: the arguments that compute it, or the ``basis`` that loads it.

    Its own DCT tells: of a fixed basis, each channel has one coefficient of 1.

    Example:
        >>> describe_basis(full_basis(FREQUENCY_SETS['low4'], (14, 14), 64))
        "frequencies='low4', dct_size=14"
    """
    if weight.dim() != 3 or not weight.numel():
        return f'of shape {list(weight.shape)}, which no basis has'
    channels, height, width = weight.shape
    size = height if height == width else (height, width)
    spectra = dct_basis(range(height), height) @ weight.double().cpu() @ dct_basis(range(width), width).T
    indices = spectra.flatten(1).argmax(1).tolist()
    group = math.gcd(channels, *(channel for channel in range(1, channels) if indices[channel] != indices[channel - 1]))
    scale_u, scale_v = max(height // SPECTRUM, 1), max(width // SPECTRUM, 1)
    pairs = tuple(Frequency(index // width // scale_u, index % width // scale_v) for index in indices[::group])
    if not same_basis(weight, full_basis(pairs, (height, width), channels)):
        kind = 'random' if weight.min() >= 0 and weight.max() <= 1 else 'learned_dct'
        return f'a learned or random tensor: dct_size={size} with basis={kind!r}, or another learned or random basis, loads it'
    name = next((name for name, frequencies in FREQUENCY_SETS.items() if frequencies == pairs), None)
    return f'frequencies={name or [tuple(pair) for pair in pairs]!r}, dct_size={size}'


def same_basis(stored: Tensor, computed: Tensor) -> bool:
    """Whether a stored tensor is the computed one, up to the rounding of the type that it was stored in."""
    if stored.shape != computed.shape or not stored.is_floating_point():
        return False
    tolerance = max(1e-5, 2 * torch.finfo(stored.dtype).eps) * computed.abs().max()
    return bool((stored.cpu().float() - computed).abs().max() <= tolerance)


def state_dict_of(checkpoint: MutableMapping[str, Any]) -> MutableMapping[str, Tensor]:
    """The weights of a checkpoint, wrapped in ``state_dict`` or not, without DDP's ``module.``.

    Raises:
        CheckpointError: something else than tensors by name.
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
    """Compare the residual blocks of a checkpoint with a backbone's; weights that do not fit would be left out with a warning.

    Args:
        state_dict: the checkpoint's weights.
        own: the backbone's.
        prefix: what stands before the backbone's keys in ``state_dict``.
        name: of the backbone, for the error.

    Raises:
        CheckpointError: another block, other numbers of blocks, or other shapes in a block.
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

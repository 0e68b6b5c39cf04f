"""The images of a data set: whether they are there, and whether the pipeline's loader reads them as they are stored and annotated."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mmdet.registry import TRANSFORMS

from ..errors import UserError
from .image_files import Kind, Look, decode, find_near, is_transparent, is_turned, is_whole, look

SAMPLES = 3
"""How many images of a kind are decoded."""
CHUNK = 256
"""How many images a thread takes at once."""
IGNORE = "color_type='color_ignore_orientation' of LoadImageFromFile reads them as stored"
UNLIKE = dict(
    size='have another size than {} says',
    twice='are listed more than once',
    before=f'are turned as EXIF says when they are read, and annotated as if not: boxes lie beside the objects; {IGNORE}',
    after="are read without the turn that EXIF asks for, and annotated with it: color_type='color' of LoadImageFromFile turns them",
    unsure=f'are turned as EXIF says when they are read: see if their annotations are, too; {IGNORE}',
)
"""What is said of images that are not as they are annotated."""


def check_images(
    split: str,
    file: str,
    folder: str,
    infos: Sequence[dict],
    loading: dict,
    channels: int | None = None,
    whole: bool = False,
    note: Callable[[str], object] = str,
) -> Iterator[str]:
    """Refuse images that are missing or not decoded. Yields how many are read otherwise than they are stored or annotated.

    Without ``whole``, a few images of each kind are decoded, and those that PIL does not read. The ``height`` and ``width`` of each info
    become those that are read, and its ``identity`` tells one file from another.

    Args:
        split: of the data set, for messages.
        file: its annotation file, for messages.
        folder: where its images lie.
        infos: its images, as mmdet lists them.
        loading: the pipeline's ``LoadImageFromFile``.
        channels: how many the model takes, if it is known.
        whole: whether to decode every image.
        note: is told how far it is.
    """
    data, loader = f'the {split} data, {file},', TRANSFORMS.build(loading)
    paths = [info['img_path'] for info in infos]
    found: list[Look | None] = []
    with ThreadPoolExecutor() as pool:
        chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
        for part in pool.map(lambda chunk: [look(path, loader, whole) for path in chunk], chunks):
            found += part
            note(f'image {len(found)} of {len(paths)} of {file}')
    missing = [path for path, seen in zip(paths, found, strict=True) if not seen]
    if missing:
        near = find_near(missing[0], folder)
        raise UserError(f'{len(missing)} of {len(paths)} images of {data} are missing: the first is {missing[0]}{near}')
    looks = [seen for seen in found if seen]
    broken = [path for path, seen in zip(paths, looks, strict=True) if not seen.size]
    if broken:
        raise UserError(f'{len(broken)} of {len(paths)} images of {data} cannot be decoded: the first is {broken[0]}')
    kinds, turned = defaultdict(list), set()
    for path, seen in zip(paths, looks, strict=True):
        kinds[seen.kind].append(path)
    for kind, same in kinds.items():
        pictures = [decode(path, loader) for path in same[:SAMPLES]]
        yield from _check_kind(f'of {len(paths)} images of {data}', kind, same, pictures, channels)
        if kind and kind.orientation > 1 and any(map(is_turned, same, pictures)):
            turned.add(kind)
    for fault, which in _compare_with_annotations(infos, looks, turned, whole).items():
        yield f'{len(which)} of {len(paths)} images {UNLIKE[fault].format(file)}: the first is {which[0]}'


def _check_kind(
    of: str, kind: Kind | None, paths: Sequence[str], pictures: Sequence[np.ndarray | None], channels: int | None
) -> Iterator[str]:
    """Compare some images of one kind as the loader reads them with what PIL says of them. ``of``: of which images, for messages."""
    some, read = f'{len(paths)} {of}', [picture for picture in pictures if picture is not None]
    failed = [path for path, picture in zip(paths, pictures, strict=False) if picture is None]
    if failed and is_whole(failed[0]):
        fault = 'which LoadImageFromFile does not decode: write them as PNG or JPEG of 8 bits'
        raise UserError(f'{some} are {kind}, {fault}; the first is {failed[0]}')
    if failed:
        raise UserError(f'{len(failed)} {of} cannot be decoded: the first is {failed[0]}')
    found = {1 if picture.ndim == 2 else picture.shape[2] for picture in read}
    if channels and found != {channels}:
        raise UserError(
            f"{some} are read with {max(found - {channels})} channels, and the model's data_preprocessor takes {channels}: set "
            f"color_type='{'grayscale' if channels == 1 else 'color'}' of LoadImageFromFile; the first is {paths[0]}"
        )
    if kind and kind.deep and read[0].dtype == np.uint8:
        values = f'as {read[0].min()} to {read[0].max()}'
        yield f'{some} have more than 8 bits a channel, of which the upper 8 are read: the first, {paths[0]}, {values}'
    if kind and kind.alpha and 4 not in found and any(map(is_transparent, paths[:SAMPLES])):
        yield f'{some} have transparent parts, and are read as if they had not: the first is {paths[0]}'
    if kind and kind.several:
        yield f'{some} hold several pictures, of which the first is read: the first is {paths[0]}'


def _compare_with_annotations(infos: Sequence[dict], looks: Sequence[Look], turned: set[Kind], whole: bool) -> dict[str, list[str]]:
    """Give each info the size that is read, and list by the keys of ``UNLIKE`` what is annotated otherwise."""
    odd, listed = defaultdict(list), set()
    for info, seen in zip(infos, looks, strict=True):
        turns, crosswise = seen.kind in turned, seen.kind is not None and seen.kind.orientation > 4
        size = seen.size or (0, 0)
        if crosswise and turns and not whole:
            size = size[::-1]
        annotated = (info.get('width', size[0]), info.get('height', size[1]))
        if annotated != size:
            exchanged = crosswise and annotated == size[::-1]
            odd[('before' if turns else 'after') if exchanged else 'size'].append(info['img_path'])
        elif turns and not (crosswise and size[0] != size[1]):
            odd['unsure'].append(info['img_path'])
        if seen.identity in listed:
            odd['twice'].append(info['img_path'])
        listed.add(seen.identity)
        info.update(identity=seen.identity, width=size[0], height=size[1])
    return odd

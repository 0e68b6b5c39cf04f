"""Masks of COCO files: what mmdet and pycocotools cannot read, leave out, or misread without an error."""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import UserError

POLYGONS = 'write a list of polygons, each a flat list of the coordinates of three points or more: [[x1, y1, x2, y2, x3, y3]]'
RUNS = "write run lengths as pycocotools' mask.encode gives them, with the counts as a text"


def _refuse_faults(masks: Sequence[Any], sizes: Sequence[Sequence[int]], strict: bool, name: Callable[[int], str]) -> None:
    """Refuse the first segmentation with which pycocotools fails, crashes or reads something else.

    Args:
        masks: segmentations, with polygons as ``annotations.parse`` gives them.
        sizes: the true height and width of the image of each.
        strict: whether a polygon of less than three points is a fault. mmdet leaves it out, and pycocotools fails.
        name: where in its file the segmentation with this number stands.
    """
    # All polygons at once, since there may be millions.
    sound = not _find_fault_of_polygons([*chain.from_iterable(mask for mask in masks if isinstance(mask, list))], strict)
    for number, mask in enumerate(masks):
        if not (isinstance(mask, list) and mask):
            fault = _find_fault_of_runs(mask, sizes[number])
        else:
            fault = '' if sound else _find_fault_of_polygons(mask, strict)
        if fault:
            raise UserError(f'{name(number)} {fault}')


def _find_fault_of_polygons(parts: list, strict: bool) -> str:
    if not {*map(type, parts)} <= {array}:
        return f'has the segmentation {parts!r:.60}, a list of {type(parts[0]).__name__}: {POLYGONS}'
    if not np.isfinite(np.frombuffer(b''.join(parts))).all():
        return 'has a polygon with a coordinate that is not finite: remove it'
    lengths = {*map(len, parts)}
    if strict and any(length < 6 or length % 2 for length in lengths):
        return f'has a polygon of {next(length for length in lengths if length < 6 or length % 2)} numbers: {POLYGONS}'
    return ''


def _is_polygon(part: Sequence[float]) -> bool:
    return len(part) >= 6 and len(part) % 2 == 0


def _find_fault_of_runs(mask: Any, true_size: Sequence[int]) -> str:
    if not mask:
        return f'has no segmentation: {POLYGONS}'
    size: Any = mask.get('size') if isinstance(mask, dict) else None
    counts: Any = mask.get('counts') if isinstance(mask, dict) else None
    sized = isinstance(size, list) and len(size) == 2 and {*map(type, size)} == {int} and min(size) > 0
    if isinstance(counts, list):
        counted = {*map(type, counts)} == {int} and min(counts) >= 0
    else:
        counted = isinstance(counts, str) and re.fullmatch('[0-o]*[0-O]', counts) is not None
    if not (sized and counted):
        return f'has the segmentation {mask!r:.60}: {POLYGONS}, or {RUNS}'
    pixels = _count_pixels(counts) if isinstance(counts, str) else sum(counts)
    (height, width), (true_height, true_width) = size, true_size
    if pixels != height * width:
        return f'has run lengths of {pixels} pixels in all, and a size of {width} x {height}: {RUNS}'
    if (height, width) != (true_height, true_width):
        return f'has a mask of {width} x {height} pixels for an image of {true_width} x {true_height}: make it anew'
    return ''


def _count_pixels(counts: str) -> int:
    """Add up run lengths. pycocotools does not, and fills what is left of a mask with whatever is in memory."""
    runs: list[int] = []
    value = bits = 0
    for code in counts.encode():
        # Five bits of a number, from its lowest on. The sixth says that more follow; the sign is the last one's fifth.
        value |= (code - 48 & 31) << bits
        bits += 5
        if not code - 48 & 32:
            value -= (code - 48 & 16) << bits - 4
            runs.append(value + runs[-2] if len(runs) > 2 else value)  # from the fourth on, the difference to the run before the last
            value = bits = 0
    return sum(runs)


def check_learned(split: str, file: str, annotations: Sequence[dict], infos: Sequence[dict], poly2mask: bool) -> Iterator[str]:
    """Refuse masks that mmdet cannot load, or leaves out altogether. Yields how many it leaves out, are empty, or apart from their boxes.

    Args:
        split: of the data set, for messages.
        file: its annotation file, for messages.
        annotations: the entries of that file.
        infos: its images as mmdet lists them, with their true height and width.
        poly2mask: as ``LoadAnnotations`` has it.
    """
    data = f'the {split} data, {file},'
    objects = [(info, instance) for info in infos for instance in info.get('instances', ())]
    without = sum('mask' not in instance for _, instance in objects)
    if without:
        raise UserError(f'{without} of {len(objects)} annotations of {data} have no segmentation, and masks are used')
    masks = [instance['mask'] for _, instance in objects]

    def name(number: int) -> str:
        at = (at for at, annotation in enumerate(annotations) if annotation.get('segmentation') is masks[number])
        return f'annotations[{next(at, "of another")}] of {file}'

    _refuse_faults(masks, [(info['height'], info['width']) for info, _ in objects], False, name)
    learned = [number for number, (_, instance) in enumerate(objects) if not instance['ignore_flag']]
    void, apart = set(), []
    for number, (_, instance) in enumerate(objects):
        mask, (x1, y1, x2, y2) = masks[number], instance['bbox']
        first: Sequence[float] = mask[0] if isinstance(mask, list) else ()
        if _is_polygon(first) and x1 - 1 <= first[0] <= x2 + 1 and y1 - 1 <= first[1] <= y2 + 1:
            continue  # as nearly all are
        corners = _find_corners(mask)
        if corners is None:
            void.add(number)
        elif corners[0] > x2 + 1 or corners[1] > y2 + 1 or corners[2] < x1 - 1 or corners[3] < y1 - 1:
            apart.append(number)
    dropped = [number for number in learned if (not poly2mask if isinstance(masks[number], dict) else number in void)]
    if dropped and split == 'train':
        fault = 'poly2mask=False takes polygons alone: leave it out' if isinstance(masks[dropped[0]], dict) else POLYGONS
        found = f'LoadAnnotations leaves out {len(dropped)} of {len(learned)} objects, such as {name(dropped[0])}, for their masks: {fault}'
        if len(dropped) == len(learned):
            raise UserError(found)
        yield found
    empty = sum(isinstance(masks[number], dict) for number in void)
    if empty and empty == len(objects):
        raise UserError(f'all {empty} masks of {data} are empty')
    if empty:
        yield f'{empty} of {len(objects)} masks are empty'
    apart = [number for number in apart if not objects[number][1]['ignore_flag']]
    if apart:
        yield f'{len(apart)} of {len(learned)} boxes do not touch their masks: the first is that of {name(apart[0])}'


def _find_corners(mask: Any) -> tuple[float, float, float, float] | None:
    """Find the corners of the box around a mask; None where it is empty, or has no polygon of three points."""
    if isinstance(mask, dict):
        # Run lengths as a list have their size with them.
        runs = mask if isinstance(mask['counts'], str) else coco_mask.frPyObjects(mask, 1, 1)
        x, y, width, height = coco_mask.toBbox(runs)
        return (x, y, x + width, y + height) if coco_mask.area(runs) else None
    parts = [part for part in mask if _is_polygon(part)]
    x, y = ([value for part in parts for value in part[axis::2]] for axis in (0, 1))
    return (min(x), min(y), max(x), max(y)) if parts else None


def check_scored(file: str, content: dict[str, Any], classes: Sequence[str], sizes: dict[Any, tuple[int, int]]) -> None:
    """Refuse masks that COCO's evaluation cannot score. ``sizes``: the true height and width of the images, by their ids."""
    scored = {category['id'] for category in content['categories'] if category['name'] in classes}
    objects = [
        (number, annotation)
        for number, annotation in enumerate(content.get('annotations', []))
        if annotation['image_id'] in sizes and annotation['category_id'] in scored
    ]
    masks = [annotation.get('segmentation') for _, annotation in objects]
    true_sizes = [sizes[annotation['image_id']] for _, annotation in objects]
    _refuse_faults(masks, true_sizes, True, lambda number: f'annotations[{objects[number][0]}] of {file}')

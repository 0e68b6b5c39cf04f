"""What a COCO annotation file holds: parsed once, and refused where mmdet's loader or COCO's evaluation would fail on it."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO

from ..errors import UserError

MARKS = {
    b'\x1f\x8b': 'is compressed with gzip, and mmdet reads plain JSON: unpack it',
    b'\xef\xbb\xbf': 'begins with a byte order mark, which mmdet does not read: save it as UTF-8 without one',
    b'\xff\xfe': 'is UTF-16: save it as UTF-8',
    b'\xfe\xff': 'is UTF-16: save it as UTF-8',
}


def parse(file: str, raw: bytes) -> dict[str, Any]:
    """Parse a COCO file. Polygons become arrays of floats, which take a third of the memory of lists.

    Raises:
        UserError: it is not JSON that mmdet reads, or has no lists of images and categories.
    """
    for mark, fault in MARKS.items():
        if raw.startswith(mark):
            raise UserError(f'{file} {fault}')
    try:
        content = json.loads(raw, object_hook=_pack_polygons)
    except ValueError as error:
        raise UserError(f'{file} is cut off or not JSON ({error}): write or fetch it again') from error
    if not isinstance(content, dict):
        raise UserError(f'{file} holds a {type(content).__name__}, and a COCO file an object with images, annotations and categories')
    for name in ('images', 'categories', 'annotations'):
        entries = content.get(name, [] if name == 'annotations' else None)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f'{file} has no {name!r} that are a list of objects: a COCO file has images, annotations and categories')
    return content


def _pack_polygons(entry: dict) -> dict:
    polygons = entry.get('segmentation')
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):  # segmentations.py says what is wrong, where masks are used
            entry['segmentation'] = [array('d', polygon) for polygon in polygons]
    return entry


def index(content: dict[str, Any]) -> COCO:
    """Give mmdet's COCO class a parsed file."""
    api = COCO()
    api.dataset = content
    api.createIndex()
    api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
    return api


def _are(values: list, *types: type) -> bool:
    return {*map(type, values)} <= {*types}


def _are_numbers(values: list) -> bool:
    return _are(values, int, float) and isfinite(sum(values))


def _are_boxes(values: list) -> bool:
    return _are(values, list) and {*map(len, values)} <= {4} and _are_numbers([*chain.from_iterable(values)])


def _are_flags(values: list) -> bool:
    return _are(values, int, float, bool) and {*values} <= {0, 1}


Rule = tuple[Callable[[list], bool], str]
"""Whether all of some values are of the right kind, and how to mend one that is not."""
ID: Rule = (lambda values: _are(values, int, float, str), 'give each a number of its own')
REFERENCE: Rule = (ID[0], 'write the id of an image or category')
NAME: Rule = (lambda values: _are(values, str), 'write a text')
SIZE: Rule = (lambda values: _are_numbers(values) and min(values, default=1) > 0, "write the image's size in pixels, a positive number")
BOX: Rule = (_are_boxes, 'write [x, y, width, height] in pixels, four finite numbers')
AREA: Rule = (_are_numbers, 'write the area of the mask, or else the width times the height of the box, a number')
CROWD = 'write "iscrowd": 0, or 1 for a crowd'
LOADED = dict(
    images=dict(id=ID, file_name=NAME, height=SIZE, width=SIZE),
    categories=dict(id=ID, name=NAME),
    annotations=dict(id=ID, image_id=REFERENCE, category_id=REFERENCE),
)
"""What mmdet's ``CocoDataset`` reads."""
OBJECT = dict(bbox=BOX, area=AREA, iscrowd=(lambda values: _are_flags([value for value in values if value is not None]), CROWD))
"""What it reads of an annotation without ``ignore``."""
SCORED = dict(
    id=(_are_numbers, "COCO's evaluation needs numbers: count the annotations from 1"),
    iscrowd=(_are_flags, f"COCO's evaluation needs it: {CROWD}"),
    bbox=BOX,
    area=AREA,
)
"""What pycocotools' ``COCOeval`` reads of an annotation."""


def _require(file: str, name: str, entries: Sequence[dict], rules: Mapping[str, Rule], but: str = '') -> None:
    numbers = [number for number, entry in enumerate(entries) if not entry.get(but)] if but else range(len(entries))
    for key, (fit, remedy) in rules.items():
        values = [entries[number].get(key) for number in numbers] if but else [entry.get(key) for entry in entries]
        if not fit(values):
            wrong = [number for number, value in zip(numbers, values, strict=True) if not fit([value])]
            entry = entries[wrong[0]]
            fault = f'{key}={entry[key]!r:.80}' if key in entry else f'no {key!r}'
            raise UserError(f'{name}[{wrong[0]}] of {file} has {fault} ({len(wrong)} of {len(entries)} are at fault): {remedy}')


def check_loaded(file: str, content: dict[str, Any]) -> Iterator[str]:
    """Refuse what mmdet cannot load. Yields how many annotations belong to no image or category."""
    annotations = content.get('annotations', [])
    for name, rules in LOADED.items():
        entries = content.get(name, [])
        _require(file, name, entries, rules)
        ids = [entry['id'] for entry in entries]
        if len({*ids}) < len(ids):
            value, count = Counter(ids).most_common(1)[0]
            raise UserError(f'{count} {name} of {file} have the id {value!r}, and mmdet takes one of them: {ID[1]}')
    for key, name in dict(image_id='images', category_id='categories').items():
        known = {entry['id']: None for entry in content[name]}
        strangers = {annotation[key] for annotation in annotations} - known.keys()
        if strangers and known:
            lost = [number for number, annotation in enumerate(annotations) if annotation[key] in strangers]
            found = f'{len(lost)} of {len(annotations)} annotations of {file} belong to none of its {name}, such as annotations[{lost[0]}]'
            found += f' with {key}={annotations[lost[0]][key]!r}'
            if len(lost) == len(annotations):
                raise UserError(f'{found}: write ids of {name} as they are listed, such as {next(iter(known))!r}')
            yield found
    _require(file, 'annotations', annotations, OBJECT, but='ignore')


def check_scored(file: str, content: dict[str, Any], fast: bool) -> Iterator[str]:
    """Refuse what COCO's evaluation cannot score. Yields what it scores wrongly. ``fast``: by hotcoco, which takes less."""
    annotations = content.get('annotations', [])
    _require(file, 'annotations', annotations, SCORED)
    kinds = sorted({type(image['id']).__name__ for image in content['images']})
    if len(kinds) > 1:
        raise UserError(f'the ids of the images of {file} are of the types {", ".join(kinds)}, and would not be told apart: use one')
    zero = [number for number, annotation in enumerate(annotations) if annotation['id'] == 0]
    if zero:
        found = f'annotations[{zero[0]}] of {file} has the id 0: COCO takes a match with it for none, so AP is too low; count from 1'
        if fast:
            raise UserError(found)
        yield found
    if fast:
        import hotcoco

        try:
            hotcoco.COCO({**content, 'annotations': [_unpack_polygons(annotation) for annotation in annotations]})
        except (TypeError, ValueError) as error:
            raise UserError(f'{file} cannot be read by hotcoco, which FastCocoMetric uses ({error}): mend it, or use CocoMetric') from error


def _unpack_polygons(annotation: dict) -> dict:
    polygons = annotation.get('segmentation')
    if not isinstance(polygons, list):
        return annotation
    return {**annotation, 'segmentation': [list(part) if isinstance(part, array) else part for part in polygons]}


CONVENTIONS: Mapping[str, Callable] = {
    'corners (x1, y1, x2, y2)': lambda a, b, c, d: (a, b, c, d),
    'corners (y1, x1, y2, x2)': lambda a, b, c, d: (b, a, d, c),
    'centre and size (x, y, width, height)': lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    'rows first (y, x, height, width)': lambda a, b, c, d: (b, a, b + d, a + c),
}
"""The corners of a box that was written otherwise than COCO's are."""


def check_boxes(file: str, content: dict[str, Any]) -> Iterator[str]:
    """Refuse boxes in shares of the image. Yields if they leave their images, and fit if they are read in another convention."""
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    objects = [entry for entry in content.get('annotations', []) if entry['image_id'] in sizes and not entry.get('ignore')]
    if not objects:
        return
    x, y, width, height = boxes = np.fromiter(chain.from_iterable(entry['bbox'] for entry in objects), float).reshape(-1, 4).T
    right, bottom = limits = np.fromiter(chain.from_iterable(sizes[entry['image_id']] for entry in objects), float).reshape(-1, 2).T
    if boxes.max() <= 1 < limits.min():
        raise UserError(f'all boxes of {file} lie within 0 to 1, and COCO gives them in pixels: multiply them by the width and height')
    slack = 1 + 0.02 * limits.max(0)
    leave = (x + width > right + slack) | (y + height > bottom + slack)
    if leave.mean() < 0.05:
        return
    for convention, corners in CONVENTIONS.items():
        x1, y1, x2, y2 = corners(*boxes)
        fits = (np.minimum(x1, y1) >= -slack) & (x2 <= right + slack) & (y2 <= bottom + slack) & (x2 > x1) & (y2 > y1)
        if fits.mean() > 0.99:
            yield f'{leave.sum()} of {len(leave)} boxes leave their images as (x, y, width, height), and all fit as {convention}'
            return

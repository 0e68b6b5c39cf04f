"""Annotation files that mmdet cannot load, COCO cannot score, or that mean something else than they say."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import TRAIN, VAL, boxes, count_learned, edit, images, look, objects, score_of_the_truth
from helpers import says
from mmdet.registry import METRICS
from mmengine import fileio
from pycocotools import coco

from fca_mmdet.training.annotations import check_boxes

FAST = {'val_evaluator.type': 'FastCocoMetric', 'test_evaluator.type': 'FastCocoMetric'}
AREA = 'write the area of the mask, or else the width times the height of the box, a number'
BOX = 'write [x, y, width, height] in pixels, four finite numbers'
SIZE = "write the image's size in pixels, a positive number"
CROWD = 'write "iscrowd": 0, or 1 for a crowd'
ALL, HALF = '(19 of 19 are at fault)', '(10 of 19 are at fault)'


def set_to(key: str, value: object):
    return lambda entry: entry.update({key: value})


def lacks(key: str):
    return lambda entry: entry.pop(key)


def one(key: str, value: object):
    """A value of the last annotation alone."""
    return lambda content: content['annotations'][-1].update({key: value})


LOADING = {
    'no-area': (objects(lacks('area')), f"annotations[0] of {TRAIN} has no 'area' {ALL}: {AREA}"),
    'area-null': (objects(set_to('area', None), 2), f'annotations[0] of {TRAIN} has area=None {HALF}: {AREA}'),
    'area-text': (one('area', '12.5'), f"annotations[18] of {TRAIN} has area='12.5' (1 of 19 are at fault): {AREA}"),
    'bbox-strings': (boxes(lambda *box: [str(value) for value in box]), f"annotations[0] of {TRAIN} has bbox=['... {ALL}: {BOX}"),
    'bbox-short': (one('bbox', [1, 2, 3]), f'annotations[18] of {TRAIN} has bbox=[1, 2, 3] (1 of 19 are at fault): {BOX}'),
    'bbox-missing': (objects(lacks('bbox')), f"annotations[0] of {TRAIN} has no 'bbox' {ALL}: {BOX}"),
    'bbox-object': (one('bbox', dict(x=1, y=2, w=3, h=4)), f"annotations[18] of {TRAIN} has bbox={{'x': 1, ... {BOX}"),
    'sizes-missing': (images(lacks('height')), f"images[0] of {TRAIN} has no 'height' (3 of 3 are at fault): {SIZE}"),
    'sizes-null': (images(set_to('width', None)), f'images[0] of {TRAIN} has width=None (3 of 3 are at fault): {SIZE}'),
    'size-text': (images(set_to('width', '192'), 2), f"images[0] of {TRAIN} has width='192' (2 of 3 are at fault): {SIZE}"),
    'no-file-name': (images(lacks('file_name')), f"images[0] of {TRAIN} has no 'file_name' (3 of 3 are at fault): write a text"),
    'no-image-id': (objects(lacks('image_id')), f"annotations[0] of {TRAIN} has no 'image_id' {ALL}: write the id of an image or category"),
    'no-annotation-id': (objects(lacks('id')), f"annotations[0] of {TRAIN} has no 'id' {ALL}: give each a number of its own"),
    'no-categories': (lambda content: content.pop('categories'), f"{TRAIN} has no 'categories' that are a list of objects: ..."),
    'annotation-ids-equal': (objects(set_to('id', 7)), f'19 annotations of {TRAIN} have the id 7, and mmdet takes one of them: ...'),
}
"""What mmdet fails to load."""
LOADED_WRONG = {
    'bbox-nan': (
        one('bbox', [float('nan')] * 4),
        f'annotations[18] of {TRAIN} has bbox=[nan, nan, nan, nan] (1 of 19 are at fault): {BOX}',
    ),
    'bbox-infinite': (one('bbox', [1, 2, float('inf'), 3]), f'annotations[18] of {TRAIN} has bbox=[1, 2, inf, 3] ...: {BOX}'),
    'size-zero': (images(set_to('height', 0)), f'images[0] of {TRAIN} has height=0 (3 of 3 are at fault): {SIZE}'),
    'iscrowd-text': (objects(set_to('iscrowd', '0')), f"annotations[0] of {TRAIN} has iscrowd='0' {ALL}: {CROWD}"),
    'image-ids-equal': (images(set_to('id', 1)), f'3 images of {TRAIN} have the id 1, and mmdet takes one of them: ...'),
    'category-id-strings': (
        objects(lambda annotation: annotation.update(category_id=str(annotation['category_id']))),
        f"19 of 19 annotations of {TRAIN} belong to none of its categories, such as annotations[0] with category_id='...': write ids of "
        'categories as they are listed, such as 1',
    ),
    'image-id-strings': (
        objects(lambda annotation: annotation.update(image_id=str(annotation['image_id']))),
        f"19 of 19 annotations of {TRAIN} belong to none of its images, such as annotations[0] with image_id='0': ...",
    ),
    'boxes-in-shares': (
        boxes(lambda *box: [value / 192 for value in box]),
        f'all boxes of {TRAIN} lie within 0 to 1, and COCO gives them in pixels: multiply them by the width and height',
    ),
}
"""What mmdet loads, and not as it is meant."""


@pytest.mark.parametrize('case', LOADING | LOADED_WRONG)
def test_what_mmdet_cannot_load(case, folder, capsys):
    change, expected = (LOADING | LOADED_WRONG)[case]
    edit(change, TRAIN)
    said = look(capsys)[-1]
    assert says(said, expected), said
    if case in LOADING:
        with pytest.raises((KeyError, TypeError, ValueError, AssertionError)):
            count_learned()
    elif case != 'bbox-infinite':  # from which mmdet would learn
        assert count_learned() < 19


FILES = {
    'bom': (
        lambda raw: b'\xef\xbb\xbf' + raw,
        f'{TRAIN} begins with a byte order mark, which mmdet does not read: save it as UTF-8 without one',
    ),
    'utf-16': (lambda raw: raw.decode().encode('utf-16'), f'{TRAIN} is UTF-16: save it as UTF-8'),
    'gzip': (gzip.compress, f'{TRAIN} is compressed with gzip, and mmdet reads plain JSON: unpack it'),
    'cut-off': (lambda raw: raw[:-500], f'{TRAIN} is cut off or not JSON (...): write or fetch it again'),
    'empty': (lambda raw: b'', f'{TRAIN} is cut off or not JSON (Expecting value: line 1 column 1 (char 0)): write or fetch it again'),
    'latin-1': (lambda raw: raw.replace(b'cross', b'cro\xdf'), f'{TRAIN} is cut off or not JSON (...utf-8...): write or fetch it again'),
    'a list': (lambda raw: b'[' + raw + b']', f'{TRAIN} holds a list, and a COCO file an object with images, annotations and categories'),
    'a list of numbers': (lambda raw: b'{"images": [1], "categories": []}', f"{TRAIN} has no 'images' that are a list of objects: ..."),
}


@pytest.mark.parametrize('case', FILES)
def test_what_is_not_json(case, folder, capsys):
    change, expected = FILES[case]
    path = Path(TRAIN)
    path.write_bytes(change(path.read_bytes()))
    said = look(capsys)[-1]
    assert says(said, expected), said
    with pytest.raises((ValueError, AssertionError, TypeError, KeyError)):
        count_learned()


def test_a_file_that_is_not_there(folder, capsys):
    Path(TRAIN).unlink()
    assert look(capsys) == [f'the annotation file {TRAIN} cannot be read (No such file or directory)']


SCORING = {
    'annotation-ids-strings': (
        objects(lambda annotation: annotation.update(id=f'a{annotation["id"]}')),
        f"annotations[0] of {VAL} has id='a1' (14 of 14 are at fault): COCO's evaluation needs numbers: count the annotations from 1",
    ),
    'no-iscrowd': (
        objects(lacks('iscrowd')),
        f"annotations[0] of {VAL} has no 'iscrowd' (14 of 14 are at fault): COCO's evaluation needs it: {CROWD}",
    ),
    'iscrowd-null': (objects(set_to('iscrowd', None), 3), f'annotations[0] of {VAL} has iscrowd=None (5 of 14 are at fault): ...: {CROWD}'),
}


@pytest.mark.parametrize('case', SCORING)
def test_what_coco_cannot_score(case, folder, origin, capsys):
    """It is trained on without harm."""
    change, expected = SCORING[case]
    edit(change)
    said = look(capsys)[-1]
    assert says(said, expected), said
    assert count_learned() == 19
    with pytest.raises((KeyError, TypeError, ValueError)):
        score_of_the_truth(origin, 'bbox')
    assert look(capsys, {'val_evaluator': None, 'test_evaluator': None}) == []


def test_annotation_id_zero(folder, origin, capsys):
    edit(lambda content: [annotation.update(id=index) for index, annotation in enumerate(content['annotations'])])
    said = f'annotations[0] of {VAL} has the id 0: COCO takes a match with it for none, so AP is too low; count from 1'
    assert look(capsys) == [f'val: {said}', f'test: {said}']
    assert score_of_the_truth(origin, 'bbox') < 1
    assert look(capsys, FAST) == [said]


@pytest.mark.parametrize('fast', [False, True])
def test_string_image_ids(fast, folder, origin, capsys):
    """CocoMetric takes them, hotcoco does not."""
    edit(
        lambda content: [
            entry.update({key: f'i{entry[key]}'})
            for key, name in dict(id='images', image_id='annotations').items()
            for entry in content[name]
        ]
    )
    said = look(capsys, FAST) if fast else look(capsys)
    assert score_of_the_truth(origin, 'bbox') == 1
    assert bool(said) == fast
    if fast:
        assert says(said[0], f"{VAL} cannot be read by hotcoco, which FastCocoMetric uses (...'i0'...): mend it, or use CocoMetric")
        metric = METRICS.build(dict(type='FastCocoMetric', ann_file=VAL, metric='bbox'))
        with pytest.raises(ValueError, match='hotcoco'):
            _evaluate(metric)


def _evaluate(metric) -> None:
    """Score one box, as mmdet does after an epoch."""
    metric.dataset_meta = dict(classes=[category['name'] for category in json.loads(Path(VAL).read_text())['categories']])
    predicted = dict(bboxes=torch.tensor([[1.0, 2, 30, 40]]), scores=torch.ones(1), labels=torch.zeros(1, dtype=torch.long))
    metric.process({}, [dict(pred_instances=predicted, img_id='i0', ori_shape=(192, 192))])
    metric.evaluate(1)


def test_images_with_ids_of_two_types(folder, capsys):
    edit(
        lambda content: [
            entry.update({key: 'x'})
            for key, name in dict(id='images', image_id='annotations').items()
            for entry in content[name]
            if entry[key] == 1
        ]
    )
    assert look(capsys)[-1] == f'the ids of the images of {VAL} are of the types int, str, and would not be told apart: use one'


@pytest.mark.parametrize('key', ['image_id', 'category_id'])
def test_annotations_of_no_image_or_category_are_told(key, folder, capsys):
    edit(objects(set_to(key, 77), 2), TRAIN)
    name = dict(image_id='images', category_id='categories')[key]
    said = look(capsys)
    assert said[0] == 'train: 3 images, 9 of 19 annotations'
    assert said[1:] == [f'train: 10 of 19 annotations of {TRAIN} belong to none of its {name}, such as annotations[0] with {key}=77']


CONVENTIONS = {
    'corners (x1, y1, x2, y2)': lambda x, y, w, h: [x, y, x + w, y + h],
    'corners (y1, x1, y2, x2)': lambda x, y, w, h: [y, x, y + h, x + w],
    'centre and size (x, y, width, height)': lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    'rows first (y, x, height, width)': lambda x, y, w, h: [y, x, h, w],
}


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_boxes_in_another_convention(convention):
    """In images of 300 x 100, of which they fill most; COCO's own are not spoken of."""
    rng = np.random.default_rng(0)
    size = rng.uniform((90, 30), (150, 60), (50, 2))
    boxes = np.hstack([rng.uniform(0, [300, 100] - size), size])
    entries = [dict(image_id=1, bbox=box) for box in boxes.tolist()]
    content = dict(images=[dict(id=1, width=300, height=100)], annotations=entries)
    assert list(check_boxes('a.json', content)) == []
    for entry in entries:
        entry['bbox'] = CONVENTIONS[convention](*entry['bbox'])
    (said,) = check_boxes('a.json', content)
    assert says(said, f'... of 50 boxes leave their images as (x, y, width, height), and all fit as {convention}')


def test_boxes_as_corners(folder, capsys):
    edit(boxes(CONVENTIONS['corners (x1, y1, x2, y2)']), TRAIN)
    (said,) = look(capsys)
    assert says(said, 'train: ... of 19 boxes leave their images as (x, y, width, height), and all fit as corners (x1, y1, x2, y2)')


def test_what_is_ignored_needs_no_box(folder, capsys):
    edit(lambda content: content['annotations'].append(dict(id=99, image_id=1, category_id=1, ignore=1)), TRAIN)
    assert look(capsys) == ['train: 3 images, 19 of 20 annotations']
    assert count_learned() == 19


def test_crowds_negatives_and_gaps_in_ids_pass(folder, capsys):
    def change(content: dict) -> None:
        content['annotations'][0]['iscrowd'] = 1
        content['annotations'] = [annotation for annotation in content['annotations'] if annotation['image_id'] != 2]
        for number, annotation in enumerate(content['annotations']):
            annotation['id'] = 10 + number**2

    edit(change, TRAIN)
    said = look(capsys, {'train_dataloader.dataset.filter_cfg': None})
    assert len(said) == 1
    assert says(said[0], 'train: 3 images, ... annotations')


def test_every_file_is_read_once(folder, capsys, monkeypatch):
    """Though val and test have the same, and an evaluator names it in another way."""
    read = []
    monkeypatch.setattr(fileio, 'get', lambda file, **options: (read.append(file), Path(file).read_bytes())[1])
    monkeypatch.setattr(coco, 'open', lambda file, *mode: read.append(file), raising=False)  # pycocotools'
    assert look(capsys, {'val_evaluator.ann_file': f'./{VAL}'}) == []
    assert [file for file in read if file.endswith('.json')] == [TRAIN, VAL]

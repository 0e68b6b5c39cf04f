"""Masks that mmdet or pycocotools cannot read, leave out, or misread."""

from contextlib import suppress

import numpy as np
import pytest
from coco_folder import TRAIN, VAL, Change, corners, count_learned, edit, look, objects, polygons, score_of_the_truth
from helpers import says
from pycocotools import mask as coco_mask

from fca_mmdet.training.segmentations import _count_pixels

POLYGONS = 'write a list of polygons, each a flat list of the coordinates of three points or more: [[x1, y1, x2, y2, x3, y3]]'
RUNS = "write run lengths as pycocotools' mask.encode gives them, with the counts as a text"
NAN = float('nan')


def runs(**changes: object) -> Change:
    """A change of the run lengths of all annotations."""
    return objects(lambda annotation: annotation.update(segmentation=annotation['segmentation'] | changes))


def uncompressed(*counts: int) -> Change:
    return runs(counts=list(counts))


UNREADABLE = {
    'polygon-flat': (polygons(corners), f'annotations[0] of {TRAIN} has the segmentation [..., a list of float: {POLYGONS}'),
    'polygon-pairs': (
        polygons(lambda x, y, w, h: [[[x, y], [x + w, y], [x + w, y + h]]]),
        f'annotations[0] of {TRAIN} has the segmentation [[[..., a list of list: {POLYGONS}',
    ),
    'run-lengths-in-a-list': (
        objects(lambda annotation: annotation.update(segmentation=[annotation['segmentation']])),
        f"annotations[0] of {TRAIN} has the segmentation [{{'size'..., a list of dict: {POLYGONS}",
    ),
    'a-file-name': (polygons(lambda *box: 'mask.png'), f"annotations[0] of {TRAIN} has the segmentation 'mask.png': {POLYGONS}, or {RUNS}"),
    'no-counts': (
        polygons(lambda *box: dict(size=[192, 192])),
        f"annotations[0] of {TRAIN} has the segmentation {{'size': [192, 192]}}: ...",
    ),
    'sizes-texts': (runs(size=['192', '192']), f"annotations[0] of {TRAIN} has the segmentation {{'size': ['192', '192'], ..."),
    'counts-too-many': (
        uncompressed(30000, 100, 9999),
        f'annotations[0] of {TRAIN} has run lengths of 40099 pixels in all, and a size of 192 x 192: {RUNS}',
    ),
    'counts-negative': (uncompressed(30000, -100, 6964), f'annotations[0] of {TRAIN} has the segmentation ...: {POLYGONS}, or {RUNS}'),
    'size-halved': (
        runs(size=[96, 96]),
        f'annotations[0] of {TRAIN} has run lengths of 36864 pixels in all, and a size of 96 x 96: {RUNS}',
    ),
    'counts-base64': (runs(counts='SGVsbG8gd29ybGQ='), f'annotations[0] of {TRAIN} has the segmentation ...: {POLYGONS}, or {RUNS}'),
}
"""What mmdet fails on while it trains, or leaves out."""
DROPPED = {
    'polygon-two-points': polygons(lambda x, y, w, h: [[x, y, x + w, y + h]]),
    'polygon-one-point': polygons(lambda x, y, w, h: [[x, y]]),
    'polygon-empty': polygons(lambda *box: [[]]),
    'polygon-odd': polygons(lambda *box: [[*corners(*box), 1]]),
}
MISREAD = {
    'polygon-nan': (polygons(lambda *box: [[*corners(*box), NAN, 1]]), 'has a polygon with a coordinate that is not finite: remove it'),
    'polygon-null': (polygons(lambda *box: [[*corners(*box), None, 1]]), 'has the segmentation [[..., a list of list: ...'),
    'polygon-of-texts': (
        polygons(lambda *box: [[str(value) for value in corners(*box)]]),
        f"has the segmentation [['..., a list of list: {POLYGONS}",
    ),
    'size-of-another-image': (runs(size=[96, 384]), 'has a mask of 384 x 96 pixels for an image of 192 x 192: make it anew'),
    'counts-too-few': (uncompressed(30000, 100), 'has run lengths of 30100 pixels in all, and a size of 192 x 192: ...'),
    'counts-cut-off': (
        objects(lambda annotation: annotation['segmentation'].update(counts=annotation['segmentation']['counts'][:-3])),
        'has ...',
    ),
}
"""mmdet reshapes a mask of another size. With others pycocotools takes all memory, crashes, or fills masks with what is in memory."""


@pytest.mark.parametrize('case', UNREADABLE)
def test_what_mmdet_cannot_read(case, folder, capsys):
    change, expected = UNREADABLE[case]
    edit(change, TRAIN)
    said = look(capsys)[-1]
    assert says(said, expected), said
    with suppress(TypeError, ValueError, OverflowError):
        assert count_learned() < 19


@pytest.mark.parametrize('case', MISREAD)
def test_what_is_misread(case, folder, capsys):
    change, expected = MISREAD[case]
    edit(change, TRAIN)
    said = look(capsys)[-1]
    assert says(said, f'annotations[0] of {TRAIN} {expected}'), said


@pytest.mark.parametrize('case', DROPPED)
def test_objects_that_mmdet_leaves_out(case, folder, capsys):
    edit(polygons(lambda *box: [corners(*box)]))
    edit(DROPPED[case], TRAIN)
    said = look(capsys)[-1]
    assert said == f'LoadAnnotations leaves out 19 of 19 objects, such as annotations[0] of {TRAIN}, for their masks: {POLYGONS}'
    assert count_learned() == 0


def test_some_objects_that_mmdet_leaves_out_are_told(folder, capsys):
    edit(polygons(lambda *box: [corners(*box)]))
    edit(lambda content: content['annotations'][7].update(segmentation=[[1, 2, 3, 4]]), TRAIN)
    said = f'LoadAnnotations leaves out 1 of 19 objects, such as annotations[7] of {TRAIN}, for their masks: {POLYGONS}'
    assert look(capsys) == [f'train: {said}']
    assert count_learned() == 18


def test_run_lengths_without_poly2mask(folder, capsys):
    options = {'train_dataloader.dataset.pipeline.1.poly2mask': False}
    said = 'for their masks: poly2mask=False takes polygons alone: leave it out'
    assert (
        look(capsys, options)
        == [
            'train: 3 images, 19 of 19 annotations',
            f'LoadAnnotations leaves out 19 of 19 objects, such as annotations[0] of {TRAIN}, {said}',
        ][1:]
    )
    assert count_learned(options) == 0
    edit(polygons(lambda *box: [corners(*box)], 2), TRAIN)
    assert look(capsys, options) == [f'train: LoadAnnotations leaves out 9 of 19 objects, such as annotations[1] of {TRAIN}, {said}']
    assert count_learned(options) == 10


@pytest.mark.parametrize('case', [*UNREADABLE, *DROPPED, *MISREAD])
def test_what_coco_cannot_score(case, folder, origin, capsys):
    """Though what is learned from is sound. Boxes can be scored. Scoring masks of too many run lengths never ends."""
    changes = {name: change for name, (change, _) in (UNREADABLE | MISREAD).items()} | DROPPED
    edit(changes[case], VAL)
    refused = look(capsys)[-1]
    assert refused.startswith(f'annotations[0] of {VAL} has ')
    loaders = {f'{split}_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile')] for split in ('val', 'test')}
    assert look(capsys, {'val_evaluator.metric': 'bbox', 'test_evaluator.metric': 'bbox', **loaders}) == []
    if case.startswith('polygon') and case not in MISREAD:
        score = 0.0
        with suppress(Exception):
            score = score_of_the_truth(origin, 'segm')
        assert score < 1


def test_masks_apart_from_their_boxes(folder, capsys):
    edit(polygons(lambda *box: [[value / 192 for value in corners(*box)]]), TRAIN)
    (said,) = look(capsys)
    assert says(said, f'train: 19 of 19 boxes do not touch their masks: the first is that of annotations[0] of {TRAIN}')


@pytest.mark.parametrize('shape', ['polygons', 'several polygons', 'run lengths', 'compressed'])
def test_sound_masks(shape, folder, origin, capsys):
    def change(annotation: dict) -> None:
        x, y, width, height = annotation['bbox']
        if shape == 'polygons':
            annotation['segmentation'] = [corners(x, y, width, height)]
        elif shape == 'several polygons':
            annotation['segmentation'] = [corners(x, y, width / 2, height), corners(x + width / 2, y, width / 2, height)]
        elif shape == 'run lengths':
            flat = coco_mask.decode(annotation['segmentation']).T.ravel()
            changes = np.flatnonzero(np.diff(flat, prepend=0))
            annotation['segmentation']['counts'] = np.diff(np.r_[0, changes, flat.size]).tolist()

    edit(objects(change))
    assert look(capsys) == []
    assert count_learned() == 19
    assert (score_of_the_truth(origin, 'segm') == 1) == ('polygons' not in shape)


def test_counted_pixels_are_those_of_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 200, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random() ** 3, np.uint8)
        assert _count_pixels(coco_mask.encode(mask)['counts'].decode()) == height * width

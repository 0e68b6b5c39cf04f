"""FastCocoMetric beside mmdet's CocoMetric: every figure equal, and pycocotools' arrays bit for bit."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.registry import init_default_scope
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fca_mmdet import FastCocoMetric
from fca_mmdet.training.evaluation import HotCOCOeval

HEIGHT, WIDTH = 120, 140
CATEGORIES = {3: 'cell', 17: 'nucleus', 90: 'empty'}
OBJECT = dict(bbox=[10, 10, 32, 32], category=3)


@pytest.fixture(autouse=True)
def scope():
    """Another test's runner may have left its own."""
    init_default_scope('mmdet')


def rectangle(bbox):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    x, y, w, h = map(int, bbox)
    mask[y : y + h, x : x + w] = 1
    return mask


def runs(mask):
    flat = mask.ravel(order='F')
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    return [0] * int(flat[0]) + np.diff(edges).tolist()


def dataset(images):
    """COCO's ground truth of lists of dict(bbox, category, crowd, area), one list an image, whose ids have gaps; crowds are RLE."""
    annotations = []
    for index, objects in enumerate(images):
        for item in objects:
            x, y, w, h = item['bbox']
            crowd = item.get('crowd', 0)
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            segmentation = dict(size=[HEIGHT, WIDTH], counts=runs(rectangle(item['bbox']))) if crowd else polygon
            annotations.append(
                dict(id=len(annotations) + 1, image_id=7 * index + 2, category_id=item['category'], iscrowd=crowd, bbox=[x, y, w, h])
                | dict(area=item.get('area', w * h), segmentation=segmentation)
            )
    sizes = [dict(id=7 * index + 2, height=HEIGHT, width=WIDTH, file_name=f'{index}.jpg') for index in range(len(images))]
    names = [dict(id=category, name=name) for category, name in reversed(CATEGORIES.items())]
    return dict(images=sizes, annotations=annotations, categories=names)


def samples(images, truth):
    """What a detector hands to the metric, of lists of (bbox, category, score)."""
    labels = [category['id'] for category in truth['categories']]
    found = []
    for image, detections in zip(truth['images'], images, strict=True):
        boxes = torch.tensor([box for box, _, _ in detections], dtype=torch.float64).reshape(-1, 4)
        instances = dict(
            bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            labels=torch.tensor([labels.index(category) for _, category, _ in detections], dtype=torch.long),
            scores=torch.tensor([score for _, _, score in detections], dtype=torch.float32),
            masks=[mask_api.encode(rectangle(box)) for box, _, _ in detections],
        )
        found.append(dict(img_id=image['id'], ori_shape=(HEIGHT, WIDTH), pred_instances=instances))
    return found


def figures(kind, truth, images, folder, **options):
    """The metric's figures, from a file and data samples."""
    (folder / 'truth.json').write_text(json.dumps(truth))
    metric = METRICS.build(dict(type=kind, ann_file=str(folder / 'truth.json'), **options))
    metric.dataset_meta = dict(classes=tuple(category['name'] for category in truth['categories']))
    found = samples(images, truth)
    metric.process({}, found)
    return metric.evaluate(len(found))


def arrays(kind, truth, images, iou_type, use_cats):
    """What pycocotools' interface holds at the end, unrounded."""
    coco = COCO()
    coco.dataset = json.loads(json.dumps(truth))
    coco.createIndex()
    results = []
    for image, detections in zip(truth['images'], images, strict=True):
        for bbox, category, score in detections:
            rle = mask_api.encode(rectangle(bbox))
            rle = dict(rle, counts=rle['counts'].decode())
            area = dict(segmentation=rle) if iou_type == 'segm' else dict(bbox=[float(x) for x in bbox])
            results.append(dict(image_id=image['id'], category_id=category, score=score, **area))
    evaluation = kind(coco, coco.loadRes(results), iou_type)
    evaluation.params.maxDets, evaluation.params.useCats = [100, 300, 1000], use_cats
    evaluation.params.catIds = coco.getCatIds()
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: evaluation.eval[name] for name in ('precision', 'recall', 'scores')} | {'stats': evaluation.stats}


def compare_arrays(truth, images):
    if not any(images):
        return
    for iou_type in ('bbox', 'segm'):
        for use_cats in (1, 0):
            theirs, ours = (arrays(kind, truth, images, iou_type, use_cats) for kind in (COCOeval, HotCOCOeval))
            for name, array in theirs.items():
                np.testing.assert_array_equal(array, ours[name], f'{iou_type}, useCats={use_cats}, {name}')


def compare(objects, detections, folder):
    truth = dataset(objects)
    compare_arrays(truth, detections)
    every = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
    options = dict(metric=['bbox', 'segm', 'proposal'], metric_items=every, classwise=True)
    theirs, ours = (figures(kind, truth, detections, folder, **options) for kind in ('CocoMetric', 'FastCocoMetric'))
    np.testing.assert_equal(ours, theirs)
    return ours


def box(w, h=None, at=10):
    return [at, at, w, w if h is None else h]


CASES = {
    'crowds': (
        [[dict(bbox=box(60), category=3, crowd=1), dict(bbox=box(20), category=3)]],
        [[(box(20), 3, 0.9), (box(18), 3, 0.8), (box(12, at=40), 3, 0.7), (box(30, at=70), 3, 0.6)]],
    ),
    'only crowds': ([[dict(bbox=box(60), category=3, crowd=1)]], [[(box(20), 3, 0.9)]]),
    'empty images': ([[], [OBJECT], [OBJECT], []], [[(box(30), 3, 0.9)], [], [(box(32), 3, 0.5)], []]),
    'ties': (
        [[OBJECT, dict(bbox=box(34), category=3)], [OBJECT]],
        [[(box(30), 3, 0.5), (box(34), 3, 0.5), (box(32), 3, 0.5), (box(33), 17, 0.5)], [(box(9, at=90), 3, 0.5), (box(32), 3, 0.5)]],
    ),
    'more than 100 detections': (
        [[OBJECT, dict(bbox=box(20, at=80), category=17)]],
        [[(box(9, at=i % 80), 3, 1 - i / 400) for i in range(310)] + [(box(32), 3, 0.01), (box(20, at=80), 17, 0.02)]],
    ),
    'areas at the bounds': (
        [[dict(bbox=box(side), category=3, area=area) for side, area in ((32, 1024), (96, 9216), (32, 1023.9), (96, 9216.1), (10, 0))]],
        [[(box(32), 3, 0.9), (box(96), 3, 0.8), (box(96, 96.01), 3, 0.7), (box(10), 3, 0.6)]],
    ),
    'a class without objects': ([[OBJECT]], [[(box(32), 90, 0.9), (box(32), 3, 0.8)]]),
    'sizes of zero': ([[OBJECT, dict(bbox=box(0, 5), category=3)]], [[(box(0), 3, 0.9), (box(0, 5), 3, 0.8), (box(32), 3, 0.7)]]),
    'no objects': ([[], []], [[(box(20), 3, 0.9)], []]),
    'no detections': ([[OBJECT], []], [[], []]),
}


@pytest.mark.parametrize('case', CASES)
def test_every_figure_is_pycocotools(case, tmp_path):
    found = compare(*CASES[case], tmp_path)
    if case == 'no detections':
        assert not any('mAP' in name for name in found)
    if case == 'no objects':
        assert found['coco/bbox_mAP'] == found['coco/segm_mAP'] == -1
    if case == 'crowds':
        assert found['coco/bbox_mAP'] == 1


number = st.integers(0, 40) | st.sampled_from([32, 96])
detected = st.tuples(st.tuples(number, number, number, number), st.sampled_from(list(CATEGORIES)), st.sampled_from([0.1, 0.5, 0.5, 0.75]))
annotated = st.fixed_dictionaries(
    dict(bbox=st.tuples(number, number, number, number), category=st.sampled_from([3, 17]), crowd=st.integers(0, 1)),
    optional=dict(area=st.sampled_from([0, 1023.5, 1024, 9216, 9216.5])),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.lists(annotated, max_size=5), st.lists(detected, max_size=8)), min_size=1, max_size=4))
def test_random_sets(images):
    compare_arrays(dataset([objects for objects, _ in images]), [detections for _, detections in images])


def test_thresholds_and_numbers_of_proposals(tmp_path):
    objects, detections = CASES['more than 100 detections']
    truth = dataset(objects)
    array = np.array([0.5, 0.75])
    options = dict(metric=['bbox', 'proposal'], proposal_nums=(1, 10, 100), metric_items=['mAP_75', 'AR@100'])
    theirs = figures('CocoMetric', truth, detections, tmp_path, iou_thrs=array, **options)
    assert theirs['coco/bbox_mAP_75'] > 0
    assert theirs == figures('FastCocoMetric', truth, detections, tmp_path, iou_thrs=[0.5, 0.75], **options)
    one = figures('FastCocoMetric', truth, detections, tmp_path, iou_thrs=0.75, **options)
    assert one['coco/bbox_mAP_75'] == theirs['coco/bbox_mAP_75']


def test_without_a_file_the_samples_objects_are_the_truth():
    found = samples([[(box(30), 3, 0.9)]], dataset([[]]))
    found[0]['instances'] = [dict(bbox=[10, 10, 42, 42], bbox_label=2)]
    metrics = [CocoMetric(), FastCocoMetric()]
    for metric in metrics:
        metric.dataset_meta = dict(classes=('empty', 'nucleus', 'cell'))
        metric.process({}, found)
    theirs, ours = (metric.evaluate(1) for metric in metrics)
    assert ours == theirs
    assert ours['coco/bbox_mAP_50'] == 1


def test_format_only_writes_the_results(tmp_path):
    objects, detections = CASES['ties']
    for kind in ('CocoMetric', 'FastCocoMetric'):
        prefix = str(tmp_path / kind)
        assert not figures(kind, dataset(objects), detections, tmp_path, format_only=True, outfile_prefix=prefix)
    for what in ('bbox', 'segm'):
        theirs, ours = (json.loads((tmp_path / f'{kind}.{what}.json').read_text()) for kind in ('CocoMetric', 'FastCocoMetric'))
        assert ours == theirs
        assert len(ours) == 6


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(use_mp_eval=True), 'use_mp_eval=True runs pycocotools in several processes: leave it out'),
        (dict(proposal_nums=(100,)), r'proposal_nums=\[100\] must be three numbers or more'),
        (dict(classwise=True, iou_thrs=[0.5]), 'classwise=True reads the sixth of iou_thrs as AP75, but got 1: leave out'),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        FastCocoMetric(**options)


def test_recalls_of_proposals_need_no_three_numbers(tmp_path):
    options = dict(metric='proposal_fast', proposal_nums=(100,))
    theirs, ours = (
        figures(kind, dataset([[OBJECT]]), [[(box(30), 3, 0.9)]], tmp_path, **options) for kind in ('CocoMetric', 'FastCocoMetric')
    )
    assert theirs == ours == {'coco/AR@100': pytest.approx(0.8)}


@pytest.mark.parametrize('ids', [[0, 1], [1, 1]])
def test_annotation_ids_that_decide_figures(ids, tmp_path):
    truth = dataset([[OBJECT, OBJECT]])
    for annotation, number in zip(truth['annotations'], ids, strict=True):
        annotation['id'] = number
    with pytest.raises(ValueError, match=r'annotation ids must be distinct and positive, .* renumber them, or use CocoMetric'):
        figures('FastCocoMetric', truth, [[(box(32), 3, 0.9)]], tmp_path)


def test_what_is_not_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"image 2 has a NaN in .*'score': nan}\): use CocoMetric"):
        figures('FastCocoMetric', dataset([[OBJECT]]), [[(box(32), 3, float('nan'))]], tmp_path)


def test_image_ids_that_hotcoco_does_not_take(tmp_path):
    truth = dataset([[OBJECT]])
    truth['images'][0]['id'] = truth['annotations'][0]['image_id'] = 'first'
    with pytest.raises(ValueError, match=r"hotcoco refuses .*integer, got 'first'\): use CocoMetric"):
        figures('FastCocoMetric', truth, [[(box(32), 3, 0.9)]], tmp_path)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'hotcoco', None)
    with pytest.raises(ImportError, match=r"FastCocoMetric needs hotcoco: pip install 'fca_mmdet\[evaluation\]'"):
        FastCocoMetric()

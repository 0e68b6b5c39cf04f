"""Time evaluation, from data samples to COCO's figures: mmdet's ``CocoMetric`` beside ``FastCocoMetric``."""

import io
import os
import tempfile
from contextlib import redirect_stdout
from functools import partial

import numpy as np
import torch
from mmdet.registry import METRICS
from mmengine.fileio import dump
from mmengine.logging import MMLogger
from pycocotools import mask as mask_api

from .timing import in_turns

CORNERS = np.array([[0.3, 0], [0.7, 0], [1, 0.3], [1, 0.7], [0.7, 1], [0.3, 1], [0, 0.7], [0, 0.3]])
"""An octagon's corners in a box of size 1."""
WIDTH, HEIGHT, CLASSES, DETECTIONS = 640, 480, 80, 100


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw boxes within an image, of 8 to 400 pixels: ``[count, 4]``, x, y, width, height."""
    extent = np.minimum(np.exp(rng.uniform(np.log(8), np.log(400), (count, 2))), (WIDTH, HEIGHT))
    return np.concatenate([rng.random((count, 2)) * ((WIDTH, HEIGHT) - extent), extent], 1)


def _octagons(boxes: np.ndarray) -> list[list[float]]:
    return (boxes[:, None, :2] + CORNERS * boxes[:, None, 2:]).reshape(-1, 16).tolist()


def detection_set(images: int) -> tuple[dict, list[dict]]:
    """Draw ground truth with as many objects per image as COCO val has, and detections with masks.

    Objects are octagons; one in a hundred is a crowd. Up to half of an image's detections are objects moved by about 6 % of their size,
    four for each object. The others lie anywhere. Returns the content of a COCO file, and the data samples that a metric takes.
    """
    rng = np.random.default_rng(0)
    objects = round(images * 7.2)  # 36,000 in 5,000 images
    owners, labels, truth = rng.integers(images, size=objects), rng.integers(CLASSES, size=objects), _random_boxes(rng, objects)
    annotations = [
        dict(id=index + 1, image_id=int(owners[index]), category_id=int(labels[index]), bbox=truth[index].tolist(), segmentation=[octagon])
        | dict(area=float(truth[index, 2:].prod() * 0.82), iscrowd=int(index % 100 == 0))
        for index, octagon in enumerate(_octagons(truth))
    ]
    samples = []
    for image in range(images):
        own = np.flatnonzero(owners == image).repeat(4)[: DETECTIONS // 2]
        moved = truth[own] + rng.normal(0, 0.06, (len(own), 4)) * np.tile(truth[own, 2:], 2)
        found = np.concatenate([moved, _random_boxes(rng, DETECTIONS - len(own))])
        instances = dict(
            bboxes=torch.tensor(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)),
            scores=torch.tensor(rng.random(DETECTIONS), dtype=torch.float32),
            labels=torch.tensor(np.concatenate([labels[own], rng.integers(CLASSES, size=DETECTIONS - len(own))])),
            masks=mask_api.frPyObjects(_octagons(found), HEIGHT, WIDTH),
        )
        samples.append(dict(img_id=image, ori_shape=(HEIGHT, WIDTH), pred_instances=instances))
    categories = [dict(id=index, name=str(index)) for index in range(CLASSES)]
    sizes = [dict(id=image, width=WIDTH, height=HEIGHT) for image in range(images)]
    return dict(images=sizes, annotations=annotations, categories=categories), samples


def measure_evaluation(images: int, repeats: int, threads: int) -> list[dict]:
    """Time both metrics on the same detections, first for masks, then for boxes, and compare their figures."""
    os.environ['RAYON_NUM_THREADS'] = str(threads)  # hotcoco reads it when it starts its threads
    MMLogger.get_instance('mmengine', log_level='ERROR')
    truth, samples = detection_set(images)
    classes = tuple(category['name'] for category in truth['categories'])
    print(f'{images} images, {len(truth["annotations"])} objects, {len(classes)} classes, 100 detections an image, {threads} threads')
    found = []
    for kind in ('segm', 'bbox'):
        if kind == 'bbox':  # a metric would write the masks to a file, although it scores boxes only
            for sample in samples:
                del sample['pred_instances']['masks']
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            file = f'{folder}/truth.json'
            dump(truth, file)
            metrics = {name: METRICS.build(dict(type=name, ann_file=file, metric=kind)) for name in ('CocoMetric', 'FastCocoMetric')}
        figures: dict[str, dict] = {}

        def evaluate(name: str, metrics: dict = metrics, figures: dict = figures) -> None:
            metrics[name].dataset_meta = dict(classes=classes)
            with redirect_stdout(io.StringIO()):
                metrics[name].process({}, samples)
                figures[name] = metrics[name].evaluate(len(samples))

        rows = in_turns({name: partial(evaluate, name) for name in metrics}, repeats, torch.device('cpu'), kind)
        equal = figures['CocoMetric'] == figures['FastCocoMetric']
        found.append({'metric': kind, 'images': images, 'threads': threads, 'equal': equal, 'figures': figures, 'rows': rows})
        for name, row in rows.items():
            low, high = row['quartiles']
            print(f'  {kind}  {name:14} {row["median"]:7.2f} s {row["ratio"]:.3f} ({low:.3f} - {high:.3f})', flush=True)
        print(f'  {kind}  the figures are {"equal" if equal else "NOT equal"}: {figures["FastCocoMetric"]}', flush=True)
    return found

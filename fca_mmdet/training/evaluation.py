"""Compute COCO's figures faster: mmdet's ``CocoMetric`` with hotcoco (https://github.com/derekallman/hotcoco)."""

import math
import warnings
from types import FunctionType
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

with warnings.catch_warnings():
    # OneDL's mmdet warns if a library is missing that only one of its own metrics needs.
    warnings.filterwarnings('ignore', 'faster_coco_eval is not installed')
    from mmdet.evaluation.metrics import CocoMetric, coco_metric


class HotCOCOeval(COCOeval):
    """pycocotools' ``COCOeval`` that evaluates and accumulates in hotcoco.

    ``eval`` holds the same ``precision`` and ``scores``, ``[T, R, K, A, M]``, and ``recall``, ``[T, K, A, M]``, bit for bit. There is no
    ``evalImgs``. Parameters that are changed after ``evaluate`` have no effect on the figures.

    Annotation ids must be distinct and positive: pycocotools does not count a match with an object of id 0, but this class does.

    Raises:
        ValueError: a NaN in a box, area or score, or anything that hotcoco refuses, such as ids that are not integers from 0 on.
    """

    def evaluate(self) -> None:
        """Match detections with objects, in pycocotools' order, which decides ties."""
        import hotcoco

        p = self.params
        p.imgIds, p.maxDets = np.unique(p.imgIds).tolist(), sorted(p.maxDets)
        if p.useCats:
            p.catIds = np.unique(p.catIds).tolist()
        try:
            self._hot = hotcoco.COCOeval(hotcoco.COCO(self._content(self.cocoGt)), hotcoco.COCO(self._content(self.cocoDt)), p.iouType)
            for name in ('imgIds', 'catIds', 'iouThrs', 'recThrs', 'maxDets', 'areaRng', 'areaRngLbl'):
                setattr(self._hot.params, name, list(getattr(p, name)))
            self._hot.params.useCats = bool(p.useCats)
            self._hot.evaluate()
        except (TypeError, ValueError) as error:
            raise ValueError(f'hotcoco refuses these annotations or results ({error}): use CocoMetric') from error

    def _content(self, coco: COCO) -> dict:
        p = self.params
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=p.imgIds, catIds=p.catIds))
        if not p.useCats:
            rank = {category: index for index, category in enumerate(p.catIds)}
            annotations.sort(key=lambda annotation: rank[annotation['category_id']])
        for annotation in annotations:
            # One test instead of six: a sum is NaN if one of its terms is.
            if math.isnan(sum(annotation.get('bbox', ()), annotation['area'] + annotation.get('score', 0))):
                found = {key: annotation.get(key) for key in ('bbox', 'area', 'score')}
                raise ValueError(f'image {annotation["image_id"]} has a NaN in {found}')
        return {**coco.dataset, 'annotations': annotations}

    def accumulate(self) -> None:
        """Compute precision, recall and scores over the images."""
        self._hot.accumulate()
        self.eval = self._hot.eval


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` in a fraction of its time, with the same figures.

    Set ``val_evaluator = dict(type='FastCocoMetric')`` in a config that inherits mmdet's; nothing else changes. mmdet's own
    ``compute_metrics`` runs with ``HotCOCOeval`` in place of pycocotools' ``COCOeval``.

    It takes CocoMetric's arguments, except ``use_mp_eval``. ``iou_thrs`` may also be a number or a list.

    Raises:
        ImportError: hotcoco is not installed.
        ValueError: ``use_mp_eval=True``; annotation ids that are 0 or not distinct; fewer than three ``proposal_nums``, or fewer than six
            ``iou_thrs`` with ``classwise=True`` (CocoMetric fails with an IndexError); later, what ``HotCOCOeval`` refuses.

    Example:
        >>> from mmdet.registry import METRICS
        >>> METRICS.build(dict(type='FastCocoMetric', metric=['bbox', 'segm'])).metrics
        ['bbox', 'segm']
    """

    iou_thrs: Any
    # mmdet's function with another COCOeval among its globals, so that CocoMetric in the same process keeps its own.
    compute_metrics = FunctionType(CocoMetric.compute_metrics.__code__, {**vars(coco_metric), 'COCOeval': HotCOCOeval})

    def __init__(self, *args: Any, **coco_metric_kwargs: Any):
        try:
            import hotcoco  # noqa: F401
        except ImportError as error:
            raise ImportError("FastCocoMetric needs hotcoco: pip install 'fca_mmdet[evaluation]'") from error
        super().__init__(*args, **coco_metric_kwargs)
        if self.use_mp_eval:
            raise ValueError('use_mp_eval=True runs pycocotools in several processes: leave it out, or use CocoMetric')
        ids = [annotation['id'] for annotation in self._coco_api.dataset.get('annotations', [])] if self._coco_api else []
        if 0 in ids or len(set(ids)) < len(ids):
            raise ValueError(
                'annotation ids must be distinct and positive, since pycocotools does not count a match with id 0: '
                'renumber them, or use CocoMetric'
            )
        self.iou_thrs = np.atleast_1d(self.iou_thrs)
        if self.metrics == ['proposal_fast']:
            return
        if len(self.proposal_nums) < 3:
            raise ValueError(f'proposal_nums={self.proposal_nums} must be three numbers or more, such as (100, 300, 1000)')
        if self.classwise and len(self.iou_thrs) < 6:
            raise ValueError(f'classwise=True reads the sixth of iou_thrs as AP75, but got {len(self.iou_thrs)}: leave out one of them')

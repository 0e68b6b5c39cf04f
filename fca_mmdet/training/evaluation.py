"""COCO's figures in less time: mmdet's ``CocoMetric`` with the matching and accumulation of hotcoco (https://github.com/derekallman/hotcoco)."""

import math
import warnings
from types import FunctionType
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

with warnings.catch_warnings():
    # OneDL's mmdet warns where a library is missing that only a metric of its own needs.
    warnings.filterwarnings('ignore', 'faster_coco_eval is not installed')
    from mmdet.evaluation.metrics import CocoMetric, coco_metric


class HotCOCOeval(COCOeval):
    """pycocotools' ``COCOeval`` that evaluates and accumulates in hotcoco; parameters and summary are pycocotools'.

    ``eval`` holds the same ``precision`` and ``scores``, ``[T, R, K, A, M]``, and ``recall``, ``[T, K, A, M]``, bit for bit. There is no
    ``evalImgs``, and the figures are for the parameters that ``evaluate`` saw.

    Annotation ids must be distinct and positive: pycocotools takes a match with an object of id 0 for no match, and this class does not.

    Raises:
        ValueError: a box, area or score that is not a number, or what hotcoco refuses, such as ids that are not integers from 0 on.
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
            raise ValueError(f'hotcoco does not take these annotations or results ({error}): use CocoMetric') from error

    def _content(self, coco: COCO) -> dict:
        p = self.params
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=p.imgIds, catIds=p.catIds))
        if not p.useCats:
            rank = {category: index for index, category in enumerate(p.catIds)}
            annotations.sort(key=lambda annotation: rank[annotation['category_id']])
        for annotation in annotations:
            # One test instead of six: a sum is not a number if one of its terms is not.
            if math.isnan(sum(annotation.get('bbox', ()), annotation['area'] + annotation.get('score', 0))):
                found = {key: annotation.get(key) for key in ('bbox', 'area', 'score')}
                raise ValueError(f'image {annotation["image_id"]} has {found}, which are not all numbers')
        return {**coco.dataset, 'annotations': annotations}

    def accumulate(self) -> None:
        """Compute precision, recall and scores over the images."""
        self._hot.accumulate()
        self.eval = self._hot.eval


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` in a fraction of its time, with the same figures.

    Set ``val_evaluator = dict(type='FastCocoMetric')`` in a config that inherits mmdet's; nothing else changes. mmdet's own
    ``compute_metrics`` computes and logs, with ``HotCOCOeval`` for pycocotools' ``COCOeval``.

    It takes CocoMetric's arguments, except ``use_mp_eval``. A number or a list as ``iou_thrs`` works, too.

    Raises:
        ImportError: hotcoco is not installed.
        ValueError: ``use_mp_eval=True``; annotation ids that are 0 or not distinct; fewer than three ``proposal_nums``, or than six
            ``iou_thrs`` with ``classwise=True``, which end CocoMetric with an IndexError; later on, what ``HotCOCOeval`` refuses.

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
            raise ValueError('use_mp_eval=True is pycocotools in several processes: leave it out, or use CocoMetric')
        ids = [annotation['id'] for annotation in self._coco_api.dataset.get('annotations', [])] if self._coco_api else []
        if 0 in ids or len(set(ids)) < len(ids):
            raise ValueError(
                'annotation ids must be distinct and start at 1: pycocotools takes a match with 0 for none; renumber, or use CocoMetric'
            )
        self.iou_thrs = np.atleast_1d(self.iou_thrs)
        if self.metrics == ['proposal_fast']:
            return
        if len(self.proposal_nums) < 3:
            raise ValueError(f'proposal_nums={self.proposal_nums} must be three numbers, of which COCO reports recalls: (100, 300, 1000)')
        if self.classwise and len(self.iou_thrs) < 6:
            raise ValueError(f'classwise=True reads AP75 from the sixth of iou_thrs, which are {len(self.iou_thrs)}: leave one of them out')

"""The data sets of a config, and what they are scored by."""

import contextlib
import io
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from mmdet.datasets import BaseDetDataset, CocoDataset, CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric, LVISMetric
from mmdet.registry import DATASETS, METRICS
from mmengine import fileio
from mmengine.config import Config
from torch import nn

from ..errors import UserError
from . import agreement, annotations, segmentations
from .evaluation import FastCocoMetric
from .images import check_images


class DataChecker:
    """Checks data sets and their evaluators, and reads each annotation file once.

    Args:
        cfg: a detector's config, as it is run.
        model: the config's.
        decode: whether to decode every image.
        note: is told what is looked at.
    """

    def __init__(self, cfg: Config, model: nn.Module, decode: bool, note: Callable[[str], None]):
        self.cfg, self.model, self.decode, self.note = cfg, model, decode, note
        self.contents: dict[str, dict] = {}
        self.loaded: set[str] = set()
        self.learned: list[dict] = []

    def check_split(self, split: str) -> Iterator[str]:
        """Check a split. Yields what there is, and what is odd about it."""
        evaluators = [] if split == 'train' else self.cfg.get(f'{split}_evaluator') or []
        evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
        infos: list[dict] = []
        classes: Sequence[str] = ()
        for config, pipeline in _find_data_sets((self.cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            classes = yield from self._check_data(split, config, pipeline, evaluators, infos)
        for evaluator in evaluators if infos else ():
            yield from self._check_evaluator(split, evaluator, infos, classes)
        files = [info for info in infos if 'identity' in info]
        if split == 'train':
            self.learned = [dict(img_path=info['img_path'], identity=info['identity']) for info in files]
        else:
            yield from agreement.check_apart(files, self.learned)

    def _check_data(
        self, split: str, config: dict, pipeline: Sequence[dict], evaluators: Sequence[dict], infos: list[dict]
    ) -> Generator[str, None, Sequence[str]]:
        """Check a data set and add its images to ``infos``. ``pipeline`` and ``evaluators`` say what is used of it. Returns its classes."""
        kind: Any = DATASETS.get(config['type']) if isinstance(config['type'], str) else config['type']
        if kind is None or not issubclass(kind, BaseDetDataset):
            return ()
        file = os.path.join(config.get('data_root') or '', config.get('ann_file') or '')
        data, content, odd = f'the {split} data, {file},', {}, []
        agreement.check_classes(data, config)
        coco = issubclass(kind, CocoDataset) and kind.COCOAPI is COCO
        if coco:
            content = self._read(file, config.get('backend_args'))
            if kind.load_data_list is CocoDataset.load_data_list and kind.parse_data_info is CocoDataset.parse_data_info:
                odd += [*annotations.check_loaded(file, content), *annotations.check_boxes(file, content)]
            self.loaded.add(os.path.realpath(file))
            kind = type(kind.__name__, (kind,), dict(COCOAPI=staticmethod(lambda path: annotations.index(content))))
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
                dataset: Any = DATASETS.build({**config, 'type': kind, 'pipeline': [], 'serialize_data': False, 'lazy_init': False})
        except Exception as error:
            raise UserError(f'{data} cannot be read by {kind.__name__}: {error!r}') from error
        classes = list(dataset.metainfo.get('classes') or ())
        if coco:
            agreement.check_categories(file, content, classes)
        if classes and not issubclass(kind, CocoPanopticDataset):
            agreement.check_heads(self.cfg, self.model, data, classes)
        found = dataset.data_list
        instances = [instance for info in found for instance in info.get('instances', ())]
        learned = sum(not instance.get('ignore_flag') for instance in instances)
        listed = f' of {len(content.get("annotations", ()))}' if coco else ''
        counts = f'{len(found)} images, {learned}{listed} annotations'
        steps = [str(step.get('type')) for step in pipeline]
        if split == 'train':
            unlabelled = bool(steps) and not any('Annotations' in step and 'Empty' not in step for step in steps)
        else:
            unlabelled = not evaluators or any(evaluator.get('format_only') for evaluator in evaluators)
        if not found or not (learned or unlabelled or 'instances' not in found[0]):
            raise UserError(
                f'{data} has nothing to {"learn from" if split == "train" else "score"}: mmdet takes {counts} of it. It leaves out crowds, '
                f'annotations of other classes than {classes}, boxes outside the image or below a pixel, and in training images without any'
            )
        yield counts
        yield from odd
        if coco and config.get('indices') is None:
            yield from _count_left_out(dataset, content['images'])
        loading = [step for step in pipeline if 'LoadImageFromFile' in str(step.get('type'))]
        if loading and not any(part.get('backend_args') for part in (config, *loading)):
            local = [info for info in found if '://' not in info['img_path']]
            channels = len((self.cfg.model.get('data_preprocessor') or {}).get('mean') or ()) or None
            yield from check_images(split, file, dataset.data_prefix.get('img', ''), local, loading[0], channels, self.decode, self.note)
        masked = [step for step in pipeline if step.get('with_mask')]
        if masked and not unlabelled:
            self.note(f'the masks of {file}')
            poly2mask = all(step.get('poly2mask', True) for step in masked)
            yield from segmentations.check_learned(split, file, content.get('annotations', ()), found, poly2mask)
        infos += found
        return classes

    def _check_evaluator(self, split: str, evaluator: dict, infos: Sequence[dict], classes: Sequence[str]) -> Iterator[str]:
        """Check what an evaluator scores by. Yields what is odd about it."""
        kind: Any = METRICS.get(evaluator['type']) if isinstance(evaluator['type'], str) else evaluator['type']
        if not (isinstance(kind, type) and issubclass(kind, CocoMetric)) or issubclass(kind, LVISMetric):
            return
        try:
            METRICS.build({**evaluator, 'ann_file': None})
        except Exception as error:
            raise UserError(f'the {split} evaluator, {kind.__name__}, cannot be built: {error}') from error
        file = evaluator.get('ann_file')
        if not file:
            return
        content = self._read(file, evaluator.get('backend_args'))
        if os.path.realpath(file) not in self.loaded:
            yield from annotations.check_loaded(file, content)
        agreement.check_categories(file, content, classes)
        yield from agreement.check_evaluated(split, file, content, infos)
        if not evaluator.get('format_only'):
            yield from annotations.check_scored(file, content, issubclass(kind, FastCocoMetric))
            if 'segm' in evaluator.get('metric', ()):
                sizes = {info['img_id']: (info['height'], info['width']) for info in infos}
                segmentations.check_scored(file, content, classes, sizes)

    def _read(self, file: str, backend_args: dict | None) -> dict:
        key = file if '://' in file else os.path.realpath(file)
        if key not in self.contents:
            self.note(file)
            try:
                raw = fileio.get(file, backend_args=backend_args)
            except OSError as error:
                raise UserError(f'the annotation file {file} cannot be read ({error.strerror or error})') from error
            self.contents[key] = annotations.parse(file, raw)
        return self.contents[key]


def _find_data_sets(dataset: dict | None, outer: Sequence[dict] = ()) -> Iterator[tuple[dict, list[dict]]]:
    """Find the data sets within mmdet's wrappers, each with the steps of all pipelines that its images pass through."""
    if dataset is None:
        return
    pipeline = [*(dataset.get('pipeline') or ()), *outer]
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset, pipeline
    for part in inner:
        yield from _find_data_sets(part, pipeline)


def _count_left_out(dataset: Any, images: Sequence[dict]) -> Iterator[str]:
    """Yields how many images the data set leaves out, and why."""
    left, settings = len(images) - len(dataset.data_list), dataset.filter_cfg or {}
    if not left:
        return
    small = sum(min(image['width'], image['height']) < settings.get('min_size', 0) for image in images)
    reasons = [f'{left - small} without objects (filter_empty_gt=True)'] * (left > small)
    reasons += [f'{small} smaller than {settings.get("min_size")} pixels (min_size)'] * (small > 0)
    yield f'{left} of {len(images)} images are left out by filter_cfg: {" and ".join(reasons)}'

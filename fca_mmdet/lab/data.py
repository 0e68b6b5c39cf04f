"""Use a COCO-format folder in place of a config's data."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import UserError
from ..training.annotations import check_loaded, parse


@dataclass(frozen=True)
class Folder:
    """A COCO-format folder: ``annotations/train.json``, ``annotations/val.json`` and ``images/``."""

    path: Path
    classes: list[str]  # in the order of the files
    side: int  # the longest side of the training images, pixels
    masks: bool  # whether there are any in both files


def read_folder(data: Path) -> Folder:
    """Read a COCO-format folder, or raise a ``UserError`` that says what is wrong with its files."""
    classes: dict[str, list[str]] = {}
    side, masks = 0, True
    for split in ('train', 'val'):
        path = data / 'annotations' / f'{split}.json'
        try:
            content = parse(str(path), path.read_bytes())
        except FileNotFoundError as error:
            wanted = 'annotations/train.json, annotations/val.json and images/'
            raise UserError(f'{path} is missing: --data takes a folder with {wanted}') from error
        list(check_loaded(str(path), content))  # what it yields, preflight prints
        # mmdet numbers classes in the file's order, whatever their ids.
        classes[split] = [category['name'] for category in content['categories']]
        images, annotations = content['images'], content.get('annotations', [])
        if not images or not annotations or not classes[split]:
            counts = f'{len(images)} images, {len(annotations)} annotations and {len(classes[split])} categories'
            raise UserError(f'{path} has {counts}: it needs some of each')
        if missing := [image['file_name'] for image in images if not (data / 'images' / image['file_name']).is_file()]:
            raise UserError(f'{len(missing)} of {len(images)} images of {path} are not in {data / "images"}: the first is {missing[0]}')
        if split == 'train':
            side = max(max(image['height'], image['width']) for image in images)
        masks &= any('segmentation' in annotation for annotation in annotations)
    if classes['train'] != classes['val']:
        raise UserError(f'the splits of {data} need the same categories in one order: train has {classes["train"]}, val {classes["val"]}')
    return Folder(data, classes['train'], side, masks)


def adapt_config(cfg: Config, folder: Folder) -> None:
    """Set a config's data and classes to those of a COCO-format folder. Images are shrunk to the config's scale, never enlarged.

    Raises:
        UserError: a loader of the config has not one data set, or the config learns masks, and the folder has none.
    """
    model = list(_find_dicts(cfg.model))
    if any('mask_head' in part for part in model) and not folder.masks:
        raise UserError(f'{folder.path} has boxes but no segmentations, and the config learns masks: add them, or choose a Faster R-CNN')
    for split, name in dict(train='train', val='val', test='val').items():
        file = f'annotations/{name}.json'
        parts = list(_find_dicts(cfg.get(f'{split}_dataloader')))
        sets = [part for part in parts if 'ann_file' in part]
        if len(sets) != 1:
            raise UserError(f'{split}_dataloader has {len(sets)} data sets with an ann_file: --data needs a config with one')
        sets[0].update(data_root=f'{folder.path}/', ann_file=file, data_prefix=dict(img='images/'), metainfo=dict(classes=folder.classes))
        for step in parts:
            step.update({key: _limit(step[key], folder.side) for key in ('scale', 'scales') if step.get(key)})
        for evaluator in _find_dicts(cfg.get(f'{split}_evaluator')):
            if 'ann_file' in evaluator:
                evaluator.ann_file = str(folder.path / file)
    for head in model:
        if 'num_classes' in head:
            head.num_classes = len(folder.classes)


def _find_dicts(value: Any) -> Iterator[Any]:
    """Find all dicts in a part of a config, itself too."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _find_dicts(inner)


def _limit(scale: Any, side: int) -> Any:
    """Limit a scale, or each of several, to ``side``."""
    return type(scale)(_limit(value, side) for value in scale) if isinstance(scale, list | tuple) else min(scale, side)

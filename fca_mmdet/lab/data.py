"""A COCO-format folder in place of a config's data."""

import json
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError


def read_classes(data: Path) -> list[str]:
    """Read the class names of a COCO-format folder: both splits readable, not empty, with the same classes, and all images there."""
    classes: dict[str, list[str]] = {}
    for split in ('train', 'val'):
        path = data / 'annotations' / f'{split}.json'
        try:
            content = json.loads(path.read_text())
            # mmdet numbers classes as the file lists them, whatever their ids.
            classes[split] = [category['name'] for category in content['categories']]
            images, annotations = content['images'], content['annotations']
        except FileNotFoundError as error:
            wanted = 'annotations/train.json, annotations/val.json and images/'
            raise UserError(f'{path} is missing: --data takes a folder with {wanted}') from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} is not a COCO annotation file: {error!r}') from error
        if not images or not annotations or not classes[split]:
            counts = f'{len(images)} images, {len(annotations)} annotations and {len(classes[split])} categories'
            raise UserError(f'{path} has {counts}: it needs some')
        if not any('segmentation' in annotation for annotation in annotations):
            raise UserError(f'{path} has boxes but no segmentations, and a Mask R-CNN learns from masks')
        if missing := [image['file_name'] for image in images if not (data / 'images' / image['file_name']).is_file()]:
            raise UserError(f'{len(missing)} of {len(images)} images of {path} are not in {data / "images"}: the first is {missing[0]}')
    if classes['train'] != classes['val']:
        raise UserError(f'the splits of {data} differ in their categories: train has {classes["train"]}, val has {classes["val"]}')
    return classes['train']


def adapt_config(cfg: Config, data: Path, classes: list[str]) -> None:
    """Give a config the data and classes of a COCO-format folder. Images are shrunk to the config's scale, and never enlarged."""
    images = json.loads((data / 'annotations' / 'train.json').read_text())['images']
    side = max(max(image['height'], image['width']) for image in images)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{data}/'
        loader.dataset.metainfo = dict(classes=classes)
        for step in loader.dataset.pipeline:
            if step.type in ('Resize', 'RandomResize'):
                step.scale = tuple(min(limit, side) for limit in step.scale)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(data / 'annotations' / 'val.json')
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = len(classes)

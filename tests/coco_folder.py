"""A small COCO-format folder in ``data/``, to break and to try: with preflight, and with mmdet and pycocotools themselves."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

from helpers import TINY
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fca_mmdet import UserError
from fca_mmdet.lab.shapes import make_shapes
from fca_mmdet.training.preflight import check

TRAIN, VAL = (f'data/annotations/{split}.json' for split in ('train', 'val'))
COUNTS = ['train: 3 images, 19 of 19 annotations', 'val: 2 images, 14 of 14 annotations', 'test: 2 images, 14 of 14 annotations']
"""What preflight says of the unbroken folder."""

Change = Callable[[dict], object]
"""Changes the content of an annotation file."""


def make(folder: Path) -> None:
    """Three images of 192 x 192 to train on and two to score, 19 and 14 annotations; and the config."""
    make_shapes(folder / 'data', train=3, val=2)
    (folder / 'config.py').write_text(f'_base_ = {str(TINY)!r}\n')


def edit(change: Change, *files: str) -> None:
    """Change annotation files of the working directory."""
    for file in files or (TRAIN, VAL):
        content = json.loads(Path(file).read_text())
        change(content)
        Path(file).write_text(json.dumps(content))


def objects(change: Change, step: int = 1) -> Change:
    """A change of every ``step``-th annotation."""
    return lambda content: [change(annotation) for annotation in content['annotations'][::step]]


def images(change: Change, step: int = 1) -> Change:
    """A change of every ``step``-th entry of an image."""
    return lambda content: [change(image) for image in content['images'][::step]]


def boxes(convert: Callable[..., list]) -> Change:
    """A conversion of all boxes, from (x, y, width, height)."""
    return objects(lambda annotation: annotation.update(bbox=convert(*annotation['bbox'])))


def polygons(draw: Callable[..., list], step: int = 1) -> Change:
    """A segmentation for all annotations, from (x, y, width, height) of their boxes."""
    return objects(lambda annotation: annotation.update(segmentation=draw(*annotation['bbox'])), step)


def corners(x: float, y: float, width: float, height: float) -> list[float]:
    """The polygon of a box."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def paths(split: str) -> list[Path]:
    """The image files of a split."""
    return [Path('data/images', image['file_name']) for image in json.loads(Path(f'data/annotations/{split}.json').read_text())['images']]


def replace_images(convert: Callable[[Path], Path]) -> None:
    """Convert every image file to another, and name that in the annotation files."""
    for split in ('train', 'val'):
        names = [convert(path).name for path in paths(split)]
        edit(
            lambda content, names=names: [image.update(file_name=names.pop(0)) for image in content['images']],
            f'data/annotations/{split}.json',
        )


@cache
def _read_config() -> Config:
    return Config.fromfile(TINY)


def configure(options: dict | None = None) -> Config:
    """The tiny detector's config with options of ``merge_from_dict``."""
    cfg = deepcopy(_read_config())
    cfg.merge_from_dict(options or {})
    return cfg


def look(capsys, options: dict | None = None, decode: bool = False) -> list[str]:
    """What preflight says of the folder, line by line and without the usual counts; what it refuses comes last."""
    capsys.readouterr()
    refused = []
    try:
        check(configure(options), ('train', 'val', 'test'), decode, 'work')
    except UserError as error:
        refused = [str(error)]
    said = [line.removeprefix('preflight: ') for line in capsys.readouterr().out.splitlines() if line.startswith('preflight: ')]
    return [line for line in [*said, *refused] if line not in COUNTS]


def count_learned(options: dict | None = None) -> int:
    """How many objects with masks arrive from mmdet's own data set and pipeline."""
    init_default_scope('mmdet')
    dataset = DATASETS.build(configure(options).train_dataloader.dataset | dict(serialize_data=False))
    return sum(len(dataset[index]['data_samples'].gt_instances) for index in range(len(dataset)))


def score_of_the_truth(truth: Path, kind: str) -> float:
    """pycocotools' AP of perfect predictions: the annotations of an unbroken folder."""
    original = COCO(truth / VAL)
    scored = COCO(VAL)
    ids = dict(zip(original.imgs, scored.imgs, strict=True))
    found = [
        dict(image_id=ids[annotation['image_id']], category_id=annotation['category_id'], score=1.0)
        | (dict(bbox=annotation['bbox']) if kind == 'bbox' else dict(segmentation=annotation['segmentation']))
        for annotation in original.dataset['annotations']
    ]
    evaluation = COCOeval(scored, scored.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]

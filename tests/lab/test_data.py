"""COCO-format folders: what is refused, and what a config takes of one."""

import json
from pathlib import Path

import pytest
from helpers import SMALL
from mmengine.config import Config

from fca_mmdet.errors import UserError
from fca_mmdet.lab.data import adapt_config, read_classes
from fca_mmdet.lab.shapes import CLASSES, make_shapes


def break_file(data: Path, how: str) -> None:
    """Break one thing of a COCO-format folder."""
    path = data / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    if how == 'missing':
        path.unlink()
        return
    if how == 'truncated':
        path.write_text(path.read_text()[:100])
        return
    if how == 'no images':
        content['images'] = []
    elif how == 'no masks':
        for annotation in content['annotations']:
            annotation.pop('segmentation')
    elif how == 'other classes':
        content['categories'][0]['name'] = 'blob'
    elif how == 'no file':
        content['images'][1]['file_name'] = 'gone.png'
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('how', 'message'),
    [
        ('missing', r'val.json is missing: --data takes a folder with annotations/train.json'),
        ('truncated', r'val.json is not a COCO annotation file'),
        ('no images', r'val.json has 0 images, \d+ annotations and 3 categories: it needs some of each'),
        ('no masks', r'has boxes but no segmentations'),
        ('other classes', r"the splits of .* need the same categories in one order: train has .* val \['blob'"),
        ('no file', r'1 of 4 images of .* are not in .*: the first is gone.png'),
    ],
)
def test_a_broken_folder_is_refused(how, message, tmp_path):
    make_shapes(tmp_path / 'data', train=2, val=4)
    break_file(tmp_path / 'data', how)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / 'data')


def test_a_config_takes_the_data_and_classes_of_a_folder(shapes):
    assert read_classes(shapes) == list(CLASSES)
    cfg = Config.fromfile(SMALL)
    (resize,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type in ('Resize', 'RandomResize'))
    resize.scale = (100, 300)
    adapt_config(cfg, shapes, ['disc', 'cross'])
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == f'{shapes}/'
        assert loader.dataset.metainfo.classes == ['disc', 'cross']
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(shapes / 'annotations' / 'val.json')
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    assert resize.scale == (100, 192)  # the images' side, which is not enlarged

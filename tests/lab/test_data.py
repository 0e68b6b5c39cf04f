"""COCO-format folders: what is refused, and what a config takes of one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fca_mmdet.configs import CONFIGS
from fca_mmdet.errors import UserError
from fca_mmdet.lab.data import adapt_config, read_folder
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
    elif how == 'no height':
        content['images'][2].pop('height')
    elif how == 'a list':
        content = [content]
    elif how == 'other classes':
        content['categories'][0]['name'] = 'blob'
    elif how == 'no file':
        content['images'][1]['file_name'] = 'gone.png'
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('how', 'message'),
    [
        ('missing', r'val.json is missing: --data takes a folder with annotations/train.json'),
        ('truncated', r'val.json is cut off or not JSON'),
        ('a list', r'val.json holds a list, and a COCO file an object with images, annotations and categories'),
        ('no height', r"images\[2\] of .*val.json has no 'height' \(1 of 4 are at fault\): write the image's size in pixels"),
        ('no images', r'val.json has 0 images, \d+ annotations and 3 categories: it needs some of each'),
        ('other classes', r"the splits of .* need the same categories in one order: train has .* val \['blob'"),
        ('no file', r'1 of 4 images of .* are not in .*: the first is gone.png'),
    ],
)
def test_a_broken_folder_is_refused(how, message, tmp_path):
    make_shapes(tmp_path / 'data', train=2, val=4)
    break_file(tmp_path / 'data', how)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / 'data')


def adapted(data: Path, text: str) -> Config:
    """A config that is written as ``text``, with the data of a folder."""
    cfg = Config.fromstring(text, '.py')
    adapt_config(cfg, read_folder(data))
    return cfg


def test_a_config_takes_the_data_and_classes_of_a_folder(shapes):
    folder = read_folder(shapes)
    assert folder.classes == list(CLASSES)
    cfg = Config.fromfile(SMALL)
    (resize,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type in ('Resize', 'RandomResize'))
    resize.scale = (100, 300)
    adapt_config(cfg, replace(folder, classes=['disc', 'cross']))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == f'{shapes}/'
        assert loader.dataset.metainfo.classes == ['disc', 'cross']
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(shapes / 'annotations' / 'val.json')
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    assert resize.scale == (100, 192)  # the images' side, which is not enlarged


@pytest.mark.parametrize('name', sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('*_rcnn/*fca-r50*')))
def test_configs_for_coco_read_the_files_of_a_folder(name, shapes):
    """Their own files have other names; some are in a data set within another."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIGS / name)
    adapt_config(cfg, read_folder(shapes))
    for split, count in dict(train=8, val=4, test=4).items():
        dataset = cfg[f'{split}_dataloader'].dataset
        inner = dataset.get('dataset', dataset)
        images = DATASETS.build({**inner, 'pipeline': inner.pipeline[:1]})
        assert len(images) == count
        assert images.metainfo['classes'] == list(CLASSES)
        assert images[0]['img'].shape == (192, 192, 3)
        (resize,) = (step for step in inner.pipeline if 'Resize' in step.type)
        assert {192} == set(np.ravel([*resize.get('scale', ()), *resize.get('scales', ())]).tolist())
        TRANSFORMS.build(resize)
    heads = [cfg.model.roi_head[head] for head in ('bbox_head', 'mask_head') if head in cfg.model.roi_head]
    assert {head.num_classes for head in heads} == {3}


def test_a_list_of_heads_and_of_evaluators(shapes):
    head = 'dict(num_classes=80)'
    loaders = ''.join(f"{split}_dataloader = dict(dataset=dict(ann_file='a', pipeline=[]))\n" for split in ('train', 'val', 'test'))
    text = f"model = dict(roi_head=dict(bbox_head=[{head}, {head}]))\n{loaders}val_evaluator = [dict(ann_file='a'), dict(type='Other')]"
    cfg = adapted(shapes, text)
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [3, 3]
    assert cfg.val_evaluator == [dict(ann_file=f'{shapes}/annotations/val.json'), dict(type='Other')]


def test_boxes_alone_are_refused_where_masks_are_learned(tmp_path):
    make_shapes(tmp_path / 'data', train=2, val=4)
    break_file(tmp_path / 'data', 'no masks')
    folder = read_folder(tmp_path / 'data')
    with pytest.raises(UserError, match=r'data has boxes but no segmentations, and the config learns masks: add them, or choose a Faster'):
        adapt_config(Config.fromfile(SMALL), folder)
    adapt_config(Config.fromfile(CONFIGS / 'faster_rcnn' / 'faster-rcnn_fca-r50_fpn_1x_coco.py'), folder)


@pytest.mark.parametrize(('datasets', 'count'), [("dict(type='VOCDataset')", 0), ("[dict(ann_file='a'), dict(ann_file='b')]", 2)])
def test_loaders_that_a_folder_cannot_replace(datasets, count, shapes):
    with pytest.raises(UserError, match=rf'train_dataloader has {count} data sets with an ann_file: --data needs a config with one'):
        adapted(shapes, f'model = dict()\ntrain_dataloader = dict(dataset=dict(datasets={datasets}))')

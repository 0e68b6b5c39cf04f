"""The textured shapes, as files and as the command makes them."""

import json
import sys

import pytest
from helpers import load_command, read_picture
from pycocotools import mask as coco_mask

from fca_mmdet.lab.shapes import CLASSES, SIZE, make_shapes


def test_shapes_are_the_same_for_the_same_seed_and_masks_do_not_overlap(tmp_path):
    for name, seed in (('one', 3), ('same', 3), ('other', 4)):
        make_shapes(tmp_path / name, train=2, val=1, seed=seed)
    files = [sorted((tmp_path / name).rglob('*.*')) for name in ('one', 'same', 'other')]
    one, same, other = ([path.read_bytes() for path in paths] for paths in files)
    assert one == same != other
    content = json.loads((tmp_path / 'one' / 'annotations' / 'train.json').read_text())
    for image in content['images']:
        masks = [coco_mask.decode(a['segmentation']) for a in content['annotations'] if a['image_id'] == image['id']]
        assert sum(masks).max() == 1


def test_the_command_makes_what_coco_reads_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['make_shapes.py', str(tmp_path / 'out'), '--train', '2', '--val', '1', '--seed', '3'])
    load_command('make_shapes').main()
    contents = {split: json.loads((tmp_path / 'out' / 'annotations' / f'{split}.json').read_text()) for split in ('train', 'val')}
    assert {split: len(content['images']) for split, content in contents.items()} == dict(train=2, val=1)
    for content in contents.values():
        assert [category['name'] for category in content['categories']] == list(CLASSES)
        for image in content['images']:
            picture = read_picture(tmp_path / 'out' / 'images' / image['file_name'])
            assert picture.shape == (image['height'], image['width'], 3) == (SIZE, SIZE, 3)
            assert picture.std() > 20  # shapes on their ground
        for annotation in content['annotations']:
            assert annotation['area'] == coco_mask.area(annotation['segmentation']) > 0
    make_shapes(tmp_path / 'same', train=2, val=1, seed=3)
    for path in (tmp_path / 'same').rglob('*.*'):
        assert path.read_bytes() == (tmp_path / 'out' / path.relative_to(tmp_path / 'same')).read_bytes()
    with pytest.raises(SystemExit):
        load_command('make_shapes').main()
    assert 'out exists: remove it, or name another folder' in capsys.readouterr().err
    assert not (tmp_path / 'out.part').exists()

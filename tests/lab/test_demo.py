"""The main job: interrupted, resumed, finished and asked again."""

import json

import pytest
from helpers import TINY, TOOLS, read_picture, run_python
from mmengine.config import Config

from fca_mmdet.errors import UserError
from fca_mmdet.lab.demo import run_demo
from fca_mmdet.lab.log import read_scalars
from fca_mmdet.lab.shapes import CLASSES

BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_the_job_stops_resumes_finishes_and_says_so(shapes, tmp_path, capsys):
    (tmp_path / 'data').symlink_to(shapes)
    for name, iterations in {'half': 2, 'whole': 4}.items():
        schedule = f'train_cfg = dict(max_iters={iterations}, val_interval={iterations})\n'
        (tmp_path / f'{name}.py').write_text(f'_base_ = {str(TINY)!r}\n{schedule}')
    work = tmp_path / 'work'
    run_python(TOOLS / 'train.py', 'half.py', '--work-dir', work, cwd=tmp_path)
    metrics = run_demo(shapes, work, tmp_path / 'whole.py')
    assert metrics['iterations'] == 4
    assert metrics['train_images'] == 8
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    assert json.loads((work / 'metrics.json').read_text()) == metrics
    assert [entry['step'] for entry in read_scalars(work) if 'loss' in entry] == [1, 2, 3, 4]
    assert [entry['step'] for entry in read_scalars(work) if 'coco/segm_mAP' in entry] == [2, 4]
    assert Config.fromfile(work / 'config.py').model.roi_head.mask_head.num_classes == len(CLASSES)
    said = capsys.readouterr().out
    assert 'training took' in said
    for name in ('config.py', 'iter_4.pth', 'metrics.json', 'predictions.png', 'curves.png', 'bases.png', 'gates.png'):
        assert f'  {work / name}\n' in said
        assert (work / name).is_file()
    # Four images in two rows, 16 bases in two rows, an image beside two summaries of eight blocks' gates.
    assert read_picture(work / 'predictions.png').shape == (888, 1680, 3)
    assert read_picture(work / 'bases.png').shape == (480, 1344, 3)
    assert read_picture(work / 'gates.png').shape == (576, 1920, 3)
    curves = read_picture(work / 'curves.png')
    assert curves.shape == (480, 1320, 3)
    assert {BLUE, ORANGE} <= set(map(tuple, curves.reshape(-1, 3).tolist()))
    assert run_demo(shapes, work, tmp_path / 'whole.py') == metrics
    assert 'already finished' in capsys.readouterr().out


def test_a_config_that_is_not_there_makes_no_shapes(tmp_path):
    with pytest.raises(UserError, match=r'^no config at .*none.py$'):
        run_demo(None, tmp_path / 'work', tmp_path / 'none.py')
    assert not (tmp_path / 'work').exists()

"""The main job: interrupted, resumed, finished and asked again."""

import json

import pytest
from helpers import TINY, TOOLS, read_picture, run_python
from mmengine.config import Config

from fca_mmdet import config_path
from fca_mmdet.errors import UserError
from fca_mmdet.lab import demo
from fca_mmdet.lab.demo import run_demo
from fca_mmdet.lab.log import read_scalars
from fca_mmdet.lab.shapes import CLASSES, make_shapes

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
    assert read_picture(work / 'predictions.png').shape == (696, 1320, 3)
    assert read_picture(work / 'bases.png').shape == (480, 1344, 3)
    assert read_picture(work / 'gates.png').shape == (576, 1920, 3)
    curves = read_picture(work / 'curves.png')
    assert curves.shape == (480, 1320, 3)
    assert {BLUE, ORANGE} <= set(map(tuple, curves.reshape(-1, 3).tolist()))
    assert run_demo(shapes, work, tmp_path / 'whole.py') == metrics
    assert 'already finished' in capsys.readouterr().out


COCO_DETECTOR = """
_base_ = {tiny!r}
model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
files = dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'))
dataset = dict(type='CocoDataset', pipeline={pipeline}, **files)
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler'), dataset=dict(_delete_=True, type='RepeatDataset', times=1, dataset=dataset)
)
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)
param_scheduler = []
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(by_epoch=True))
log_processor = dict(by_epoch=True)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
"""


def test_a_config_for_coco_with_epochs_and_boxes_alone(shapes, tmp_path, capsys):
    pipeline = [dict(step) for step in Config.fromfile(TINY).train_dataloader.dataset.pipeline]
    pipeline[1]['with_mask'] = False
    (tmp_path / 'coco.py').write_text(COCO_DETECTOR.format(tiny=str(TINY), pipeline=pipeline))
    metrics = run_demo(shapes, tmp_path / 'work', tmp_path / 'coco.py')
    assert metrics['iterations'] == 4  # of two images
    assert metrics['checkpoint'] == str(tmp_path / 'work' / 'epoch_1.pth')
    assert metrics['training_minutes'] > 0
    said = capsys.readouterr().out
    assert 'box AP ' in said
    assert 'mask AP' not in said


def test_a_job_that_was_begun_with_other_data_is_not_continued(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'check', lambda cfg: pytest.fail('reached'))
    for name in ('one', 'other'):
        (tmp_path / name).symlink_to(shapes)
    with pytest.raises(pytest.fail.Exception):
        run_demo(tmp_path / 'one', tmp_path / 'work', TINY)
    make_shapes(tmp_path / 'third', train=2, val=2)
    with pytest.raises(UserError, match=r'work was begun with another config or other data: name another --work-dir, or remove it$'):
        run_demo(tmp_path / 'third', tmp_path / 'work', TINY)
    with pytest.raises(pytest.fail.Exception):
        run_demo(tmp_path / 'other', tmp_path / 'work', TINY)  # the same folder by another name


def test_a_config_without_attention_trains_nothing(shapes, tmp_path):
    config = config_path('small/mask-rcnn_r50-thin_fpn_small-heads.py')
    with pytest.raises(UserError, match=r'small-heads.py has no MultiSpectralAttention, which this job draws: use tools/train.py$'):
        run_demo(shapes, tmp_path / 'work', config)
    assert not (tmp_path / 'work').exists()


def test_a_config_that_is_not_there_makes_no_shapes(tmp_path):
    with pytest.raises(UserError, match=r'^no config at .*none.py$'):
        run_demo(None, tmp_path / 'work', tmp_path / 'none.py')
    assert not (tmp_path / 'work').exists()

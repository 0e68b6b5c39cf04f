"""Detectors from a config of this package and a checkpoint that training wrote: as commands open them, and by mmdet's Python interface."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from pycocotools import mask as rle

from fca_mmdet import CheckpointError, FcaResNet, UserError, config_path
from fca_mmdet.detector import build_detector, find_images, load_image, open_detector

PAGE = ROOT / 'docs' / 'downstream.md'
NAME = 'small/mask-rcnn_fca-r18_fpn_small-heads'
ROUTES = {
    'path': lambda: DetInferencer(config_path(NAME), 'checkpoint.pth', device='cpu'),
    'config by name': lambda: DetInferencer(get_config(f'fca_mmdet::{NAME}.py'), 'checkpoint.pth', device='cpu'),
    'weights alone': lambda: DetInferencer(weights='checkpoint.pth', device='cpu'),
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with an image, ``image.jpg``, and a detector trained on it for one iteration, ``checkpoint.pth``."""
    folder = tmp_path_factory.mktemp('trained')
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'image.jpg'), cv2.resize(noise, (128, 96)))
    image = dict(id=0, file_name='image.jpg', height=96, width=128)
    outline = [[20, 20, 80, 20, 80, 70, 20, 70]]
    person = dict(id=0, image_id=0, category_id=1, bbox=[20, 20, 60, 50], area=3000, iscrowd=0, segmentation=outline)
    (folder / 'train.json').write_text(json.dumps(dict(images=[image], annotations=[person], categories=[dict(id=1, name='person')])))
    cfg = Config.fromfile(config_path(NAME))
    data = dict(data_root=str(folder), ann_file='train.json', data_prefix=dict(img=''))
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.update(data)
    cfg.train_cfg.update(max_iters=1)
    cfg.update(work_dir=str(folder), randomness=dict(seed=0), val_cfg=None, val_dataloader=None, val_evaluator=None)
    Runner.from_cfg(cfg).train()
    checkpoint = torch.load(folder / 'iter_1.pth', weights_only=True)
    checkpoint['state_dict']['roi_head.bbox_head.fc_cls.weight'] *= 30  # what one iteration does not reach: decided scores, several classes
    torch.save(checkpoint, folder / 'checkpoint.pth')
    return folder


@pytest.fixture(scope='module')
def expected(trained):
    """What ``inference_detector`` predicts."""
    model = init_detector(config_path(NAME), str(trained / 'checkpoint.pth'), device='cpu')
    assert isinstance(model.backbone, FcaResNet)
    predicted = inference_detector(model, str(trained / 'image.jpg')).pred_instances
    assert len(predicted) >= 10
    assert len(set(predicted.labels.tolist())) > 1
    return predicted


@pytest.fixture(autouse=True)
def work(trained, monkeypatch):
    """In the folder; the default scope afterwards as mmdet's commands leave it."""
    monkeypatch.chdir(trained)
    yield trained
    init_default_scope('mmdet')


def assert_same(prediction: dict, expected) -> None:
    for key in ('labels', 'scores', 'bboxes'):
        assert prediction[key] == expected[key].tolist(), key
    assert np.array_equal(rle.decode(prediction['masks']).transpose(2, 0, 1), expected.masks.numpy())


@pytest.mark.parametrize('route', ROUTES)
def test_the_inferencer_predicts_what_inference_detector_does(route, work, expected):
    there = set(work.rglob('*'))
    inferencer = ROUTES[route]()
    assert isinstance(inferencer.model.backbone, FcaResNet)
    (prediction,) = inferencer('image.jpg')['predictions']
    assert_same(prediction, expected)
    (of_array,) = inferencer(cv2.imread('image.jpg'))['predictions']
    assert_same(of_array, expected)
    assert set(work.rglob('*')) == there  # neither drawn nor written


def test_init_detector_takes_the_config_by_name(expected):
    model = init_detector(get_config(f'fca_mmdet::{NAME}.py'), 'checkpoint.pth', device='cpu')
    assert torch.equal(inference_detector(model, 'image.jpg').pred_instances.scores, expected.scores)


def test_the_page_as_it_stands(work, expected):
    section = PAGE.read_text().split('\n## Python\n')[1].split('\n## ')[0]
    (block,) = re.findall(r'^```python\n(.*?)^```$', section, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(block, str(PAGE), 'exec'), names)
    assert torch.equal(names['instances'].scores, expected.scores)
    assert_same(names['prediction'], expected)
    assert json.loads((work / 'predicted' / 'preds' / 'image.json').read_text()) == names['prediction']
    names['inferencer']('image.jpg', out_dir='plain', draw_pred=False)
    image = cv2.imread('image.jpg').astype(int)
    changed = {folder: np.abs(cv2.imread(f'{folder}/vis/image.jpg') - image).mean() for folder in ('plain', 'predicted')}
    assert changed['predicted'] > 20 > 4 > changed['plain']  # what is written again as JPEG differs a little


def test_what_the_inferencer_does_not_find_is_an_error():
    name = Path(NAME).name
    with pytest.raises(ValueError, match=f'Cannot find model: {name} in mmdet'):
        DetInferencer(name, 'checkpoint.pth', device='cpu')
    with pytest.raises(KeyError, match="'Weights'"):  # the index names no weights, since no detector's are published
        DetInferencer(name, 'checkpoint.pth', device='cpu', scope='fca_mmdet')


@pytest.fixture
def as_before(monkeypatch):
    """What ``open_detector`` changes in a process, as it was."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))


@torch.no_grad()
def test_an_opened_detector_predicts_what_inference_detector_does(expected, as_before):
    detector = open_detector(Path(config_path(NAME)), Path('checkpoint.pth'))
    assert not detector.training
    batch = load_image(detector, Path('image.jpg'))
    assert [value.shape[0] for value in batch['inputs']] == [3]
    (sample,) = detector.test_step(batch)
    assert sample.img_path == 'image.jpg'
    assert torch.equal(sample.pred_instances.scores, expected.scores)
    assert torch.equal(sample.pred_instances.masks, expected.masks)


def test_what_cannot_be_opened(work, as_before, hostile):
    (work / 'empty.py').write_text('')
    for config, checkpoint, message in (
        ('none.py', 'checkpoint.pth', '^no config at none.py$'),
        ('empty.py', 'checkpoint.pth', '^empty.py configures no model$'),
        (config_path(NAME), 'none.pth', '^there is no checkpoint none.pth$'),
    ):
        with pytest.raises(UserError, match=message):
            open_detector(Path(config), Path(checkpoint))
    with pytest.raises(CheckpointError, match='holds more than data'):
        open_detector(Path(config_path(NAME)), hostile)
    assert not (hostile.parent / 'executed').exists()


def test_a_built_detector_reads_no_checkpoint():
    """Also where its config says so."""
    cfg = Config.fromfile(config_path(NAME))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='none.pth')
    detector = build_detector(cfg)
    detector.init_weights()
    assert isinstance(detector.backbone, FcaResNet)
    assert cfg.model.backbone.init_cfg.checkpoint == 'none.pth'  # the config stays


def test_images_of_a_folder_are_found_by_name(tmp_path):
    for name in ('c.PNG', 'a.jpeg', 'b.tif', 'notes.txt', 'd.bmp'):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path, 3)] == ['a.jpeg', 'b.tif', 'c.PNG']
    assert len(find_images(tmp_path, 9)) == 4
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'^there is no image \(.png, .*\) in .*empty$'):
        find_images(tmp_path / 'empty', 3)

"""Configs that do not agree with their data, and checkpoints that do not agree with their config."""

from pathlib import Path

import mmdet
import pytest
import torch
from coco_folder import TRAIN, VAL, configure, edit, images, look
from helpers import says
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

from fca_mmdet import UserError
from fca_mmdet.lab.shapes import CLASSES
from fca_mmdet.training.agreement import build_on_meta, check_heads

DATA = f'the train data, {TRAIN},'
HEADS = [f'model.roi_head.{head}_head.num_classes' for head in ('bbox', 'mask')]
NAMES = ', '.join(CLASSES)


def for_all(key: str, value: object) -> dict:
    return {f'{split}_dataloader.dataset.{key}': value for split in ('train', 'val', 'test')}


@pytest.mark.parametrize('number', [1, 2, 4, 80])
def test_three_classes(number, folder, capsys):
    said = f'{HEADS[0]}={number}, {HEADS[1]}={number}, and metainfo.classes of {DATA} are 3 ({NAMES}): set each num_classes to 3, or the '
    assert look(capsys, dict.fromkeys(HEADS, number)) == [f'{said}classes to those of the heads']


def test_one_head_of_two(folder, capsys):
    assert look(capsys, {HEADS[1]: 80})[0].startswith(f'{HEADS[1]}=80, and metainfo.classes of {DATA} are 3 ({NAMES}): ')


def read(name: str) -> Config:
    return Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{name}.py')


DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': ['roi_head.bbox_head.num_classes'],
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': ['roi_head.bbox_head.num_classes', 'roi_head.mask_head.num_classes'],
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': [
        *(f'roi_head.bbox_head[{stage}].num_classes' for stage in range(3)),
        'roi_head.mask_head.num_classes',
    ],
    'htc/htc_r50_fpn_1x_coco': [f'roi_head.{head}_head[{stage}].num_classes' for head in ('bbox', 'mask') for stage in range(3)],
    'retinanet/retinanet_r50_fpn_1x_coco': ['bbox_head.num_classes'],
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': ['bbox_head.num_classes'],
    'ssd/ssd300_coco': ['bbox_head.num_classes'],
    'yolox/yolox_s_8xb8-300e_coco': ['bbox_head.num_classes'],
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco': ['bbox_head.num_classes'],
    'solov2/solov2_r50_fpn_1x_coco': ['mask_head.num_classes'],
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': ['bbox_head.num_classes'],
    'dino/dino-4scale_r50_8xb2-12e_coco': ['bbox_head.num_classes'],
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': [
        'panoptic_head.num_things_classes',
        'len(panoptic_head.loss_cls.class_weight)',
        'panoptic_fusion_head.num_things_classes',
    ],
}


@pytest.mark.parametrize('name', DETECTORS)
def test_heads_of_mmdets_detectors(name):
    """mmdet's configs are for the 80 classes of COCO, and build as they are."""
    cfg = read(name)
    init_default_scope('mmdet')
    before = cfg.pretty_text
    model = build_on_meta(cfg)
    assert cfg.pretty_text == before
    check_heads(cfg, model, 'the data', [str(number) for number in range(80)])
    with pytest.raises(UserError) as refused:
        check_heads(cfg, model, 'the data', ['cat', 'dog', 'cow'])
    given, _, rest = str(refused.value).partition(', and metainfo.classes of the data are ')
    assert given.split(', ') == [
        place.replace('len(', 'len(model.') + '=81' if place.startswith('len') else f'model.{place}=80' for place in DETECTORS[name]
    ]
    assert rest.startswith('3 (cat, dog, cow): ')


def test_a_proposal_network_knows_no_classes():
    cfg = read('rpn/rpn_r50_fpn_1x_coco')
    init_default_scope('mmdet')
    check_heads(cfg, build_on_meta(cfg), 'the data', ['cat', 'dog', 'cow'])


def test_building_leaves_random_numbers_as_they_are():
    cfg = configure()
    init_default_scope('mmdet')
    before = torch.get_rng_state()
    assert {value.device.type for value in build_on_meta(cfg).state_dict().values()} == {'meta'}
    assert torch.equal(torch.get_rng_state(), before)


METAINFO = {
    'a text': (dict(classes='cross'), "metainfo.classes='cross' of {} is a text, of which each letter would be a class: write ('cross',)"),
    'CLASSES': (dict(CLASSES=('cross',)), 'metainfo.CLASSES of {} is not read by mmdet 3: write metainfo=dict(classes=...)'),
    'a slip': (dict(clases=('cross',)), 'metainfo.clases of {} is not read by mmdet 3: write metainfo=dict(classes=...)'),
}


@pytest.mark.parametrize('case', METAINFO)
def test_classes_that_mmdet_does_not_read(case, folder, capsys):
    metainfo, expected = METAINFO[case]
    assert look(capsys, for_all('metainfo', dict(_delete_=True, **metainfo))) == [expected.format(DATA)]


def test_classes_as_in_mmdet_2(folder, capsys):
    assert look(capsys, for_all('classes', tuple(CLASSES))) == [
        f'classes of {DATA} is not read by mmdet 3: write metainfo=dict(classes=...)'
    ]


def test_classes_in_a_file(folder, capsys):
    Path('classes.txt').write_text('\n'.join(CLASSES))
    assert look(capsys, for_all('metainfo', dict(classes='classes.txt'))) == []


def test_an_evaluator_with_another_file(folder, capsys):
    edit(images(lambda image: image.update(id=image['id'] + 100)), VAL)
    edit(lambda content: [annotation.update(image_id=annotation['image_id'] + 100) for annotation in content['annotations']], VAL)
    said = f'2 of 2 images of the val data are not in {TRAIN}, by which the evaluator scores, such as that with the id 10...'
    assert says(look(capsys, {'val_evaluator.ann_file': TRAIN})[-1], f'{said}: give both the same ann_file')


def test_images_that_are_scored_and_not_predicted_are_told(folder, capsys):
    said = look(capsys, {'val_dataloader.dataset.indices': 1, 'test_dataloader.dataset.indices': [1]})
    for split in ('val', 'test'):
        told = f'{split}: 1 of 2 images of {VAL} are scored and not predicted: their objects count as missed'
        assert told in said


def test_two_data_sets_scored_by_one_file(folder, capsys):
    parts = [dict(configure().val_dataloader.dataset, indices=[index]) for index in (0, 1)]
    options = {'val_dataloader.dataset': dict(_delete_=True, type='ConcatDataset', datasets=parts)}
    assert not [line for line in look(capsys, options) if 'predicted' in line]


@pytest.mark.parametrize('metric', ['mask', 'bboxes'])
def test_an_evaluator_that_cannot_be_built(metric, folder, capsys):
    said = look(capsys, {'val_evaluator.metric': metric})[-1]
    assert says(said, f"the val evaluator, CocoMetric, cannot be built: ...metric should be one of 'bbox', 'segm', ... but got {metric}...")


# Images that are left out.


def test_images_that_a_filter_leaves_out_are_told(folder, capsys):
    edit(lambda content: content.update(annotations=[each for each in content['annotations'] if each['image_id'] != 1]), TRAIN)
    edit(images(lambda image: image.update(width=20), 2), TRAIN)
    options = {
        'train_dataloader.dataset.filter_cfg': dict(filter_empty_gt=True, min_size=32),
        'train_dataloader.dataset.pipeline.1.with_mask': False,
    }
    edit(images(lambda image: image.update(width=192), 3), TRAIN)
    said = [line for line in look(capsys, options) if 'left out' in line]
    assert said == [
        'train: 2 of 3 images are left out by filter_cfg: 1 without objects (filter_empty_gt=True) and 1 smaller than 32 pixels (min_size)'
    ]
    assert not [line for line in look(capsys, {'train_dataloader.dataset.filter_cfg': None}) if 'left out' in line]


# Schedules.


def checkpoint(cfg: Config, path: Path, epoch: int = 0, iteration: int = 2, length: int = 1) -> None:
    """What mmengine saves of a training's schedules."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    limit = dict(end=cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters)
    schedules = [
        PARAM_SCHEDULERS.build(limit | each, default_args=dict(optimizer=optimizer, epoch_length=length)) for each in cfg.param_scheduler
    ]
    states = [each.state_dict() for each in schedules]
    torch.save(dict(meta=dict(epoch=epoch, iter=iteration), param_schedulers=states, optimizer=optimizer.state_dict()), path)


RESUMED = (
    "train: {} is resumed with its own schedule, whatever the config says: {}. For the config's, start from its weights: load_from, "
    'without --resume'
)


@pytest.mark.parametrize('named', [True, False])
def test_a_checkpoint_with_another_schedule(named, folder, capsys):
    cfg = configure()
    checkpoint(cfg, Path('old.pth'))
    resume = dict(resume=True, load_from='old.pth') if named else dict(resume=True)
    if not named:
        Path('work').mkdir()
        Path('work/last_checkpoint').write_text('old.pth')
    assert look(capsys, resume) == []
    later = [dict(each) for each in cfg.param_scheduler]
    later[1].update(end=1600, eta_min=1e-3)
    fault = (
        'end=800 of CosineAnnealingLR, not 1600; T_max=750 of CosineAnnealingLR, not 1550; eta_min=1e-05 of CosineAnnealingLR, not 0.001'
    )
    (said,) = look(capsys, resume | dict(param_scheduler=later))
    assert sorted(said) == sorted(RESUMED.format('old.pth', fault))
    assert look(capsys, dict(param_scheduler=later)) == []
    assert look(capsys, resume | dict(param_scheduler=later[:1])) == [RESUMED.format('old.pth', '2 schedules, not 1')]


@pytest.mark.parametrize('converted', [False, True])
def test_a_longer_training_of_the_same_schedule(converted, folder, capsys):
    """Without an end of its own, a schedule ends with the training."""
    schedule = [dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True, convert_to_iter_based=converted)]
    loop = {
        'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=12),
        'param_scheduler': schedule,
        'default_hooks.checkpoint.by_epoch': True,
    }
    checkpoint(configure(loop), Path('old.pth'), epoch=2, iteration=14, length=7)
    resume = loop | dict(resume=True, load_from='old.pth')
    assert look(capsys, resume) == []
    longer = resume | {'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=24)}
    ends = (84, 168) if converted else (12, 24)
    assert look(capsys, longer) == [RESUMED.format('old.pth', 'end={} of MultiStepLR, not {}'.format(*ends))]


def test_another_learning_rate(folder, capsys):
    cfg = configure()
    checkpoint(cfg, Path('old.pth'))
    resume = {'resume': True, 'load_from': 'old.pth', 'optim_wrapper.optimizer.lr': 0.5}
    assert look(capsys, resume) == [RESUMED.format('old.pth', f'lr={cfg.optim_wrapper.optimizer.lr}, not 0.5')]
    assert look(capsys, resume | {'auto_scale_lr.enable': True}) == []


@pytest.mark.parametrize('content', [b'', b'no checkpoint'])
def test_a_checkpoint_that_cannot_be_read_is_left_to_mmengine(content, folder, capsys):
    Path('old.pth').write_bytes(content)
    assert look(capsys, dict(resume=True, load_from='old.pth')) == []
    assert look(capsys, dict(resume=True, load_from='none.pth')) == []

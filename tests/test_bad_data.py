"""Commands on data, files and disks that are not as they should be: a clear error before any training time is spent, or they work.

``DATA`` and ``FILES`` are rows of docs/faults/bad_input.md, with test_bad_input.py's: what a command says at its end, run in a folder with
``config.py``, ``data/``, ``weights.pth``, ``image.png``, and others of the names that the commands below have.
"""

import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import companions
import complexity
import convert_checkpoint
import cv2
import demo
import export_detector
import export_onnx
import mmcv
import numpy as np
import preflight
import pytest
import spectrum
import torch
import visualize
from make_shapes import CLASSES, make_shapes
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from test_bad_input import says
from upstream import run_upstream

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
SMALL = ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'
NAMES = list(CLASSES)

# A Mask R-CNN on images of 96 pixels, two iterations.
CONFIG = f"""
_base_ = {str(SMALL)!r}
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes={len(NAMES)}),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32, num_classes={len(NAMES)}),
    ),
    test_cfg=dict(rpn=dict(max_per_img=20)),
)
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
data = dict(data_root='data/', metainfo=dict(classes={NAMES}))
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=[*load, dict(type='PackDetInputs')], **data)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=[*load, dict(type='PackDetInputs', meta_keys=keys)], **data)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""

Break = Callable[[dict, str], object]
"""Breaks the annotations or the images of a split, in a folder of its own."""


def annotations(change: Callable[[dict], object], step: int = 1) -> Break:
    """Of every ``step``-th training annotation."""
    return lambda content, split: split == 'train' and [change(annotation) for annotation in content['annotations'][::step]]


def emptied(which: str, *keys: str) -> Break:
    return lambda content, split: split == which and content.update({key: [] for key in keys})


def first_image(change: Callable[[Path], object], which: str = 'train') -> Break:
    return lambda content, split: split == which and change(Path('data', 'images', content['images'][0]['file_name']))


def every_image(convert: Callable[[np.ndarray], np.ndarray]) -> Break:
    def convert_all(content: dict, split: str):
        for path in (f'data/images/{image["file_name"]}' for image in content['images']):
            cv2.imwrite(path, convert(cv2.imread(path)))

    return convert_all


def category_ids(*ids: int) -> Break:
    def renumber(content: dict, split: str):
        for category in content['categories']:
            category['id'] = ids[category['id'] - 1]
        for annotation in content['annotations']:
            annotation['category_id'] = ids[annotation['category_id'] - 1]

    return renumber


def moved_out(content: dict, split: str):
    image = content['images'][0]
    shutil.move(f'data/images/{image["file_name"]}', f'data/{split}.png')
    image['file_name'] = f'../{split}.png'


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def as_jpeg(path: Path) -> bytes:
    return cv2.imencode('.jpg', cv2.imread(str(path)))[1].tobytes()


EMPTY_MASK = dict(segmentation=dict(size=[192, 192], counts=[192 * 192]))
BREAKS: dict[str, Break] = {
    'no images': emptied('train', 'images', 'annotations'),
    'no annotations': emptied('train', 'annotations'),
    'no images to score': emptied('val', 'images', 'annotations'),
    'no annotations to score': emptied('val', 'annotations'),
    'no categories': lambda content, split: content.pop('categories'),
    'crowds alone': annotations(lambda annotation: annotation.update(iscrowd=1)),
    'boxes without area alone': annotations(lambda annotation: annotation.update(bbox=[9, 9, 0, 9])),
    'every second box without area': annotations(lambda annotation: annotation.update(bbox=[9, 9, 0, 9]), 2),
    'every second box not a number': annotations(lambda annotation: annotation.update(bbox=[float('nan')] * 4), 2),
    'every second box outside the image': annotations(lambda annotation: annotation.update(bbox=[500, 500, 9, 9]), 2),
    'every second annotation of no category': annotations(lambda annotation: annotation.update(category_id=77), 2),
    'no segmentations': annotations(lambda annotation: annotation.update(segmentation=[])),
    'every second segmentation missing': annotations(lambda annotation: annotation.pop('segmentation'), 2),
    'empty masks alone': annotations(lambda annotation: annotation.update(EMPTY_MASK)),
    'every second mask empty': annotations(lambda annotation: annotation.update(EMPTY_MASK), 2),
    'category ids with gaps': category_ids(3, 17, 90),
    'category ids not ascending': category_ids(90, 3, 17),
    'categories not in the order of the classes': lambda content, split: content['categories'].reverse(),
    'categories of the splits in two orders': lambda content, split: split == 'val' and content['categories'].reverse(),
    'an image missing': first_image(Path.unlink),
    'an image to score missing': first_image(Path.unlink, 'val'),
    'an image without a byte': first_image(lambda path: path.write_bytes(b'')),
    'an image that is a text': first_image(lambda path: path.write_text('<html>404</html>')),
    'an image cut off': first_image(lambda path: path.write_bytes(path.read_bytes()[:-500])),
    'a JPEG image cut off': first_image(lambda path: path.write_bytes(as_jpeg(path)[:-500])),
    'images of another size than annotated': lambda content, split: content['images'][0].update(width=180, height=170),
    'images outside the folder': moved_out,
    'grayscale images': every_image(gray),
    '16-bit images': every_image(lambda image: image.astype(np.uint16) * 257),
    '16-bit grayscale images': every_image(lambda image: gray(image).astype(np.uint16) * 257),
    'images with an alpha channel': every_image(lambda image: np.dstack([image, image[..., 0]])),
}

TRAIN, VAL = 'the train data, data/annotations/train.json,', 'the val data, data/annotations/val.json,'
LEFT_OUT = (
    f'It leaves out crowds, annotations of other classes than {NAMES}, boxes outside the image or below a pixel, and in training images '
    'without any'
)
ORDER = (
    f'lists the categories {NAMES[::-1]}, and the config the classes {NAMES}: mmdet numbers classes as the file lists them, so labels '
    'would stand for others. Give metainfo.classes in the order of the file, and all files the same categories'
)
UNDECODED = f'preflight: 1 of 3 images of {TRAIN} cannot be decoded: the first is data/images/train_0000.png'


def nothing(data: str, images: int, annotations: int) -> str:
    use = 'learn from' if data == TRAIN else 'score'
    return f'preflight: {data} has nothing to {use}: mmdet takes {images} images, 0 of {annotations} annotations of it. {LEFT_OUT}'


DATA = {
    'no images': nothing(TRAIN, 0, 0),
    'no annotations': nothing(TRAIN, 0, 0),
    'no images to score': nothing(VAL, 0, 0),
    'no annotations to score': nothing(VAL, 2, 0),
    'no categories': f"preflight: {TRAIN} cannot be read by CocoDataset: KeyError('categories')",
    'crowds alone': nothing(TRAIN, 3, 19),
    'boxes without area alone': nothing(TRAIN, 3, 19),
    'every second box without area': 'works without them: 3 images, 9 of 19 annotations',
    'every second box not a number': 'works without them: 3 images, 9 of 19 annotations',
    'every second box outside the image': 'works without them: 3 images, 9 of 19 annotations',
    'every second annotation of no category': 'works without them: 3 images, 9 of 19 annotations',
    'no segmentations': f'preflight: 19 of 19 annotations of {TRAIN} have no segmentation, and masks are used',
    'every second segmentation missing': f'preflight: 10 of 19 annotations of {TRAIN} have no segmentation, and masks are used',
    'empty masks alone': f'preflight: all 19 masks of {TRAIN} are empty',
    'every second mask empty': 'works, and says so: 10 of 19 masks are empty',
    'category ids with gaps': 'works',
    'category ids not ascending': 'works',
    'categories not in the order of the classes': f'preflight: data/annotations/train.json {ORDER}',
    'categories of the splits in two orders': f'preflight: data/annotations/val.json {ORDER}',
    'an image missing': f'preflight: 1 of 3 images of {TRAIN} are missing: the first is data/images/train_0000.png',
    'an image to score missing': f'preflight: 1 of 2 images of {VAL} are missing: the first is data/images/val_0000.png',
    'an image without a byte': UNDECODED,
    'an image that is a text': UNDECODED,
    'an image cut off': UNDECODED,
    'a JPEG image cut off': UNDECODED,
    'images of another size than annotated': 'works, and says so: 1 of 3 images have another size than data/annotations/train.json says',
    'images outside the folder': 'works: they are read where they are',
    'grayscale images': 'works: three equal channels',
    '16-bit images': 'works: the upper 8 bits',
    '16-bit grayscale images': 'works: the upper 8 bits, three equal channels',
    'images with an alpha channel': 'works without it',
}
"""What ``preflight.py config.py`` says, and with it ``train.py``, ``test.py`` and ``demo.py`` before they begin."""

SPACE = 'No space left on device'
READ_ONLY = 'Read-only file system'
WITHOUT_MODEL = "AttributeError: 'ConfigDict' object has no attribute 'model'"
FILES = {
    (case, command): said
    for case, rows in {
        'no such config': {
            'train.py none.py': 'FileNotFoundError: ...none.py...',
            'test.py none.py weights.pth': 'FileNotFoundError: ...none.py...',
            'demo.py --config none.py': 'demo.py: error: no config at none.py',
            'complexity.py none.py': 'complexity.py: error: no config at none.py',
            'preflight.py none.py': 'preflight.py: error: no config at none.py',
            'export_onnx.py none.py --out a.onnx': 'export_onnx.py: error: no config at none.py',
            'export_detector.py none.py weights.pth --out a.onnx --images data/images': 'export_detector.py: error: no config at none.py',
            'visualize.py none.py weights.pth image.png --out a.png': 'visualize.py: error: there is no none.py',
        },
        'a config without a model': {
            'train.py empty.py': 'KeyError: model',
            'complexity.py empty.py': 'complexity.py: error: no model in empty.py',
            'preflight.py empty.py': 'preflight: ...empty.py configures no model',
            'export_onnx.py empty.py --out a.onnx': WITHOUT_MODEL,
            'visualize.py empty.py weights.pth image.png --out a.png': WITHOUT_MODEL,
        },
        'a wrong key': {
            'train.py config.py --cfg-options model.backbone.dpeth=50': (
                "TypeError: ...ResNet.__init__() got an unexpected keyword argument 'dpeth'"
            ),
            'train.py config.py --cfg-options model.backbone.type=FcaResnet': (
                'KeyError: FcaResnet is not in the mmdet::model registry. Please check whether the value of `FcaResnet` is correct...'
            ),
        },
        'a wrong value': {
            'train.py config.py --cfg-options model.backbone.frequencies=top3': (
                'ValueError: ...unknown frequency set \'top3\': use top, low or bot followed by 1, 2, 4, 8, 16, 32 (such as "top16"), or a '
                'sequence of (u, v) pairs'
            ),
        },
        'no such checkpoint': {
            'train.py config.py --cfg-options load_from=none.pth': 'FileNotFoundError: there is no checkpoint none.pth',
            'train.py config.py --resume none.pth': 'FileNotFoundError: there is no checkpoint none.pth',
            'train.py pretrained.py --cfg-options model.backbone.init_cfg.checkpoint=none.pth': (
                'FileNotFoundError: there is no checkpoint none.pth'
            ),
            'test.py config.py none.pth': 'FileNotFoundError: there is no checkpoint none.pth',
            'convert_checkpoint.py none.pth --to ours --dry-run': 'convert_checkpoint: there is no checkpoint none.pth',
            'export_onnx.py config.py none.pth --out a.onnx': 'export_onnx: there is no checkpoint none.pth',
            'export_detector.py config.py none.pth --out a.onnx --images data/images': 'export_detector: there is no checkpoint none.pth',
            'visualize.py config.py none.pth image.png --out a.png': 'visualize: there is no checkpoint none.pth',
        },
        'a checkpoint that is an image': {
            'test.py config.py image.png': (
                'CheckpointError: image.png is truncated or no checkpoint of torch.save (UnpicklingError): fetch it again'
            ),
            'convert_checkpoint.py image.png --to ours --dry-run': (
                'convert_checkpoint: image.png is truncated or no checkpoint of torch.save (UnpicklingError): fetch it again'
            ),
        },
        'no such data': {
            'demo.py --data none --work-dir work': (
                '...none/annotations/train.json is missing: --data takes a folder with annotations/train.json, annotations/val.json '
                'and images/'
            ),
        },
        'no such image': {
            'visualize.py config.py weights.pth none.png --out a.png': 'visualize.py: error: there is no none.png',
        },
        'an image that is a text': {
            'visualize.py config.py weights.pth config.py --out a.png': 'visualize.py: error: config.py cannot be decoded',
        },
        'a work directory below a file': {
            'preflight.py config.py --work-dir image.png/below': (
                'preflight: the work directory image.png/below cannot be written to (Not a directory): name another with --work-dir'
            ),
            'demo.py --data data --work-dir image.png/below': "demo: [Errno 20] Not a directory: '...image.png/below'",
        },
        'a read-only disk': {
            'preflight.py config.py --work-dir read-only': (
                f'preflight: the work directory read-only cannot be written to ({READ_ONLY}): name another with --work-dir'
            ),
            'demo.py --work-dir read-only': f"demo: [Errno 30] {READ_ONLY}: 'read-only/shapes.part'",
            'convert_checkpoint.py weights.pth --to published --out read-only/a.pth': (
                f'convert_checkpoint: read-only/a.pth cannot be written ({READ_ONLY}): name another file with --out'
            ),
            **{
                f'{command} --out read-only/a': f'preflight: read-only/a cannot be written ({READ_ONLY}): name another file with --out'
                for command in ('complexity.py', 'export_onnx.py config.py weights.pth', 'visualize.py config.py weights.pth image.png')
            },
        },
        'a full disk': {
            'preflight.py config.py --work-dir full': (
                'preflight: 0.5 MiB are free in full, and 2 checkpoints of ... MiB are to be kept there: free some, keep fewer '
                '(default_hooks.checkpoint.max_keep_ckpts), or name another place with --work-dir'
            ),
            'demo.py --work-dir full': f'demo: [Errno 28] {SPACE}',
            'convert_checkpoint.py weights.pth --to published --out full/a.pth': (
                f'convert_checkpoint: full/a.pth cannot be written ({SPACE}): name another file with --out'
            ),
            'visualize.py config.py weights.pth image.png --out full/a.png': f'OSError: [Errno 28] {SPACE}',
        },
    }.items()
    for command, said in rows.items()
}
"""What is said; ``...`` is what depends on the stack or the folder."""

MAINS = {
    'train.py': lambda: run_upstream('train.py'),
    'test.py': lambda: run_upstream('test.py'),
    **{
        f'{tool.__name__}.py': tool.main
        for tool in (companions, complexity, convert_checkpoint, demo, export_detector, export_onnx, preflight, spectrum, visualize)
    },
}


def ending(command: str, capsys) -> str:
    """What a command says at its end, run in this process: a process of its own takes seconds to import torch and mmdet."""
    capsys.readouterr()
    program, *arguments = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [program, *arguments])
        patch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        for name, value in {'TORCH_FORCE_WEIGHTS_ONLY_LOAD': '0', 'LOCAL_RANK': '0'}.items():
            patch.setenv(name, value)
        try:
            MAINS[program]()
        except SystemExit as end:
            if end.code:
                return end.code if isinstance(end.code, str) else capsys.readouterr().err.strip().splitlines()[-1]
        except Exception as error:
            return f'{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}'
    return 'works'


@pytest.fixture(scope='module')
def origin(tmp_path_factory) -> Path:
    """Three images to train on and two to score, 19 and 14 annotations; and the config."""
    folder = tmp_path_factory.mktemp('origin')
    make_shapes(folder / 'data', train=3, val=2)
    (folder / 'config.py').write_text(CONFIG)
    return folder


@pytest.fixture
def folder(origin, tmp_path, monkeypatch) -> Path:
    """A copy to break, and to be in."""
    shutil.copytree(origin, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'here'


def break_data(case: str) -> None:
    for split in ('train', 'val'):
        path = Path('data', 'annotations', f'{split}.json')
        content = json.loads(path.read_text())
        BREAKS[case](content, split)
        path.write_text(json.dumps(content))


@pytest.mark.parametrize('case', DATA)
def test_data(case, folder, capsys):
    break_data(case)
    said = ending('preflight.py config.py', capsys)
    if DATA[case].startswith('works'):
        assert said == 'works'
        assert DATA[case].rpartition(': ')[2] in capsys.readouterr().out or not DATA[case].endswith(('annotations', 'empty', 'says'))
    else:
        assert said == DATA[case]


def test_every_break_is_a_row():
    assert list(BREAKS) == list(DATA)


def score_of_the_truth() -> float:
    """COCO AP of the annotations themselves as predictions, by mmdet's data set and metric."""
    cfg = Config.fromfile('config.py')
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.train_dataloader.dataset | dict(ann_file='annotations/val.json', pipeline=[]))
    # The labels are those of the training file.
    training = DATASETS.build(cfg.train_dataloader.dataset | dict(pipeline=[]))
    metric = METRICS.build(cfg.val_evaluator | dict(metric='bbox'))
    metric.dataset_meta = training.metainfo
    names = {category['id']: category['name'] for category in json.loads(Path('data/annotations/val.json').read_text())['categories']}
    label = {names[identity]: index for index, identity in enumerate(training.cat_ids)}
    for info in dataset:
        boxes = np.array([instance['bbox'] for instance in info['instances']], np.float32)
        labels = [label[names[dataset.cat_ids[instance['bbox_label']]]] for instance in info['instances']]
        predicted = dict(bboxes=torch.from_numpy(boxes), scores=torch.ones(len(boxes)), labels=torch.tensor(labels))
        shape = (info['height'], info['width'])
        metric.process({}, [dict(pred_instances=predicted, img_id=info['img_id'], ori_shape=shape)])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']


@pytest.mark.parametrize('case', ['category ids with gaps', 'category ids not ascending'])
def test_labels_are_the_categories_whatever_their_ids(case, folder):
    break_data(case)
    assert score_of_the_truth() == 1
    assert demo.read_classes(Path('data')) == NAMES


def test_labels_are_exchanged_where_two_files_list_the_categories_in_two_orders(folder):
    """Which is why it is refused."""
    break_data('categories of the splits in two orders')
    assert score_of_the_truth() < 0.9
    with pytest.raises(SystemExit, match='the splits of data differ in their categories'):
        demo.read_classes(Path('data'))


@pytest.mark.parametrize('case', ['grayscale images', '16-bit images', '16-bit grayscale images', 'images with an alpha channel'])
def test_images_become_three_channels_of_eight_bits(case, folder, origin):
    break_data(case)
    image = cv2.imread(str(origin / 'data/images/val_0000.png'))
    expected = np.dstack([gray(image)] * 3) if 'grayscale' in case else image
    np.testing.assert_array_equal(mmcv.imread('data/images/val_0000.png'), expected)


def test_a_data_set_within_wrappers_is_found(folder, capsys):
    break_data('an image cut off')
    Path('wrapped.py').write_text(
        "_base_ = 'config.py'\nparts = {{_base_.train_dataloader.dataset}}\n"
        "repeated = dict(type='RepeatDataset', times=2, dataset=parts)\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[repeated]))\n"
    )
    assert ending('preflight.py wrapped.py', capsys) == UNDECODED


def test_what_only_decoding_finds(folder, capsys):
    """A JPEG file with a head and an end, and nothing between."""
    path = Path('data', 'images', 'train_0000.png')
    content = as_jpeg(path)
    path.write_bytes(content[: content.index(b'\xff\xda')] + b'\xff\xd9')
    assert ending('preflight.py config.py', capsys) == 'works'
    assert ending('preflight.py config.py --decode', capsys) == UNDECODED


def test_the_checkpoints_to_come(folder):
    cfg = Config.fromfile('config.py')
    weights = sum(value.numel() * value.element_size() for value in MODELS.build(cfg.model).state_dict().values())
    assert preflight.checkpoint_bytes(cfg) == 3 * weights
    for train_cfg, hook, count in [
        (dict(max_iters=800), dict(by_epoch=False, interval=100, max_keep_ckpts=2), 2),
        (dict(max_iters=800), dict(by_epoch=False, interval=100), 8),
        (dict(max_epochs=12), dict(interval=1), 12),
        (dict(max_epochs=12), dict(interval=-1), 1),
    ]:
        assert preflight.checkpoints_to_keep(Config(dict(train_cfg=train_cfg, default_hooks=dict(checkpoint=hook)))) == count


slow = pytest.mark.slow


@slow
@pytest.mark.parametrize('case', [case for case, said in DATA.items() if said.startswith('works')])
def test_what_works_trains(case, folder, capsys):
    break_data(case)
    assert ending('train.py config.py --work-dir work', capsys) == 'works'
    log = torch.load('work/iter_2.pth')['message_hub']['log_scalars']
    for name in ('loss', 'loss_cls', 'loss_mask', 'grad_norm'):
        values = log[f'train/{name}'].data[0]
        assert len(values) == 2
        assert np.isfinite(values).all()
        assert (values > 0).all()


@pytest.fixture(scope='module')
def full_folder(origin, tmp_path_factory) -> Path:
    """What the commands of ``FILES`` and ``HOSTILE`` name."""
    folder = tmp_path_factory.mktemp('files') / 'here'
    shutil.copytree(origin, folder)
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(folder / 'config.py').model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    shutil.copy(folder / 'data/images/val_0000.png', folder / 'image.png')
    (folder / 'empty.py').write_text('max_iters = 1\n')
    (folder / 'pretrained.py').write_text(
        "_base_ = 'config.py'\nmodel = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='hostile.pth')))\n"
    )
    return folder


@pytest.fixture
def disks(full_folder):
    """A disk without room, and one that cannot be written to."""
    mounted = []
    for name, options in {'full': 'size=512k', 'read-only': 'ro'}.items():
        path = full_folder / name
        path.mkdir(exist_ok=True)
        if shutil.which('mount') is None or subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', path]).returncode:
            pytest.skip('a disk of this kind can be mounted by root alone')
        mounted.append(path)
    yield
    for path in mounted:
        subprocess.run(['umount', path], check=True)


@slow
@pytest.mark.parametrize(('case', 'command'), FILES)
def test_files(case, command, full_folder, monkeypatch, capsys, request):
    if 'disk' in case:
        request.getfixturevalue('disks')
    monkeypatch.chdir(full_folder)
    said = ending(command, capsys)
    assert says(said, FILES[case, command]), said
    assert not list(full_folder.glob('full/a.pth*'))


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **options)


@slow
def test_commands_begin_with_it(folder):
    """In processes of their own, as a user runs them; what the options change is looked at."""
    torch.save({}, 'weights.pth')
    break_data('an image to score missing')
    for command in (
        [TOOLS / 'train.py', 'config.py', '--work-dir', 'work', '--cfg-options', 'train_cfg.max_iters=1'],
        [TOOLS / 'test.py', 'config.py', 'weights.pth', '--work-dir', 'work'],
    ):
        done = run(*command)
        assert done.returncode == 1
        name = 'val' if 'train.py' in str(command[0]) else 'test'
        assert done.stderr.endswith(DATA['an image to score missing'].replace('the val data', f'the {name} data') + '\n')
        assert 'Iter(' not in done.stdout
    without = [f'val_{part}=None' for part in ('dataloader', 'cfg', 'evaluator')]
    assert run(TOOLS / 'train.py', 'config.py', '--cfg-options', *without).returncode == 0


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


@slow
def test_a_disk_that_fills_while_a_checkpoint_is_written(folder):
    """As files of more than 1 MiB cannot be written; started again, the training goes on to its end."""
    command = [TOOLS / 'train.py', 'config.py', '--work-dir', 'work', '--resume']
    done = run(*command, preexec_fn=small_files)
    assert done.returncode
    assert 'OSError: [Errno 27] File too large' in done.stderr
    assert not Path('work', 'last_checkpoint').exists()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert 'coco/segm_mAP' in done.stdout


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return open, ('executed', 'w')


REFUSED = ' holds more than data: it asks for ...open, which could run code, so it is not read. Have who made it save the state dict alone'
HOSTILE = {
    'train.py config.py --cfg-options load_from=hostile.pth': f'CheckpointError: hostile.pth{REFUSED}',
    'train.py config.py --resume hostile.pth': f'CheckpointError: hostile.pth{REFUSED}',
    'train.py config.py --resume --work-dir trained': f'CheckpointError: trained/iter_2.pth{REFUSED}',
    'train.py pretrained.py': f'CheckpointError: hostile.pth{REFUSED}',
    'test.py config.py hostile.pth': f'CheckpointError: hostile.pth{REFUSED}',
    'demo.py --data data --config config.py --work-dir trained': f'demo: ...trained/iter_2.pth{REFUSED}',
    'demo.py --data data --config config.py --work-dir begun': f'demo: ...hostile.pth{REFUSED}',
    'convert_checkpoint.py hostile.pth --to ours --dry-run': f'convert_checkpoint: hostile.pth{REFUSED}',
    'export_onnx.py config.py hostile.pth --out a.onnx': f'export_onnx: hostile.pth{REFUSED}',
    'export_detector.py config.py hostile.pth --out a.onnx --images data/images': f'export_detector: hostile.pth{REFUSED}',
    'visualize.py config.py hostile.pth image.png --out a.png': f'visualize: hostile.pth{REFUSED}',
    'companions.py --model config.py hostile.pth --images data/images --out a.json': f'companions: hostile.pth{REFUSED}',
    'spectrum.py config.py hostile.pth --images data/images --out a.png': f'spectrum: hostile.pth{REFUSED}',
    'preflight.py pretrained.py': 'works',
    'complexity.py pretrained.py': 'works',
}
"""Every command that is given a checkpoint, or a config that names one."""


@slow
@pytest.mark.parametrize('command', HOSTILE)
def test_no_code_of_a_checkpoint_runs(command, full_folder, monkeypatch, capsys):
    monkeypatch.chdir(full_folder)
    monkeypatch.setattr(complexity, 'published_comparison', lambda: '')  # takes 17 s and no config
    torch.save(dict(state_dict={}, meta=Payload()), 'hostile.pth')
    for work_dir, checkpoint in {'trained': 'trained/iter_2.pth', 'begun': 'hostile.pth'}.items():
        Path(work_dir).mkdir(exist_ok=True)
        Path(work_dir, 'last_checkpoint').write_text(checkpoint)
    shutil.copy('hostile.pth', 'trained/iter_2.pth')
    said = ending(command, capsys)
    assert says(said, HOSTILE[command]), said
    assert not Path('executed').exists()


def test_every_command_that_reads_a_checkpoint_is_there():
    words = ('_checkpoint(', 'init_detector(', 'Runner.', 'run_upstream(', 'torch.load(')
    readers = {path.name for path in TOOLS.glob('*.py') if any(word in path.read_text() for word in words)}
    assert {'train.py', 'demo.py', 'visualize.py'} <= readers - {'upstream.py'} <= {command.split()[0] for command in HOSTILE}

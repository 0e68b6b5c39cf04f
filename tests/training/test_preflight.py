"""Data, images and work directories that are not as they should be: a clear error before any training time is spent, or they work."""

import gc
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import mmcv
import numpy as np
import PIL
import pytest
import torch
from coco_folder import configure, look
from helpers import TOOLS, ending
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import digit_version

from fca_mmdet import UserError
from fca_mmdet.lab.data import read_folder
from fca_mmdet.lab.shapes import CLASSES
from fca_mmdet.training import images, preflight

NAMES = list(CLASSES)

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
    'no categories': (
        "preflight: data/annotations/train.json has no 'categories' that are a list of objects: a COCO file has images, annotations and "
        'categories'
    ),
    'crowds alone': nothing(TRAIN, 3, 19),
    'boxes without area alone': nothing(TRAIN, 3, 19),
    'every second box without area': 'works without them: 3 images, 9 of 19 annotations',
    'every second box not a number': (
        'preflight: annotations[0] of data/annotations/train.json has bbox=[nan, nan, nan, nan] (10 of 19 are at fault): write [x, y, '
        'width, height] in pixels, four finite numbers'
    ),
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
"""What ``preflight.py config.py`` says; ``train.py``, ``test.py`` and ``demo.py`` begin with the same check."""


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
    assert read_folder(Path('data')).classes == NAMES


def test_labels_are_exchanged_where_two_files_list_the_categories_in_two_orders(folder):
    """Which is why it is refused."""
    break_data('categories of the splits in two orders')
    assert score_of_the_truth() < 0.9
    with pytest.raises(UserError, match='the splits of data need the same categories in one order'):
        read_folder(Path('data'))


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


def test_what_only_decoding_finds(folder, capsys, monkeypatch):
    """A JPEG file with a head and an end, and nothing between, after those that are decoded anyway."""
    monkeypatch.setattr(images, 'SAMPLES', 2)
    for number in range(3):
        path = Path('data', 'images', f'train_000{number}.png')
        content = as_jpeg(path)
        path.write_bytes(content[: content.index(b'\xff\xda')] + b'\xff\xd9' if number == 2 else content)
    found = ending('preflight.py config.py', capsys)  # Pillow before 13 finds it in the head
    assert found == ('works' if digit_version(PIL.__version__) >= digit_version('13') else UNDECODED.replace('0000', '0002'))
    assert ending('preflight.py config.py --decode', capsys) == UNDECODED.replace('0000', '0002')
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert ending('preflight.py config.py', capsys) == UNDECODED.replace('0000', '0002')


def test_progress_is_shown_where_it_takes_long(folder, capsys, monkeypatch):
    assert look(capsys) == []
    seen = images.look
    monkeypatch.setattr(images, 'look', lambda *arguments: (time.sleep(0.05), seen(*arguments))[1])
    monkeypatch.setattr(preflight, 'INTERVAL', 0.01)
    said = look(capsys)
    assert 'looking at data/annotations/train.json' in said
    assert all(line.startswith('looking at ') for line in said)


@pytest.mark.parametrize('case', ['category ids with gaps', 'no annotations'])
def test_what_it_leaves_as_it_was(case, folder, capsys):
    """The config, and Python's garbage collector."""
    break_data(case)
    cfg = configure()
    before = cfg.pretty_text
    with nullcontext() if DATA[case] == 'works' else pytest.raises(UserError):
        preflight.check(cfg, work_dir='work')
    assert cfg.pretty_text == before
    assert gc.isenabled()


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
        tool, name = ('train', 'val') if 'train.py' in str(command[0]) else ('test', 'test')
        said = DATA['an image to score missing'].removeprefix('preflight: ').replace('the val data', f'the {name} data')
        assert done.stderr.splitlines()[-1] == f'{tool}: {said}'
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
    assert 'Traceback' in done.stderr
    assert 'OSError: [Errno 27] File too large' in done.stderr
    assert not Path('work', 'last_checkpoint').exists()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert 'coco/segm_mAP' in done.stdout

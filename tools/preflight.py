"""What a detector's config names, looked at before training or testing: what would fail hours later, or go wrong in silence.

    python tools/preflight.py CONFIG [--decode]

``train.py``, ``test.py`` and ``demo.py`` begin with it. A data set needs an annotation file, its categories in the order of the classes,
something to learn from, segmentations where masks are learned or scored, and images that are there and are images; the work directory, room
for the checkpoints. The head of each image is read, the end of a JPEG and the checksums of a PNG; with ``--decode``, all of it.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import cv2
import mmcv
from mmdet.datasets import BaseDetDataset, CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config, DictAction
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

MIB = 2**20


def check(cfg: Config, splits: Sequence[str] = ('train', 'val'), decode: bool = False) -> None:
    """Check what a config names.

    Args:
        cfg: of a detector, as it is run.
        splits: those of ``train``, ``val`` and ``test`` whose data sets are used; with ``train``, checkpoints are written.
        decode: whether to decode every image.

    Raises:
        SystemExit: with a sentence on what is wrong.
    """
    if 'model' not in cfg:
        refuse(f'{cfg.filename} configures no model')
    init_default_scope(cfg.get('default_scope') or 'mmdet')  # where a config's own types are looked up
    check_work_dir(cfg, 'train' in splits)
    for split in splits:
        evaluators = [] if split == 'train' else cfg.get(f'{split}_evaluator') or []
        evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
        for dataset, pipeline in data_sets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            check_data(split, dataset, pipeline, evaluators, decode)


def check_before(script: str, config: Config) -> None:
    """Check a config of mmdet's under the options of this process's command line, which runs mmdet's ``script``; in the first process."""
    first = all(int(os.environ.get(rank, 0)) == 0 for rank in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    if not first or config.get('default_scope') != 'mmdet':
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--work-dir')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    options = parser.parse_known_args()[0]
    cfg = config.copy()
    cfg.merge_from_dict(options.cfg_options)
    cfg.work_dir = options.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(config.filename).stem}'
    check(cfg, ('train', 'val') if script == 'train.py' else ('test',))


def data_sets(dataset: dict | None, outer: Sequence[dict] = ()) -> Iterator[tuple[dict, list[dict]]]:
    """The data sets within mmdet's wrappers of them, each with the steps of all pipelines that its images pass."""
    if dataset is None:
        return
    pipeline = [*(dataset.get('pipeline') or ()), *outer]
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else None)
    if inner is None:
        yield dataset, pipeline
    for part in inner or ():
        yield from data_sets(part, pipeline)


def check_data(split: str, config: dict, pipeline: Sequence[dict], evaluators: Sequence[dict], decode: bool) -> None:
    """Check one data set; ``pipeline`` and ``evaluators`` say what is used of it."""
    kind = DATASETS.get(config['type']) if isinstance(config['type'], str) else config['type']
    if kind is None or not issubclass(kind, BaseDetDataset):
        return
    file = os.path.join(config.get('data_root') or '', config.get('ann_file') or '')
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells what it does
            dataset: Any = DATASETS.build({**config, 'pipeline': [], 'serialize_data': False, 'lazy_init': False})
    except Exception as error:
        refuse(f'the {split} data, {file}, cannot be read by {kind.__name__}: {error!r}')
    classes = list(dataset.metainfo.get('classes') or ())
    annotations = None
    if issubclass(kind, CocoDataset) and kind.COCOAPI is COCO:
        annotations = len(check_categories(dataset.ann_file, classes).get('annotations', ()))
        for other in {evaluator['ann_file'] for evaluator in evaluators if evaluator.get('ann_file')} - {dataset.ann_file}:
            check_categories(other, classes)
    infos = dataset.data_list
    instances = [instance for info in infos for instance in info.get('instances', ())]
    learned = [instance for instance in instances if not instance.get('ignore_flag')]
    said = f'{len(infos)} images, {len(learned)}{"" if annotations is None else f" of {annotations}"} annotations'
    unlabelled = any(evaluator.get('format_only') for evaluator in evaluators) or not (split == 'train' or evaluators)
    if not infos or not (learned or unlabelled or 'instances' not in infos[0]):
        use = 'learn from' if split == 'train' else 'score'
        refuse(
            f'the {split} data, {file}, has nothing to {use}: mmdet takes {said} of it. It leaves out crowds, annotations of other classes '
            f'than {classes}, boxes outside the image or below a pixel, and in training images without any'
        )
    print(f'preflight: {split}: {said}', flush=True)
    masks = any(step.get('with_mask') for step in pipeline) or any('segm' in evaluator.get('metric', ()) for evaluator in evaluators)
    if masks and not unlabelled:
        check_masks(split, file, instances)
    loading = [step for step in pipeline if 'LoadImageFromFile' in str(step.get('type'))]
    if loading and not any(part.get('backend_args') for part in (config, *loading)):
        check_images(split, file, infos, decode)


def check_categories(file: str, classes: list[str]) -> dict:
    """Refuse a COCO file whose categories are not the classes in their order; returns its content."""
    try:
        content = load(file)
        listed = [category['name'] for category in content['categories']]
    except Exception as error:
        refuse(f'{file} is no COCO annotation file: {error!r}')
    if [name for name in listed if name in classes] != classes:
        refuse(
            f'{file} lists the categories {listed}, and the config the classes {classes}: mmdet numbers classes as the file lists them, so '
            'labels would stand for others. Give metainfo.classes in the order of the file, and all files the same categories'
        )
    return content


def check_masks(split: str, file: str, instances: Sequence[dict]) -> None:
    """Refuse annotations without a segmentation, and tell of empty masks."""
    if without := sum('mask' not in instance for instance in instances):
        refuse(f'{without} of {len(instances)} annotations of the {split} data, {file}, have no segmentation, and masks are used')
    empty = sum(isinstance(instance['mask'], dict) and not _area(instance['mask']) for instance in instances)
    if empty and empty == len(instances):
        refuse(f'all {empty} masks of the {split} data, {file}, are empty')
    if empty:
        print(f'preflight: {split}: {empty} of {len(instances)} masks are empty')


def _area(rle: dict) -> int:
    return sum(rle['counts'][1::2]) if isinstance(rle['counts'], list) else int(coco_mask.area(rle))


def check_images(split: str, file: str, infos: Sequence[dict], decode: bool) -> None:
    """Refuse images that are not there or are none; tell of those of another size than the annotations say."""
    local = [info for info in infos if '://' not in info['img_path']]
    missing = [info['img_path'] for info in local if not os.path.isfile(info['img_path'])]
    if missing:
        refuse(f'{len(missing)} of {len(infos)} images of the {split} data, {file}, are missing: the first is {missing[0]}')
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(partial(image_size, decode=decode), [info['img_path'] for info in local]))
    broken = [info['img_path'] for info, size in zip(local, sizes, strict=True) if size is None]
    if broken:
        refuse(f'{len(broken)} of {len(infos)} images of the {split} data, {file}, cannot be decoded: the first is {broken[0]}')
    # Sorted, since a camera's picture may be turned when it is decoded.
    other = [info for info, size in zip(local, sizes, strict=True) if size and sorted(size) != sorted([info['height'], info['width']])]
    if other:
        first = other[0]['img_path']
        print(f'preflight: {split}: {len(other)} of {len(infos)} images have another size than {file} says: the first is {first}')


def image_size(path: str, decode: bool = False) -> tuple[int, int] | None:
    """Width and height of an image file, or None where mmcv cannot decode it; PIL's word is enough unless ``decode``."""
    if not decode:
        with contextlib.suppress(Exception), Image.open(path) as picture:
            picture.verify()
            if picture.format != 'JPEG' or _has_end(path):
                return picture.size
    with contextlib.suppress(cv2.error):
        image = mmcv.imread(path)
        return None if image is None else (image.shape[1], image.shape[0])
    return None


def _has_end(path: str) -> bool:
    with open(path, 'rb') as file:
        file.seek(max(os.path.getsize(path) - 1024, 0))  # a camera may write something after the picture
        return b'\xff\xd9' in file.read()


def check_work_dir(cfg: Config, training: bool) -> None:
    """Refuse a work directory that cannot be written to, or has no room for the checkpoints that are to come."""
    folder = Path(cfg.work_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'\0' * 4096)
    except OSError as error:
        refuse(f'the work directory {folder} cannot be written to ({error.strerror}): name another with --work-dir')
    if training:
        count = max(checkpoints_to_keep(cfg) - len(list(folder.glob('*.pth'))), 1)
        size, free = checkpoint_bytes(cfg), shutil.disk_usage(folder).free
        if count * size > free:
            refuse(
                f'{free / MIB:.1f} MiB are free in {folder}, and {count} checkpoints of {size / MIB:.1f} MiB are to be kept there: free '
                'some, keep fewer (default_hooks.checkpoint.max_keep_ckpts), or name another place with --work-dir'
            )


def checkpoints_to_keep(cfg: Config) -> int:
    """How many checkpoints mmengine's hook keeps at most."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    steps = (cfg.get('train_cfg') or {}).get('max_epochs' if hook.get('by_epoch', True) else 'max_iters') or 0
    written = steps // hook['interval'] if hook.get('interval', -1) > 0 else 1
    keep = hook.get('max_keep_ckpts', -1)
    return min(written, keep) if keep > 0 else written


def checkpoint_bytes(cfg: Config) -> int:
    """Weights and what the optimiser keeps of each: two numbers in Adam and its kin, one in SGD."""
    weights = sum(value.nbytes for value in MODELS.build(cfg.model).state_dict().values())
    return weights * (2 if cfg.optim_wrapper.optimizer.type == 'SGD' else 3)


def check_out(file: Path) -> None:
    """Make the folder of a file that a command is to write, or refuse."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        refuse(f'{file} cannot be written ({error.strerror}): name another file with --out')


def refuse(sentence: str) -> NoReturn:
    """End with what is wrong."""
    sys.exit(f'preflight: {sentence}')


def main() -> None:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(description="Check a detector's data and work directory.")
    parser.add_argument('config', type=Path)
    parser.add_argument('--work-dir', help='where training would write')
    parser.add_argument('--decode', action='store_true', help='decode every image')
    arguments = parser.parse_args()
    if not arguments.config.is_file():
        parser.error(f'no config at {arguments.config}')
    cfg = Config.fromfile(arguments.config)
    cfg.work_dir = arguments.work_dir or cfg.get('work_dir') or f'work_dirs/{arguments.config.stem}'
    check(cfg, [split for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader')], arguments.decode)


if __name__ == '__main__':
    main()

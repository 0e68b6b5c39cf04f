"""Look, before training or testing, at what a detector's config names: at what would fail hours later, or go wrong unnoticed."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import mmcv
from mmdet.datasets import BaseDetDataset, CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import UserError


def check(cfg: Config, splits: Sequence[str] = ('train', 'val'), decode: bool = False, work_dir: str | None = None) -> None:
    """Check what a config names, and print what there is.

    Args:
        cfg: a detector's config, as it is run.
        splits: which of ``train``, ``val`` and ``test`` are run. With ``train``, checkpoints are written.
        decode: whether to decode every image. Without it the head is read, the end of a JPEG and the checksums of a PNG.
        work_dir: where files are written, if not where the config says.

    Raises:
        UserError: something is wrong; the message says what.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')  # where a config's own types are looked up
    folder = Path(work_dir or cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename).stem}')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'\0' * 4096)
    except OSError as error:
        raise UserError(f'the work directory {folder} cannot be written to ({error.strerror}): name another with --work-dir') from error
    if 'train' in splits and cfg.get('train_dataloader'):
        _check_space(cfg, folder)
    for split in splits:
        evaluators = [] if split == 'train' else cfg.get(f'{split}_evaluator') or []
        evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
        for dataset, pipeline in _find_data_sets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            for found in _check_data(split, dataset, pipeline, evaluators, decode):
                print(f'preflight: {split}: {found}', flush=True)


def _find_data_sets(dataset: dict | None, outer: Sequence[dict] = ()) -> Iterator[tuple[dict, list[dict]]]:
    """Find the data sets within mmdet's wrappers, each with the steps of all pipelines that its images pass through."""
    if dataset is None:
        return
    pipeline = [*(dataset.get('pipeline') or ()), *outer]
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset, pipeline
    for part in inner:
        yield from _find_data_sets(part, pipeline)


def _check_data(split: str, config: dict, pipeline: Sequence[dict], evaluators: Sequence[dict], decode: bool) -> Iterator[str]:
    """Check one data set. ``pipeline`` and ``evaluators`` say what is used of it. Yields what there is, and what is odd about it."""
    kind = DATASETS.get(config['type']) if isinstance(config['type'], str) else config['type']
    if kind is None or not issubclass(kind, BaseDetDataset):
        return
    file = os.path.join(config.get('data_root') or '', config.get('ann_file') or '')
    data = f'the {split} data, {file},'
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
            dataset: Any = DATASETS.build({**config, 'pipeline': [], 'serialize_data': False, 'lazy_init': False})
    except Exception as error:
        raise UserError(f'{data} cannot be read by {kind.__name__}: {error!r}') from error
    classes = list(dataset.metainfo.get('classes') or ())
    annotations = None
    if issubclass(kind, CocoDataset) and kind.COCOAPI is COCO:
        annotations = len(_check_categories(dataset.ann_file, classes).get('annotations', ()))
        for other in {evaluator['ann_file'] for evaluator in evaluators if evaluator.get('ann_file')} - {dataset.ann_file}:
            _check_categories(other, classes)
    infos = dataset.data_list
    instances = [instance for info in infos for instance in info.get('instances', ())]
    learned = [instance for instance in instances if not instance.get('ignore_flag')]
    counts = f'{len(infos)} images, {len(learned)}{"" if annotations is None else f" of {annotations}"} annotations'
    unlabelled = any(evaluator.get('format_only') for evaluator in evaluators) or not (split == 'train' or evaluators)
    if not infos or not (learned or unlabelled or 'instances' not in infos[0]):
        raise UserError(
            f'{data} has nothing to {"learn from" if split == "train" else "score"}: mmdet takes {counts} of it. It leaves out crowds, '
            f'annotations of other classes than {classes}, boxes outside the image or below a pixel, and in training images without any'
        )
    yield counts
    masks = any(step.get('with_mask') for step in pipeline) or any('segm' in evaluator.get('metric', ()) for evaluator in evaluators)
    if masks and not unlabelled:
        yield from _check_masks(data, instances)
    loading = [step for step in pipeline if 'LoadImageFromFile' in str(step.get('type'))]
    if loading and not any(part.get('backend_args') for part in (config, *loading)):
        yield from _check_images(data, file, infos, decode)


def _check_categories(file: str, classes: list[str]) -> dict:
    """Read a COCO file whose categories must be the classes in their order."""
    try:
        content = load(file)
        listed = [category['name'] for category in content['categories']]
    except Exception as error:
        raise UserError(f'{file} is not a COCO annotation file: {error!r}') from error
    if [name for name in listed if name in classes] != classes:
        raise UserError(
            f'{file} lists the categories {listed}, and the config the classes {classes}: mmdet numbers classes as the file lists them, so '
            'labels would stand for others. Give metainfo.classes in the order of the file, and all files the same categories'
        )
    return content


def _check_masks(data: str, instances: Sequence[dict]) -> Iterator[str]:
    """Refuse annotations without a segmentation, and report empty masks."""
    if without := sum('mask' not in instance for instance in instances):
        raise UserError(f'{without} of {len(instances)} annotations of {data} have no segmentation, and masks are used')
    empty = sum(isinstance(instance['mask'], dict) and not _area(instance['mask']) for instance in instances)
    if empty and empty == len(instances):
        raise UserError(f'all {empty} masks of {data} are empty')
    if empty:
        yield f'{empty} of {len(instances)} masks are empty'


def _area(rle: dict) -> int:
    return sum(rle['counts'][1::2]) if isinstance(rle['counts'], list) else int(coco_mask.area(rle))


def _check_images(data: str, file: str, infos: Sequence[dict], decode: bool) -> Iterator[str]:
    """Refuse missing and broken images, and report those of another size than the annotations say."""
    local = [info for info in infos if '://' not in info['img_path']]
    missing = [info['img_path'] for info in local if not os.path.isfile(info['img_path'])]
    if missing:
        raise UserError(f'{len(missing)} of {len(infos)} images of {data} are missing: the first is {missing[0]}')
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(partial(_image_size, decode=decode), [info['img_path'] for info in local]))
    broken = [info['img_path'] for info, size in zip(local, sizes, strict=True) if size is None]
    if broken:
        raise UserError(f'{len(broken)} of {len(infos)} images of {data} cannot be decoded: the first is {broken[0]}')
    # Sorted, since a camera's picture may be turned when it is decoded.
    other = [info for info, size in zip(local, sizes, strict=True) if size and sorted(size) != sorted([info['height'], info['width']])]
    if other:
        yield f'{len(other)} of {len(infos)} images have another size than {file} says: the first is {other[0]["img_path"]}'


def _image_size(path: str, decode: bool) -> tuple[int, int] | None:
    """Read width and height of an image file; None where mmcv cannot decode it. Without ``decode``, PIL's word is enough."""
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


def _check_space(cfg: Config, folder: Path) -> None:
    """Refuse a disk without enough free space for the checkpoints that a training still writes."""
    count = max(checkpoints_to_keep(cfg) - len(list(folder.glob('*.pth'))), 1)
    size, free = checkpoint_bytes(cfg), shutil.disk_usage(folder).free
    if count * size > free:
        raise UserError(
            f'{free / 2**20:.1f} MiB are free in {folder}, and {count} checkpoints of {size / 2**20:.1f} MiB are to be kept there: free '
            'some, keep fewer (default_hooks.checkpoint.max_keep_ckpts), or name another place with --work-dir'
        )


def checkpoints_to_keep(cfg: Config) -> int:
    """Count how many checkpoints mmengine's hook keeps at most."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    steps = (cfg.get('train_cfg') or {}).get('max_epochs' if hook.get('by_epoch', True) else 'max_iters') or 0
    written = steps // hook['interval'] if hook.get('interval', -1) > 0 else 1
    keep = hook.get('max_keep_ckpts', -1)
    return min(written, keep) if keep > 0 else written


def checkpoint_bytes(cfg: Config) -> int:
    """Compute the size of a checkpoint: the weights, and for each one more number in SGD, two in Adam and its kin."""
    weights = sum(value.nbytes for value in MODELS.build(cfg.model).state_dict().values())
    return weights * (2 if cfg.optim_wrapper.optimizer.type == 'SGD' else 3)

"""What must agree: heads and classes, a file and its classes, what is learned and scored, a checkpoint's schedule and the config's."""

import filecmp
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS, PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint
from torch import nn

from ..errors import CheckpointError, UserError
from ..reading import load_data

RUNNING = {'base_values', 'last_step', '_global_step', '_last_value', 'verbose'}
"""What changes in a schedule's state while it runs, or depends on the optimiser."""


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the config's model, without memory for its weights if it can be. Random numbers and the config stay as they are."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device('meta'):
                return MODELS.build(deepcopy(cfg.model))
        except (RuntimeError, NotImplementedError):  # a constructor that reads a value
            return MODELS.build(deepcopy(cfg.model))


def check_classes(data: str, config: dict) -> None:
    """Refuse a data set's classes that are a text, or under a name that mmdet does not read."""
    given = dict(config.get('metainfo') or {})
    classes = given.get('classes')
    if isinstance(classes, str) and not Path(classes).is_file():  # mmengine reads a file of names
        raise UserError(f"metainfo.classes={classes!r} of {data} is a text, of which each letter would be a class: write ('{classes}',)")
    misnamed = [key for key in given if key.lower().startswith(('cla', 'categor', 'names'))]
    if 'classes' in config or (misnamed and classes is None):
        where = 'classes' if 'classes' in config else f'metainfo.{misnamed[0]}'
        raise UserError(f'{where} of {data} is not read by mmdet 3: write metainfo=dict(classes=...)')


def check_categories(file: str, content: dict, classes: Sequence[str]) -> None:
    """Refuse a COCO file whose categories are not in the order of the classes."""
    listed = [category['name'] for category in content['categories']]
    if [name for name in listed if name in classes] != list(classes):
        raise UserError(
            f'{file} lists the categories {listed}, and the config the classes {list(classes)}: mmdet numbers classes as the file lists '
            'them, so labels would stand for others. Give metainfo.classes in the order of the file, and all files the same categories'
        )


def check_heads(cfg: Config, model: nn.Module, data: str, classes: Sequence[str]) -> None:
    """Refuse heads for another number of classes, except those that tell objects from background, and of models that read class names."""
    count = len(classes)
    if 'language_model' in cfg.model:
        return
    wrong, derived = {}, {}
    for name, module in model.named_modules():
        if 'backbone' in name or 'semantic_head' in name or 'rpn' in f'{name} {type(module).__name__}'.lower():
            continue
        config, place = _find_config(cfg.model, name)
        if getattr(module, 'num_classes', count) != count:
            key = next((key for key in ('num_classes', 'num_things_classes') if key in config), None)
            if key:
                wrong[f'{place}.{key}'] = module.num_classes
            else:
                derived[f'model.{name}.num_classes'] = module.num_classes
        weights = getattr(module, 'class_weight', None)
        if isinstance(weights, Sequence) and len(weights) not in (count, count + 1) and 'class_weight' in config:
            wrong[f'len({place}.class_weight)'] = len(weights)
    if wrong or derived:
        given = ', '.join(f'{place}={number}' for place, number in (wrong or derived).items())
        raise UserError(
            f'{given}, and metainfo.classes of {data} are {count} ({", ".join(list(classes)[:5])}{", ..." if count > 5 else ""}): set '
            f'each num_classes to {count}, or the classes to those of the heads'
        )


def _find_config(config: Any, name: str) -> tuple[Any, str]:
    """Find the part of a model's config from which a module is made, and its place: several modules may come from one part."""
    place = 'model'
    for part in name.split('.'):
        inner = config.get(part) if isinstance(config, Mapping) else config[int(part)] if part.isdigit() else None
        if not isinstance(inner, Mapping | Sequence):
            break
        config, place = inner, f'{place}[{part}]' if part.isdigit() else f'{place}.{part}'
    return config, place


def check_evaluated(split: str, file: str, content: dict, infos: Sequence[dict]) -> Iterator[str]:
    """Refuse an evaluator's file that lacks images which are predicted. Yields how many of it are not predicted."""
    scored, predicted = {image['id'] for image in content['images']}, {info['img_id'] for info in infos}
    if strange := predicted - scored:
        raise UserError(
            f'{len(strange)} of {len(predicted)} images of the {split} data are not in {file}, by which the evaluator scores, such as that '
            f'with the id {min(map(str, strange))}: give both the same ann_file'
        )
    if left := len(scored - predicted):
        yield f'{left} of {len(scored)} images of {file} are scored and not predicted: their objects count as missed'


def check_apart(infos: Sequence[dict], learned: Sequence[dict]) -> Iterator[str]:
    """Yields how many images are learned from, too: as the same file, or as a copy of the same name."""
    files = {info['identity'] for info in learned}
    names = {os.path.basename(info['img_path']): info['img_path'] for info in learned}
    shared = []
    for info in infos:
        other = names.get(os.path.basename(info['img_path']))
        if info['identity'] in files or (other and filecmp.cmp(info['img_path'], other, shallow=False)):
            shared.append(info['img_path'])
    if shared:
        yield f'{len(shared)} of {len(infos)} images are in the training data, too, so their score says little: the first is {shared[0]}'


def check_schedule(cfg: Config, folder: Path) -> Iterator[str]:
    """Yields what a training that is resumed keeps of its checkpoint's schedule, where the config says something else."""
    latest = find_latest_checkpoint(str(folder)) if cfg.get('resume') and (folder / 'last_checkpoint').is_file() else None
    path = cfg.get('resume') and (cfg.get('load_from') or latest)
    checkpoint = None
    with suppress(CheckpointError, OSError):  # resuming says what is wrong with it
        checkpoint = load_data(path) if path else None
    states = checkpoint.get('param_schedulers') if isinstance(checkpoint, dict) else None
    if checkpoint is None or not isinstance(states, list):
        return
    schedules = cfg.get('param_scheduler') or []
    schedules = schedules if isinstance(schedules, Sequence) else [schedules]
    found = [f'{len(states)} schedules, not {len(schedules)}'] if len(states) != len(schedules) else []
    for schedule, state in zip(schedules, states, strict=False):
        with suppress(Exception):  # of another kind, or of a parameter that this optimiser has not
            for key, value in _read_schedule(cfg, schedule, checkpoint['meta']).items():
                if key in state and state[key] != value:
                    then, now = (sorted(each.elements()) if isinstance(each, Counter) else each for each in (state[key], value))
                    found.append(f'{key}={then} of {schedule["type"]}, not {now}')
    optimizer, lr = checkpoint.get('optimizer') or {}, cfg.optim_wrapper.optimizer.get('lr')
    given = {group.get('initial_lr') for group in optimizer.get('param_groups', ())} - {None}
    # These change the rate of each parameter, or of all.
    scaled = cfg.optim_wrapper.get('paramwise_cfg') or (cfg.get('auto_scale_lr') or {}).get('enable')
    if given and lr not in given and not scaled:
        found.append(f'lr={min(given)}, not {lr}')
    if found:
        yield (
            f"{path} is resumed with its own schedule, whatever the config says: {'; '.join(found)}. For the config's, start from "
            'its weights: load_from, without --resume'
        )


def _read_schedule(cfg: Config, schedule: dict, meta: dict) -> dict[str, Any]:
    """Build a schedule of the config, and list what does not change while it runs."""
    limit = 'max_epochs' if schedule.get('by_epoch', True) else 'max_iters'
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr, momentum=0.9)
    length = meta['iter'] / meta['epoch'] if schedule.get('convert_to_iter_based') else 1
    given = {'end': cfg.train_cfg[limit], **schedule} if limit in cfg.train_cfg else dict(schedule)
    built = PARAM_SCHEDULERS.build(given, default_args=dict(optimizer=optimizer, epoch_length=length))
    return {key: value for key, value in built.state_dict().items() if key not in RUNNING}

"""Do the main job: train a small Mask R-CNN with an FCA backbone on a COCO-format folder, score it with COCO mAP, and draw it."""

import json
import statistics
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..checkpoint import refuse_pickled_code
from ..configs import config_path, read_config
from ..detector import build_detector
from ..errors import UserError
from ..files import write_whole
from ..reading import read_checkpoint
from ..training.preflight import check
from ..training.preflight_hook import PreflightHook
from .data import adapt_config, read_folder
from .log import log_early, read_scalars, read_steps
from .pictures import draw_bases, draw_gates, draw_predictions, find_attentions
from .plots import draw_curves
from .shapes import make_shapes

CONFIG = Path(config_path('small/mask-rcnn_fca-r18_fpn_small-heads.py'))


def run_demo(data: Path | None, work_dir: Path, config: Path = CONFIG, preflight: bool = True) -> dict:
    """Train, test and draw, from wherever an earlier call stopped in ``work_dir``. Without ``data``, make textured shapes there.
    Without ``preflight``, data and config are not checked.

    Returns COCO's figures as mmdet names them, ``training_minutes``, ``iterations``, ``train_images`` and ``checkpoint``.

    Raises:
        UserError: the config, the data or a checkpoint cannot be used, or ``work_dir`` was begun with others.
    """
    cfg = read_config(config)
    refuse_pickled_code()
    if data is None:
        data = work_dir / 'shapes'
        print(f'using {data}' if data.exists() else f'making textured shapes in {data}', flush=True)
        make_shapes(data)
    data, work_dir = data.resolve(), work_dir.resolve()
    start = time.monotonic()
    done = work_dir / 'metrics.json'
    finished = done.exists()
    if finished:
        print(f'already finished: {done} exists; remove {work_dir} to start again')
    else:
        write_whole(done, json.dumps(_train_and_draw(cfg, data, work_dir, preflight), indent=2))
    metrics = json.loads(done.read_text())
    print()
    for kind, key in dict(box='coco/bbox_mAP', mask='coco/segm_mAP').items():
        if key in metrics:
            print(f'{kind} AP {metrics[key]:.3f}  AP50 {metrics[f"{key}_50"]:.3f}')
    print(f'training took {metrics["training_minutes"]:.1f} min, {metrics["iterations"]} iterations on {metrics["train_images"]} images')
    for name in ('config.py', Path(metrics['checkpoint']).name, 'metrics.json', 'predictions.png', 'curves.png', 'bases.png', 'gates.png'):
        print(f'  {work_dir / name}')
    if not finished:
        print(f'this run took {(time.monotonic() - start) / 60:.1f} min')
    return metrics


def _train_and_draw(cfg: Config, data: Path, work_dir: Path, preflight: bool) -> dict:
    """Train unless the last checkpoint exists, test it, and draw the figures. Returns what ``run_demo`` returns."""
    adapt_config(cfg, read_folder(data))
    log_early(cfg)
    cfg.work_dir, cfg.randomness = str(work_dir), dict(seed=0)
    if not find_attentions(build_detector(cfg)):
        raise UserError(f'{cfg.filename} has no MultiSpectralAttention, which this job draws: use tools/train.py')
    begun = work_dir / 'config.py'
    if begun.exists() and begun.read_text() != cfg.pretty_text:
        raise UserError(f'{work_dir} was begun with another config or other data: name another --work-dir, or remove it')
    write_whole(begun, cfg.pretty_text)
    PreflightHook.enabled = False
    if preflight:
        check(cfg)
    schedule = cfg.train_cfg
    checkpoint = work_dir / (f'epoch_{schedule.max_epochs}.pth' if 'max_epochs' in schedule else f'iter_{schedule.max_iters}.pth')
    if not checkpoint.exists():
        cfg.resume = True  # from the latest checkpoint in work_dir, if there is one
        Runner.from_cfg(cfg.copy()).train()
    cfg.resume, cfg.load_from, cfg.work_dir = False, str(checkpoint), str(work_dir / 'test')
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    iterations = read_checkpoint(checkpoint)['meta']['iter']
    draw_predictions(runner, work_dir / 'predictions.png')
    draw_curves(read_scalars(work_dir), work_dir / 'curves.png')
    draw_bases(next(iter(find_attentions(runner.model).values())).frequencies, work_dir / 'bases.png')
    draw_gates(runner, work_dir / 'gates.png')
    return metrics | {
        'training_minutes': statistics.mean(entry['time'] for entry in read_steps(work_dir)) * iterations / 60,
        'iterations': iterations,
        'train_images': len(json.loads((data / 'annotations' / 'train.json').read_text())['images']),
        'checkpoint': str(checkpoint),
    }

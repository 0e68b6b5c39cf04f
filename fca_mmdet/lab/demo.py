"""Do the main job: train a small Mask R-CNN with an FCA backbone on a COCO-format folder, score it with COCO mAP, and draw it."""

import json
import statistics
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..checkpoint import refuse_pickled_code
from ..configs import config_path, read_config
from ..files import write_whole
from ..training.preflight import check
from .data import adapt_config, read_classes
from .log import read_scalars, read_steps
from .pictures import draw_bases, draw_gates, draw_predictions, find_attentions
from .plots import draw_curves
from .shapes import make_shapes

CONFIG = Path(config_path('small/mask-rcnn_fca-r18_fpn_small-heads.py'))


def run_demo(data: Path | None, work_dir: Path, config: Path = CONFIG) -> dict:
    """Train, test and draw, from wherever an earlier call stopped in ``work_dir``. Without ``data``, make textured shapes there.

    Returns COCO's figures as mmdet names them, ``training_minutes``, ``iterations``, ``train_images`` and ``checkpoint``.

    Raises:
        UserError: the config, the data or a checkpoint cannot be used.
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
        write_whole(done, json.dumps(_train_and_draw(cfg, data, work_dir), indent=2))
    metrics = json.loads(done.read_text())
    print(f'\nbox AP {metrics["coco/bbox_mAP"]:.3f}   AP50 {metrics["coco/bbox_mAP_50"]:.3f}')
    print(f'mask AP {metrics["coco/segm_mAP"]:.3f}  AP50 {metrics["coco/segm_mAP_50"]:.3f}')
    print(f'training took {metrics["training_minutes"]:.1f} min, {metrics["iterations"]} iterations on {metrics["train_images"]} images')
    for name in ('config.py', Path(metrics['checkpoint']).name, 'metrics.json', 'predictions.png', 'curves.png', 'bases.png', 'gates.png'):
        print(f'  {work_dir / name}')
    if not finished:
        print(f'this run took {(time.monotonic() - start) / 60:.1f} min')
    return metrics


def _train_and_draw(cfg: Config, data: Path, work_dir: Path) -> dict:
    """Train unless the last checkpoint exists, test it, and draw the figures. Returns what ``run_demo`` returns."""
    work_dir.mkdir(parents=True, exist_ok=True)
    adapt_config(cfg, data, read_classes(data))
    cfg.work_dir, cfg.randomness = str(work_dir), dict(seed=0)
    cfg.dump(work_dir / 'config.py')
    check(cfg)
    iterations = cfg.train_cfg.max_iters
    checkpoint = work_dir / f'iter_{iterations}.pth'
    if not checkpoint.exists():
        cfg.resume = True  # from the latest checkpoint in work_dir, if there is one
        Runner.from_cfg(cfg.copy()).train()
    cfg.resume, cfg.load_from, cfg.work_dir = False, str(checkpoint), str(work_dir / 'test')
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
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

"""The main job: train a small Mask R-CNN with an FCA backbone on a COCO-format folder, score it with COCO mAP, and draw it.

    python tools/demo.py [--data FOLDER] [--work-dir DIR]

FOLDER holds ``annotations/train.json``, ``annotations/val.json`` and ``images/``; the classes are read from the files. Without it, a
data set of textured shapes is made (tools/make_shapes.py). Started again after an interruption the job goes on where it was; finished,
it says so. Everything it writes lies in DIR: ``config.py`` (for tools/train.py and tools/test.py), checkpoints, ``metrics.json`` and
the figures.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from figures import draw_bases, draw_curves, draw_gates, draw_predictions, read_scalars
from make_shapes import make_shapes
from mmengine.config import Config
from mmengine.runner import Runner
from preflight import check

from fca_mmdet import MultiSpectralAttention
from fca_mmdet.checkpoint import CheckpointError, refuse_pickled_code

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'
FIGURES = ('predictions', 'curves', 'bases', 'gates')


def read_classes(data: Path) -> list[str]:
    """The class names of a COCO-format folder, checked: both splits readable, not empty, with the same classes, and images there.

    Raises:
        SystemExit: with a sentence on what is wrong.
    """
    classes: dict[str, list[str]] = {}
    for split in ('train', 'val'):
        path = data / 'annotations' / f'{split}.json'
        try:
            content = json.loads(path.read_text())
            # mmdet numbers classes as the file lists them, whatever their ids.
            classes[split] = [category['name'] for category in content['categories']]
            images, annotations = content['images'], content['annotations']
        except FileNotFoundError:
            sys.exit(f'{path} is missing: --data takes a folder with annotations/train.json, annotations/val.json and images/')
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f'{path} is no COCO annotation file: {error!r}')
        if not images or not annotations or not classes[split]:
            sys.exit(f'{path} has {len(images)} images, {len(annotations)} annotations and {len(classes[split])} categories: it needs some')
        if not any('segmentation' in annotation for annotation in annotations):
            sys.exit(f'{path} has boxes but no segmentations, and a Mask R-CNN learns from masks')
        missing = [image['file_name'] for image in images if not (data / 'images' / image['file_name']).is_file()]
        if missing:
            sys.exit(f'{len(missing)} of {len(images)} images of {path} are not in {data / "images"}: the first is {missing[0]}')
    if classes['train'] != classes['val']:
        sys.exit(f'the splits of {data} differ in their categories: train has {classes["train"]}, val has {classes["val"]}')
    return classes['train']


def adapt_config(cfg: Config, data: Path, classes: list[str]) -> None:
    """Give a config the data and classes of a COCO-format folder. Images are shrunk to the config's scale, and never enlarged."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{data}/'
        loader.dataset.metainfo = dict(classes=classes)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(data / 'annotations' / 'val.json')
    content = json.loads((data / 'annotations' / 'train.json').read_text())
    side = max(max(image['height'], image['width']) for image in content['images'])
    for dataset in (cfg.train_dataloader.dataset, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
        for step in dataset.pipeline:
            if step.type in ('Resize', 'RandomResize'):
                step.scale = tuple(min(limit, side) for limit in step.scale)
    cfg.model.roi_head.bbox_head.num_classes = len(classes)
    cfg.model.roi_head.mask_head.num_classes = len(classes)


def make_config(config: Path, data: Path, work_dir: Path, classes: list[str]) -> Config:
    """The base config with the folder's data and classes; also written to ``work_dir/config.py``."""
    cfg = Config.fromfile(config)
    cfg.work_dir = str(work_dir)
    adapt_config(cfg, data, classes)
    cfg.randomness = dict(seed=0)
    cfg.dump(work_dir / 'config.py')
    return cfg


def summarise(metrics: dict, work_dir: Path) -> None:
    """Print AP, time, and where the files are."""
    print(f'\nbox AP {metrics["coco/bbox_mAP"]:.3f}   AP50 {metrics["coco/bbox_mAP_50"]:.3f}')
    print(f'mask AP {metrics["coco/segm_mAP"]:.3f}  AP50 {metrics["coco/segm_mAP_50"]:.3f}')
    print(f'training took {metrics["training_minutes"]:.1f} min, {metrics["iterations"]} iterations on {metrics["train_images"]} images')
    for name in ('config.py', Path(metrics['checkpoint']).name, 'metrics.json', *(f'{figure}.png' for figure in FIGURES)):
        print(f'  {work_dir / name}')


def run_job(data: Path, work_dir: Path, config: Path = CONFIG) -> dict:
    """Train, test and draw, going on from whatever of that is done in ``work_dir``; returns the metrics."""
    done = work_dir / 'metrics.json'
    if done.exists():
        print(f'finished before: {done} exists; remove {work_dir} to start anew')
        metrics = json.loads(done.read_text())
        summarise(metrics, work_dir)
        return metrics
    start = time.monotonic()
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg = make_config(config, data, work_dir, read_classes(data))
    check(cfg)
    checkpoint = work_dir / f'iter_{cfg.train_cfg.max_iters}.pth'
    if not checkpoint.exists():
        cfg.resume = True  # from the latest checkpoint in work_dir, if there is one
        Runner.from_cfg(cfg.copy()).train()
    cfg.resume, cfg.load_from = False, str(checkpoint)
    cfg.work_dir = str(work_dir / 'test')
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    draw_predictions(runner, work_dir / 'predictions.png')
    draw_curves(work_dir, work_dir / 'curves.png')
    attention = next(module for module in runner.model.modules() if isinstance(module, MultiSpectralAttention))
    draw_bases(attention.frequencies, work_dir / 'bases.png')
    draw_gates(runner, work_dir / 'gates.png')
    steps = [entry for entry in read_scalars(work_dir) if 'loss' in entry]
    metrics |= {
        'training_minutes': sum(entry['time'] for entry in steps) / len(steps) * cfg.train_cfg.max_iters / 60,
        'iterations': cfg.train_cfg.max_iters,
        'train_images': len(json.loads((data / 'annotations' / 'train.json').read_text())['images']),
        'checkpoint': str(checkpoint),
    }
    part = done.with_suffix('.part')
    part.write_text(json.dumps(metrics, indent=2))
    part.rename(done)
    summarise(metrics, work_dir)
    print(f'this run took {(time.monotonic() - start) / 60:.1f} min')
    return metrics


def main() -> None:
    """Parse the command line and run the job."""
    parser = argparse.ArgumentParser(description='Train, test and draw a small Mask R-CNN with an FCA backbone.')
    parser.add_argument('--data', type=Path, help='a COCO-format folder (default: textured shapes, made in the work directory)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='(default: %(default)s)')
    parser.add_argument('--config', type=Path, default=CONFIG, help='(default: %(default)s)')
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f'no config at {args.config}')
    data = args.data
    refuse_pickled_code()
    try:
        if data is None:
            data = args.work_dir / 'shapes'
            print(f'making textured shapes in {data}' if not data.exists() else f'using {data}', flush=True)
            data.parent.mkdir(parents=True, exist_ok=True)
            make_shapes(data)
        run_job(data.resolve(), args.work_dir.resolve(), args.config)
    except (CheckpointError, OSError) as error:
        sys.exit(f'demo: {error}')


if __name__ == '__main__':
    main()

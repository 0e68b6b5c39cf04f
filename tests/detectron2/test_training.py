"""The launcher on a tiny data set: train, resume, score, several processes; and export by tracing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('detectron2.modeling', reason='Detectron2 is not installed: make test-detectron2 sets up an environment with it')
from detectron2.config import get_cfg
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model

from fca_mmdet.detectron2 import FcaCheckpointer, add_fca_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'detectron2' / 'mask_rcnn_fca_R_50_thin_FPN_small.yaml'
TINY = 'INPUT.MIN_SIZE_TRAIN [96] INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.001 SOLVER.WARMUP_ITERS 0 SOLVER.STEPS [] '
TINY += 'SOLVER.CHECKPOINT_PERIOD 2 SOLVER.MAX_ITER 4 DATALOADER.NUM_WORKERS 0 SEED 1'
MAIN = "if __name__ == '__main__':\n    train_detectron2.main()\n"
# Detectron2 gives its DistributedDataParallel a GPU for each process.
ON_CPUS = 'import detectron2.engine.defaults as defaults; ddp = defaults.DistributedDataParallel;'
ON_CPUS += 'defaults.DistributedDataParallel = lambda model, device_ids, **options: ddp(model, **options);'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Bright rectangles of two classes on noise, in COCO format."""
    folder = tmp_path_factory.mktemp('rectangles')
    (folder / 'images').mkdir()
    (folder / 'annotations').mkdir()
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        images, annotations = [], []
        for index in range(4):
            pixels = rng.integers(0, 100, (96, 96, 3), np.uint8)
            for category in (1, 2):
                x, y, w, h = *rng.integers(4, 40, 2).tolist(), 40 // category, 20 * category
                pixels[y : y + h, x : x + w, category] = 255
                numbers = dict(id=len(annotations) + 1, image_id=index, category_id=category, iscrowd=0, area=w * h, bbox=[x, y, w, h])
                annotations.append(numbers | dict(segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
            images.append(dict(id=index, file_name=f'{split}{index}.png', width=96, height=96))
            Image.fromarray(pixels).save(folder / 'images' / images[-1]['file_name'])
        categories = [dict(id=1, name='wide'), dict(id=2, name='high')]
        content = dict(info={}, images=images, annotations=annotations, categories=categories)
        (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return folder


def launch(data, work_dir, *arguments, before=''):
    """Run tools/train_detectron2.py in a process of its own; what it printed."""
    words = ['--config-file', CONFIG, '--data', data, *arguments, *TINY.split(), 'OUTPUT_DIR', work_dir]
    program = work_dir.with_suffix('.py')  # a file, since spawned processes import it anew
    program.write_text(f'{before}import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import train_detectron2\n{MAIN}')
    result = subprocess.run(
        [sys.executable, program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


def read(path):
    return torch.load(path, weights_only=True)


def scores(printed):
    """The figures that Detectron2 prints for copying."""
    return [line.split('copypaste: ')[1] for line in printed.splitlines() if 'copypaste: ' in line]


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('runs') / 'trained'
    return work_dir, launch(data, work_dir)


def test_it_trains_and_scores(trained):
    work_dir, printed = trained
    before, after = read(work_dir / 'model_0000001.pth'), read(work_dir / 'model_final.pth')
    for name, value in after['model'].items():
        if 'bottom_up' in name and name.endswith('weight'):
            assert not torch.equal(value, before['model'][name]), name
    assert after['iteration'] == 3
    assert [len(line.split(',')) for line in scores(printed)] == [1, 6, 6] * 2  # box and mask: a title, names, figures


def test_a_resumed_training_goes_on_where_it_stopped(data, trained, tmp_path):
    whole, _ = trained
    work_dir = tmp_path / 'resumed'
    work_dir.mkdir()
    (work_dir / 'model_0000001.pth').write_bytes((whole / 'model_0000001.pth').read_bytes())
    (work_dir / 'last_checkpoint').write_text('model_0000001.pth')
    printed = launch(data, work_dir, '--resume')
    assert 'Starting training from iteration 2' in printed
    final = read(work_dir / 'model_final.pth')
    assert final['iteration'] == 3
    momenta = [state['momentum_buffer'] for state in final['trainer']['_trainer']['optimizer']['state'].values()]
    assert len(momenta) == len(list(final['model'])) - sum('running' in name or 'num_batches' in name for name in final['model'])


def test_scoring_alone_gives_the_figures_of_the_training(data, trained, tmp_path):
    work_dir, printed = trained
    again = launch(data, tmp_path / 'scored', '--eval-only', 'MODEL.WEIGHTS', work_dir / 'model_final.pth')
    assert scores(again) == scores(printed)


def test_two_processes(data, trained, tmp_path):
    work_dir, printed = trained
    scored = launch(data, tmp_path / 'scored', '--num-gpus', '2', '--eval-only', 'MODEL.WEIGHTS', work_dir / 'model_final.pth')
    assert scores(scored) == scores(printed)
    launch(data, tmp_path / 'two', '--num-gpus', '2', before=ON_CPUS)
    final = read(tmp_path / 'two' / 'model_final.pth')
    assert final['iteration'] == 3
    assert all(value.isfinite().all() for value in final['model'].values())


def test_a_missing_folder_is_named(tmp_path):
    words = ['--config-file', CONFIG, '--data', tmp_path / 'nowhere', 'OUTPUT_DIR', tmp_path / 'out']
    result = subprocess.run([sys.executable, ROOT / 'tools' / 'train_detectron2.py', *words], capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith('train_detectron2: ')
    assert str(tmp_path / 'nowhere' / 'annotations' / 'train.json') in result.stderr.splitlines()[-1]


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_traced_detector_gives_the_same_detections_at_any_size(trained):
    cfg = get_cfg()
    add_fca_config(cfg)
    cfg.merge_from_file(trained[0] / 'config.yaml')
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg).eval()
    FcaCheckpointer(model).load(str(trained[0] / 'model_final.pth'))

    def infer(model, inputs):
        return [{'instances': model.inference(inputs, do_postprocess=False)[0]}]

    def picture(height, width):
        return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))

    with torch.no_grad():
        adapter = TracingAdapter(model, [{'image': picture(96, 96)}], infer)
        traced = torch.jit.trace(adapter, (picture(96, 96),), check_trace=False)
        for size in ((96, 96), (64, 120), (160, 70)):
            ((ours,), (theirs,)) = adapter.outputs_schema(traced(picture(*size))), infer(model, [{'image': picture(*size)}])
            ours, theirs = ours['instances'], theirs['instances']
            assert len(ours) == len(theirs) > 0
            torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.pred_masks, theirs.pred_masks, rtol=1e-3, atol=1e-4)


def test_the_benchmark():
    words = ['--size', '128', '160', '--repeats', '1', '--depth', '50']
    program = [sys.executable, ROOT / 'tools' / 'benchmark_detectron2.py']
    result = subprocess.run([*program, *words], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [line.split() for line in result.stdout.splitlines() if ' inference ' in line and ' saved ' in line]
    assert [row[0] for row in rows] == ['ResNet', '+', '+']
    saved = [float(row[-1]) for row in rows]
    assert saved[0] == 1
    assert saved[1] > 1.2  # of each block, the attention's input and output

"""mmdet's own commands on a config and a checkpoint of ours: each line of docs/downstream.md in a shell, away from the checkout."""

import ast
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, TOOLS, read_picture, run_python
from matplotlib import colormaps
from mmcv.ops import batched_nms
from mmdet.apis import inference_detector, init_detector
from mmdet.testing import demo_mm_inputs
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from fca_mmdet import FcaResNet, config_path
from fca_mmdet.detector import build_detector
from fca_mmdet.lab.shapes import CLASSES, make_shapes

pytestmark = pytest.mark.slow

MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
PAGE = (ROOT / 'docs' / 'downstream.md').read_text()
SECTION = PAGE.split("\n## mmdet's commands\n")[1].split('\n## ')[0]
(BLOCK,) = re.findall(r'^```bash\n(.*?)^```$', SECTION, re.MULTILINE | re.DOTALL)
FIRST, *LINES = [line for line in BLOCK.splitlines() if line and not line.startswith('#')]
MESSAGES = re.findall(r'^\| `(.*?)`[ ,]', SECTION.split('### ')[0], re.MULTILINE)
SPELLINGS = dict(re.findall(r'^\| `(.*?)` \| `(.*?)`', SECTION.split('### ')[1], re.MULTILINE))
SEABORN = packages_distributions()['mmdet'][0] == 'mmdet'
"""OpenMMLab's ``analyze_logs.py`` imports seaborn and takes its styles."""
DRAWS = not SEABORN or importlib.util.find_spec('seaborn') is not None
STYLE = '--style dark' if SEABORN else '--style ggplot'
needs_seaborn = pytest.mark.skipif(not DRAWS, reason='analyze_logs.py needs seaborn')
IMAGES = 12
CONFIG = f"""
_base_ = {str(TINY)!r}
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=16, val_interval=4)
train_dataloader = dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
val_dataloader = dict(dataset=dict(ann_file='annotations/train.json'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/annotations/train.json')
test_evaluator = val_evaluator
param_scheduler = None
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=16), logger=dict(log_metric_by_epoch=True))
randomness = dict(seed=0)
"""
FASTER_RCNN = """
_base_ = 'config.py'
model = dict(type='FasterRCNN', roi_head=dict(mask_head=None))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
"""


def shell(line: str, work: Path, config: str = 'config.py') -> subprocess.CompletedProcess:
    """Run a line of the page in a shell that has the environment of the tests."""
    for placeholder, value in dict(CONFIG=config, CHECKPOINT='work/epoch_16.pth', WORK_DIR='work').items():
        line = line.replace(placeholder, value)
    return subprocess.run(
        ['bash', '-c', line],
        cwd=work,
        env={**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', 'tools': str(MMDET_TOOLS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def run(name: str, work: Path, more: str = '', config: str = 'config.py') -> list[str]:
    """Run the line of the page that has ``name``, and return the lines that it prints; a failure shows them."""
    (line,) = (line for line in LINES if name in line)
    if SEABORN:  # as the page says
        line = line.replace(' --style ggplot', '')
    result = shell(line + more, work, config)
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout.strip().splitlines()


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path:
    """A folder with images, configs and a Mask R-CNN that has been trained and tested on them."""
    work = tmp_path_factory.mktemp('work')
    make_shapes(work / 'data', train=IMAGES, val=1)
    (work / 'config.py').write_text(CONFIG)
    (work / 'faster_rcnn.py').write_text(FASTER_RCNN)
    run_python(MMDET_TOOLS / 'train.py', 'config.py', '--work-dir', 'work', cwd=work)
    run('--show-dir', work)
    return work


def predictions(path: Path) -> dict[str, dict]:
    """Read a results file: the predictions by the image's name."""
    return {Path(image['img_path']).name: image['pred_instances'] for image in pickle.loads(path.read_bytes())}


def annotations(work: Path) -> dict[str, list]:
    """Read the box and the label of each instance, by the image's name."""
    coco = COCO(work / 'data' / 'annotations' / 'train.json')
    labels = {category['id']: list(CLASSES).index(category['name']) for category in coco.dataset['categories']}
    return {
        image['file_name']: [(item['bbox'], labels[item['category_id']]) for item in coco.imgToAnns[image['id']]]
        for image in coco.dataset['images']
    }


def scores(work: Path) -> dict[str, float]:
    """Read the metrics that test.py wrote."""
    (path,) = work.glob('tested/*/*.json')
    return {name: value for name, value in json.loads(path.read_text()).items() if name.startswith('coco/')}


def test_out_and_show_dir(work):
    results = predictions(work / 'results.pkl')
    assert set(results) == set(annotations(work))
    model = init_detector(str(work / 'config.py'), str(work / 'work' / 'epoch_16.pth'), device='cpu')
    assert isinstance(model.backbone, FcaResNet)
    for name, result in results.items():
        expected = inference_detector(model, str(work / 'data' / 'images' / name)).pred_instances
        assert result['scores'].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-4)
        image = read_picture(work / 'data' / 'images' / name).astype(int)
        (path,) = work.glob(f'tested/*/painted/{name}')
        annotated, predicted = np.split(read_picture(path), [image.shape[1]], axis=1)
        assert np.abs(annotated - image).mean() > 2
        assert (np.abs(predicted - image).mean() > 2) == bool((expected.scores > 0.3).any())


def test_this_packages_test_takes_the_same_options(work):
    (line,) = (line for line in LINES if '--show-dir' in line)
    result = shell(line.replace('$tools', str(TOOLS)).replace('tested', 'own').replace('results', 'own_results'), work)
    assert result.returncode == 0, result.stdout[-5000:]
    own, theirs = predictions(work / 'own_results.pkl'), predictions(work / 'results.pkl')
    assert all(torch.equal(own[name]['scores'], theirs[name]['scores']) for name in theirs)
    assert {path.name for path in work.glob('own/*/painted/*')} == set(own)


def test_eval_metric(work):
    expected = scores(work)
    assert expected['coco/bbox_mAP'] > 0.05
    assert ast.literal_eval(run('eval_metric.py', work)[-1]) == expected
    said = run('eval_metric.py', work, ' --cfg-options val_evaluator.classwise=True val_evaluator.metric=bbox')
    by_class = [float(value) for value in re.findall(r"'coco/[\w-]+_precision': np.float64\((.*?)\)", said[-1])]
    assert np.mean(by_class) == pytest.approx(expected['coco/bbox_mAP'], abs=1e-3)


def test_analyze_results(work):
    run('analyze_results.py', work)
    found = {}
    for folder in ('good', 'bad'):
        for path in (work / 'analysed' / folder).iterdir():
            name, precision = re.fullmatch(r'(.*)_([\d.]+)\.png', path.name).groups()
            found.setdefault(folder, []).append(float(precision))
            image = read_picture(work / 'data' / 'images' / f'{name}.png').astype(int)
            assert np.abs(read_picture(path) - image).mean() > 2
    assert [len(values) for values in found.values()] == [IMAGES // 2] * 2  # half of the images where there are fewer than 40
    assert max(found['bad']) <= min(found['good']) < max(found['good'])


def test_confusion_matrix(work):
    """The picture has the colour of each share, counted here. Additional class names make space for the cells, as the page says."""
    run('confusion_matrix.py', work)
    assert read_picture(work / 'confusion' / 'confusion_matrix.png').shape == (288, 360, 3)
    (option,) = re.findall(r'`--cfg-options (test_dataloader\S+)`', SECTION)
    run('confusion_matrix.py', work, f' --cfg-options {option.replace("disc,cross", ",".join(CLASSES))}')
    picture = read_picture(work / 'confusion' / 'confusion_matrix.png')
    matrix, annotated = np.zeros((9, 9)), annotations(work)
    for name, result in predictions(work / 'results.pkl').items():
        kept = result['scores'] >= 0.3
        truth = annotated[name]
        boxes = result['bboxes'][kept].double().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        labels = result['labels'][kept].tolist()
        overlaps = rle.iou(boxes, np.array([box for box, _ in truth], float), [0] * len(truth)) if labels else np.zeros((0, len(truth)))
        for overlap, label in zip(overlaps, labels, strict=True):
            matched = [of for (_, of), value in zip(truth, overlap, strict=True) if value >= 0.5]
            for of in matched or [-1]:
                matrix[of, label] += 1
        for index, (_, of) in enumerate(truth):
            matrix[of, -1] += not any(overlap[index] >= 0.5 and label == of for overlap, label in zip(overlaps, labels, strict=True))
    share = matrix[[0, 1, 2, 8]] / matrix[[0, 1, 2, 8]].sum(1, keepdims=True)
    assert np.diag(share)[:3].max() > 0.2
    for value in np.unique(share):
        colour = np.round(np.array(colormaps['plasma'](value / share.max())[:3]) * 255)
        assert (np.abs(picture - colour).max(2) <= 1).sum() > 400, value  # most of a cell of 31 pixels, beside its number


def test_time_augmentation(work):
    """Against the detections in an image and in its mirror image, merged here. A Mask R-CNN without masks is its Faster R-CNN."""
    run('tta.pkl', work, config='faster_rcnn.py')
    run('tta_boxes.pkl', work)
    merged, of_mask_rcnn = predictions(work / 'tta.pkl'), predictions(work / 'tta_boxes.pkl')
    model = init_detector(str(work / 'faster_rcnn.py'), str(work / 'work' / 'epoch_16.pth'), device='cpu')
    for name, result in merged.items():
        assert all(torch.equal(result[key], of_mask_rcnn[name][key]) for key in ('bboxes', 'scores', 'labels'))
        image = read_picture(work / 'data' / 'images' / name)[..., ::-1]
        plain, mirrored = (inference_detector(model, np.ascontiguousarray(view)).pred_instances for view in (image, image[:, ::-1]))
        mirrored.bboxes = mirrored.bboxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0]) * image.shape[1]
        both = plain.cat([plain, mirrored])
        expected, kept = batched_nms(both.bboxes, both.scores, both.labels, dict(type='nms', iou_threshold=0.5))
        assert (kept < len(plain)).any()
        assert (kept >= len(plain)).any()
        torch.testing.assert_close(torch.cat([result['bboxes'], result['scores'][:, None]], 1), expected[:100], rtol=0, atol=1e-2)
        assert torch.equal(result['labels'], both.labels[kept][:100])


def test_browse_dataset(work):
    run('browse_dataset.py', work)
    assert {path.name for path in (work / 'browsed').iterdir()} == set(annotations(work))
    for path in (work / 'browsed').iterdir():
        drawn = read_picture(path).astype(int)
        assert drawn.shape == (96, 96, 3)  # as the pipeline resizes
        image = Image.open(work / 'data' / 'images' / path.name).convert('RGB').resize((96, 96), Image.Resampling.BILINEAR)
        assert np.abs(drawn - np.array(image)).mean() > 5


@needs_seaborn
def test_analyze_logs_draws_a_curve(work):
    run('plot_curve', work, ' --eval-interval 4')  # where every fourth epoch is followed by an evaluation
    assert len(np.unique(read_picture(work / 'curve.png').reshape(-1, 3), axis=0)) > 50


@needs_seaborn
def test_analyze_logs_times_an_iteration(work):
    (path,) = work.glob('work/*/vis_data/scalars.json')
    times = [step['time'] for step in map(json.loads, path.read_text().splitlines()) if 'loss' in step]
    (said,) = [float(line.split()[-2]) for line in run('cal_train_time', work) if line.startswith('average iter time')]
    assert round(min(times), 4) <= said <= round(max(times), 4)


def test_get_flops(work):
    detector = build_detector(Config.fromfile(work / 'faster_rcnn.py')).eval()
    batch = detector.data_preprocessor(demo_mm_inputs(1, [(3, 96, 96)]))
    detector.forward = partial(detector.forward, data_samples=batch['data_samples'])
    analyzer = FlopAnalyzer(detector, batch['inputs'])
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    said = run('get_flops.py', work, config='faster_rcnn.py')
    assert f'Flops: {analyzer.total() / 1e6:.3f}M' in said
    assert f'Params: {parameters / 1e6:.3f}M' in said


def test_benchmark(work):
    said = '\n'.join(run('benchmark.py', work))
    for transform in Config.fromfile(work / 'config.py').test_dataloader.dataset.pipeline:
        assert float(re.search(rf'{transform.type} - (\S+) ms', said)[1]) > 0
    rate, time = map(float, re.search(r'Overall fps: (\S+) img/s, times per img: (\S+) ms/img', said).groups())
    assert time == pytest.approx(1000 / rate, abs=0.1)


ANALYZE_LOGS = 'analysis_tools/analyze_logs.py'
CUDA = 'Torch not compiled with CUDA enabled', 'Found no NVIDIA driver'
"""The message of a torch built without CUDA, and of one with it on a machine without a GPU."""
STOPS = {
    "'dark' is not a valid package style": f'{ANALYZE_LOGS} plot_curve WORK_DIR/*/vis_data/scalars.json --keys loss --out loss.png',
    "No module named 'seaborn'": f'{ANALYZE_LOGS} cal_train_time WORK_DIR/*/vis_data/scalars.json',
    'x and y must have same first dimension': f'{ANALYZE_LOGS} plot_curve iterations.json --keys bbox_mAP --out map.png {STYLE}',
    'can only concatenate list (not "tuple") to list': (
        'analysis_tools/confusion_matrix.py CONFIG results.pkl lists --cfg-options '
        '"test_dataloader.dataset.metainfo.classes=[coarse-disc,fine-disc,cross]"'
    ),
    'TTA of instance segmentation does not support now.': 'test.py CONFIG CHECKPOINT --tta',
    'segm is not in results': 'test.py CONFIG CHECKPOINT --tta --cfg-options model.roi_head.mask_head=None',
    'division by zero': 'analysis_tools/benchmark.py CONFIG --task dataset',
    CUDA[0]: 'analysis_tools/benchmark.py CONFIG --task inference --checkpoint CHECKPOINT',
}


@pytest.mark.parametrize('message', STOPS)
def test_what_a_command_says_when_it_stops(message, work):
    line = STOPS[message]
    if ('analyze_logs.py' in line and ('seaborn' in message) == DRAWS) or ('dark' in message and SEABORN):
        pytest.skip('analyze_logs.py of this environment says something else')
    if '--task inference' in line and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    (log,) = work.glob('work/*/vis_data/scalars.json')
    steps = [{key: value for key, value in step.items() if key != 'epoch'} for step in map(json.loads, log.read_text().splitlines())]
    (work / 'iterations.json').write_text('\n'.join(map(json.dumps, steps)))  # as a training by iterations writes it
    result = shell(f'python "$tools"/{line}', work)
    assert result.returncode != 0
    assert message in result.stdout or (message in CUDA and CUDA[1] in result.stdout)


def test_lists_and_tuples_on_the_command_line(work):
    config = config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')
    blanks = 'val_dataloader.dataset.metainfo.classes="(traffic light,)"'
    result = shell(f'python "$tools"/misc/print_config.py "CONFIG" --cfg-options {" ".join(SPELLINGS)} {blanks}', work, config)
    cfg = Config.fromstring(result.stdout.split('Config:\n')[1], '.py')
    for spelling, value in {**SPELLINGS, blanks: "('trafficlight',)"}.items():
        found = cfg
        for key in spelling.split('=')[0].split('.'):
            found = found[int(key) if isinstance(found, list) else key]
        assert (type(found), found) == (type(ast.literal_eval(value)), ast.literal_eval(value)), spelling
    backbone = build_detector(cfg).backbone
    assert (backbone.dct_size, backbone.layer1[0].att.frequencies) == ((28, 28, 14, 7), ((0, 0), (0, 1)))


def test_the_page_has_nothing_that_is_not_run(work):
    names = set(re.findall(r"\brun\('(.+?)', work", Path(__file__).read_text()))
    assert [len([name for name in names if name in line]) for line in LINES] == [1] * len(LINES)
    assert set(MESSAGES) == set(STOPS)
    assert len(SPELLINGS) == 6
    first = shell(f'{FIRST}\necho "$tools"', work).stdout.splitlines()[-1]
    assert Path(first) == MMDET_TOOLS

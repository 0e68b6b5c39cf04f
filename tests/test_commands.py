"""The commands as a user runs them: processes of their own, on a tiny data set, from another working directory."""

import json
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from demo import read_classes, run_job
from figures import read_scalars
from make_shapes import CLASSES as SHAPE_CLASSES
from make_shapes import make_shapes
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fca_mmdet import MultiSpectralAttention
from fca_mmdet.checkpoint import full_basis

CLASSES = tuple(SHAPE_CLASSES)
ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'
OWN, MMDET = ROOT / 'tools', Path(mmdet.__file__).parent / '.mim' / 'tools'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    """Eight training and four held-out images."""
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(folder, train=8, val=4)
    return folder


@pytest.fixture(scope='module')
def config(shapes, tmp_path_factory) -> Path:
    """The small config on the tiny data set: four iterations, a checkpoint every second."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    annotations = f'{shapes}/annotations/val.json'
    loader = f"dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{shapes}/', metainfo=dict(classes={CLASSES})))"
    path.write_text(f"""
_base_ = {str(CONFIG)!r}
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[8])),
    roi_head=dict(bbox_head=dict(num_classes={len(CLASSES)}), mask_head=dict(num_classes={len(CLASSES)})),
    test_cfg=dict(rpn=dict(max_per_img=20)),
)
train_dataloader = {loader}
val_dataloader = {loader}
test_dataloader = {loader}
val_evaluator = dict(ann_file={annotations!r})
test_evaluator = dict(ann_file={annotations!r})
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
""")
    return path


def run(*command: object, cwd: Path) -> str:
    """Run a Python command; its whole output, or a failure that shows it."""
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


@pytest.mark.parametrize('tools', [OWN, MMDET], ids=['own', 'mmdet'])
def test_train_resume_and_test(tools, config, tmp_path):
    run(tools / 'train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', 'train_cfg.max_iters=2', cwd=tmp_path)
    assert 'message_hub' in torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=True)
    resumed = run(tools / 'train.py', config, '--work-dir', tmp_path / 'run', '--resume', cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in resumed
    tested = run(tools / 'test.py', config, tmp_path / 'run' / 'iter_4.pth', '--work-dir', tmp_path / 'test', cwd=tmp_path)
    for output in (resumed, tested):
        assert 'coco/segm_mAP:' in output
        assert 'weights_only' not in output  # no fallback to unpickling without a check


def test_a_config_may_leave_the_import_to_the_tools(config, tmp_path):
    path = tmp_path / 'no_import.py'
    path.write_text(f'_base_ = {str(config)!r}\ncustom_imports = None\ntrain_cfg = dict(max_iters=1)\n')
    run(OWN / 'train.py', path, '--work-dir', tmp_path / 'run', cwd=tmp_path)
    assert (tmp_path / 'run' / 'iter_1.pth').exists()


def test_a_checkpoint_of_mmdet_2_is_tested_resumed_and_started_from(config, tmp_path):
    """With the stored bases, an optimiser and no log, as FcaNet's published detectors have them."""
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, MultiSpectralAttention):
            state[f'{name}.dct_layer.weight'] = full_basis(module.frequencies, module.grid, module.in_channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3).state_dict()
    meta = dict(mmdet_version='2.4.0', epoch=0, iter=3, CLASSES=CLASSES)
    torch.save(dict(meta=meta, state_dict=state, optimizer=optimizer), tmp_path / 'old.pth')
    tested = run(OWN / 'test.py', config, tmp_path / 'old.pth', '--work-dir', tmp_path / 'test', cwd=tmp_path)
    resumed = run(OWN / 'train.py', config, '--work-dir', tmp_path / 'resume', '--resume', tmp_path / 'old.pth', cwd=tmp_path)
    start = ['--cfg-options', 'train_cfg.max_iters=1', f'load_from={tmp_path / "old.pth"}']
    started = run(OWN / 'train.py', config, '--work-dir', tmp_path / 'start', *start, cwd=tmp_path)
    for output in (tested, resumed, started):
        assert not [line for line in output.splitlines() if 'key' in line and 'state_dict' in line]
        assert f'from {tmp_path / "old.pth"}' in output
    assert 'resumed epoch: 0, iter: 3' in resumed
    assert 'holds no learning rate schedule: resumed, the schedule starts anew' in resumed
    assert (tmp_path / 'resume' / 'iter_4.pth').exists()


def test_a_checkpoint_that_would_run_code_is_refused(config, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / 'executed'), 'w')

    torch.save({'state_dict': {}, 'meta': Payload()}, tmp_path / 'hostile.pth')
    result = subprocess.run(
        [sys.executable, OWN / 'test.py', config, tmp_path / 'hostile.pth', '--work-dir', tmp_path / 'work'],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode
    assert 'hostile.pth holds more than data: it asks for' in result.stderr
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(('script', 'arguments'), [('dist_train.sh', []), ('dist_test.sh', ['CHECKPOINT'])])
def test_distributed_scripts_hand_over_every_argument(script, arguments, tmp_path):
    """python is replaced by a program that prints what it is given."""
    (tmp_path / 'python').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    result = subprocess.run(
        [OWN / script, 'my config.py', *arguments, '2', '--cfg-options', 'a=[1, 2]'],
        env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'PORT': '29511'},
        capture_output=True,
        text=True,
        check=True,
    )
    given = result.stdout.splitlines()
    assert given[:2] == ['-m', 'torch.distributed.run']
    assert {'--nproc_per_node=2', '--nnodes=1', '--master_port=29511'} <= set(given)
    assert given[-4 - len(arguments) - 1 :][:1] == ['my config.py']
    assert given[-4:] == ['--launcher', 'pytorch', '--cfg-options', 'a=[1, 2]']


def test_the_job_stops_resumes_finishes_and_says_so(shapes, config, tmp_path, capsys):
    work = tmp_path / 'work'
    first_half = tmp_path / 'half.py'
    first_half.write_text(f'_base_ = {str(config)!r}\ntrain_cfg = dict(max_iters=2, val_interval=2)\n')
    run(OWN / 'train.py', first_half, '--work-dir', work, cwd=tmp_path)
    metrics = run_job(shapes, work, config)
    assert metrics['iterations'] == 4
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    assert json.loads((work / 'metrics.json').read_text()) == metrics
    for name in ('predictions', 'curves', 'bases', 'gates'):
        assert (work / f'{name}.png').stat().st_size > 10_000
    assert [entry['step'] for entry in read_scalars(work) if 'coco/segm_mAP' in entry] == [2, 4]
    assert Config.fromfile(work / 'config.py').model.roi_head.mask_head.num_classes == len(CLASSES)
    capsys.readouterr()
    assert run_job(shapes, work, config) == metrics
    assert 'finished before' in capsys.readouterr().out


def test_shapes_are_the_same_for_the_same_seed_and_masks_do_not_overlap(tmp_path):
    from pycocotools import mask as coco_mask

    for name, seed in (('one', 3), ('same', 3), ('other', 4)):
        make_shapes(tmp_path / name, train=2, val=1, seed=seed)
    files = [sorted((tmp_path / name).rglob('*.*')) for name in ('one', 'same', 'other')]
    one, same, other = ([path.read_bytes() for path in paths] for paths in files)
    assert one == same != other
    content = json.loads((tmp_path / 'one' / 'annotations' / 'train.json').read_text())
    for image in content['images']:
        masks = [coco_mask.decode(a['segmentation']) for a in content['annotations'] if a['image_id'] == image['id']]
        assert sum(masks).max() == 1


def break_file(data: Path, how: str) -> None:
    """Break one thing of a COCO-format folder."""
    path = data / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    if how == 'missing':
        path.unlink()
        return
    if how == 'truncated':
        path.write_text(path.read_text()[:100])
        return
    if how == 'no images':
        content['images'] = []
    elif how == 'no masks':
        for annotation in content['annotations']:
            annotation.pop('segmentation')
    elif how == 'other classes':
        content['categories'][0]['name'] = 'blob'
    elif how == 'no file':
        content['images'][1]['file_name'] = 'gone.png'
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('how', 'message'),
    [
        ('missing', r'val.json is missing: --data takes a folder with annotations/train.json'),
        ('truncated', r'val.json is no COCO annotation file'),
        ('no images', r'val.json has 0 images, \d+ annotations and 3 categories'),
        ('no masks', r'has boxes but no segmentations'),
        ('other classes', r"the splits of .* differ in their categories: .* val has \['blob'"),
        ('no file', r'1 of 4 images of .* are not in .*: the first is gone.png'),
    ],
)
def test_a_broken_folder_is_refused_before_training(how, message, tmp_path):
    make_shapes(tmp_path / 'data', train=2, val=4)
    break_file(tmp_path / 'data', how)
    with pytest.raises(SystemExit, match=message):
        read_classes(tmp_path / 'data')

"""The backbone as a classifier: mmpretrain's own runner on a small image folder, and what a detector gets from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TOOLS, TORCHVISION, frozen, needs_torchvision, run_python
from mmengine.config import Config
from PIL import Image

from fca_mmdet import FcaResNet

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'imagenet'
# torchvision, which mmpretrain imports, lies beside the environment: mmengine does not start where it is installed and cannot be imported.
pytestmark = needs_torchvision


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """Two classes told apart by their brightness: eight images each to train on, four each to test."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 4)):
        for name, level in (('n01440764', 40), ('n01443537', 200)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(level, 20, (72, 90, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f'{index}.png')
    return root


def run(command: str, *arguments: object, cwd: Path) -> str:
    return run_python(TOOLS / command, *arguments, cwd=cwd, PYTHONPATH=os.pathsep.join(map(str, [*TORCHVISION, ROOT])))


def test_a_classifier_trains_evaluates_and_initialises_a_detectors_backbone(images, tmp_path):
    config = tmp_path / 'tiny.py'
    config.write_text(f"""
_base_ = {str(CONFIGS / 'fca-resnet34_8xb32-100e_in1k.py')!r}
model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(in_channels=128, num_classes=2, topk=(1,)))
dataset = dict(data_root={str(images)!r}, metainfo=dict(classes=('tench', 'goldfish')))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [dict(type='ConstantLR', factor=1, by_epoch=False)]
default_hooks = dict(logger=dict(interval=1))
""")
    run('train.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path)
    (log,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [entry['loss'] for entry in entries if 'loss' in entry]
    assert len(losses) == 12
    assert all(np.isfinite(losses))
    checkpoint = tmp_path / 'work' / 'epoch_3.pth'
    run('test.py', config, checkpoint, '--work-dir', tmp_path / 'tested', cwd=tmp_path)
    (tested,) = (tmp_path / 'tested').glob('*/*.json')
    assert json.loads(tested.read_text())['accuracy/top1'] == pytest.approx(entries[-1]['accuracy/top1'])
    trained = torch.load(checkpoint)['state_dict']
    backbone = FcaResNet(34, base_channels=16, stem_channels=16, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    backbone.init_weights()
    for name, value in frozen(backbone).state_dict().items():
        assert torch.equal(value, trained[f'backbone.{name}']), name


@pytest.mark.parametrize('depth', [34, 50, 101, 152])
def test_a_config_is_the_authors_recipe(depth):
    cfg = Config.fromfile(CONFIGS / f'fca-resnet{depth}_8xb32-100e_in1k.py')
    backbone, head = cfg.model.backbone, cfg.model.head
    assert backbone.type == 'mmdet.FcaResNet'
    assert (backbone.depth, backbone.norm_eval) == (depth, False)
    assert head['in_channels'] == (512 if depth == 34 else 2048)
    assert head.loss.label_smooth_val == 0.1
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.1, 0.9, 1e-4)
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.end, cosine.T_max, cfg.train_cfg.max_epochs) == (5, 5, 100, 95, 100)


SEPARATE = """
import torch
from mmdet.models.backbones import ResNet
from mmpretrain.models.backbones import SEResNet
from fca_mmdet import SqueezeExcitation
torch.manual_seed(0)
theirs = SEResNet(50, out_indices=(0, 1, 2, 3))
torch.save({'state_dict': {f'backbone.{key}': value for key, value in theirs.state_dict().items()}}, 'se.pth')
ours = ResNet(
    50,
    plugins=[dict(cfg=dict(type=SqueezeExcitation), position='after_conv3')],
    init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint='se.pth'),
)
ours.init_weights()
ours.eval(), theirs.eval()
x = torch.rand(1, 3, 64, 96)
with torch.no_grad():
    assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))
print('equal')
"""


def test_mmpretrains_se_resnet_initialises_the_control(tmp_path):
    (tmp_path / 'separate.py').write_text(SEPARATE)
    path = os.pathsep.join(map(str, [*TORCHVISION, ROOT]))
    result = subprocess.run(
        [sys.executable, 'separate.py'], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.strip().endswith('equal'), result.stderr[-3000:]
    assert 'unexpected key' not in result.stdout + result.stderr
    assert 'missing key' not in result.stdout + result.stderr

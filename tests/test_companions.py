"""What the companions of a batch change: nothing at the image's own size, and what is counted is counted by hand."""

import json
import sys

import numpy as np
import pytest
import torch
from companions import compare, main
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from fca_mmdet import config_path

NAME = 'small/mask-rcnn_fca-r50-thin_fpn_small-heads'


def detections(*rows: tuple) -> InstanceData:
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4), labels=torch.tensor(labels).long(), scores=torch.tensor(scores)
    )


def test_counterparts_are_of_one_class_and_taken_once():
    alone = detections(((0, 0, 8, 8), 0, 0.75), ((0, 0, 8, 8), 1, 0.5), ((20, 20, 30, 30), 0, 0.5))
    batched = detections(((0, 0, 8, 7), 0, 0.5), ((0, 0, 8, 6), 0, 0.25), ((50, 50, 60, 60), 0, 0.5))
    assert compare(alone, batched) == (4, [0.25])
    assert compare(detections(), batched) == (3, [])
    assert compare(detections(), detections()) == (0, [])


def test_the_command(tmp_path, monkeypatch, capsys):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config_path(NAME)).model)
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.5)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'weights.pth')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(tmp_path / 'image.png')
    command = ['companions.py', '--model', config_path(NAME), str(tmp_path / 'weights.pth'), '--out', str(tmp_path / 'out' / 'found.json')]
    monkeypatch.setattr(sys, 'argv', [*command, '--images', str(tmp_path)])
    main()
    found = json.loads((tmp_path / 'out' / 'found.json').read_text())['results']['mask-rcnn_fca-r50-thin_fpn_small-heads']
    assert found['1.0'] == dict(
        without_counterpart=0, without_counterpart_std=0, score_change=pytest.approx(0, abs=1e-5), score_change_std=0
    )
    assert found['2.0']['without_counterpart'] > 0 or found['2.0']['score_change'] > 1e-3
    assert (tmp_path / 'out' / 'found.png').exists()
    monkeypatch.setattr(sys, 'argv', [*command, '--images', str(tmp_path / 'none')])
    with pytest.raises(SystemExit, match=r'companions: there is no image \(.png, .*\) in .*none'):
        main()

"""What the other image of a batch changes: nothing at the image's own size, and what is counted is counted by hand."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers import load_command
from matplotlib import pyplot as plt
from mmengine.structures import InstanceData
from PIL import Image

from fca_mmdet import config_path
from fca_mmdet.configs import read_config
from fca_mmdet.detector import build_detector
from fca_mmdet.lab.batching import average, compare, draw_changes, name_of

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


def test_names_of_runs(tmp_path):
    assert name_of(tmp_path / 'low4' / 'seed-1' / 'config.py') == 'low4'
    assert name_of(tmp_path / 'low4' / 'config.py') == 'low4'
    assert name_of(tmp_path / 'mask-rcnn.py') == 'mask-rcnn'


def test_seeds_are_averaged():
    seeds = [{size: dict(without_counterpart=0.1 * seed * size, score_change=0.5) for size in (1.0, 2.0)} for seed in (0, 2)]
    assert average(seeds[1:])[2.0] == dict(without_counterpart=0.4, without_counterpart_std=0, score_change=0.5, score_change_std=0)
    found = average(seeds)[1.0]
    assert found['without_counterpart'] == pytest.approx(0.1)
    assert found['without_counterpart_std'] == pytest.approx(np.std([0, 0.2], ddof=1))


def test_a_line_for_each_name(drawn, tmp_path):
    one = {
        size: dict(without_counterpart=0.1 * size, without_counterpart_std=0.0, score_change=0.2, score_change_std=0.05) for size in (1, 2)
    }
    draw_changes({'fca': one, 'plain': one}, tmp_path / 'changes.png')
    left, right = drawn[0].axes
    assert left.get_title() == 'detections without a counterpart'
    assert right.get_title() == 'mean change of score'
    assert [text.get_text() for text in left.get_legend().get_texts()] == ['fca', 'plain']
    assert left.containers[0].lines[0].get_ydata().tolist() == [0.1, 0.2]
    assert not left.containers[0].has_yerr
    assert right.containers[1].has_yerr


def test_the_command(tmp_path, monkeypatch, capsys):
    batching = load_command('batching')
    torch.manual_seed(0)
    model = build_detector(read_config(config_path(NAME)))
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.5)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'weights.pth')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(tmp_path / 'image.png')
    model = ['--model', config_path(NAME), str(tmp_path / 'weights.pth')]
    command = ['batching.py', *model, *model, '--out', str(tmp_path / 'out' / 'found.json')]  # as two seeds of a run
    monkeypatch.setattr(sys, 'argv', [*command, '--images', str(tmp_path)])
    batching.main()
    found = json.loads((tmp_path / 'out' / 'found.json').read_text())['results']['mask-rcnn_fca-r50-thin_fpn_small-heads']
    assert found['1.0'] == dict(
        without_counterpart=0, without_counterpart_std=0, score_change=pytest.approx(0, abs=1e-5), score_change_std=0
    )
    assert found['2.0']['without_counterpart'] > 0 or found['2.0']['score_change'] > 1e-3
    assert (
        'mask-rcnn_fca-r50-thin_fpn_small-heads, other image x 1.0: 0.0% without counterpart, scores change by 0.0000 +- 0.0%, 0.0000\n'
        in capsys.readouterr().out
    )
    assert plt.imread(tmp_path / 'out' / 'found.png').shape[:2] == (480, 1320)
    monkeypatch.setattr(sys, 'argv', [*command, '--images', str(tmp_path / 'none')])
    with pytest.raises(SystemExit, match=r'batching: there is no image \(.png, .*\) in .*none'):
        batching.main()

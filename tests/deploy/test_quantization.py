"""Served detectors score as mmdet's do, and int8 is written whole."""

import copy
import re

import coco_folder
import openvino
import pytest
import torch
from helpers import TOOLS, ending, needs_a_later_compiler, run_python
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from fca_mmdet.deploy import quantization
from fca_mmdet.deploy.detector import Exportable, write_detector
from fca_mmdet.deploy.quantization import Served
from fca_mmdet.deploy.runtime import open_file
from fca_mmdet.detector import build_detector, open_detector


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A config, data of two images to score, and weights by which scores, boxes and masks spread."""
    monkeypatch.chdir(tmp_path)
    coco_folder.make(tmp_path)
    torch.manual_seed(0)
    model = build_detector(Config.fromfile('config.py'))
    head = model.roi_head
    for layer, std in ((model.rpn_head.rpn_cls, 0.3), (head.bbox_head.fc_cls, 0.5), (head.mask_head.conv_logits, 1.0)):
        nn.init.normal_(layer.weight, std=std)
    torch.save(dict(state_dict=model.state_dict(), meta={}), 'weights.pth')
    return tmp_path


@pytest.mark.slow
@needs_a_later_compiler
def test_a_served_detector_predicts_what_mmdet_does_in_the_original_pixels(trained):
    detector = open_detector(trained / 'config.py', trained / 'weights.pth')
    write_detector(Exportable(detector), trained / 'a.onnx', 'onnxruntime')
    served = Served(detector, open_file(trained / 'a.onnx', 'onnxruntime'))
    compared = 0
    for batch in Runner.build_dataloader(Config.fromfile('config.py').test_dataloader):
        (ours,), (theirs,) = (model.test_step(copy.deepcopy(batch)) for model in (detector, served))
        expected, found = ours.pred_instances, theirs.pred_instances
        assert tuple(found.masks.shape[1:]) == ours.ori_shape == (192, 192)
        distance = torch.cdist(expected.bboxes, found.bboxes, p=torch.inf) + 1e6 * (expected.labels[:, None] != found.labels)
        far, pairs = distance.min(1)
        assert far.max() < 0.1
        torch.testing.assert_close(found.scores[pairs], expected.scores, rtol=0, atol=1e-4)
        assert (found.masks[pairs] ^ expected.masks).float().mean() < 1e-3
        compared += len(pairs)
    assert compared > 10
    assert len(served.seconds) == 2


@pytest.mark.slow
@needs_a_later_compiler
def test_the_command_writes_and_scores_both(trained):
    said = run_python(TOOLS / 'quantize_detector.py', 'config.py', 'weights.pth', '--out', 'out/small.xml', '--count', 3, cwd=trained)
    assert 'quantising on 3 images' in said
    lines = re.findall(r'^(float32|int8): (\S+) MiB, \d+ ms an image, coco/bbox_mAP (\S+), coco/segm_mAP (\S+)$', said, re.MULTILINE)
    assert [line[0] for line in lines] == ['float32', 'int8']
    assert float(lines[1][1]) < float(lines[0][1])
    assert sorted(path.name for path in (trained / 'out').iterdir() if path.is_file()) == ['small.bin', 'small.onnx', 'small.xml']
    operators = [operator.get_type_name() for operator in openvino.Core().read_model(trained / 'out' / 'small.xml').get_ops()]
    assert operators.count('FakeQuantize') > 20


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    command = f'quantize_detector.py config.py weights.pth --out {tmp_path}/a.onnx'
    assert ending(command, capsys) == f'quantize_detector: --out {tmp_path}/a.onnx must end in .xml, as OpenVINO names its models'
    none = f'quantize_detector.py config.py weights.pth --out {tmp_path}/a.xml --count 0'
    assert ending(none, capsys) == 'quantize_detector: --count 0: give 1 or more'
    monkeypatch.setattr(quantization, 'find_spec', lambda name: None)
    missing = "openvino and nncf not installed: pip install openvino nncf, or the extra 'int8' of fca_mmdet"
    assert ending(command, capsys) == f'quantize_detector: {missing}'

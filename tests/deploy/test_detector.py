"""A detector as one ONNX file: mmdet's own predictions, from the exported forward and from ONNX Runtime, at unseen sizes."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import SMALL, TOOLS, ending, run_python
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from PIL import Image
from torch.nn import functional as F

from fca_mmdet import UserError
from fca_mmdet.deploy import detector as room
from fca_mmdet.deploy.detector import Exportable, differences
from fca_mmdet.deploy.runtime import NAMES, open_file

HEADS = {
    'a box and a mask per class': dict(bbox_head=dict(reg_class_agnostic=False), mask_head=dict(class_agnostic=False)),
    'one box and mask for all': dict(bbox_head=dict(reg_class_agnostic=True), mask_head=dict(class_agnostic=True)),
    'no masks': dict(mask_head=None, mask_roi_extractor=None),
}
SIZES = [(64, 96), (97, 131), (150, 90)]


def config(roi_head: dict, **rcnn: object) -> Config:
    """The small Mask R-CNN on two pyramid levels, so that it exports in seconds."""
    levels = dict(featmap_strides=[4, 8], finest_scale=20)
    cfg = Config.fromfile(SMALL)
    for change in (
        dict(
            backbone=dict(base_channels=16, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
            neck=dict(in_channels=[16], num_outs=2),
            rpn_head=dict(anchor_generator=dict(strides=[4, 8])),
            roi_head=dict(
                bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5), bbox_roi_extractor=levels, mask_roi_extractor=levels
            ),
            test_cfg=dict(rpn=dict(nms_pre=100), rcnn=rcnn),
        ),
        dict(roi_head=roi_head),
    ):
        cfg.merge_from_dict(dict(model=change))
    return cfg


def detector(cfg: Config) -> torch.nn.Module:
    """Random weights by which scores, boxes and masks spread."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    layers = [(model.rpn_head.rpn_cls, 0.3), (model.rpn_head.rpn_reg, 0.05)]
    layers += [(model.roi_head.bbox_head.fc_cls, 0.5), (model.roi_head.bbox_head.fc_reg, 0.2)]
    if model.with_mask:
        layers.append((model.roi_head.mask_head.conv_logits, 1.0))
    for layer, spread in layers:
        torch.nn.init.normal_(layer.weight, std=spread)
    return model


def picture(size: tuple[int, int]) -> torch.Tensor:
    """Smooth noise [3, H, W] in 0..255."""
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size, mode='bicubic')[0].clamp(0, 1) * 255


def prepared(model: torch.nn.Module, image: torch.Tensor) -> dict:
    """What the detector's predict takes."""
    size = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    return model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)


def assert_mmdets_own(found, model, data) -> int:
    """Boxes, scores and labels are mmdet's, in its order; masks follow. Returns how many."""
    with torch.no_grad():
        expected = model.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances
    boxes, scores, labels = (torch.as_tensor(value) for value in found[:3])
    torch.testing.assert_close(boxes, expected.bboxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(scores, expected.scores, atol=1e-5, rtol=0)
    assert torch.equal(labels, expected.labels)
    return len(expected)


@pytest.mark.parametrize('name', HEADS)
@torch.no_grad()
def test_the_exportable_forward_is_mmdets_predict(name):
    for rcnn in (dict(), dict(score_thr=0.7), dict(score_thr=0.999)):
        model = detector(config(HEADS[name], **rcnn))
        counts = []
        for size in SIZES:
            data = prepared(model, picture(size))
            found = Exportable(model)(data['inputs'], torch.tensor(size))
            assert len(found) == (3 if name == 'no masks' else 4)
            counts.append(assert_mmdets_own(found, model, data))
        assert counts == [100] * 3 if not rcnn else counts == [0] * 3 if rcnn['score_thr'] == 0.999 else 0 < min(counts) < max(counts) < 100


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A detector, the file that the command made of it, and what the command printed; nothing is found in the last of its images."""
    folder = tmp_path_factory.mktemp('export')
    cfg = config(HEADS['a box and a mask per class'], score_thr=0.7)
    model = detector(cfg)
    # Masks that fill their boxes: one pixel, which rounding may move over the threshold, is then less than a thousandth of a mask.
    torch.nn.init.constant_(model.roi_head.mask_head.conv_logits.bias, 2)
    cfg.dump(folder / 'config.py')
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    (folder / 'images').mkdir()
    for name, image in (('a', picture((200, 256))), ('b', picture((256, 160))), ('c', torch.full((3, 120, 200), 100.0))):
        Image.fromarray(image.permute(1, 2, 0).byte().numpy()).save(folder / 'images' / f'{name}.png')
    out = folder / 'sub' / 'detector.onnx'
    options = ['--out', out, '--images', folder / 'images']
    said = run_python(TOOLS / 'export_detector.py', folder / 'config.py', folder / 'weights.pth', *options, cwd=folder)
    assert [path.name for path in out.parent.iterdir()] == ['detector.onnx']
    return model, out, said


@pytest.mark.slow
def test_the_command_compares_on_images_of_several_sizes(exported):
    for runtime in NAMES.values():
        lines = re.findall(rf'(\w).png, (\d+ x \d+): (\d+) detections, (\d+) in {runtime}; (.*)', exported[2])
        assert [line[0] for line in lines] == ['a', 'b', 'c']
        assert [line[2] for line in lines] == [line[3] for line in lines]
        assert [line[2] == '0' for line in lines] == [False, False, True]
    found = re.findall(r'largest differences: boxes (\S+) of 0.1, scores (\S+) of 0.0001, masks (\S+) of 0.01', exported[2])
    assert len(found) == len(NAMES)
    for worst in found:
        assert [float(value) <= bound for value, bound in zip(worst, (1e-2, 1e-5, 1e-3), strict=True)] == [True] * 3


@pytest.mark.slow
def test_onnx_runtime_agrees_at_other_sizes(exported):
    model, out, _ = exported
    session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
    for size in SIZES:
        data = prepared(model, picture(size))
        assert assert_mmdets_own(session.run(None, dict(image=data['inputs'].numpy(), size=np.array(size))), model, data)


@pytest.mark.slow
def test_the_file_holds_standard_operators_only(exported):
    graph = onnx.load(exported[1]).graph
    assert {node.domain for node in graph.node} == {''}
    assert {'NonMaxSuppression', 'RoiAlign'} <= {node.op_type for node in graph.node}
    shapes = {value.name: [bool(axis.dim_param) for axis in value.type.tensor_type.shape.dim] for value in [*graph.input, *graph.output]}
    dynamic = dict(boxes=[True, False], scores=[True], labels=[True], masks=[True, False, False])
    assert shapes == dict(image=[False, False, True, True], size=[False], **dynamic)


@pytest.mark.slow
@pytest.mark.parametrize('part', ['bbox_head.fc_reg', 'bbox_head.fc_cls', 'mask_head.conv_logits'])
def test_a_detector_that_is_not_the_exported_one_is_told_apart(exported, part):
    trained, out, _ = exported
    model = detector(config(HEADS['a box and a mask per class'], score_thr=0.7))
    model.load_state_dict(trained.state_dict())
    run = open_file(out, 'onnxruntime')
    model.roi_head.get_submodule(part).weight.data *= 1.1 if part != 'mask_head.conv_logits' else -1.0
    ours, theirs, found = differences(Exportable(model), run, picture((97, 131)))
    assert (ours != theirs) == (part == 'bbox_head.fc_cls')
    assert (found['boxes'] > 0.1) == (part != 'mask_head.conv_logits')
    assert found['masks'] > 0.01


def test_other_detectors_are_refused():
    init_default_scope('mmdet')
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    with pytest.raises(UserError, match='only Faster R-CNN and Mask R-CNN can be exported: rpn_head is a NoneType, not a RPNHead'):
        Exportable(MODELS.build(cfg.model))
    with pytest.raises(UserError, match=r"test_cfg.rcnn.nms is of type 'soft_nms': only 'nms' can be exported"):
        Exportable(detector(config(HEADS['no masks'], nms=dict(type='soft_nms'))))


@pytest.mark.slow
def test_a_file_that_differs_is_not_to_be_deployed(exported, monkeypatch, capsys, tmp_path):
    folder = exported[1].parents[1]
    monkeypatch.setattr(room, 'TOLERANCES', dict(boxes=0.1, scores=0.0, masks=0.01))
    command = f'export_detector.py {folder}/config.py {folder}/weights.pth --out {tmp_path}/a.onnx --images {folder}/images --count 1'
    assert ending(command, capsys) == f'export_detector: ONNX Runtime and PyTorch differ: do not deploy {tmp_path}/a.onnx'


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    def wrong(config: object) -> str:
        rest = f'{tmp_path}/none.pth --out {tmp_path}/a.onnx --images {tmp_path}'
        return ending(f'export_detector.py "{config}" {rest}', capsys)

    assert wrong(SMALL) == f'export_detector: there is no image (.png, .jpg, .jpeg, .bmp, .tif, .tiff) in {tmp_path}'
    (tmp_path / 'a.png').touch()
    assert wrong('none.py') == 'export_detector: no config at none.py'
    assert wrong(SMALL) == f'export_detector: there is no checkpoint {tmp_path}/none.pth'
    assert not (tmp_path / 'a.onnx').exists()

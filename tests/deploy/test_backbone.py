"""Compiled, exported, traced and fused: the features stay what they are, at sizes that the graph has not seen."""

import copy
import re

import onnx
import onnxruntime
import pytest
import torch
from helpers import SMALL, TINY, TOOLS, ending, frozen, needs_a_later_compiler, run_python, says, with_statistics
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.necks import FPN
from mmengine.config import Config
from torch import nn
from torch.export import Dim

from fca_mmdet import FcaResNet, MultiSpectralAttention
from fca_mmdet.deploy import backbone
from fca_mmdet.deploy.backbone import compare, take_features, write_features
from fca_mmdet.deploy.runtime import open_file
from fca_mmdet.detector import build_detector

UNSEEN = [(1, 97, 131), (3, 65, 257), (2, 130, 70)]


class Pyramid(nn.Module):
    """Backbone and FPN."""

    def __init__(self):
        super().__init__()
        self.backbone = FcaResNet(50, base_channels=16, stem_channels=16)
        self.neck = FPN([64, 128, 256, 512], 32, num_outs=5)

    def forward(self, x):
        return self.neck(self.backbone(x))


MODELS = {
    'attention': (lambda: MultiSpectralAttention(32, 14), 32),
    'backbone': (lambda: FcaResNet(18, base_channels=16, stem_channels=16), 3),
    'bottlenecks': (lambda: FcaResNet(50, base_channels=16, stem_channels=16), 3),
    'pyramid': (Pyramid, 3),
}


def built(name: str) -> tuple[nn.Module, int]:
    """A model in eval mode with normalisations that do something, and its input channels."""
    torch.manual_seed(0)
    build, channels = MODELS[name]
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
    frozen(model)
    return model, channels


def assert_same(found, expected):
    """Within 1e-4 of the largest feature."""
    found, expected = (value if isinstance(value, (tuple, list)) else (value,) for value in (found, expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@needs_a_later_compiler
@pytest.mark.parametrize('name', ['attention', 'backbone', 'pyramid'])
@torch.no_grad()
def test_compiles_in_one_graph_for_all_sizes(name):
    model, channels = built(name)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for n, height, width in [(2, 96, 128), *UNSEEN]:
        x = torch.randn(n, channels, height, width)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        assert_same(compiled(x), model(x))
    assert len(graphs) <= 2  # batch 1 may get a graph of its own


@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_exports_with_free_batch_height_and_width(name):
    model, channels = built(name)
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    exported = torch.export.export(model, (torch.randn(2, channels, 96, 128),), dynamic_shapes=(free,)).module()
    for n, height, width in UNSEEN:
        x = torch.randn(n, channels, height, width)
        assert_same(exported(x), model(x))


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@torch.no_grad()
def test_traces_at_a_fixed_size(name):
    model, channels = built(name)
    traced = torch.jit.trace(model, torch.randn(1, channels, 97, 131))
    x = torch.randn(1, channels, 97, 131)
    assert_same(traced(x), model(x))


@pytest.mark.parametrize('name', ['backbone', 'bottlenecks', 'pyramid'])
@torch.no_grad()
def test_mmcv_fuses_normalisations_into_convolutions(name):
    model, channels = built(name)
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    x = torch.randn(1, channels, 97, 131)
    assert_same(fused(x), model(x))


@needs_a_later_compiler
def test_the_onnx_command(tmp_path):
    said = run_python(TOOLS / 'export_onnx.py', SMALL, '--out', tmp_path / 'sub' / 'features.onnx', '--repeats', 1, cwd=tmp_path)
    assert 'no checkpoint: the weights are random' in said
    errors = [float(error) for error in re.findall(r'difference (\S+) +PyTorch \d+ ms, (?:ONNX Runtime|OpenVINO) \d+ ms \(\d', said)]
    assert len(errors) == 2 * 5
    assert max(errors) <= 1e-4
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['features.onnx']
    graph = onnx.load(tmp_path / 'sub' / 'features.onnx').graph
    operators = {node.op_type for node in graph.node}
    assert not {'AdaptiveAvgPool', 'AveragePool', 'GlobalAveragePool', 'BatchNormalization', 'Loop', 'If'} & operators
    assert f', {len(graph.node)} nodes' in said
    axes = graph.input[0].type.tensor_type.shape.dim
    assert [bool(axis.dim_param) for axis in axes] == [True, False, True, True]
    weights = sum(parameter.numel() for parameter in FcaResNet(18, base_channels=32).parameters())
    stored = sum(int(torch.tensor(list(tensor.dims)).prod()) for tensor in graph.initializer)
    assert stored < 2 * weights  # no map of an image's size is stored


@torch.no_grad()
@needs_a_later_compiler
def test_the_file_computes_the_features_of_the_checkpoint(tmp_path, monkeypatch, capsys):
    detector = build_detector(Config.fromfile(TINY))
    with_statistics(detector.backbone)
    torch.save(dict(state_dict=detector.state_dict(), meta={}), tmp_path / 'weights.pth')
    monkeypatch.setattr(backbone, 'COMPARED', [(1, 3, 97, 131)])
    command = f'export_onnx.py "{TINY}" {tmp_path}/weights.pth --out {tmp_path}/features.onnx --repeats 1'
    assert ending(command, capsys) == 'works'
    session = onnxruntime.InferenceSession(tmp_path / 'features.onnx', providers=['CPUExecutionProvider'])
    features = take_features(detector)
    for n, height, width in UNSEEN:
        x = torch.randn(n, 3, height, width)
        assert_same([torch.from_numpy(level) for level in session.run(None, dict(images=x.numpy()))], features(x))
    assert [output.name for output in session.get_outputs()] == [f'level{index}' for index in range(5)]
    detector.neck.fpn_convs[0].conv.weight *= -1
    assert compare(features, open_file(tmp_path / 'features.onnx', 'onnxruntime'), 'ONNX Runtime', 1) > 0.1
    assert '1 x 3 x 97 x 131 difference ' in capsys.readouterr().out
    monkeypatch.setattr(backbone, 'TOLERANCE', 0)
    said = ending(command, capsys)
    assert says(said, f'export_onnx: features differ by ... in ONNX Runtime, more than 0: do not deploy {tmp_path}/features.onnx'), said


@torch.no_grad()
@needs_a_later_compiler
@pytest.mark.parametrize(
    ('runtime', 'batch', 'products'), [('onnxruntime', 1, 16), ('onnxruntime', 2, 0), ('openvino', 1, 0), ('any', 1, 0)]
)
def test_the_product_form_is_for_one_image_in_onnx_runtime(tmp_path, runtime, batch, products):
    """There the weights of a convolution are computed, not stored."""
    model = built('bottlenecks')[0]
    graph = write_features(model, tmp_path / 'a.onnx', runtime, batch).graph
    stored = {tensor.name for tensor in graph.initializer}
    assert sum(node.op_type == 'Conv' and node.input[1] not in stored for node in graph.node) == products
    assert [bool(axis.dim_param) for axis in graph.input[0].type.tensor_type.shape.dim] == [False, False, True, True]
    for name in ('onnxruntime', 'openvino') if runtime == 'any' else (runtime,):
        run = open_file(tmp_path / 'a.onnx', name)
        for height, width in ((97, 131), (32, 33), (160, 70)):
            x = torch.randn(batch, 3, height, width)
            assert_same([torch.from_numpy(level) for level in run({'images': x.numpy()})], model(x))


def test_a_detector_without_a_neck_gives_the_features_of_its_backbone():
    detector = nn.Module()
    detector.backbone = nn.Conv2d(3, 4, 1)
    assert list(take_features(detector)) == [detector.backbone]
    detector.neck = None
    assert list(take_features(detector)) == [detector.backbone]
    assert not detector.backbone.training


def test_the_onnx_command_says_what_is_wrong(tmp_path, capsys):
    assert ending(f'export_onnx.py none.py --out {tmp_path}/a.onnx', capsys) == 'export_onnx: no config at none.py'
    missing = f'{tmp_path}/none.pth'
    assert ending(f'export_onnx.py "{SMALL}" {missing} --out {tmp_path}/a.onnx', capsys) == f'export_onnx: there is no checkpoint {missing}'
    few = f'export_onnx.py "{SMALL}" --out {tmp_path}/a.onnx --batch 0'
    assert ending(few, capsys) == 'export_onnx: --batch 0: give 1 or more, or leave it out for any batch'
    assert not (tmp_path / 'a.onnx').exists()

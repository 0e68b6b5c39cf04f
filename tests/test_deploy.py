"""Compiled, exported, traced and fused: the features stay what they are, at sizes that the graph has not seen."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.necks import FPN
from test_resnet import frozen
from torch import nn
from torch.export import Dim

from fca_mmdet import FcaResNet, MultiSpectralAttention

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools' / 'export_onnx.py'
CONFIG = ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'
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
def test_mmcv_fuses_normalisations_into_convolutions_for_good(name):
    model, channels = built(name)
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    x = torch.randn(1, channels, 97, 131)
    assert_same(fused(x), model(x))


def export(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=400)


def test_the_onnx_command(tmp_path):
    done = export(CONFIG, '--out', tmp_path / 'sub' / 'features.onnx', '--repeats', 1)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = [float(error) for error in re.findall(r'difference (\S+) +PyTorch \d+ ms, ONNX Runtime \d+ ms \(\d', done.stdout)]
    assert len(errors) == 5
    assert max(errors) <= 1e-4
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['features.onnx']
    graph = onnx.load(tmp_path / 'sub' / 'features.onnx').graph
    operators = {node.op_type for node in graph.node}
    assert not {'AdaptiveAvgPool', 'AveragePool', 'GlobalAveragePool', 'BatchNormalization', 'Loop', 'If'} & operators
    axes = graph.input[0].type.tensor_type.shape.dim
    assert [bool(axis.dim_param) for axis in axes] == [True, False, True, True]
    weights = sum(parameter.numel() for parameter in FcaResNet(18, base_channels=32).parameters())
    stored = sum(int(torch.tensor(list(tensor.dims)).prod()) for tensor in graph.initializer)
    assert stored < 2 * weights  # no map of an image's size is stored


def test_the_onnx_command_says_what_is_wrong(tmp_path):
    assert 'no config at none.py' in export('none.py', '--out', tmp_path / 'a.onnx').stderr
    result = export(CONFIG, tmp_path / 'none.pth', '--out', tmp_path / 'a.onnx')
    assert result.returncode
    assert f'there is no checkpoint {tmp_path}/none.pth' in result.stderr
    assert not (tmp_path / 'a.onnx').exists()

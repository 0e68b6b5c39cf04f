"""Files in the runtimes that serve them."""

import pytest
import torch
from helpers import needs_a_later_compiler

from fca_mmdet import MultiSpectralAttention
from fca_mmdet.deploy import runtime
from fca_mmdet.deploy.export import write_onnx
from fca_mmdet.errors import UserError


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    attention = MultiSpectralAttention(32, 14).eval()
    path = tmp_path_factory.mktemp('runtime') / 'attention.onnx'
    write_onnx(attention, path, (torch.rand(2, 32, 20, 30),), dict(x=(0, 2, 3)), ['out'])
    return attention, path


@needs_a_later_compiler
@pytest.mark.parametrize(
    ('name', 'dtype', 'tolerance'), [('onnxruntime', 'float32', 1e-6), ('openvino', 'float32', 1e-5), ('openvino', 'bfloat16', 2e-2)]
)
def test_a_file_computes_what_the_module_does(exported, name, dtype, tolerance):
    attention, path = exported
    run = runtime.open_file(path, name, dtype)
    for size in ((1, 32, 9, 13), (3, 32, 25, 42), (1, 32, 1, 1)):
        x = torch.randn(size)
        (found,) = run({'x': x.numpy()})
        assert found.shape == size
        assert (torch.from_numpy(found) - attention(x)).abs().max() <= tolerance * x.abs().max()


def test_without_openvino(exported, monkeypatch):
    assert runtime.served_by('any') == ['onnxruntime', 'openvino']
    monkeypatch.setattr(runtime, 'find_spec', lambda name: name == 'onnxruntime' or None)
    assert runtime.served_by('any') == ['onnxruntime']
    with pytest.raises(UserError, match=r"^OpenVINO is not installed: pip install openvino, or the extra 'openvino' of fca_mmdet$"):
        runtime.open_file(exported[1], 'openvino')

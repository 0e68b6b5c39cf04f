"""ONNX files are whole, checked, and of the module that was given."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fca_mmdet.deploy.export import write_onnx


class Model(nn.Module):
    """A sum of a convolved and normalised image, and of a number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        nn.init.uniform_(self.bn.running_var, 0.5, 1.5)

    def forward(self, image: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(image)) + number


EXAMPLE = torch.rand(1, 3, 16, 20), torch.rand(1)


@torch.no_grad()
def test_the_file_is_the_module_with_its_normalisations_fused(tmp_path):
    model = Model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    written = write_onnx(model, tmp_path / 'sub' / 'a.onnx', EXAMPLE, dict(image=(2, 3), number=()), ['sum'])
    assert onnx.load(tmp_path / 'sub' / 'a.onnx') == written
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['a.onnx']
    assert 'BatchNormalization' not in {node.op_type for node in written.graph.node}
    free = {value.name: [bool(axis.dim_param) for axis in value.type.tensor_type.shape.dim] for value in written.graph.input}
    assert free == dict(image=[False, False, True, True], number=[False])
    assert [value.name for value in written.graph.output] == ['sum']
    session = onnxruntime.InferenceSession(tmp_path / 'sub' / 'a.onnx', providers=['CPUExecutionProvider'])
    image, number = torch.rand(1, 3, 9, 33), torch.rand(1)
    (found,) = session.run(None, dict(image=image.numpy(), number=number.numpy()))
    np.testing.assert_allclose(found, model(image, number).numpy(), atol=1e-5)
    assert isinstance(model.bn, nn.BatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_does_not_pass_the_check_is_not_left(tmp_path, monkeypatch):
    out = tmp_path / 'a.onnx'
    out.write_bytes(b'former')

    def refuse(model: onnx.ModelProto, full_check: bool) -> None:
        assert full_check
        assert model.graph.node
        raise onnx.checker.ValidationError('broken')

    monkeypatch.setattr(onnx.checker, 'check_model', refuse)
    with pytest.raises(onnx.checker.ValidationError, match='broken'):
        write_onnx(Model().eval(), out, EXAMPLE, dict(image=(), number=()), ['sum'])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'a.onnx': b'former'}

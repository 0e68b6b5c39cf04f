"""What tests of several rooms share."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.structures import InstanceData
from named_weights import named_state
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fca_mmdet import FREQUENCY_SETS, FcaBasicBlock, FcaBottleneck, FcaResNet, folding

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
SMALL = ROOT / 'configs' / 'small' / 'mask-rcnn_fca-r18_fpn_small-heads.py'
TINY = ROOT / 'tests' / 'tiny_mask_rcnn.py'
"""The tiny detector's config, for ``_base_``."""
TORCHVISION = [ROOT / 'tests' / 'torchvision_on_cpu', Path(sys.prefix) / 'torchvision']
"""What tests with torchvision put on PYTHONPATH: ``tools/environment/prepare.py`` installs it beside the environment."""
needs_a_later_compiler = pytest.mark.skipif(torch.__version__ < '2.7', reason='the compiler and exporter of torch 2.6 cannot do this')
needs_torchvision = pytest.mark.skipif(not TORCHVISION[1].exists(), reason='this environment was not made by tools/environment/prepare.py')


def load_command(name: str) -> ModuleType:
    """Import ``tools/NAME.py``: ``load_command('spectrum').main()`` is the command in this process, with ``sys.argv``."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ending(command: str, capsys) -> str:
    """What a command says at its end, or ``works``. Run in this process: one of its own takes seconds to import torch and mmdet."""
    capsys.readouterr()
    program, *arguments = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [program, *arguments])
        patch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        for name, value in {'TORCH_FORCE_WEIGHTS_ONLY_LOAD': '0', 'LOCAL_RANK': '0'}.items():
            patch.setenv(name, value)
        try:
            load_command(program.removesuffix('.py')).main()
        except SystemExit as end:
            if end.code:
                return end.code if isinstance(end.code, str) else capsys.readouterr().err.strip().splitlines()[-1]
        except Exception as error:
            return f'{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}'
    return 'works'


def run_python(*command: object, cwd: Path, **environment: str) -> str:
    """Run a Python command in a process of its own; its whole output, or a failure that shows it."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


def read_picture(path: Path) -> np.ndarray:
    """An image file, ``[H, W, 3]`` uint8 RGB."""
    return np.array(Image.open(path).convert('RGB'))


def says(said: str, expected: str) -> bool:
    """Whether a message is the expected one, in which ``...`` stands for anything."""
    return re.fullmatch(re.escape(expected).replace(r'\.\.\.', '.*'), said, re.DOTALL) is not None


# The reference implementation's outputs, and the names and shapes of the published weights.

REFERENCE = ROOT / 'tests' / 'reference'
GOLDEN = np.load(REFERENCE / 'backbone.npz')
PUBLISHED = json.loads((REFERENCE / 'fcanet_state_dict_shapes.json').read_text())


def published_classifier(depth: str, frequencies: str = 'top16') -> dict[str, torch.Tensor]:
    """Every key of a published classifier, its basis from a plain loop over the definition."""
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in named_state(PUBLISHED[depth]).items()}
    for name, shape in PUBLISHED[depth].items():
        if name.endswith('dct_layer.weight'):
            channels, grid, _ = shape
            pairs = FREQUENCY_SETS[frequencies]
            x = np.arange(grid) + 0.5
            basis = np.empty(shape, np.float32)
            for channel in range(channels):
                u, v = (index * (grid // 7) for index in pairs[channel * len(pairs) // channels])
                rows, columns = (np.cos(np.pi * k * x / grid) / np.sqrt(grid) * (1 if k == 0 else np.sqrt(2)) for k in (u, v))
                basis[channel] = np.outer(rows, columns)
            state[name] = torch.from_numpy(basis)
    return {name: state[name] for name in PUBLISHED[depth]}


def pretrained(path, depth=50, **options) -> FcaResNet:
    backbone = FcaResNet(depth, init_cfg=dict(type='Pretrained', checkpoint=str(path)), **options)
    backbone.init_weights()
    return frozen(backbone)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def frozen(model: nn.Module) -> nn.Module:
    """The model in eval mode; mmdet's ``ResNet.train`` returns nothing."""
    model.eval()
    return model


def with_statistics(module: nn.Module) -> nn.Module:
    """Normalisations as after training, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.uniform_(-0.3, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            if norm.affine:
                nn.init.uniform_(norm.weight, -1, 1, generator=generator)
                nn.init.uniform_(norm.bias, -0.5, 0.5, generator=generator)
    return frozen(module)


def shortcut(inplanes: int, planes: int, stride: int, average: bool = False) -> nn.Sequential:
    """mmdet's shortcut, with ResNet-D's average before it if asked for."""
    pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if average else []
    return nn.Sequential(*pool, nn.Conv2d(inplanes, planes, 1, 1 if average else stride, bias=False), nn.BatchNorm2d(planes))


# Folded and readable executions, compared.

FORMATS = [torch.contiguous_format, torch.channels_last]
FORMS = {'product': (0, 0), 'convolved product': (0, 1e9), 'gate': (1e9, 0)}


def choose_form(monkeypatch, form: str) -> None:
    """Let the folded execution of a bottleneck take this form at every size."""
    for name, value in zip(('PRODUCT_PIXELS', 'CONVOLVED_BYTES'), FORMS[form], strict=True):
        monkeypatch.setattr(folding, name, value)


@contextmanager
def folded_calls(monkeypatch) -> Iterator[list]:
    """The blocks that run folded."""
    calls: list = []
    with monkeypatch.context() as patch:
        for kind in (FcaBasicBlock, FcaBottleneck):
            run = kind.run_folded
            patch.setattr(kind, 'run_folded', lambda block, x, run=run: (calls.append(block), run(block, x))[1])
        yield calls


def evaluate(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, the input's gradient and the parameters' gradients under a fixed random cotangent."""
    module.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = module(x)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(1)
    loss = sum((out * torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out)).sum() for out in outputs)
    loss.backward()
    return [*(out.detach() for out in outputs), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


def largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest entry of each tensor."""
    assert [value.shape for value in actual] == [value.shape for value in expected]
    return max(float((a.double() - e.double()).abs().max() / e.double().abs().max()) for a, e in zip(actual, expected, strict=True))


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """What a forward keeps for its backward beyond parameters and buffers, each storage once."""
    kept, own = {}, {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = module(x)
    assert any(value.requires_grad for value in (out if isinstance(out, tuple) else [out]))
    return sum(storage.nbytes() for storage in kept.values())


THIN = dict(base_channels=16, stem_channels=16)
SHALLOW = dict(depth=18, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), **THIN)

SHAPES = [(97, 65), (64, 131), (33, 33)]


def padded_batch(shapes: Sequence[tuple[int, int]] = SHAPES, seed: int = 0) -> Tensor:
    """Images of different sizes, padded with zeros to 128 x 160; the seed also decides what is random after them."""
    torch.manual_seed(seed)
    return torch.stack([F.pad(torch.randn(3, h, w), (0, 160 - w, 0, 128 - h)) for h, w in shapes])


MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def images(*shapes: tuple[int, int]) -> list[np.ndarray]:
    """Random BGR images."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]


def batch(*shapes: tuple[int, int], masks: bool = False) -> dict:
    """A collated batch of random BGR images."""
    samples = []
    for h, w in shapes:
        sample = DetDataSample(metainfo=dict(img_shape=(h, w)))
        if masks:
            sample.gt_instances = InstanceData(masks=BitmapMasks(np.ones((2, h, w), np.uint8), h, w))
        samples.append(sample)
    return dict(inputs=[torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images(*shapes)], data_samples=samples)

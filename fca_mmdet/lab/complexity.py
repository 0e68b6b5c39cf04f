"""Count parameters and floating-point operations of configs, and of the attention against squeeze-and-excitation as published."""

import copy
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.models.backbones import ResNet
from mmdet.testing import demo_mm_inputs
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.analysis.jit_handles import elementwise_flop_counter, get_shape
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from .. import FcaBasicBlock, FcaBottleneck, FcaResNet, MultiSpectralAttention, SqueezeExcitation
from ..configs import read_config
from ..detector import build_detector
from ..files import check_writable, write_whole
from ..projection import ValidPart, cached_projection_maps
from ..squeeze import Projected

PUBLISHED = {34: 0.04, 50: 0.13, 101: 0.11, 152: 0.11}  # extra FLOPs of FcaNet over SE-ResNet, %, https://github.com/cfzd/FcaNet


class Cost(NamedTuple):
    """The cost of one forward pass."""

    parameters: int
    flops: int

    def __str__(self) -> str:
        """Format parameters in millions and FLOPs in billions."""
        return f'{self.parameters / 1e6:.3f} M, {self.flops / 1e9:.3f} G'


class KeptMaps(Projected):
    """A squeeze whose maps are constants, as in eager execution. Tracing would put their computation into the graph."""

    def maps(self, x: Tensor, valid: ValidPart | None = None) -> Tensor:
        """Return the maps of the configured frequencies."""
        return cached_projection_maps(self.configured, self.grid, *map(int, x.shape[2:]), x.dtype, x.device)


def count_sum(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a sum of tensors as one operation per element, unless it ends in a scalar.

    mmdet's RoI extractors add such a scalar, times zero, for each level without proposals: with random weights that is chance.
    """
    return elementwise_flop_counter(1, 0)(inputs, outputs) if get_shape(outputs[0]) else 0


def count(model: nn.Module, inputs: tuple) -> dict[str, Cost]:
    """Count the cost of ``model(*inputs)`` by module name; ``''`` is the whole model. The model is not changed."""
    parameters = parameter_count(model)
    model = copy.deepcopy(model)
    model.eval()
    for module in model.modules():
        if isinstance(module, (FcaBasicBlock, FcaBottleneck)):
            module.fold = False
        if isinstance(module, MultiSpectralAttention) and isinstance(module.dct_layer, Projected):
            module.dct_layer = KeptMaps(module.in_channels, module.grid, module.frequencies)
    analyzer = FlopAnalyzer(model, inputs)
    for operator in ('mul', 'mul_', 'mean'):
        analyzer.set_op_handle(f'aten::{operator}', elementwise_flop_counter(*((0, 1) if 'mul' in operator else (1, 0))))
    analyzer.set_op_handle('aten::sum', count_sum)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    with torch.no_grad():
        model(*inputs)  # caches the maps: else their computation would be counted
        return {name: Cost(parameters[name], int(flops)) for name, flops in analyzer.by_module().items()}


def squeeze_excitation_resnet(depth: int) -> ResNet:
    """Build the SE-ResNet that FcaNet compares with: no biases, and SE in basic blocks too, where mmdet's ResNet has no plugin slot."""
    model = FcaResNet(depth, fold=False)
    for block in model.modules():
        if isinstance(getattr(block, 'att', None), MultiSpectralAttention):
            block.att = SqueezeExcitation(block.att.in_channels, bias=False)
    return model


def count_config(cfg: Config) -> str:
    """Count a config's backbone and whole model, as two table cells: detectors at 800 x 1280, classifiers at 224 x 224."""
    model: Any = build_detector(cfg)
    image = torch.rand(1, 3, 224, 224)
    if cfg.default_scope != 'mmpretrain':
        data = model.data_preprocessor(demo_mm_inputs(1, [(3, 800, 1280)]), False)
        image = data['inputs']
        model.forward = partial(model.forward, data_samples=data['data_samples'])
    costs = count(model, (image,))
    return f'{costs["backbone"]} | {costs[""]}'


def config_table(configs: Mapping[Path, Config]) -> str:
    """Make a table with a line for each config, and print each line at once. A model that several configs share is counted once."""
    print(lines := '| config | backbone | whole model |\n|---|---|---|', flush=True)
    known: dict[str, str] = {}
    for path, cfg in configs.items():
        if path.parent.name == 'imagenet' and not importlib.util.find_spec('mmpretrain'):
            print(f"{path.stem} is left out: it needs mmpretrain (pip install 'fca_mmdet[classification]')", file=sys.stderr)
            continue
        model = {key: value for key, value in cfg.model.items() if key not in ('train_cfg', 'test_cfg')}
        model['backbone'] = {key: value for key, value in model['backbone'].items() if key != 'init_cfg'}
        key = json.dumps([cfg.default_scope, model], default=str, sort_keys=True)
        if key not in known:
            known[key] = count_config(cfg)
        line = f'| {path.stem} | {known[key]} |'
        print(line, flush=True)
        lines += f'\n{line}'
    return lines


def tabulate_costs(configs: Sequence[Path], out: Path | None) -> None:
    """Print the published comparison and a table of ``configs`` (files or folders), and write both to ``out``."""
    found = {path: read_config(path) for start in configs for path in sorted(start.rglob('*.py')) or [start]}
    if out:
        check_writable(out)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    comparison = '| depth | ResNet | + SE, no biases | + FCA | extra parameters | extra FLOPs | published |\n|---|---|---|---|---|---|---|'
    image = (torch.rand(1, 3, 224, 224),)
    for depth, published in PUBLISHED.items():
        plain, se, fca = (count(model, image)[''] for model in (ResNet(depth), squeeze_excitation_resnet(depth), FcaResNet(depth)))
        extra = f'{fca.parameters - se.parameters} | {100 * (fca.flops / se.flops - 1):.3f} % | {published:.2f} %'
        comparison += f'\n| {depth} | {plain} | {se} | {fca} | {extra} |'
    print(f'Backbones at 224 x 224: parameters, FLOPs\n\n{comparison}\n', flush=True)
    pages = [f'# Parameters and FLOPs\n\nMade by `python {" ".join(sys.argv)}`.\n\n## Against SE, 224 x 224\n\n{comparison}\n']
    if found:
        pages.append(f'## Configs: detectors at 800 x 1280, classifiers at 224 x 224\n\n{config_table(found)}\n')
    if out:
        write_whole(out, '\n'.join(pages))

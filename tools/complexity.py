"""Parameters and floating-point operations of every config, and of the attention against squeeze-and-excitation as published.

    python tools/complexity.py                              # the published comparison, 224 x 224
    python tools/complexity.py configs/faster_rcnn [...]    # also the configs of folders or files, 800 x 1280
    python tools/complexity.py configs --out docs/complexity.md

Counted by mmengine.analysis, a multiplication with its addition as one; what it leaves out and attentions are made of is added: one per
element for a product, a sum or a mean. The attention counts in its readable form. Its projection maps depend on the image's size alone
and are kept, as in training and inference, so they count nothing. A detector's count depends on its proposals: random weights give 1,000.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.analysis.jit_handles import elementwise_flop_counter
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from preflight import check_out
from torch import Tensor, nn

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNeXtBottleneck, MultiSpectralAttention, SqueezeExcitation
from fca_mmdet.dct import cached_projection_maps

PUBLISHED = {34: 0.04, 50: 0.13, 101: 0.11, 152: 0.11}
"""Extra FLOPs of FcaNet over SE-ResNet in percent, https://github.com/cfzd/FcaNet."""


class Cost(NamedTuple):
    """Of one forward pass."""

    parameters: int
    flops: int

    def __str__(self) -> str:
        """In millions and billions."""
        return f'{self.parameters / 1e6:.3f} M, {self.flops / 1e9:.3f} G'


@contextmanager
def kept_maps() -> Iterator[None]:
    """Projection maps as the constants that they are in eager execution, where tracing would compute them in the graph."""

    def maps(self: MultiSpectralAttention, x: Tensor) -> Tensor:
        return cached_projection_maps(self.frequencies, self.grid, *map(int, x.shape[2:]), x.dtype, x.device)

    traced = MultiSpectralAttention.projection_maps
    MultiSpectralAttention.projection_maps = maps  # type: ignore[method-assign]
    try:
        yield
    finally:
        MultiSpectralAttention.projection_maps = traced  # type: ignore[method-assign]


def count(model: nn.Module, inputs: tuple, maps_made: bool = False) -> Cost:
    """The cost of ``model(*inputs)``; ``maps_made`` spares a forward pass where the projection maps for this size are there."""
    for module in model.modules():
        if isinstance(module, (FcaBasicBlock, FcaBottleneck, FcaResNeXtBottleneck)):
            module.fold = False
    model.eval()
    analyzer = FlopAnalyzer(model, inputs)
    for operator in ('mul', 'mul_', 'sum', 'mean'):
        analyzer.set_op_handle(f'aten::{operator}', elementwise_flop_counter(*((0, 1) if 'mul' in operator else (1, 0))))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    with kept_maps(), torch.no_grad():
        if not maps_made:  # they would be counted where they are made
            model(*inputs)
        return Cost(parameter_count(model)[''], int(analyzer.total()))


def squeeze_excitation_resnet(depth: int) -> ResNet:
    """SE-ResNet of any depth as FcaNet compares with: without biases, in basic blocks too, where mmdet's ResNet has no slot."""
    model = FcaResNet(depth, fold=False)
    for block in model.modules():
        if isinstance(getattr(block, 'att', None), MultiSpectralAttention):
            block.att = SqueezeExcitation(block.att.in_channels, bias=False)
    return model


def published_comparison() -> str:
    """FCA against SE at 224 x 224, beside the published figures."""
    image = (torch.rand(1, 3, 224, 224),)
    lines = ['| depth | ResNet | + SE, no biases | + FCA | extra parameters | extra FLOPs | published |', '|---|---|---|---|---|---|---|']
    for depth, published in PUBLISHED.items():
        plain, se, fca = (count(model, image) for model in (ResNet(depth), squeeze_excitation_resnet(depth), FcaResNet(depth)))
        extra = f'{fca.parameters - se.parameters} | {100 * (fca.flops / se.flops - 1):.3f} % | {published:.2f} %'
        lines.append(f'| {depth} | {plain} | {se} | {fca} | {extra} |')
    return '\n'.join(lines)


class Forward(nn.Module):
    """A detector's forward without losses, on images alone."""

    def __init__(self, detector: nn.Module, samples: list):
        super().__init__()
        self.detector, self.samples = detector, samples

    def forward(self, inputs: Tensor) -> object:
        """mmdet's ``mode='tensor'``."""
        return self.detector(inputs, self.samples, mode='tensor')


def of_config(path: Path) -> tuple[Cost, Cost]:
    """Backbone and whole model of a config; detectors at 800 x 1280, classifiers at 224 x 224."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.registry import MODELS as CLASSIFIERS

        classifier = CLASSIFIERS.build(cfg.model)
        image = torch.rand(1, 3, 224, 224)
        return count(classifier.backbone, (image,)), count(classifier, (image,), maps_made=True)
    detector = MODELS.build(cfg.model).eval()
    data = detector.data_preprocessor(demo_mm_inputs(1, [(3, 800, 1280)]), False)
    whole = Forward(detector, data['data_samples'])
    return count(detector.backbone, (data['inputs'],)), count(whole, (data['inputs'],), maps_made=True)


def config_table(paths: list[Path]) -> str:
    """A line per config, printed as it is counted; one model that several configs train is counted once."""
    print(lines := '| config | backbone | whole model |\n|---|---|---|', flush=True)
    known: dict[str, tuple[Cost, Cost]] = {}
    for path in paths:
        if path.parent.name == 'imagenet' and not importlib.util.find_spec('mmpretrain'):
            print(f'{path.stem} needs mmpretrain, which is not installed: left out', file=sys.stderr)
            continue
        cfg = Config.fromfile(path)
        model = {key: value for key, value in cfg.model.items() if key not in ('train_cfg', 'test_cfg')}
        model['backbone'] = {key: value for key, value in model['backbone'].items() if key != 'init_cfg'}
        key = json.dumps([cfg.default_scope, model], default=str, sort_keys=True)
        if key not in known:
            known[key] = of_config(path)
        line = f'| {path.stem} | {known[key][0]} | {known[key][1]} |'
        print(line, flush=True)
        lines += f'\n{line}'
    return lines


def main() -> None:
    """Parse the command line, count, print, write."""
    parser = argparse.ArgumentParser(description='Parameters and FLOPs of configs.')
    parser.add_argument('configs', nargs='*', type=Path, help='config files, or folders of them')
    parser.add_argument('--out', type=Path, help='a markdown file to write the tables to')
    arguments = parser.parse_args()
    paths = [path for given in arguments.configs for path in (sorted(given.rglob('*.py')) if given.is_dir() else [given])]
    if missing := [str(path) for path in paths if not path.is_file()] or [
        str(given) for given in arguments.configs if given.is_dir() and not any(given.rglob('*.py'))
    ]:
        parser.error(f'no config at {", ".join(missing)}')
    if other := [str(path) for path in paths if 'model' not in Config.fromfile(path)]:
        parser.error(f'no model in {", ".join(other)}')
    if arguments.out:
        check_out(arguments.out)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    comparison = published_comparison()
    print(f'Backbones at 224 x 224: parameters, FLOPs\n\n{comparison}\n', flush=True)
    pages = [f'# Parameters and FLOPs\n\nMade by `python {" ".join(sys.argv)}`.\n\n## Against SE, 224 x 224\n\n{comparison}\n']
    if paths:
        pages.append(f'## Configs: detectors at 800 x 1280, classifiers at 224 x 224\n\n{config_table(paths)}\n')
    if arguments.out:
        arguments.out.write_text('\n'.join(pages))


if __name__ == '__main__':
    main()

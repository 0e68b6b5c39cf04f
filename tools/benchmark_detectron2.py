"""Time the backbone in Detectron2 beside Detectron2's own ResNet, and measure what a training step keeps in memory.

    python tools/benchmark_detectron2.py [--depth 50 --batch 1 --size 800 1344 --dtype bfloat16 --channels-last --repeats 9]

As ``tools/benchmark.py backbone`` does it: processes of their own that take turns, medians, and ratios within a round. FrozenBN with random
statistics like those of trained ResNets; ``FREEZE_AT: 2``.
"""

import argparse
from dataclasses import asdict
from typing import Any

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from fca_mmdet.command import command
from fca_mmdet.detectron2 import add_fca_config
from fca_mmdet.lab import cost
from fca_mmdet.lab.timing import Setting

BACKBONES = {
    'ResNet': ['MODEL.BACKBONE.NAME', 'build_resnet_backbone'],
    '+ FCA, readable': ['MODEL.FCA.FOLD', False],
    '+ FCA, folded': ['MODEL.FCA.FOLD', True],
}


class Subject(cost.Subject):
    """One of ``BACKBONES`` under one setting."""

    def build(self, name: str) -> nn.Module:
        """Build the backbone with Detectron2's builder."""
        cfg = get_cfg()
        add_fca_config(cfg)
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = 'build_fca_resnet_backbone', False
        cfg.MODEL.RESNETS.OUT_FEATURES = ['res2', 'res3', 'res4', 'res5']
        cfg.MODEL.RESNETS.DEPTH = self.setting.depth
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if self.setting.depth < 50 else 256
        cfg.merge_from_list(BACKBONES[name])
        return build_backbone(cfg)

    def _forward(self) -> list[Tensor]:
        features: Any = super()._forward()
        return list(features.values())


@command
def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Time the backbone beside Detectron2's own ResNet.")
    parser.add_argument('--depth', type=int)
    parser.add_argument('--batch', type=int)
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), help='float16 and bfloat16 use autocast')
    parser.add_argument('--channels-last', action='store_true')
    parser.set_defaults(**asdict(Setting()))
    parser.add_argument('--repeats', type=int, default=9)
    arguments = vars(parser.parse_args())
    repeats, size = arguments.pop('repeats'), tuple(arguments.pop('size'))
    cost.measure_table(Setting(**arguments, size=size), list(BACKBONES), ['inference', 'training'], ['saved'], repeats, Subject)


if __name__ == '__main__':
    main()

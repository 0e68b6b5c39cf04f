"""mmdet's CSPDarknet, the backbone of YOLOX, with frequency channel attention (FcaNet, https://arxiv.org/abs/2012.11879)."""

from collections.abc import Sequence
from typing import Any

from mmdet.models.backbones import CSPDarknet
from mmdet.registry import MODELS

from .attention import MultiSpectralAttention
from .frequency import Frequencies


@MODELS.register_module()
class FcaCSPDarknet(CSPDarknet):
    """mmdet's CSPDarknet with the attention at the end of each stage. Pretrained weights keep their names.

    Args:
        frequencies: one set for all stages, as in ``MultiSpectralAttention``.
        dct_size: the grid of each stage, a number or (height, width) per stage.
        reduction, basis: as in ``MultiSpectralAttention``.
        darknet_kwargs: all arguments of mmdet's CSPDarknet.

    Raises:
        ValueError: ``dct_size`` does not give a grid for each stage, or ``MultiSpectralAttention`` raises it.

    Example:
        >>> import torch
        >>> backbone = FcaCSPDarknet(deepen_factor=0.33, widen_factor=0.375)
        >>> [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 96, 8, 12), (1, 192, 4, 6), (1, 384, 2, 3)]
    """

    def __init__(
        self,
        frequencies: Frequencies = 'top16',
        dct_size: Sequence[int | tuple[int, int]] = (56, 28, 14, 7),
        reduction: int = 16,
        basis: str = 'dct',
        **darknet_kwargs: Any,
    ):
        super().__init__(**darknet_kwargs)
        _, *stages = self.layers
        if not isinstance(dct_size, Sequence) or len(dct_size) != len(stages):
            raise ValueError(f'dct_size={dct_size!r} must give one grid for each of the {len(stages)} stages, such as (56, 28, 14, 7)')
        for name, grid in zip(stages, dct_size, strict=True):
            stage = getattr(self, name)
            stage.append(MultiSpectralAttention(stage[-1].final_conv.out_channels, grid, frequencies, reduction, basis))

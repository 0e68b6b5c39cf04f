"""Attentions to compare with, as plugins of mmdet's ResNet.

mmcv has registered ``ContextBlock`` (GCNet), ``NonLocal2d`` and ``GeneralizedAttention`` already.
"""

import math
from typing import Any

from mmdet.models.layers import SELayer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .errors import check_count


@MODELS.register_module()
class SqueezeExcitation(SELayer):
    """mmdet's SELayer as a plugin.

    Its parameters are named as in mmpretrain's SE-ResNet, so mmdet's ResNet with this plugin loads the published weights of SE-ResNet-50
    and -101 as they are.

    Squeeze-and-Excitation Networks, Hu, Shen, Albanie, Sun, Wu, https://arxiv.org/abs/1709.01507, equations 2 to 4:
    ``x * sigmoid(W_2 relu(W_1 mean(x)))`` with C / ``ratio`` channels between the two layers. ``bias=False`` leaves out the biases, as
    FcaNet does: it then equals ``frequencies='top1'`` up to a constant.

    Example:
        >>> import torch
        >>> SqueezeExcitation(64)(torch.rand(1, 64, 9, 13)).shape
        torch.Size([1, 64, 9, 13])
    """

    _abbr_ = 'se_layer'

    def __init__(self, in_channels: int, ratio: int = 16, bias: bool = True, **kwargs: Any):
        in_channels, ratio = check_count('in_channels', in_channels), check_count('ratio', ratio)
        if not 1 <= ratio <= in_channels:
            raise ValueError(f'ratio={ratio} must be from 1 to in_channels={in_channels}')
        super().__init__(channels=in_channels, ratio=ratio, **kwargs)
        if not bias:
            self.conv1.conv.bias = self.conv2.conv.bias = None


@MODELS.register_module()
class EfficientChannelAttention(BaseModule):
    """A gate from a one-dimensional convolution over the means of the channels.

    ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, Wang et al., https://arxiv.org/abs/1910.03151:
    ``x * sigmoid(conv_k(mean(x)))``; k is ``floor((log2(C) + 1) / 2)``, or one more if that is even (equation 12, as in their code).

    Example:
        >>> import torch
        >>> EfficientChannelAttention(64)(torch.rand(1, 64, 9, 13)).shape
        torch.Size([1, 64, 9, 13])
    """

    _abbr_ = 'eca'

    def __init__(self, in_channels: int, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if check_count('in_channels', in_channels) < 1:
            raise ValueError('in_channels=0 must be 1 or more')
        nearest = int((math.log2(in_channels) + 1) / 2)
        kernel = nearest + 1 - nearest % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``[N, C, H, W]`` by its gate."""
        mean = x.mean((2, 3))
        return x * self.conv(mean[:, None]).transpose(1, 2).sigmoid()[..., None]

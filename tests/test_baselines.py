import numpy as np
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.layers import SELayer

from fca_mmdet import EfficientChannelAttention, MultiSpectralAttention, SqueezeExcitation


def test_squeeze_excitation_is_mmdets_layer():
    ours, theirs = SqueezeExcitation(32, ratio=8), SELayer(32, ratio=8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 32, 5, 9)
    assert torch.equal(ours(x), theirs(x))


def test_without_biases_it_is_the_lowest_frequency():
    """Theorem 1 of FcaNet: (0, 0) is the mean times sqrt(7 * 7)."""
    lowest, ours = MultiSpectralAttention(32, 7, frequencies='top1', reduction=8), SqueezeExcitation(32, ratio=8, bias=False)
    with torch.no_grad():
        ours.conv1.conv.weight.copy_(7 * lowest.fc[0].weight[:, :, None, None])
        ours.conv2.conv.weight.copy_(lowest.fc[2].weight[:, :, None, None])
    x = torch.randn(2, 32, 14, 7)
    torch.testing.assert_close(ours(x), lowest(x))
    assert len(list(ours.parameters())) == 2


@pytest.mark.parametrize(('channels', 'kernel'), [(64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_efficient_channel_attention_against_numpy(channels, kernel):
    attention = EfficientChannelAttention(channels)
    x = torch.randn(2, channels, 5, 3)
    weights = attention.conv.weight.detach().numpy().ravel()
    assert len(weights) == kernel
    out = attention(x).detach().numpy()
    for image, expected in zip(x.numpy(), out, strict=True):
        # numpy convolves with the mirrored kernel
        gate = 1 / (1 + np.exp(-np.convolve(image.mean((1, 2)), weights[::-1], mode='same')))
        np.testing.assert_allclose(expected, image * gate[:, None, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', [SqueezeExcitation, EfficientChannelAttention])
def test_plugins_of_a_resnet(kind):
    backbone = ResNet(50, plugins=[dict(cfg=dict(type=kind), position='after_conv3')])
    assert sum(isinstance(module, kind) for module in backbone.modules()) == 16
    assert backbone(torch.rand(1, 3, 64, 64))[3].shape == (1, 2048, 2, 2)

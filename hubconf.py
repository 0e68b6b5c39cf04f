"""Entry points of torch.hub: ``MultiSpectralAttention``, which needs torch alone, and ``fca_resnet``, which needs torchvision too."""

from torch import hub, nn

from fca_mmdet import MultiSpectralAttention  # noqa: F401 (an entry point)

dependencies = ['torch']


def fca_resnet(depth: int = 50, weights: str | None = None, **attention) -> nn.Module:
    """Build FcaNet without its classifier: from images ``[N, 3, H, W]`` to a dictionary of the stages' maps, ``layer1`` to ``layer4``.

    Args:
        depth: 18, 34, 50, 101 or 152.
        weights: the address of a classifier's weights, such as https://github.com/cfzd/FcaNet/releases/download/v1.0/fca50.pth.
        attention: arguments of ``MultiSpectralAttention``, such as ``frequencies``, for all stages.

    Raises:
        ValueError: another depth.
        RuntimeError: the weights are those of another model.
    """
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    from fca_mmdet.residual import AttendedBlock

    depths = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
    if depth not in depths:
        raise ValueError(f'there is no fca_resnet of depth {depth!r}: use one of {", ".join(map(str, depths))}')
    block = type('FcaBlock', (AttendedBlock, BasicBlock if depth < 50 else Bottleneck), {'options': attention})
    model = ResNet(block, depths[depth])
    if weights:
        model.load_state_dict(hub.load_state_dict_from_url(weights, map_location='cpu', weights_only=True))
    return IntermediateLayerGetter(model, {f'layer{stage}': f'layer{stage}' for stage in (1, 2, 3, 4)})

"""Find the zeros that batching adds to images."""

import torch
from torch import Tensor


def unpadded_sizes(images: Tensor) -> Tensor:
    """Find each image's height and width in ``[N, C, H, W]`` without the zeros added on the right and below: integers ``[N, 2]`` from 1.

    mmdet's data preprocessor pads after it normalises, and no pixel of an 8-bit image equals the mean of ImageNet exactly. So the last
    rows and columns that are zero in every channel are padding. With another mean they may be the image's own border; even then the size
    depends on the image alone.

    Example:
        >>> unpadded_sizes(torch.nn.functional.pad(torch.ones(1, 3, 5, 4), (0, 6, 0, 2)))
        tensor([[5, 4]])
    """
    occupied = (images != 0).any(1)
    # The last row or column that is not empty, counted from 1. A maximum finds it, since sizes may be symbolic.
    ends = [occupied.any(axis) * torch.arange(1, images.shape[4 - axis] + 1, device=images.device) for axis in (2, 1)]
    return torch.stack([end.amax(1).clamp(min=1) for end in ends], 1)

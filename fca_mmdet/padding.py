"""The zeros that batching adds to images."""

import torch
from torch import Tensor


def unpadded_sizes(images: Tensor) -> Tensor:
    """Find the height and width of each image of a batch without the zeros that were added on the right and below.

    mmdet's data preprocessor pads after it normalises, and a pixel of an 8-bit image is never exactly the mean of ImageNet: what is zero
    in every channel of a whole last row or column is padding. With another mean it may be the image's own border; the size is a
    function of the image alone all the same.

    Args:
        images: ``[N, C, H, W]``.

    Returns:
        ``[N, 2]``, integers, at least 1.

    Example:
        >>> unpadded_sizes(torch.nn.functional.pad(torch.ones(1, 3, 5, 4), (0, 6, 0, 2)))
        tensor([[5, 4]])
    """
    occupied = (images != 0).any(1)
    # Counted from 1 at the last row or column that is not empty; no index of it is asked for, so sizes may be symbols.
    ends = [occupied.any(axis) * torch.arange(1, images.shape[4 - axis] + 1, device=images.device) for axis in (2, 1)]
    return torch.stack([end.amax(1).clamp(min=1) for end in ends], 1)

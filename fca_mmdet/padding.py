"""What batching adds to images: to find it, and to add what FcaNet's published detectors were trained with.

Channel attention pools over padding, so weights see another input distribution under another padding
(FcaNet, ICCV 2021, https://arxiv.org/abs/2012.11879; published detection code at https://github.com/cfzd/FcaNet).
"""

from typing import Any

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from .frequency import whole_number


def unpadded_sizes(images: Tensor) -> Tensor:
    """The height and width of each image of a batch without the zeros that were added on the right and below.

    mmdet's data preprocessor pads after it normalises, and a pixel of an 8-bit image is never exactly the mean of ImageNet: what is zero
    in every channel of a whole last row or column is padding. With another mean it may be the image's own border; the size is a
    function of the image alone all the same.

    Args:
        images: ``[N, C, H, W]``.

    Returns:
        ``[N, 2]``, integers, at least 1.

    Example:
        >>> unpadded_sizes(F.pad(torch.ones(1, 3, 5, 4), (0, 6, 0, 2)))
        tensor([[5, 4]])
    """
    occupied = (images != 0).any(1)
    # Counted from 1 at the last row or column that is not empty; no index of it is asked for, so sizes may be symbols.
    ends = [occupied.any(axis) * torch.arange(1, images.shape[4 - axis] + 1, device=images.device) for axis in (2, 1)]
    return torch.stack([end.amax(1).clamp(min=1) for end in ends], 1)


@MODELS.register_module()
class OrientedDetDataPreprocessor(DetDataPreprocessor):
    """mmdet's DetDataPreprocessor that also pads every image to ``canvas``, in training and in test.

    The canvas lies along the image's longer side. A batch with images of both orientations is padded to the larger height and the larger
    width, as a batch of such canvases. Padding is zero after normalisation, on the right and below; an image larger than the canvas keeps
    its size.

    Args:
        canvas: (height, width) for a landscape or square image; exchanged for a portrait one.
        preprocessor_kwargs: what mmdet's DetDataPreprocessor takes. ``pad_size_divisor=1`` leaves the canvas as it is.

    Raises:
        ValueError: a canvas that is not two positive numbers.

    Example:
        >>> import torch
        >>> from mmdet.structures import DetDataSample
        >>> data = dict(inputs=[torch.zeros(3, 60, 40)], data_samples=[DetDataSample(metainfo=dict(img_shape=(60, 40)))])
        >>> OrientedDetDataPreprocessor(canvas=(64, 96))(data)['inputs'].shape
        torch.Size([1, 3, 96, 64])
    """

    def __init__(self, canvas: tuple[int, int] = (800, 1333), **preprocessor_kwargs: Any):
        if not isinstance(canvas, (tuple, list)) or len(canvas) != 2 or min(whole_number('canvas', side) for side in canvas) < 1:
            raise ValueError(f'canvas={canvas!r} must be (height, width) in pixels, such as (800, 1333)')
        super().__init__(**preprocessor_kwargs)
        self.canvas = tuple(canvas)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise and batch as mmdet does, then pad to the canvas."""
        data = super().forward(data, training)
        inputs, samples = data['inputs'], data['data_samples']
        height, width = inputs.shape[2:]
        shapes = [sample.img_shape[:2] for sample in samples] if samples else [(height, width)]
        canvases = [self.canvas if w >= h else self.canvas[::-1] for h, w in shapes]
        below = max(0, *(h - height for h, _ in canvases))
        right = max(0, *(w - width for _, w in canvases))
        data['inputs'] = F.pad(inputs, (0, right, 0, below), value=self.pad_value)
        for sample, (h, w) in zip(samples or [], canvases, strict=False):
            own = sample.img_shape
            sample.set_metainfo(dict(batch_input_shape=(height + below, width + right), pad_shape=(max(h, own[0]), max(w, own[1]))))
        if samples and self.pad_mask and training:
            self.pad_gt_masks(samples)
        return data

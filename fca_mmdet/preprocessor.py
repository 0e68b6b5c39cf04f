"""The padding that FcaNet's published detectors were trained with.

Channel attention pools over padding, so weights see another input distribution with another padding
(FcaNet, ICCV 2021, https://arxiv.org/abs/2012.11879; published detection code at https://github.com/cfzd/FcaNet).
"""

from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from torch.nn import functional as F

from .errors import check_count


@MODELS.register_module(name=['CanvasDetDataPreprocessor', 'OrientedDetDataPreprocessor'])
class CanvasDetDataPreprocessor(DetDataPreprocessor):
    """mmdet's DetDataPreprocessor that also pads every image to ``canvas``, in training and in test.

    The canvas is turned for a portrait image. A batch with both orientations is padded to the larger height and the larger width. Padding
    is zero after normalisation, on the right and below. An image larger than the canvas keeps its size.

    Args:
        canvas: (height, width) for a landscape or square image.
        preprocessor_kwargs: arguments of mmdet's DetDataPreprocessor. ``pad_size_divisor=1`` leaves the canvas as it is.

    Raises:
        TypeError, ValueError: the canvas is not two positive integers.

    Example:
        >>> import torch
        >>> from mmdet.structures import DetDataSample
        >>> data = dict(inputs=[torch.zeros(3, 60, 40)], data_samples=[DetDataSample(metainfo=dict(img_shape=(60, 40)))])
        >>> CanvasDetDataPreprocessor(canvas=(64, 96))(data)['inputs'].shape
        torch.Size([1, 3, 96, 64])
    """

    def __init__(self, canvas: tuple[int, int] = (800, 1333), **preprocessor_kwargs: Any):
        if not isinstance(canvas, (tuple, list)) or len(canvas) != 2 or min(check_count('canvas', side) for side in canvas) < 1:
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
        if samples and training:
            for asked, pad in ((self.pad_mask, self.pad_gt_masks), (self.pad_seg, self.pad_gt_sem_seg)):
                if asked:
                    pad(samples)
        return data


OrientedDetDataPreprocessor = CanvasDetDataPreprocessor
"""The former name; "oriented" usually means rotated boxes."""

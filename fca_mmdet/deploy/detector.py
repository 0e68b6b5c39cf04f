"""Export a whole Faster R-CNN or Mask R-CNN, from the image to boxes, scores, labels and masks, to one ONNX file.

Layers, anchors, box coders and the choice of pyramid levels are mmdet's own. Only the choice of boxes is written here, since mmdet's
code for it branches on data. NMS and RoIAlign become ONNX's.

Inputs of the file: ``image`` ``[1, 3, H, W]`` of any size, normalised and padded by the detector's data preprocessor; and ``size``, its
height and width without padding. Outputs: ``boxes`` ``[K, 4]``, ``scores`` ``[K]``, ``labels`` ``[K]``, and from a Mask R-CNN ``masks``
``[K, 28, 28]``, probabilities on a grid over each box.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import onnx
import onnxscript
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import SingleRoIExtractor, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ..configs import read_config
from ..detector import find_images, load_image, open_detector
from ..errors import UserError
from ..files import check_writable
from .beside import SHAPE, peers, time_beside
from .export import write_onnx
from .runtime import NAMES, Run, open_file, served_by

OPERATORS: Any = onnxscript.opset18  # its annotations allow only tensors, but it takes numbers too
TOLERANCES = dict(boxes=0.1, scores=1e-4, masks=0.01)
"""The largest accepted differences: boxes in pixels, scores, and masks as 1 - IoU."""


@torch.library.custom_op('fca_mmdet::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:
    """Choose among boxes ``[N, 4]`` with mmcv's NMS, and return the indices ``[K]``, the highest score first."""
    return mmcv.ops.nms(boxes, scores, iou_threshold, max_num=max_num)[1]


@nms.register_fake
def _(boxes, scores, iou_threshold, max_num):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op('fca_mmdet::roi_align', mutates_args=())
def roi_align(features: Tensor, rois: Tensor, height: int, width: int, scale: float, sampling_ratio: int, aligned: bool) -> Tensor:
    """Pool features ``[1, C, H, W]`` in RoIs ``[N, 5]`` with mmcv's RoIAlign, to ``[N, C, height, width]``."""
    return mmcv.ops.roi_align(features, rois, (height, width), scale, sampling_ratio, 'avg', aligned)


@roi_align.register_fake
def _(features, rois, height, width, scale, sampling_ratio, aligned):
    return features.new_empty(rois.shape[0], features.shape[1], height, width)


def _onnx_nms(boxes, scores, iou_threshold, max_num):
    one_class = OPERATORS.Unsqueeze(boxes, [0]), OPERATORS.Unsqueeze(scores, [0, 1])
    return OPERATORS.Gather(OPERATORS.NonMaxSuppression(*one_class, [max_num], [iou_threshold]), 2, axis=1)


def _onnx_roi_align(features, rois, height, width, scale, sampling_ratio, aligned):
    boxes = OPERATORS.Slice(rois, [1], [5], [1])
    images = OPERATORS.Cast(OPERATORS.Gather(rois, 0, axis=1), to=onnx.TensorProto.INT64)
    options = dict(output_height=height, output_width=width, spatial_scale=scale, sampling_ratio=sampling_ratio)
    mode = 'half_pixel' if aligned else 'output_half_pixel'
    return OPERATORS.RoiAlign(features, boxes, images, coordinate_transformation_mode=mode, **options)


TRANSLATIONS: Any = {torch.ops.fca_mmdet.nms.default: _onnx_nms, torch.ops.fca_mmdet.roi_align.default: _onnx_roi_align}
"""The two operators in ONNX, for torch's exporter."""


def _select(boxes: Tensor, scores: Tensor, groups: Tensor, limits: Tensor, cfg: Any) -> Tensor:
    """Choose boxes as mmcv's ``batched_nms`` does, with one NMS for all groups, which are moved apart; return the indices."""
    return nms(boxes + groups[:, None] * (limits.max() + 1), scores, cfg.nms.iou_threshold, cfg.max_per_img)


def _pool(extractor: Any, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Pool the features of boxes ``[N, 4]``, each from its pyramid level, like mmdet's ``SingleRoIExtractor`` but without its branches."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    levels = extractor.map_roi_levels(rois, extractor.num_inputs)
    pooled = boxes.new_zeros(rois.shape[0], extractor.out_channels, *extractor.roi_layers[0].output_size)
    for level, layer in enumerate(extractor.roi_layers):
        (here,) = torch.where(levels == level)
        aligned = roi_align(features[level], rois[here], *layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        pooled = pooled.index_put((here,), aligned)
    return pooled


class Exportable(nn.Module):
    """A Faster or Mask R-CNN with mmdet's own heads, in eval mode: ``predict`` for one image, as torch.export can take it.

    Raises:
        UserError: another head, or another NMS.
    """

    def __init__(self, detector: Any):
        super().__init__()
        head = getattr(detector, 'roi_head', None)
        parts = [
            (detector, 'rpn_head', [RPNHead]),
            (detector, 'roi_head', [StandardRoIHead]),
            (head, 'bbox_head', [Shared2FCBBoxHead, Shared4Conv1FCBBoxHead, ConvFCBBoxHead]),
            (head, 'bbox_roi_extractor', [SingleRoIExtractor]),
        ]
        if getattr(head, 'with_mask', False):
            parts += [(head, 'mask_head', [FCNMaskHead]), (head, 'mask_roi_extractor', [SingleRoIExtractor])]
        for owner, name, kinds in parts:
            if (found := type(getattr(owner, name, None))) not in kinds:
                allowed = ' or '.join(kind.__name__ for kind in kinds)
                raise UserError(f'only Faster R-CNN and Mask R-CNN can be exported: {name} is a {found.__name__}, not a {allowed}')
        for stage in ('rpn', 'rcnn'):
            if (chosen := detector.test_cfg[stage].nms.get('type', 'nms')) != 'nms':
                raise UserError(f"test_cfg.{stage}.nms is of type '{chosen}': only 'nms' can be exported")
        self.detector = detector
        self.eval()

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Compute the file's outputs from its inputs."""
        features = self.detector.extract_feat(image)
        limits = size.flip(0).repeat(2).to(image.dtype)
        boxes = self._propose(features, limits)
        # Let torch.export assume that every image has a proposal.
        torch._check(boxes.shape[0] > 0)
        boxes, scores, labels = self._classify(features, boxes, limits)
        head = self.detector.roi_head
        if not head.with_mask:
            return boxes, scores, labels
        # With one box more, since ONNX Runtime's group normalisation refuses an empty batch.
        masks = head.mask_head(_pool(head.mask_roi_extractor, features, F.pad(boxes, (0, 0, 0, 1)))).sigmoid()
        channels = torch.zeros_like(labels) if head.mask_head.class_agnostic else labels
        return boxes, scores, labels, masks[torch.arange(labels.shape[0]), channels]

    def _propose(self, features: tuple[Tensor, ...], limits: Tensor) -> Tensor:
        """Compute proposals ``[N, 4]``."""
        head, cfg = self.detector.rpn_head, self.detector.test_cfg.rpn
        maps = head(features)
        priors = head.prior_generator.grid_priors([scores.shape[-2:] for scores in maps[0]], device=limits.device)
        levels = []
        for level, (scores, deltas, anchors) in enumerate(zip(*maps, priors, strict=True)):
            flat = scores[0].permute(1, 2, 0).flatten().sigmoid()
            best, chosen = flat.topk(torch.sym_min(cfg.nms_pre, flat.shape[0]))
            boxes = head.bbox_coder.decode(anchors[chosen], deltas[0].permute(1, 2, 0).reshape(-1, 4)[chosen])
            levels.append((boxes.clamp(min=0).minimum(limits), best, torch.full_like(best, level)))
        boxes, best, groups = (torch.cat(parts) for parts in zip(*levels, strict=True))
        (large,) = torch.where((boxes[:, 2:] - boxes[:, :2] > cfg.min_bbox_size).all(1))
        boxes, best, groups = boxes[large], best[large], groups[large]
        return boxes[_select(boxes, best, groups, limits, cfg)]

    def _classify(self, features: tuple[Tensor, ...], proposals: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute boxes ``[K, 4]``, scores and labels ``[K]``."""
        head, cfg = self.detector.roi_head.bbox_head, self.detector.test_cfg.rcnn
        logits, deltas = head(_pool(self.detector.roi_head.bbox_roi_extractor, features, proposals))
        boxes = head.bbox_coder.decode(proposals, deltas).clamp(min=0).unflatten(1, (-1, 4)).minimum(limits)
        scores = logits.softmax(1)[:, : head.num_classes]
        rows, labels = torch.where(scores > cfg.score_thr)
        boxes, scores = boxes.expand(-1, head.num_classes, 4)[rows, labels], scores[rows, labels]
        kept = _select(boxes, scores, labels, limits, cfg)
        return boxes[kept], scores[kept], labels[kept]


def differences(model: Exportable, run: Run, image: Tensor) -> tuple[int, int, dict[str, float]]:
    """Compare mmdet's ``predict`` with the file in a runtime on one image of the test pipeline, ``[3, H, W]`` in 0..255.

    Returns how many detections each finds, and the largest differences under the names of ``TOLERANCES``. Each detection is paired with
    the nearest box of its label; if some have no pair, the differences are infinite.
    """
    detector = model.detector
    size = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    data = detector.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    with torch.no_grad():
        ours = detector.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances
    found = run(dict(image=data['inputs'].numpy(), size=np.array(size)))
    boxes, scores, labels, *grids = map(torch.from_numpy, found)
    names = ['boxes', 'scores', 'masks'][: len(found) - 1]
    counts = len(ours), len(boxes)
    if counts[0] != counts[1] or not counts[0]:
        return *counts, dict.fromkeys(names, float('inf') if any(counts) else 0.0)
    far, pairs = (torch.cdist(ours.bboxes, boxes, p=torch.inf) + 1e6 * (ours.labels[:, None] != labels)).min(1)
    if len(pairs.unique()) < len(pairs):
        return *counts, dict.fromkeys(names, float('inf'))
    largest = dict(boxes=float(far.max()), scores=float((ours.scores - scores[pairs]).abs().max()))
    for grid in grids:
        # mmdet pastes the logits of the label's channel; here there is only one channel.
        pasted = InstanceData(bboxes=boxes[pairs], labels=torch.zeros_like(pairs))
        head, cfg = detector.roi_head.mask_head, detector.test_cfg.rcnn
        head.predict_by_feat((grid[pairs, None].logit(),), [pasted], [sample.metainfo], cfg)
        union = (ours.masks | pasted.masks).flatten(1).sum(1)
        largest['masks'] = float(((ours.masks ^ pasted.masks).flatten(1).sum(1) / union.clamp(min=1)).max())
    return *counts, largest


def compare(model: Exportable, run: Run, name: str, paths: Sequence[Path]) -> dict[str, float]:
    """Compare a detector with its file in a runtime on images; print and return the largest differences."""
    worst: dict[str, float] = {}
    for index, path in enumerate(paths):
        image = load_image(model.detector, path)['inputs'][0]
        # Each image is cut to another size, so that padding and aspect ratio differ.
        image = image[:, image.shape[1] * index // (2 * len(paths)) :, image.shape[2] * index // (3 * len(paths)) :]
        ours, theirs, found = differences(model, run, image)
        worst = {key: max(worst.get(key, 0.0), value) for key, value in found.items()}
        listed = ', '.join(f'{key} {value:.1e}' for key, value in found.items())
        print(f'{path.name}, {image.shape[1]} x {image.shape[2]}: {ours} detections, {theirs} in {name}; {listed}', flush=True)
    return worst


def write_detector(model: Exportable, out: Path, runtime: str) -> onnx.ModelProto:
    """Export a detector for an image of any size."""
    example = torch.rand(1, 3, 160, 192), torch.tensor([150, 180])
    outputs = ['boxes', 'scores', 'labels', 'masks'][: 4 if model.detector.with_mask else 3]
    options = dict(opset_version=18, custom_translation_table=TRANSLATIONS)
    return write_onnx(model, out, example, dict(image=(2, 3), size=()), outputs, runtime, **options)


def export_detector(
    config: Path, checkpoint: Path, out: Path, images: Path, count: int, runtime: str = 'any', beside: bool = False, repeats: int = 5
) -> None:
    """Export a detector to ONNX, and compare the file with PyTorch on the first ``count`` images of a folder by name.

    Args:
        config, checkpoint, out, images: paths.
        count: the number of images.
        runtime: the file is made for it, and compared in it; ``any``: in all that are installed.
        beside: time the same detector beside those with mmdet's ResNet, and with SE, at 800 x 1344.
        repeats: timed rounds.

    Raises:
        UserError: the detector cannot be exported, or outputs differ by more than ``TOLERANCES``.
    """
    paths = find_images(images, count)
    check_writable(out)
    cfg = read_config(config)
    others = {**peers(cfg), 'FCA': cfg} if beside else {}
    model = Exportable(open_detector(config, checkpoint))
    print(f'exporting {config.stem} ...', flush=True)
    graph = write_detector(model, out, runtime).graph
    print(f'{out}: {out.stat().st_size / 2**20:.1f} MiB, {len(graph.node)} nodes')
    for name in served_by(runtime):
        worst = compare(model, open_file(out, name), NAMES[name], paths)
        listed = ', '.join(f'{key} {value:.1e} of {TOLERANCES[key]}' for key, value in worst.items())
        print(f'largest differences: {listed} (boxes in pixels, masks as 1 - IoU)')
        if any(value > TOLERANCES[key] for key, value in worst.items()):
            raise UserError(f'{NAMES[name]} and PyTorch differ: do not deploy {out}')
    if beside:
        inputs = dict(image=torch.randn(1, 3, *SHAPE).numpy(), size=np.array(SHAPE))
        time_beside(others, lambda other, path: write_detector(Exportable(other), path, runtime), inputs, runtime, repeats)

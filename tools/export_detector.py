"""A whole Faster R-CNN or Mask R-CNN, from the image to boxes, scores, labels and masks, as one ONNX file; compared with PyTorch on images.

    python tools/export_detector.py CONFIG CHECKPOINT --out FILE.onnx --images FOLDER [--count 10]

Layers, anchors, box coders and the choice of pyramid levels are mmdet's own. What is written here is the choice of boxes, which mmdet
writes with branches on data; NMS and RoIAlign become ONNX's. The file holds standard operators only. Needs the extra ``onnx``.

Inputs of the file: ``image`` ``[1, 3, H, W]``, as the detector's data preprocessor gives it (normalised and padded), of any size; and
``size``, its height and width without padding. Outputs: ``boxes`` ``[K, 4]``, ``scores`` ``[K]``, ``labels`` ``[K]``, and of a Mask R-CNN
``masks`` ``[K, 28, 28]``, probabilities on a grid over each box.

NMS follows the order of scores, and neither mmdet nor this says which of equal scores comes first: with random weights, whose scores are
nearly equal, detections need not agree.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import SingleRoIExtractor, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.structures import InstanceData
from preflight import check_out
from torch import Tensor, nn
from torch.nn import functional as F

from fca_mmdet.checkpoint import CheckpointError, refuse_pickled_code

# onnxscript annotates its operators with tensor types only, and takes numbers too.
OPERATORS: Any = onnxscript.opset18

TOLERANCES = dict(boxes=0.1, scores=1e-4, masks=0.01)
"""The largest differences that are accepted: of boxes in pixels, of scores, and of masks as 1 - IoU."""


@torch.library.custom_op('fca_mmdet::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:
    """mmcv's NMS as an operator that torch.export keeps whole: boxes ``[N, 4]`` to the indices of the best of them ``[K]``."""
    return mmcv.ops.nms(boxes, scores, iou_threshold, max_num=max_num)[1]


@nms.register_fake
def _(boxes, scores, iou_threshold, max_num):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op('fca_mmdet::roi_align', mutates_args=())
def roi_align(features: Tensor, rois: Tensor, size: list[int], scale: float, sampling_ratio: int, aligned: bool) -> Tensor:
    """mmcv's RoIAlign, likewise: features ``[1, C, H, W]`` and RoIs ``[N, 5]`` to ``[N, C, *size]``."""
    return mmcv.ops.roi_align(features, rois, tuple(size), scale, sampling_ratio, 'avg', aligned)


@roi_align.register_fake
def _(features, rois, size, scale, sampling_ratio, aligned):
    return features.new_empty(rois.shape[0], features.shape[1], *size)


def _onnx_nms(boxes, scores, iou_threshold, max_num):
    one_class = OPERATORS.Unsqueeze(boxes, [0]), OPERATORS.Unsqueeze(scores, [0, 1])
    return OPERATORS.Gather(OPERATORS.NonMaxSuppression(*one_class, [max_num], [iou_threshold]), 2, axis=1)


def _onnx_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    return OPERATORS.RoiAlign(
        features,
        OPERATORS.Slice(rois, [1], [5], [1]),
        OPERATORS.Cast(OPERATORS.Gather(rois, 0, axis=1), to=onnx.TensorProto.INT64),
        output_height=size[0],
        output_width=size[1],
        spatial_scale=scale,
        sampling_ratio=sampling_ratio,
        coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
    )


TRANSLATIONS: Any = {torch.ops.fca_mmdet.nms.default: _onnx_nms, torch.ops.fca_mmdet.roi_align.default: _onnx_roi_align}
"""The two operators in ONNX, for the exporter."""


def _select(boxes: Tensor, scores: Tensor, groups: Tensor, limits: Tensor, cfg: Any) -> Tensor:
    """Indices of the best boxes, as of mmcv's ``batched_nms``: one NMS for all groups, which are moved apart."""
    return nms(boxes + groups[:, None] * (limits.max() + 1), scores, cfg.nms.iou_threshold, cfg.max_per_img)


def _pool(extractor: Any, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Features of boxes ``[N, 4]``, each from its pyramid level, as mmdet's ``SingleRoIExtractor`` gives them, without its branches."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    levels = extractor.map_roi_levels(rois, extractor.num_inputs)
    pooled = boxes.new_zeros(rois.shape[0], extractor.out_channels, *extractor.roi_layers[0].output_size)
    for level, layer in enumerate(extractor.roi_layers):
        (here,) = torch.where(levels == level)
        aligned = roi_align(features[level], rois[here], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        pooled = pooled.index_put((here,), aligned)
    return pooled


class Exportable(nn.Module):
    """A two-stage detector of mmdet whose forward torch.export can take: the outputs of its ``predict`` for one image.

    Args:
        detector: a Faster R-CNN or a Mask R-CNN, with mmdet's own heads.

    Raises:
        TypeError: another head, or another NMS.
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
                raise TypeError(f'only Faster R-CNN and Mask R-CNN can be exported: {name} is a {found.__name__}, not a {allowed}')
        for stage in ('rpn', 'rcnn'):
            if (chosen := detector.test_cfg[stage].nms.get('type', 'nms')) != 'nms':
                raise TypeError(f"test_cfg.{stage}.nms is of type '{chosen}': only 'nms' can be exported")
        self.detector = detector
        nn.Module.train(self, False)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Image ``[1, 3, H, W]``, normalised and padded, and its size ``[2]`` without padding, to what the module's docstring says."""
        features = self.detector.extract_feat(image)
        limits = size.flip(0).repeat(2).to(image.dtype)
        boxes = self._propose(features, limits)
        # Tells torch.export that every image has a proposal.
        torch._check(boxes.shape[0] > 0)
        boxes, scores, labels = self._classify(features, boxes, limits)
        head = self.detector.roi_head
        if not head.with_mask:
            return boxes, scores, labels
        # One box more than there are: ONNX Runtime's group normalisation does not take none.
        masks = head.mask_head(_pool(head.mask_roi_extractor, features, F.pad(boxes, (0, 0, 0, 1)))).sigmoid()
        channels = torch.zeros_like(labels) if head.mask_head.class_agnostic else labels
        return boxes, scores, labels, masks[torch.arange(labels.shape[0]), channels]

    def _propose(self, features: tuple[Tensor, ...], limits: Tensor) -> Tensor:
        """Proposals ``[N, 4]``."""
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
        """Boxes ``[K, 4]``, scores and labels ``[K]``."""
        head, cfg = self.detector.roi_head.bbox_head, self.detector.test_cfg.rcnn
        logits, deltas = head(_pool(self.detector.roi_head.bbox_roi_extractor, features, proposals))
        boxes = head.bbox_coder.decode(proposals, deltas).clamp(min=0).unflatten(1, (-1, 4)).minimum(limits)
        scores = logits.softmax(1)[:, : head.num_classes]
        rows, labels = torch.where(scores > cfg.score_thr)
        boxes, scores = boxes.expand(-1, head.num_classes, 4)[rows, labels], scores[rows, labels]
        kept = _select(boxes, scores, labels, limits, cfg)
        return boxes[kept], scores[kept], labels[kept]


def export(model: Exportable, out: Path) -> onnx.ModelProto:
    """Write the ONNX file, whole or not at all, and check it."""
    example = torch.rand(1, 3, 160, 192), torch.tensor([150, 180])
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    outputs = ['boxes', 'scores', 'labels', 'masks'][: 4 if model.detector.with_mask else 3]
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'{out.name}.part')
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=(free, None))
        torch.onnx.export(
            program,
            (),
            part,
            input_names=['image', 'size'],
            output_names=outputs,
            dynamo=True,
            opset_version=18,
            external_data=False,
            verbose=False,
            custom_translation_table=TRANSLATIONS,
        )
    onnx.checker.check_model(onnx.load(part), full_check=True)
    part.replace(out)
    return onnx.load(out)


def differences(model: Exportable, session: onnxruntime.InferenceSession, image: Tensor) -> tuple[int, int, dict[str, float]]:
    """One image through mmdet's ``predict`` and through ONNX Runtime.

    Args:
        model: the detector.
        session: its ONNX file.
        image: ``[3, H, W]`` in 0..255, as the test pipeline gives it.

    Returns:
        The detections of either, and the largest differences under the names of ``TOLERANCES``: infinite where the detections do not
        pair off, each with the nearest box of its label.
    """
    detector = model.detector
    size = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    data = detector.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    with torch.no_grad():
        ours = detector.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances
    found = session.run(None, dict(image=data['inputs'].numpy(), size=np.array(size)))
    boxes, scores, labels, *grids = map(torch.from_numpy, found)
    names = ['boxes', 'scores', 'masks'][: len(found) - 1]
    counts = len(ours), len(boxes)
    if counts[0] != counts[1]:
        return *counts, dict.fromkeys(names, float('inf'))
    if not len(ours):
        return *counts, dict.fromkeys(names, 0.0)
    far, pairs = (torch.cdist(ours.bboxes, boxes, p=torch.inf) + 1e6 * (ours.labels[:, None] != labels)).min(1)
    if len(pairs.unique()) < len(pairs):
        return *counts, dict.fromkeys(names, float('inf'))
    largest = dict(boxes=float(far.max()), scores=float((ours.scores - scores[pairs]).abs().max()))
    for grid in grids:
        # mmdet pastes logits, and takes the channel of the label; here there is one channel.
        pasted = InstanceData(bboxes=boxes[pairs], labels=torch.zeros_like(pairs))
        head, cfg = detector.roi_head.mask_head, detector.test_cfg.rcnn
        head.predict_by_feat((grid[pairs, None].logit(),), [pasted], [sample.metainfo], cfg)
        union = (ours.masks | pasted.masks).flatten(1).sum(1)
        largest['masks'] = float(((ours.masks ^ pasted.masks).flatten(1).sum(1) / union.clamp(min=1)).max())
    return *counts, largest


def main() -> None:
    """Parse the command line, export, compare, print."""
    parser = argparse.ArgumentParser(description='Export a two-stage detector to ONNX.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--images', type=Path, required=True, help='folder of the images to compare on')
    parser.add_argument('--count', type=int, default=10, help='images to compare on, the first by name')
    arguments = parser.parse_args()
    if not arguments.config.is_file():
        parser.error(f'no config at {arguments.config}')
    images = sorted(path for path in arguments.images.glob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))[: arguments.count]
    if not images:
        parser.error(f'no .jpg or .png in {arguments.images}')
    check_out(arguments.out)
    refuse_pickled_code()
    try:
        model = Exportable(init_detector(str(arguments.config), str(arguments.checkpoint), device='cpu'))
    except (CheckpointError, FileNotFoundError, TypeError) as error:
        sys.exit(f'export_detector: {error}')
    print(f'exporting {arguments.config.stem} ...', flush=True)
    graph = export(fuse_conv_bn(copy.deepcopy(model)), arguments.out).graph
    print(f'{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB, {len(graph.node)} nodes')
    session = onnxruntime.InferenceSession(arguments.out, providers=['CPUExecutionProvider'])
    pipeline = Compose(get_test_pipeline_cfg(model.detector.cfg))
    worst: dict[str, float] = {}
    for index, path in enumerate(images):
        image = pipeline(dict(img_path=str(path), img_id=index))['inputs']
        # Each is cut to another size, so that padding and aspect differ.
        image = image[:, image.shape[1] * index // (2 * len(images)) :, image.shape[2] * index // (3 * len(images)) :]
        ours, theirs, found = differences(model, session, image)
        worst = {name: max(worst.get(name, 0.0), value) for name, value in found.items()}
        listed = ', '.join(f'{name} {value:.1e}' for name, value in found.items())
        print(f'{path.name}, {image.shape[1]} x {image.shape[2]}: {ours} detections, {theirs} in ONNX Runtime; {listed}', flush=True)
    listed = ', '.join(f'{name} {value:.1e} of {TOLERANCES[name]}' for name, value in worst.items())
    print(f'largest differences: {listed} (boxes in pixels, masks as 1 - IoU)')
    if any(value > TOLERANCES[name] for name, value in worst.items()):
        sys.exit(f'export_detector: ONNX Runtime and PyTorch differ: do not deploy {arguments.out}')


if __name__ == '__main__':
    main()

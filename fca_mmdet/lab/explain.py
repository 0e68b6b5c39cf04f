"""Explain what a trained detector sees in an image, and what its frequency attention does with it."""

from pathlib import Path
from typing import Any

import cv2
import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ..detector import load_image, open_detector
from ..errors import UserError
from ..files import check_writable
from .pictures import by_frequency, collect_gates, draw_gate_table, find_attentions, read_image, show_detections
from .plots import plt, write_figure


def explain(model: nn.Module, batch: dict, top: int) -> tuple[DetDataSample, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Predict a batch of one image with a detector in eval mode, and take the gradients of its ``top`` best scores.

    Returns:
        The predictions; the Grad-CAM ``[H, W]`` of the last feature map; and by attention, ``[F]`` each, the mean gate of every frequency
        and its part in the scores.
    """
    last: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: last.append(output[-1]))  # type: ignore[union-attr]
    with torch.enable_grad(), hook, collect_gates(model) as gates:
        (sample,) = model.test_step(batch)  # type: ignore[operator]
        scores = sample.pred_instances.scores.topk(min(top, len(sample.pred_instances))).values
        wanted = [*last, *gates.values()]
        found = torch.autograd.grad(scores.sum(), wanted, allow_unused=True) if scores.requires_grad else [None] * len(wanted)
    to_last, *to_gates = (torch.zeros_like(value) if gradient is None else gradient for value, gradient in zip(wanted, found, strict=True))
    cam = F.relu((to_last.mean((2, 3), keepdim=True) * last[0]).sum(1))[0].detach().float().cpu()
    attentions = find_attentions(model)
    means = {name: by_frequency(gate, attentions[name]).mean(1) for name, gate in gates.items()}
    parts = {
        name: by_frequency(gate * gradient, attentions[name]).sum(1) for (name, gate), gradient in zip(gates.items(), to_gates, strict=True)
    }
    return sample.detach(), cam, means, parts


def draw_explanation(config: Path, checkpoint: Path, image: Path, out: Path, score: float, top: int, device: str) -> None:
    """Draw to ``out`` the predictions from ``score`` on, and what explains the ``top`` best; print the frequencies that decide most.

    Raises:
        UserError: a file is missing or cannot be used, or the detector has no frequency channel attention.
    """
    if not image.is_file():
        raise UserError(f'there is no {image}')
    try:
        pixels = read_image(image)
    except cv2.error as error:
        raise UserError(f'{image} cannot be decoded') from error
    check_writable(out)
    model: Any = open_detector(config, checkpoint, device)
    if not (attentions := find_attentions(model)):
        raise UserError(f'the model of {config} has no frequency channel attention')
    sample, cam, means, parts = explain(model, load_image(model, image), top)
    figure, axes = plt.subplots(2, 2, figsize=(15, 6 + 0.3 * len(means)), height_ratios=[5, 1 + 0.3 * len(means)])
    show_detections(axes[0, 0], sample, model.dataset_meta, score, truth=False)
    height, width = sample.img_shape[:2]
    padded = F.interpolate(cam[None, None], size=tuple(sample.batch_input_shape), mode='bilinear')
    axes[0, 1].imshow(pixels)
    axes[0, 1].imshow(F.interpolate(padded[..., :height, :width], size=pixels.shape[:2], mode='bilinear')[0, 0], cmap='jet', alpha=0.45)
    axes[0, 1].set_title(f'Grad-CAM of the {top} best scores', fontsize=9)
    for axis in axes[0]:
        axis.axis('off')
    frequencies = next(iter(attentions.values())).frequencies
    limit = max(float(part.abs().max()) for part in parts.values()) or 1.0
    draw_gate_table(axes[1, 0], 'mean gate', means, frequencies)
    draw_gate_table(axes[1, 1], 'part in the scores', parts, frequencies, cmap='RdBu_r', vmin=-limit, vmax=limit)
    write_figure(figure, out)
    total = torch.stack(list(parts.values())).sum(0)
    most = total.abs().argsort(descending=True)[:5].tolist()
    named = ', '.join(f'({frequencies[i].u}, {frequencies[i].v}) {float(total[i]):+.3f}' for i in most)
    print(f'{len(sample.pred_instances)} predictions; frequencies that decide most: {named}; wrote {out}')

"""What a trained detector sees in an image, and what its frequency attention does with it, as one picture.

    python tools/visualize.py CONFIG CHECKPOINT IMAGE --out PICTURE.png [--score 0.3] [--top 10]

Above: the predictions, and a Grad-CAM (https://arxiv.org/abs/1610.02391) of the backbone's last feature map for the scores of the best
predictions. Below, by block and frequency (u, v): the mean gate of the frequency's channels, and how much those gates decide, the sum over
channels of gate times the derivative of the scores by the gate: what the scores would lose, to first order, if these gates closed and the
proposals stayed where they are (the derivative does not pass through them).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from figures import plt, write_figure
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmdet.visualization import DetLocalVisualizer
from preflight import check_out, image_size
from torch import Tensor, nn
from torch.nn import functional as F

from fca_mmdet import CheckpointError, MultiSpectralAttention
from fca_mmdet.checkpoint import refuse_pickled_code


def explain(model: nn.Module, batch: dict, top: int) -> tuple[DetDataSample, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Predict one image with gradients.

    Args:
        model: a detector in eval mode.
        batch: what its ``test_step`` takes, of one image.
        top: how many of the best scores are explained.

    Returns:
        The predictions; the Grad-CAM ``[H, W]`` of the last feature map; and per attention, ``[F]`` each, the mean gate of every frequency
        and its part in the scores.
    """
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, MultiSpectralAttention)}
    gates: dict[str, Tensor] = {}
    last: list[Tensor] = []

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            gates[name] = output.requires_grad_()

        return hook

    def keep_last(module: nn.Module, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        last.append(output[-1])

    handles = [module.fc.register_forward_hook(keep(name)) for name, module in attentions.items()]
    handles.append(model.backbone.register_forward_hook(keep_last))  # type: ignore[union-attr]
    try:
        with torch.enable_grad():
            (sample,) = model.test_step(batch)  # type: ignore[operator]
            scores = sample.pred_instances.scores.topk(min(top, len(sample.pred_instances))).values
            wanted = [last[0], *gates.values()]
            found = torch.autograd.grad(scores.sum(), wanted, allow_unused=True) if scores.requires_grad else [None] * len(wanted)
    finally:
        for handle in handles:
            handle.remove()
    gradients = [torch.zeros_like(value) if gradient is None else gradient for value, gradient in zip(wanted, found, strict=True)]
    cam = F.relu((gradients[0].mean((2, 3), keepdim=True) * last[0]).sum(1))[0].detach().float().cpu()
    groups = {name: len(module.frequencies) for name, module in attentions.items()}
    means = {name: gate[0].detach().float().cpu().unflatten(0, (groups[name], -1)).mean(1) for name, gate in gates.items()}
    parts = {
        name: (gate * gradient)[0].detach().float().cpu().unflatten(0, (groups[name], -1)).sum(1)
        for (name, gate), gradient in zip(gates.items(), gradients[1:], strict=True)
    }
    return sample.detach(), cam, means, parts


def draw(model: nn.Module, path: Path, out: Path, score: float, top: int) -> None:
    """Explain the image at ``path``, and write the picture."""
    image = mmcv.imread(str(path))
    pipeline = Compose(get_test_pipeline_cfg(model.cfg.copy()))  # type: ignore[operator, union-attr]
    item = pipeline(dict(img_path=str(path), img_id=0))
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    sample, cam, means, parts = explain(model, batch, top)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = model.dataset_meta
    visualizer.add_datasample('', image[..., ::-1].copy(), sample.cpu(), draw_gt=False, pred_score_thr=score)
    height, width = sample.img_shape[:2]
    padded = F.interpolate(cam[None, None], size=tuple(sample.batch_input_shape), mode='bilinear')
    cam = F.interpolate(padded[..., :height, :width], size=image.shape[:2], mode='bilinear')[0, 0]
    rows = len(means)
    figure, axes = plt.subplots(2, 2, figsize=(15, 6 + 0.3 * rows), height_ratios=[5, 1 + 0.3 * rows])
    axes[0, 0].imshow(visualizer.get_image())
    axes[0, 0].set_title(f'{path.name}: predictions >= {score}', fontsize=9)
    axes[0, 1].imshow(image[..., ::-1])
    axes[0, 1].imshow(cam, cmap='jet', alpha=0.45)
    axes[0, 1].set_title(f'Grad-CAM of the {top} best scores', fontsize=9)
    for axis in axes[0]:
        axis.axis('off')
    attention = next(module for module in model.modules() if isinstance(module, MultiSpectralAttention))
    names = [name.removeprefix('backbone.').removesuffix('.att') for name in means]
    limit = max(float(part.abs().max()) for part in parts.values()) or 1.0
    styles: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
        'mean gate': (means, dict(cmap='viridis')),
        'part in the scores': (parts, dict(cmap='RdBu_r', vmin=-limit, vmax=limit)),
    }
    for axis, (title, (values, style)) in zip(axes[1], styles.items(), strict=True):
        picture = axis.imshow(torch.stack(list(values.values())), aspect='auto', **style)
        axis.set_xticks(range(len(attention.frequencies)), [f'{u},{v}' for u, v in attention.frequencies], rotation=90, fontsize=8)
        axis.set_yticks(range(rows), names, fontsize=8)
        axis.set(title=title, xlabel='frequency (u, v) of the channel group')
        figure.colorbar(picture, ax=axis)
    write_figure(figure, out)
    total = torch.stack(list(parts.values())).sum(0)
    order = np.argsort(-total.abs().numpy())[:5]
    named = ', '.join(f'({attention.frequencies[i].u}, {attention.frequencies[i].v}) {float(total[i]):+.3f}' for i in order)
    print(f'{len(sample.pred_instances)} predictions; frequencies that decide most: {named}; wrote {out}')


def main() -> None:
    """Parse the command line, load, explain, draw."""
    parser = argparse.ArgumentParser(description='Draw what a detector and its frequency attention do with an image.')
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('image', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--score', type=float, default=0.3, help='predictions from this score on are drawn')
    parser.add_argument('--top', type=int, default=10, help='how many of the best scores are explained')
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args()
    for path in (arguments.config, arguments.image):
        if not path.is_file():
            parser.error(f'there is no {path}')
    if image_size(str(arguments.image), decode=True) is None:
        parser.error(f'{arguments.image} cannot be decoded')
    check_out(arguments.out)
    refuse_pickled_code()
    try:
        model = init_detector(str(arguments.config), str(arguments.checkpoint), device=arguments.device)
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(f'visualize: {error}')
    if not any(isinstance(module, MultiSpectralAttention) for module in model.modules()):
        sys.exit(f'visualize: the model of {arguments.config} has no frequency channel attention')
    draw(model, arguments.image, arguments.out, arguments.score, arguments.top)


if __name__ == '__main__':
    main()

"""How much the detections in an image change with the companions that it is batched with.

    python tools/companions.py --model CONFIG CHECKPOINT [--model ...] --images FOLDER --out FILE.json [--count 40] [--score 0.3]

An image that is batched with a larger one is padded to its size. Convolutions see that at the image's border, an attention that pools over
the feature map sees it everywhere. For each model and each size of a companion, relative to the image: the share of detections without a
counterpart (same class, IoU of at least 0.5) in the image alone, and the mean change of the scores of those that have one. Writes the
numbers, and beside them a figure. Models of one name, the seeds of a run of tools/experiment.py, are averaged.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import mmcv
import numpy as np
import torch
from figures import plt, write_figure
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import get_test_pipeline_cfg
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress
from preflight import check_out
from torch import Tensor, nn

from fca_mmdet import CheckpointError
from fca_mmdet.checkpoint import refuse_pickled_code

SIZES = (1.0, 1.25, 1.5, 2.0)
"""Heights and widths of the companion, relative to the image's."""

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')


def compare(alone: InstanceData, batched: InstanceData) -> tuple[int, list[float]]:
    """Detections of either side without a counterpart, and the change of score of each pair, best overlaps first.

    Example:
        >>> box = dict(bboxes=torch.tensor([[0.0, 0, 9, 9]]), labels=torch.tensor([0]))
        >>> lone, kept = (InstanceData(scores=torch.tensor([score]), **box) for score in (0.75, 0.5))
        >>> compare(lone, kept)
        (0, [0.25])
    """
    overlap = bbox_overlaps(alone.bboxes, batched.bboxes) * (alone.labels[:, None] == batched.labels)
    changes: list[float] = []
    while overlap.numel() and overlap.max() >= 0.5:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        changes.append(abs(float(alone.scores[row] - batched.scores[column])))
        overlap[row], overlap[:, column] = 0, 0
    return len(alone) + len(batched) - 2 * len(changes), changes


def detect(model: nn.Module, images: list[Tensor], samples: list, score: float) -> InstanceData:
    """The detections in the first image of a batch."""
    with torch.no_grad():
        instances = model.test_step(dict(inputs=images, data_samples=samples))[0].pred_instances  # type: ignore[operator]
    return instances[instances.scores >= score]


def name_of(config: Path) -> str:
    """A config's own name, or that of the run that it lies in as ``config.py``: RUN/config.py or RUN/seed-N/config.py."""
    if config.stem != 'config':
        return config.stem
    folder = config.resolve().parent
    return folder.parent.name if folder.name.startswith('seed-') else folder.name


def measure(model: nn.Module, paths: list[Path], score: float) -> dict[float, dict[str, float]]:
    """By size of the companion: the share of detections without a counterpart, and the mean change of score of the others."""
    pipeline = Compose(get_test_pipeline_cfg(model.cfg.copy()))  # type: ignore[operator, union-attr]
    counts: dict[float, list] = {size: [0, 0, []] for size in SIZES}
    for path in track_iter_progress(paths):
        item = pipeline(dict(img_path=str(path), img_id=0))
        image, sample = item['inputs'], item['data_samples']
        alone = detect(model, [image], [sample.clone()], score)
        for size, count in counts.items():
            enlarged = mmcv.imrescale(np.ascontiguousarray(image.numpy().transpose(1, 2, 0)), size)
            companion = sample.clone()
            companion.set_metainfo(dict(img_shape=enlarged.shape[:2], ori_shape=enlarged.shape[:2], scale_factor=(1.0, 1.0)))
            batched = detect(model, [image, torch.from_numpy(enlarged.transpose(2, 0, 1).copy())], [sample.clone(), companion], score)
            lone, changes = compare(alone, batched)
            count[0] += lone
            count[1] += len(alone) + len(batched)
            count[2] += changes
    return {
        size: dict(without_counterpart=lone / max(total, 1), score_change=float(np.mean(changes or [0])))
        for size, (lone, total, changes) in counts.items()
    }


def average(measures: list[dict[float, dict[str, float]]]) -> dict[float, dict[str, float]]:
    """Mean and sample standard deviation over models, such as those of several seeds.

    Example:
        >>> average([{2.0: {'score_change': 0.25}}, {2.0: {'score_change': 0.75}}])
        {2.0: {'score_change': 0.5, 'score_change_std': 0.3535...}}
    """
    found: dict[float, dict[str, float]] = {}
    for size, values in measures[0].items():
        found[size] = {}
        for key in values:
            all_values = [measure[size][key] for measure in measures]
            found[size] |= {key: fmean(all_values), f'{key}_std': stdev(all_values) if len(all_values) > 1 else 0.0}
    return found


def draw(results: dict[str, dict], out: Path) -> None:
    """Both measures against the size of the companion, a line for each model, with the spread of those that are several."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, (key, title) in zip(
        axes, {'without_counterpart': 'detections without a counterpart', 'score_change': 'mean change of score'}.items(), strict=True
    ):
        for name, result in results.items():
            columns = [[values[column] for values in result.values()] for column in (key, f'{key}_std')]
            axis.errorbar(list(result), columns[0], columns[1] if any(columns[1]) else None, marker='o', capsize=2, label=name)
        axis.set(xlabel="companion's size relative to the image", title=title, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    write_figure(figure, out)


def main() -> None:
    """Parse the command line, measure each model, print, write and draw."""
    parser = argparse.ArgumentParser(description='Measure how much detections change with the companions of a batch.')
    parser.add_argument('--model', nargs=2, action='append', required=True, metavar=('CONFIG', 'CHECKPOINT'))
    parser.add_argument('--images', type=Path, required=True, help='a folder')
    parser.add_argument('--out', type=Path, required=True, help='a .json file; the figure lies beside it')
    parser.add_argument('--count', type=int, default=40, help='how many of the images, in the order of their names')
    parser.add_argument('--score', type=float, default=0.3, help='detections from this score on count')
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.images.glob('*') if path.suffix.lower() in SUFFIXES)[: arguments.count]
    if not paths:
        sys.exit(f'companions: there is no image ({", ".join(SUFFIXES)}) in {arguments.images}')
    check_out(arguments.out)
    refuse_pickled_code()
    measures: dict[str, list] = defaultdict(list)
    for config, checkpoint in arguments.model:
        try:
            model = init_detector(config, checkpoint, device=arguments.device)
        except (CheckpointError, FileNotFoundError) as error:
            sys.exit(f'companions: {error}')
        measures[name_of(Path(config))].append(measure(model, paths, arguments.score))
    results = {name: average(several) for name, several in measures.items()}
    for name, result in results.items():
        for size, values in result.items():
            spread = ' +- {without_counterpart_std:.1%}, {score_change_std:.4f}'.format(**values) if len(measures[name]) > 1 else ''
            print(f'{name}, companion x {size}: {values["without_counterpart"]:.1%} without counterpart, ', end='')
            print(f'scores change by {values["score_change"]:.4f}{spread}')
    arguments.out.write_text(json.dumps(dict(images=len(paths), score=arguments.score, results=results), indent=2) + '\n')
    draw(results, arguments.out.with_suffix('.png'))
    print(f'wrote {arguments.out} and {arguments.out.with_suffix(".png")}')


if __name__ == '__main__':
    main()

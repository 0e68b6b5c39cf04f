"""Quantise a Faster R-CNN or Mask R-CNN to int8 for OpenVINO, and score both files with the config's own evaluator."""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from ..configs import read_config
from ..detector import open_detector
from ..errors import UserError
from ..files import check_writable
from .detector import Exportable, write_detector
from .runtime import Run, open_file


class Served(BaseModel):
    """A detector whose boxes, scores, labels and masks come from a file in a runtime. Its own code prepares images and pastes masks."""

    def __init__(self, detector: Any, run: Run):
        super().__init__(data_preprocessor=detector.data_preprocessor)
        self.detector = detector
        self.serve = run
        self.seconds: list[float] = []

    def forward(self, inputs: Tensor, data_samples: list, mode: str = 'predict') -> list:
        """Predict for a batch, in the original images' pixels."""
        for image, sample in zip(inputs, data_samples, strict=True):
            feed = dict(image=image[None].numpy(), size=np.array(sample.img_shape))
            start = time.perf_counter()
            boxes, scores, labels, *grids = (torch.tensor(value) for value in self.serve(feed))
            self.seconds.append(time.perf_counter() - start)
            found = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            if grids:
                # The file has only the label's channel.
                pasted = InstanceData(bboxes=boxes, labels=torch.zeros_like(labels))
                head, cfg = self.detector.roi_head.mask_head, self.detector.test_cfg.rcnn
                head.predict_by_feat((grids[0][:, None].logit(),), [pasted], [sample.metainfo], cfg, rescale=True)
                found.masks, found.bboxes = pasted.masks, pasted.bboxes
            else:
                found.bboxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            sample.pred_instances = found
        return data_samples


def calibration(runner: Runner, detector: Any, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of the file for the first ``count`` training images, prepared as for a test."""
    cfg = runner.cfg.test_dataloader.copy()
    training = runner.cfg.train_dataloader.dataset
    training = training.get('dataset', training)  # inside a RepeatDataset
    places = {key: training[key] for key in ('ann_file', 'data_prefix') if key in training}
    cfg.dataset = {**cfg.dataset, **places, 'indices': count}
    for batch in Runner.build_dataloader(cfg):
        data = detector.data_preprocessor(batch, False)
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            yield dict(image=image[None].numpy(), size=np.array(sample.img_shape))


def score(runner: Runner, detector: Any, path: Path) -> dict[str, float]:
    """Score a file on the config's test data, with its evaluator. Adds the median time of an image, ``ms``."""
    runner.model = served = Served(detector, open_file(path, 'openvino'))
    metrics = runner.test()
    return {**metrics, 'ms': 1e3 * median(served.seconds)}


def quantize_detector(config: Path, checkpoint: Path, out: Path, count: int) -> None:
    """Export a detector, quantise it with NNCF on ``count`` training images, write ``out`` (.xml, and .bin beside it), and score both.

    Post-training quantisation: int8 weights and activations, chosen from the ranges that the calibration images give.

    Raises:
        UserError: OpenVINO or NNCF is not installed, ``count`` is below 1, ``out`` does not end in .xml, or the detector cannot be
            exported.
    """
    if missing := [name for name in ('openvino', 'nncf') if not find_spec(name)]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install openvino nncf, or the extra 'int8' of fca_mmdet")
    if count < 1:
        raise UserError(f'--count {count}: give 1 or more')
    if out.suffix != '.xml':
        raise UserError(f'--out {out} must end in .xml, as OpenVINO names its models')
    import nncf
    import openvino

    check_writable(out)
    detector = open_detector(config, checkpoint)
    plain = out.with_suffix('.onnx')
    print(f'exporting {config.stem} ...', flush=True)
    write_detector(Exportable(detector), plain, 'openvino')
    cfg = read_config(config)
    cfg.load_from, cfg.resume = None, False
    with TemporaryDirectory(dir=out.parent) as folder:
        cfg.work_dir = folder  # for the runner's log
        runner = Runner.from_cfg(cfg)
        images = list(calibration(runner, detector, count))
        print(f'quantising on {len(images)} images ...', flush=True)
        quantised = nncf.quantize(openvino.Core().read_model(plain), nncf.Dataset(images), subset_size=len(images))
        openvino.save_model(quantised, Path(folder, out.name), compress_to_fp16=False)
        for path in (out.with_suffix('.bin'), out):
            Path(folder, path.name).replace(path)
        for label, path in (('float32', plain), ('int8', out)):
            size = path.stat().st_size + (out.with_suffix('.bin').stat().st_size if path == out else 0)
            found = score(runner, detector, path)
            listed = ', '.join(f'{key} {value:.3f}' for key, value in found.items() if key.endswith('mAP'))
            print(f'{label}: {size / 2**20:.1f} MiB, {found["ms"]:.0f} ms an image, {listed}', flush=True)

"""Time frequency channel attention beside its peers, and measure what a training step keeps.

    python tools/benchmark.py backbone [--depth 50 --batch 1 --size 800 1344 --channels-last --compile --dtype bfloat16 ...]
    python tools/benchmark.py operators [...]  # where a training step's time goes
    python tools/benchmark.py sizes       # time against image area
    python tools/benchmark.py forms       # the two folded forms of a bottleneck, where one overtakes the other
    python tools/benchmark.py attention   # the layer alone, beside squeeze-and-excitation and a global average
    python tools/benchmark.py detector    # a training step of Mask R-CNN, on a GPU
    python tools/benchmark.py evaluation  # COCO's figures of 5000 images, by pycocotools and by hotcoco
    python tools/benchmark.py record --out FILE.json  # all but evaluation, in several settings; interrupted and started again, it goes on

Every alternative lives in a process of its own, as it would be trained or deployed, and they take turns: what the machine does besides
falls on all, and none profits from memory that another one made the allocator keep. A process keeps the luck of its heap for life, so all
start anew after ``ROUNDS_PER_PROCESS`` rounds (not if compiled: that takes minutes). A time is a median over the rounds, a ratio the
median of the ratios to mmdet's ResNet within a round. Normalisations are frozen (``norm_eval``) with statistics drawn around those of
trained ResNets, ``frozen_stages=1``. On CUDA, times are taken with events.
"""

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from figures import describe_setting, draw_costs, draw_sizes
from mmcv.cnn.bricks import ContextBlock
from mmdet.models.backbones import ResNet
from mmdet.registry import METRICS, MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from preflight import check_out
from pycocotools import mask as mask_api
from torch import Tensor, nn

from fca_mmdet import EfficientChannelAttention, FcaBottleneck, FcaResNet, MultiSpectralAttention, SqueezeExcitation, folding

STAGES = {'stage1': (256, 4, 56), 'stage2': (512, 8, 28), 'stage3': (1024, 16, 14), 'stage4': (2048, 32, 7)}
"""Channels, stride and grid of each stage of a ResNet with bottlenecks."""

BACKBONES: dict[str, Callable[..., ResNet]] = {
    'ResNet': ResNet,
    '+ SE': partial(ResNet, plugins=[dict(cfg=dict(type=SqueezeExcitation), position='after_conv3')]),
    '+ ECA': partial(ResNet, plugins=[dict(cfg=dict(type=EfficientChannelAttention), position='after_conv3')]),
    '+ GC': partial(ResNet, plugins=[dict(cfg=dict(type=ContextBlock, ratio=1 / 16), position='after_conv3')]),
    '+ FCA, readable': partial(FcaResNet, fold=False),
    '+ FCA, folded': FcaResNet,
}
"""What is compared, ResNet first: the ratios are to it."""

ON_REQUEST: dict[str, Callable[..., ResNet]] = {'+ FCA, ignoring padding': partial(FcaResNet, ignore_padding=True)}
"""What ``--backbones`` also takes."""

UNITS = {'inference': (1e3, 'ms'), 'training': (1e3, 'ms'), 'saved': (2**-20, 'MiB'), 'peak': (2**-20, 'MiB')}
"""What a figure, in seconds or bytes, is shown in."""

ROUNDS_PER_PROCESS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a table is measured under. ``dtype`` other than float32 is autocast; ``keep_pages`` tells glibc to return no memory."""

    depth: int = 50
    batch: int = 1
    size: tuple[int, int] = (800, 1344)
    dtype: str = 'float32'
    channels_last: bool = False
    compile: bool = False
    device: str = 'cpu'
    threads: int = torch.get_num_threads()
    keep_pages: bool = False


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The time of one call: wall clock on a CPU, events on CUDA."""
    if device.type != 'cuda':
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


class Subject:
    """One backbone under one setting, and the actions that are measured on it."""

    def __init__(self, name: str, setting: Setting):
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        MMLogger.get_instance('mmengine', log_level='ERROR')
        self.setting, self.device = setting, torch.device(setting.device)
        memory_format = torch.channels_last if setting.channels_last else torch.contiguous_format
        self.model: nn.Module = (BACKBONES | ON_REQUEST)[name](depth=setting.depth, frozen_stages=1, norm_eval=True)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.1, 0.5)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(cast(Tensor, module.running_mean), 0, 0.2)
                nn.init.uniform_(cast(Tensor, module.running_var), 0.3, 2)
        self.model.to(self.device, memory_format=memory_format).train()
        self.x = torch.randn(setting.batch, 3, *setting.size, device=self.device).to(memory_format=memory_format)
        self.run: Callable[[Tensor], Sequence[Tensor]] = torch.compile(self.model) if setting.compile else self.model

    def forward(self) -> Sequence[Tensor]:
        """The features, under autocast if the setting says so."""
        precise = self.setting.dtype == 'float32'
        with nullcontext() if precise else torch.autocast(self.device.type, getattr(torch, self.setting.dtype)):
            return self.run(self.x)

    @torch.inference_mode()
    def inference(self) -> float:
        """Seconds of one forward."""
        return seconds(self.forward, self.device)

    def training(self) -> float:
        """Seconds of one forward and backward."""

        def step() -> None:
            torch.stack([feature.mean() for feature in self.forward()]).sum().backward()

        self.model.zero_grad()
        return seconds(step, self.device)

    def saved(self) -> float:
        """Bytes that a forward keeps for backward beyond parameters and buffers."""
        kept: dict[int, int] = {}
        own = {tensor.untyped_storage().data_ptr() for tensor in [*self.model.parameters(), *self.model.buffers()]}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = self.forward()
        del features
        return float(sum(kept.values()))

    def operators(self) -> dict[str, float]:
        """Seconds of a training step by operator, the mean of three."""
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                self.training()
        return {event.key: event.self_cpu_time_total / 3e6 for event in profiler.key_averages()}

    def peak(self) -> float:
        """The most bytes so far: of CUDA's allocator, or resident in the process."""
        if self.device.type == 'cuda':
            return float(torch.cuda.max_memory_allocated(self.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


class Detector(Subject):
    """Mask R-CNN with one of the backbones; a training step's forward is the losses of random images with ten objects each."""

    def __init__(self, name: str, setting: Setting):
        super().__init__(name, setting)
        init_default_scope('mmdet')
        model = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
        model.backbone.init_cfg = None
        detector = MODELS.build(model)
        detector.backbone = self.model
        self.model = detector.to(self.device).train()
        shapes = [(3, *setting.size)] * setting.batch
        data = demo_mm_inputs(setting.batch, shapes, num_items=[10] * setting.batch, num_classes=80, with_mask=True, device=setting.device)
        self.data = detector.data_preprocessor(data, training=True)
        self.run = lambda _: [detector.parse_losses(detector(**self.data, mode='loss'))[0]]


def _serve(connection: Connection, kind: type[Subject], name: str, setting: Setting) -> None:
    subject = kind(name, setting)
    while action := connection.recv():
        connection.send(getattr(subject, action)())


@contextmanager
def workers(names: Sequence[str], setting: Setting, kind: type[Subject] = Subject) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A process per backbone; yields a function that has an action measured in each, one after the other."""
    context = multiprocessing.get_context('spawn')
    allocator = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**40)} if setting.keep_pages else {}
    os.environ.update(allocator)  # read by glibc when a process starts
    connections: dict[str, Connection] = {}
    processes = []
    for name in names:
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, kind, name, setting), daemon=True))
        processes[-1].start()
        theirs.close()  # a worker that dies is an EOFError here
    for variable in allocator:
        del os.environ[variable]

    def ask(action: str) -> dict[str, Any]:
        answers = {}
        try:
            for name, connection in connections.items():
                connection.send(action)
                answers[name] = connection.recv()
        except (EOFError, OSError) as error:
            raise SystemExit(f'the process of {name!r} has ended: its traceback stands above') from error
        return answers

    yield ask
    for connection, process in zip(connections.values(), processes, strict=True):
        connection.send(None)
        process.join()


def rounds(ask: Callable[[], dict[str, float]], repeats: int, label: str) -> dict[str, list[float]]:
    """``repeats`` answers of ``ask`` by name after one that is not counted, with an estimate of the time left."""
    answers = []
    start = time.monotonic()
    for index in range(repeats + 1):
        answers.append(ask())
        left = (time.monotonic() - start) / (index + 1) * (repeats - index)
        print(f'\r{label}: round {index} of {repeats}, {left / 60:.1f} min left   ', end='', flush=True)
    print('\r', end='')
    return {name: [answer[name] for answer in answers[1:]] for name in answers[0]}


def summary(values: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Of each name the median, and median and quartiles of the ratios to the first name within a round."""
    first = next(iter(values.values()))
    rows = {}
    for name, series in values.items():
        ratios = [value / base for value, base in zip(series, first, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
        rows[name] = {'median': statistics.median(series), 'ratio': statistics.median(ratios), 'quartiles': quartiles}
    return rows


def measure(
    setting: Setting, names: Sequence[str], times: Sequence[str], once: Sequence[str], repeats: int, kind: type[Subject] = Subject
) -> dict:
    """The table of one setting: the actions ``times`` over the rounds of several generations of processes, ``once`` in the last one."""
    series: dict[str, dict[str, list[float]]] = {action: {name: [] for name in names} for action in times}
    lives = 1 if setting.compile else -(-repeats // ROUNDS_PER_PROCESS)
    for life in range(lives):
        count = (repeats + life) // lives  # they add up to repeats
        with workers(names, setting, kind) as ask:
            for action in times:
                label = f'processes {life + 1} of {lives}, {action}'
                for name, values in rounds(partial(ask, action), count, label).items():
                    series[action][name] += values
            last = {action: ask(action) for action in once if life == lives - 1}
    table = {action: summary(values) for action, values in series.items()}
    table |= {action: summary({name: [value] for name, value in answers.items()}) for action, answers in last.items()}
    print_table(setting, table)
    return {'setting': dataclasses.asdict(setting), 'repeats': repeats, 'table': table}


def benchmark_backbones(setting: Setting, names: Sequence[str], repeats: int) -> dict:
    """Inference, a training step, the process's peak and the bytes that the step keeps (compiled code keeps its own)."""
    return measure(setting, names, ['inference', 'training'], ['peak'] if setting.compile else ['peak', 'saved'], repeats)


def print_table(setting: Setting, table: dict) -> None:
    """One line per backbone: each figure, its ratio to the first backbone's and the ratio's quartiles."""
    print(f'\n{describe_setting(dataclasses.asdict(setting))}')
    for name in next(iter(table.values())):
        cells = []
        for mode, rows in table.items():
            (scale, unit), row = UNITS[mode], rows[name]
            spread = '' if mode in ('saved', 'peak') else f' ({row["quartiles"][0]:.2f} - {row["quartiles"][1]:.2f})'
            cells.append(f'{mode} {row["median"] * scale:6.0f} {unit} {row["ratio"]:.2f}{spread}')
        print(f'  {name:16} ' + '   '.join(cells), flush=True)


def benchmark_operators(setting: Setting, names: Sequence[str], shown: int = 9) -> list[dict]:
    """Where a training step's time goes, by operator: what bounds a setting."""
    with workers(names, setting) as ask:
        ask('training')
        answers = ask('operators')
    print(f'\n{describe_setting(dataclasses.asdict(setting))}: ms of a training step by operator')
    for name, operators in answers.items():
        first = sorted(operators, key=operators.__getitem__, reverse=True)[:shown]
        print(f'  {name:16} ' + ', '.join(f'{key.removeprefix("aten::")} {operators[key] * 1e3:.0f}' for key in first), flush=True)
    return [{'setting': dataclasses.asdict(setting), 'seconds': answers}]


def benchmark_sizes(setting: Setting, names: Sequence[str], repeats: int) -> list[dict]:
    """Inference on square images of 320 to 1600 pixels."""
    sizes = [(side, side) for side in (320, 480, 640, 800, 1120, 1600)]
    return [measure(dataclasses.replace(setting, size=size), names, ['inference'], [], repeats) for size in sizes]


def benchmark_detector(setting: Setting, names: Sequence[str], repeats: int) -> dict:
    """A training step of Mask R-CNN and its peak memory."""
    return measure(setting, names, ['training'], ['peak'], repeats, Detector)


def layer_actions(layers: dict[str, nn.Module], x: Tensor, mode: str) -> dict[str, Callable[[], object]]:
    """One call per layer: inference, or forward and backward into the input."""

    def inference(layer: nn.Module) -> object:
        with torch.inference_mode():
            return layer(x)

    def training(layer: nn.Module) -> object:
        leaf = x.detach().requires_grad_()
        out = layer(leaf)
        return torch.autograd.grad(out, leaf, torch.ones_like(out))

    run = inference if mode == 'inference' else training
    return {name: partial(run, layer) for name, layer in layers.items()}


def in_turns(actions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, label: str) -> dict:
    """``summary`` of the times of small actions, taken in turns within this process."""
    return summary(rounds(lambda: {name: seconds(action, device) for name, action in actions.items()}, repeats, label))


class GlobalAverage(nn.Module):
    """Reads the feature map once and does nothing else: what memory allows."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C]``."""
        return x.mean((2, 3))


def benchmark_attention(setting: Setting, repeats: int) -> list[dict]:
    """The layer alone beside SE and a global average, on the stages' maps of an image."""
    device, found = torch.device(setting.device), []
    for stage, (channels, stride, grid) in STAGES.items():
        layers: dict[str, nn.Module] = {
            'SE': SqueezeExcitation(channels),
            'FCA': MultiSpectralAttention(channels, grid),
            'mean': GlobalAverage(),
        }
        layers = {name: layer.to(device) for name, layer in layers.items()}
        x = torch.randn(setting.batch, channels, *(side // stride for side in setting.size), device=device)
        for mode in ('inference', 'training'):
            rows = in_turns(layer_actions(layers, x, mode), repeats, device, stage)
            found.append({'shape': list(x.shape), 'mode': mode, 'rows': rows})
            cells = (f'{name} {row["median"] * 1e3:6.2f} ms {row["ratio"]:.2f}' for name, row in rows.items())
            print(f'{stage} {"x".join(map(str, x.shape)):16} {mode:9}  ' + '   '.join(cells), flush=True)
    return found


def benchmark_forms(setting: Setting, repeats: int) -> list[dict]:
    """The product form against the gate form of a folded bottleneck, at map sizes around ``PRODUCT_PIXELS``."""
    device, found = torch.device(setting.device), []
    memory_format = torch.channels_last if setting.channels_last else torch.contiguous_format
    for planes, grid in ((128, 28), (256, 14), (512, 7)):
        block = FcaBottleneck(4 * planes, planes, dct_size=grid).to(device, memory_format=memory_format).eval()
        for ratio in (1, 2, 4, 8, 16, 32):
            side = round((ratio * planes) ** 0.5)
            x = torch.randn(setting.batch, 4 * planes, side, side, device=device).to(memory_format=memory_format)
            row: dict[str, Any] = {'planes': planes, 'pixels per channel': ratio}
            for mode in ('inference', 'training'):
                (action,) = layer_actions({'block': block}, x, mode).values()
                forms = {'gate': partial(_with_threshold, 1e9, action), 'product': partial(_with_threshold, 0, action)}
                row[mode] = in_turns(forms, repeats, device, 'forms')['product']
            found.append(row)
            ratios = '   '.join(f'{mode} {row[mode]["ratio"]:.2f}' for mode in ('inference', 'training'))
            print(f'z {planes} x {side} x {side}, {ratio:2} pixels per channel: product / gate   {ratios}', flush=True)
    return found


def detection_set(images: int, seed: int = 0, classes: int = 80, detections: int = 100) -> tuple[dict, list[dict]]:
    """Random ground truth, and detections of it with masks as a detector hands them to a metric; per image as many as COCO val has.

    Objects are octagons of 8 to 400 pixels, one in a hundred a crowd. Up to half of an image's detections are objects, moved by about 6 %
    of their size and four to an object; the others lie anywhere.
    """
    rng = np.random.default_rng(seed)
    size = np.array([640, 480])
    corners = np.array([[0.3, 0], [0.7, 0], [1, 0.3], [1, 0.7], [0.7, 1], [0.3, 1], [0, 0.7], [0, 0.3]])

    def boxes(count: int) -> np.ndarray:
        extent = np.minimum(np.exp(rng.uniform(np.log(8), np.log(400), (count, 2))), size)
        return np.concatenate([rng.random((count, 2)) * (size - extent), extent], 1)

    def octagons(found: np.ndarray) -> list:
        return (found[:, None, :2] + corners * found[:, None, 2:]).reshape(-1, 16).tolist()

    objects = round(images * 7.2)  # 36,000 for 5,000
    owners, labels, truth = rng.integers(images, size=objects), rng.integers(classes, size=objects), boxes(objects)
    annotations = [
        dict(id=index + 1, image_id=int(owners[index]), category_id=int(labels[index]), bbox=truth[index].tolist(), segmentation=[octagon])
        | dict(area=float(truth[index, 2:].prod() * 0.82), iscrowd=int(index % 100 == 0))
        for index, octagon in enumerate(octagons(truth))
    ]
    samples = []
    for image in range(images):
        own = np.flatnonzero(owners == image).repeat(4)[: detections // 2]
        moved = truth[own] + rng.normal(0, 0.06, (len(own), 4)) * np.tile(truth[own, 2:], 2)
        found = np.concatenate([moved, boxes(detections - len(own))])
        instances = dict(
            bboxes=torch.tensor(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)),
            scores=torch.tensor(rng.random(detections), dtype=torch.float32),
            labels=torch.tensor(np.concatenate([labels[own], rng.integers(classes, size=detections - len(own))])),
            masks=[rle for octagon in octagons(found) for rle in mask_api.frPyObjects([octagon], int(size[1]), int(size[0]))],
        )
        samples.append(dict(img_id=image, ori_shape=(int(size[1]), int(size[0])), pred_instances=instances))
    sizes = [dict(id=image, width=int(size[0]), height=int(size[1])) for image in range(images)]
    return dict(images=sizes, annotations=annotations, categories=[dict(id=index, name=str(index)) for index in range(classes)]), samples


def benchmark_evaluation(setting: Setting, images: int, repeats: int) -> list[dict]:
    """What follows inference, from data samples to the figures: mmdet's CocoMetric, and FastCocoMetric with the same figures."""
    os.environ['RAYON_NUM_THREADS'] = str(setting.threads)  # hotcoco's; read when it starts its threads
    MMLogger.get_instance('mmengine', log_level='ERROR')
    truth, samples = detection_set(images)
    classes = tuple(category['name'] for category in truth['categories'])
    print(
        f'{images} images, {len(truth["annotations"])} objects, {len(classes)} classes, 100 detections an image, {setting.threads} threads'
    )
    found = []
    for kind in ('segm', 'bbox'):
        if kind == 'bbox':  # what a metric finds in the samples it writes to a file, masks also if nobody asks for them
            for sample in samples:
                del sample['pred_instances']['masks']
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            file = Path(folder, 'truth.json')
            file.write_text(json.dumps(truth))
            metrics = {name: METRICS.build(dict(type=name, ann_file=str(file), metric=kind)) for name in ('CocoMetric', 'FastCocoMetric')}
        figures: dict[str, dict] = {}

        def evaluate(name: str, metrics: dict = metrics, figures: dict = figures) -> None:
            metrics[name].dataset_meta = dict(classes=classes)
            with redirect_stdout(io.StringIO()):
                metrics[name].process({}, samples)
                figures[name] = metrics[name].evaluate(len(samples))

        rows = in_turns({name: partial(evaluate, name) for name in metrics}, repeats, torch.device('cpu'), kind)
        equal = figures['CocoMetric'] == figures['FastCocoMetric']
        found.append({'metric': kind, 'images': images, 'threads': setting.threads, 'equal': equal, 'figures': figures, 'rows': rows})
        for name, row in rows.items():
            low, high = row['quartiles']
            print(f'  {kind}  {name:14} {row["median"]:7.2f} s {row["ratio"]:.3f} ({low:.3f} - {high:.3f})', flush=True)
        print(f'  {kind}  the figures are {"equal" if equal else "NOT equal"}: {figures["FastCocoMetric"]}', flush=True)
    return found


def _with_threshold(pixels: float, action: Callable[[], object]) -> object:
    former, folding.PRODUCT_PIXELS = folding.PRODUCT_PIXELS, pixels  # type: ignore[assignment]
    try:
        return action()
    finally:
        folding.PRODUCT_PIXELS = former


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next((line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line), 'unknown')
    distributions = ('mmdet', 'onedl-mmdetection', 'mmcv', 'onedl-mmcv')
    return {
        'cpu': f'{os.cpu_count()} cores {cpu}',
        'gpu': torch.cuda.get_device_name(device) if device.startswith('cuda') else None,
        'python': platform.python_version(),
        'torch': torch.__version__,
        **{name: version(name) for name in distributions if _installed(name)},
    }


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def markdown(result: dict) -> str:
    """The tables as a page."""
    lines = [f'Made by `{result["command"]}`', '', *(f'- {key}: {value}' for key, value in result['machine'].items()), '']
    for measured in [*result['backbones'], *result.get('detector', [])]:
        table = measured['table']
        lines += [f'### {describe_setting(measured["setting"])}', '', f'| | {" | ".join(table)} |', '|---|' + '---|' * len(table)]
        for name in next(iter(table.values())):
            cells = []
            for mode, rows in table.items():
                (scale, unit), row = UNITS[mode], rows[name]
                low, high = row['quartiles']
                cells.append(f'{row["ratio"]:.2f}{f" ({low:.2f}-{high:.2f})" if high > low else ""}, {row["median"] * scale:.0f} {unit}')
            lines.append(f'| {name} | {" | ".join(cells)} |')
        lines.append('')
    return '\n'.join(lines)


def record(base: Setting, repeats: int, found: dict[str, list[dict]], save: Callable[[dict], None]) -> dict:
    """Every measurement: on a CPU the modes of use, on a GPU float32 and autocast.

    ``found`` is what an interrupted run has saved: it is not measured again.
    """
    plain, brief = list(BACKBONES), ['ResNet', '+ FCA, folded']
    vary = partial(dataclasses.replace, base)
    if base.device == 'cpu':
        settings = [
            (vary(), plain),
            (vary(batch=2), brief),
            (vary(channels_last=True), brief),
            (vary(channels_last=True, compile=True), brief),
            (vary(depth=101), brief),
            (vary(keep_pages=True), brief),
            (vary(channels_last=True, keep_pages=True), brief),
            (vary(channels_last=True, keep_pages=True, compile=True), brief),
        ]
    else:
        settings = [
            (vary(depth=depth, batch=2, channels_last=last, dtype=dtype), plain if depth == 50 else brief)
            for depth in (50, 101)
            for last in (False, True)
            for dtype in ('float32', 'float16', 'bfloat16')
        ]
    done = [row['setting'] for row in found.setdefault('backbones', [])]
    for setting, names in settings:
        if json.loads(json.dumps(dataclasses.asdict(setting))) not in done:
            found['backbones'].append(benchmark_backbones(setting, names, repeats))
            save(found)
    parts: dict[str, Callable[[], list[dict]]] = {
        'sizes': lambda: benchmark_sizes(base, ['ResNet', '+ FCA, readable', '+ FCA, folded'], repeats),
        'attention': lambda: benchmark_attention(base, 3 * repeats),
        'forms': lambda: benchmark_forms(base, repeats),
    }
    if base.device != 'cpu':
        names = ['ResNet', '+ SE', '+ FCA, readable', '+ FCA, folded']
        parts['detector'] = lambda: [benchmark_detector(vary(batch=2, dtype=dtype), names, repeats) for dtype in ('float32', 'float16')]
    for name, measure in parts.items():
        if not found.get(name):
            found[name] = measure()
            save(found)
    return found


def save_result(found: dict, setting: Setting, out: Path) -> None:
    """Write the JSON file, and beside it the tables and figures of what it holds."""
    result = {'command': ' '.join(['python', *sys.argv]), 'machine': machine(setting.device), **found}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + '\n')
    if found.get('backbones'):
        draw_costs(found['backbones'], out.with_suffix('.png'))
        out.with_suffix('.md').write_text(markdown(result))
    if found.get('sizes'):
        draw_sizes(found['sizes'], out.with_name(out.stem + '-sizes.png'))


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description='Time frequency channel attention beside its peers.')
    parser.add_argument('what', choices=('backbone', 'operators', 'sizes', 'attention', 'forms', 'detector', 'evaluation', 'record'))
    parser.add_argument('--depth', type=int, default=50)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1344), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), default='float32', help='other than float32: autocast')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--compile', action='store_true', help='torch.compile the backbones')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--keep-pages', action='store_true', help='tell glibc to keep what is freed (MALLOC_MMAP_MAX_=0, no trimming)')
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--images', type=int, default=5000, help='of evaluation (default: %(default)s, as COCO val)')
    everything = [*BACKBONES, *ON_REQUEST]
    parser.add_argument('--backbones', nargs='+', choices=everything, help='what to compare with ResNet; by default all that is recorded')
    parser.add_argument('--out', type=Path, help='a JSON file to write; figures and tables are written beside it')
    arguments = vars(parser.parse_args())
    what, repeats, images, names, out = (arguments.pop(key) for key in ('what', 'repeats', 'images', 'backbones', 'out'))
    setting = Setting(**arguments | {'size': tuple(arguments['size'])})
    possible = list(BACKBONES) if setting.depth >= 50 else ['ResNet', '+ FCA, readable', '+ FCA, folded']
    names = ['ResNet'] + [name for name in names or possible if name != 'ResNet']
    if not set(names) <= {*possible, *ON_REQUEST}:
        parser.error(f"the blocks of depth {setting.depth} have no plugin slot in mmdet's ResNet: choose --backbones of {possible}")
    if out:
        check_out(out)
    torch.set_num_threads(setting.threads)
    former: dict = json.loads(out.read_text()) if what == 'record' and out and out.exists() else {}
    if former and former['machine'] != machine(setting.device):
        parser.error(f'{out} is the record of another machine, {former["machine"]}: name another file with --out, or delete it')
    kept = {key: value for key, value in former.items() if key not in ('command', 'machine')}
    save: Callable[[dict], None] = partial(save_result, setting=setting, out=out) if out else lambda found: None
    found: dict = {
        'backbone': lambda: {'backbones': [benchmark_backbones(setting, names, repeats)]},
        'operators': lambda: {'operators': benchmark_operators(setting, names)},
        'sizes': lambda: {'sizes': benchmark_sizes(setting, names, repeats)},
        'attention': lambda: {'attention': benchmark_attention(setting, repeats)},
        'forms': lambda: {'forms': benchmark_forms(setting, repeats)},
        'detector': lambda: {'detector': [benchmark_detector(setting, names, repeats)]},
        'evaluation': lambda: {'evaluation': benchmark_evaluation(setting, images, repeats)},
        'record': lambda: record(setting, repeats, kept, save),
    }[what]()
    save(found)


if __name__ == '__main__':
    main()

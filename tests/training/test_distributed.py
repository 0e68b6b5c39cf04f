"""Several processes, and runs that repeat bit for bit: gloo on one machine's CPU, through the package's commands."""

import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, TOOLS
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fca_mmdet import FcaBasicBlock, FcaBottleneck, FcaResNet, FcaResNetV1d, FcaResNeXt, MultiSpectralAttention
from fca_mmdet.lab.shapes import CLASSES, make_shapes
from fca_mmdet.squeeze import BASES

PROCESSES = 2

# The tiny detector; five held-out images are not a multiple of two processes.
MASK_RCNN = f"""
_base_ = {str(TINY)!r}
model = dict(
    backbone=dict(frozen_stages=1, norm_eval=True),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0)),
)
flip = dict(type='RandomFlip', prob=0.5)
pipeline = [_base_.load, _base_.annotate, _base_.resize, flip, dict(type='PackDetInputs')]
train_dataloader = dict(num_workers=2, dataset=dict(data_root=DATA, pipeline=pipeline))
val_dataloader = dict(dataset=dict(data_root=DATA))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=DATA + 'annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=4, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=2))
randomness = dict(seed=0, deterministic=True)
"""

# FCOS shares its loss's normalisation between the processes, and no step of it is drawn at random.
FCOS = f"""
_base_ = 'mask_rcnn.py'
model = dict(
    _delete_=True,
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[120, 120, 120], std=[60, 60, 60], pad_size_divisor=32),
    backbone=dict(type='FcaResNet', depth=18, base_channels=16, frozen_stages=1, norm_eval=True),
    neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=32, start_level=1, num_outs=3),
    bbox_head=dict(
        type='FCOSHead', num_classes={len(CLASSES)}, in_channels=32, stacked_convs=1, feat_channels=32,
        strides=(8, 16, 32), regress_ranges=((-1, 32), (32, 64), (64, 1e8)), norm_cfg=dict(type='GN', num_groups=8),
    ),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
)
val_evaluator = dict(metric='bbox')
pipeline = [_base_.load, _base_.annotate, _base_.resize, dict(type='PackDetInputs')]
train_dataloader = dict(num_workers=0, dataset=dict(pipeline=pipeline))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.02, momentum=0.9))
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)]
find_unused_parameters = True
"""


@pytest.fixture(scope='module')
def configs(tmp_path_factory) -> Path:
    """The folder of both configs."""
    folder = tmp_path_factory.mktemp('distributed')
    make_shapes(folder / 'shapes', train=6, val=5)
    (folder / 'mask_rcnn.py').write_text(MASK_RCNN.replace('DATA', repr(f'{folder}/shapes/')))
    (folder / 'fcos.py').write_text(FCOS)
    return folder


def start(*command: object, cwd: Path, **environment: str) -> subprocess.Popen:
    """A command beside others, each process on one thread so that all add up in the same order."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | dict(PATH=path, OMP_NUM_THREADS='1') | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Its whole output, or a failure that shows it."""
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-5000:]
    return output


def free_port() -> str:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint, weights_only=True)['state_dict']


def identical(one: Any, other: Any) -> bool:
    """Nested containers of tensors and plain values, compared bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return one == other


def batch(model: nn.Module, numbers: list[int]) -> dict:
    """Images of one size, each with its number of squares, through the model's own preprocessing."""
    data: dict[str, list] = dict(inputs=[], data_samples=[])
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        corners = torch.randint(0, 48, (2 + 3 * number, 2), generator=generator)
        boxes = torch.cat([corners, corners + 24], dim=1).float()
        masks = torch.zeros(len(boxes), 96, 96, dtype=torch.uint8)
        for mask, (x, y) in zip(masks, corners.tolist(), strict=True):
            mask[y : y + 24, x : x + 24] = 1
        labels = torch.arange(len(boxes)) % len(CLASSES)
        sample = DetDataSample(metainfo=dict(img_shape=(96, 96), ori_shape=(96, 96), scale_factor=(1, 1)))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks.numpy(), 96, 96))
        data['inputs'].append(torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8, generator=generator))
        data['data_samples'].append(sample)
    return model.data_preprocessor(data, training=True)


def detector(configs: Path, name: str) -> nn.Module:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(configs / f'{name}.py').model)
    model.init_weights()
    return model.train()


def detector_loss(wrapped: nn.Module, numbers: list[int]) -> Tensor:
    """mmdet's total loss; what it draws at random is that of the first image."""
    model = getattr(wrapped, 'module', wrapped)
    torch.manual_seed(numbers[0])
    return model.parse_losses(wrapped(**batch(model, numbers), mode='loss'))[0]


def backbone(norm: str = 'BN') -> FcaResNet:
    torch.manual_seed(0)
    model = FcaResNet(18, base_channels=16, frozen_stages=1, norm_cfg=dict(type=norm), norm_eval=True)
    model.train()
    return model


def backbone_loss(model: nn.Module, numbers: list[int]) -> Tensor:
    """The mean over images of a fixed function of every feature map."""
    images = torch.stack([torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(number)) for number in numbers])
    return sum((feature.sin() * torch.linspace(-1, 1, feature.shape[3])).mean() for feature in model(images))


def gradients(model: nn.Module, loss: Callable, numbers: list[int]) -> list[Tensor]:
    model.zero_grad()
    loss(model, numbers).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


CASES: dict[str, Callable] = {
    'backbone': lambda configs: (backbone(), backbone_loss),
    'FCOS': lambda configs: (detector(configs, 'fcos'), detector_loss),
    'Mask R-CNN': lambda configs: (detector(configs, 'mask_rcnn'), detector_loss),
}


def one_process_of_several(rank: int, folder: Path, configs: Path) -> None:
    """Find, for image ``rank`` of the global batch, the averaged gradients of every case, and what DDP says to SyncBN. This file's main."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=PROCESSES)
    found: dict[str, Any] = {}
    for name, make in CASES.items():
        model, loss = make(configs)
        found[name] = gradients(MMDistributedDataParallel(model), loss, [rank])
    try:
        MMDistributedDataParallel(backbone('SyncBN'))
    except ValueError as error:
        found['error'] = str(error)
    torch.save(found, folder / f'{rank}.pth')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def several(configs, tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp('several')
    path = os.pathsep.join(sys.path)
    for process in [start(sys.executable, __file__, rank, folder, configs, cwd=folder, PYTHONPATH=path) for rank in range(PROCESSES)]:
        finish(process)
    return [torch.load(folder / f'{rank}.pth') for rank in range(PROCESSES)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['backbone', 'FCOS'])
def test_gradients_equal_one_process_with_the_same_global_batch(name, configs, several, one_thread):
    model, loss = CASES[name](configs)
    expected = gradients(model, loss, list(range(PROCESSES)))
    assert len(expected) > 20
    for actual, twin, gradient in zip(several[0][name], several[1][name], expected, strict=True):
        assert torch.equal(actual, twin)
        assert float((actual - gradient).norm()) <= 1e-6 * float(gradient.norm()) + 1e-9


@pytest.mark.slow
def test_mask_rcnn_averages_the_gradients_of_each_process_with_its_own_normalisation(configs, several, one_thread):
    model, loss = CASES['Mask R-CNN'](configs)
    each = [gradients(model, loss, [rank]) for rank in range(PROCESSES)]
    for actual, one, other in zip(several[0]['Mask R-CNN'], *each, strict=True):
        assert torch.equal(actual, (one + other) / 2)


@pytest.mark.slow
def test_sync_bn_in_several_processes_needs_a_gpu(several):
    assert [found['error'] for found in several] == ['SyncBatchNorm layers only work with GPU modules'] * PROCESSES


def test_sync_bn_in_one_process_is_batch_normalisation(tmp_path):
    """mmengine replaces it."""
    norm = dict(type='SyncBN', requires_grad=True)
    model = dict(type='mmdet.FcaResNet', depth=18, base_channels=16, norm_cfg=norm, norm_eval=False)
    model = Runner(model, work_dir=str(tmp_path), experiment_name='sync_bn').model
    assert not [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    twin = FcaResNet(18, base_channels=16, norm_eval=False)
    twin.load_state_dict(model.state_dict())
    actual, expected = (gradients(each.train() or each, backbone_loss, [0, 1]) for each in (model, twin))
    assert identical(actual, expected)
    assert identical(model.state_dict(), twin.state_dict())


@pytest.fixture(scope='module')
def two_processes(configs) -> tuple[Path, str]:
    """FCOS for four iterations, one image in each of two processes; work dir and output."""
    options = ['train_dataloader.batch_size=1', 'model_wrapper_cfg.broadcast_buffers=True']
    arguments = ['--work-dir', 'two', '--auto-scale-lr', '--cfg-options', *options]
    return configs / 'two', finish(start(TOOLS / 'dist_train.sh', 'fcos.py', PROCESSES, *arguments, cwd=configs, PORT=free_port()))


@pytest.mark.slow
def test_training_equals_one_process_with_the_same_global_batch(configs, two_processes):
    folder, output = two_processes
    single = finish(start(sys.executable, TOOLS / 'train.py', 'fcos.py', '--work-dir', 'one', '--auto-scale-lr', cwd=configs))
    for text in (output, single):
        assert 'based on batch size of 4 and the current batch size is 2' in text
    actual, expected = (nn.utils.parameters_to_vector(weights(work / 'iter_4.pth').values()) for work in (folder, configs / 'one'))
    before = nn.utils.parameters_to_vector(weights(configs / 'one' / 'iter_2.pth').values())
    assert float((actual - expected).norm()) < 1e-5 * float((expected - before).norm())


@pytest.mark.slow
def test_the_options_of_ddp_are_those_of_the_config_and_the_command(two_processes):
    wrapper = Config.fromfile(two_processes[0] / 'fcos.py').model_wrapper_cfg
    assert wrapper | dict(device_ids=None, broadcast_buffers=True, find_unused_parameters=True) == wrapper


@pytest.mark.slow
def test_a_resumed_run_on_two_machines_ends_as_the_uninterrupted_one_on_one(configs, two_processes):
    """The machines are two agents of torchrun on this one, each with one process."""
    arguments = ['--work-dir', 'resumed', '--auto-scale-lr', '--resume', 'two/iter_2.pth', '--cfg-options', 'train_dataloader.batch_size=1']
    port = free_port()
    agents = [
        start(
            *(sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', f'--node_rank={rank}', '--nproc_per_node=1'),
            *('--master_addr=127.0.0.1', f'--master_port={port}', TOOLS / 'train.py', 'fcos.py', '--launcher', 'pytorch', *arguments),
            cwd=configs,
        )
        for rank in range(2)
    ]
    outputs = [finish(agent) for agent in agents]
    assert 'resumed epoch: 0, iter: 2' in outputs[0]
    assert identical(weights(configs / 'resumed' / 'iter_4.pth'), weights(two_processes[0] / 'iter_4.pth'))


@pytest.fixture(scope='module')
def deterministic_runs(configs) -> list[Path]:
    """The same Mask R-CNN trained twice in one process with two workers that load, flips and samples at random."""
    for name in ('first', 'second'):
        finish(start(sys.executable, TOOLS / 'train.py', 'mask_rcnn.py', '--work-dir', name, cwd=configs))
    return [configs / name / 'iter_4.pth' for name in ('first', 'second')]


@pytest.mark.slow
def test_deterministic_runs_are_bitwise_equal(deterministic_runs):
    first, second = (torch.load(path, weights_only=True) for path in deterministic_runs)
    assert identical(first['state_dict'], second['state_dict'])
    assert identical(first['optimizer'], second['optimizer'])


@pytest.mark.slow
def test_testing_in_two_processes_gives_the_numbers_of_one(configs, deterministic_runs):
    def arguments(name: str) -> list:
        return ['--work-dir', name, '--out', f'{name}.pkl']

    checkpoint = deterministic_runs[0]
    outputs = [
        finish(start(sys.executable, TOOLS / 'test.py', 'mask_rcnn.py', checkpoint, *arguments('single'), cwd=configs)),
        finish(start(TOOLS / 'dist_test.sh', 'mask_rcnn.py', checkpoint, PROCESSES, *arguments('double'), cwd=configs, PORT=free_port())),
    ]
    single, double = (dict(re.findall(r'(coco/\w+): (\S+)', output)) for output in outputs)
    assert single == double
    assert float(single['coco/bbox_mAP_50']) > 0
    predicted = [pickle.loads((configs / f'{name}.pkl').read_bytes()) for name in ('single', 'double')]
    assert [image['img_id'] for image in predicted[0]] == [0, 1, 2, 3, 4]
    assert identical(*predicted)


RAISES_ON_CUDA = {
    *(f'_adaptive_avg_pool{n}d_backward' for n in (2, 3)),
    *('adaptive_max_pool2d_backward', 'avg_pool3d_backward', 'max_unpool2d', 'max_unpool3d'),
    *(f'fractional_max_pool{n}d_backward' for n in (2, 3)),
    *(f'upsample_{kind}_backward' for kind in ('linear1d', 'bilinear2d', 'bicubic2d', 'trilinear3d')),
    *(f'reflection_pad{n}d_backward' for n in (1, 2, 3)),
    *('nll_loss2d_forward', 'nll_loss2d_backward', '_ctc_loss_backward', '_embedding_bag_backward', 'put_', 'histc', 'bincount'),
    *('median', 'grid_sampler_2d_backward', 'grid_sampler_3d_backward', 'cumsum', 'scatter_reduce'),
}
"""The operators of those that torch.use_deterministic_algorithms' documentation lists as raising, most of them on CUDA alone."""


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name.removeprefix('aten::'))
        return function(*args, **(kwargs or {}))


def step(make: Callable[[], nn.Module], training: bool, memory_format: torch.memory_format, amp: bool) -> tuple[list[Tensor], set[str]]:
    """Features and every gradient of a module made anew, and the operators that ran."""
    torch.manual_seed(0)
    module = make().to(memory_format=memory_format)
    module.train(training)
    channels = 3 if isinstance(module, FcaResNet) else 64
    x = torch.rand(2, channels, 25, 37).to(memory_format=memory_format).requires_grad_()
    with Operators() as operators, torch.autocast('cpu', torch.bfloat16, enabled=amp):
        outputs = module(x)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        sum(out.float().square().mean() for out in outputs).backward()
    grads = [x.grad, *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)]
    return [*(out.detach() for out in outputs), *grads], operators.names


MODULES: dict[str, Callable[[], nn.Module]] = {
    f'attention, {basis}': partial(MultiSpectralAttention, 64, 8 if basis == 'haar' else 7, basis=basis) for basis in BASES
}
SMALL = dict(base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), norm_eval=True)
for fold in (True, False):
    MODULES |= {
        f'basic block, fold={fold}': partial(FcaBasicBlock, 64, 64, fold=fold),
        f'bottleneck, fold={fold}': partial(FcaBottleneck, 64, 16, fold=fold),
        f'ResNet, fold={fold}': partial(FcaResNet, 18, fold=fold, **SMALL),
        f'ResNet-D, fold={fold}': partial(FcaResNetV1d, depth=50, fold=fold, **SMALL),
        f'ResNeXt, fold={fold}': partial(FcaResNeXt, depth=50, groups=4, base_width=4, fold=fold, **SMALL),
    }


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('name', MODULES)
def test_deterministic_algorithms(name, memory_format, amp):
    """No operator raises, here or on CUDA, and a repetition gives the same bits."""
    torch.use_deterministic_algorithms(True)
    try:
        for training in (True, False):
            first, operators = step(MODULES[name], training, memory_format, amp)
            assert {'mul'} <= operators
            assert not operators & RAISES_ON_CUDA
            assert identical(first, step(MODULES[name], training, memory_format, amp)[0])
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_pooling_of_the_reference_is_among_what_raises_on_cuda():
    with Operators() as operators:
        F.adaptive_avg_pool2d(torch.rand(1, 2, 9, 9, requires_grad=True), 7).sum().backward()
    assert operators.names & RAISES_ON_CUDA == {'_adaptive_avg_pool2d_backward'}


if __name__ == '__main__':
    one_process_of_several(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

import copy
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from named_weights import named_input, samples
from torch import nn

pytest.importorskip('detectron2.modeling', reason='Detectron2 is not installed: make test-detectron2 sets up an environment with it')
import mmdet_backbone
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from fca_mmdet import CheckpointError, MultiSpectralAttention, UserError
from fca_mmdet import detectron2 as fca
from fca_mmdet.detectron2 import FcaBasicBlock, FcaBottleneckBlock, FcaCheckpointer, FcaResNet

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = np.load(ROOT / 'tests' / 'reference' / 'backbone.npz')
MMDET = np.load(mmdet_backbone.FILE)
CONFIGS = ROOT / 'configs' / 'detectron2'
ZOO = {
    'faster_rcnn_fca_R_50_FPN_1x': 'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml',
    'faster_rcnn_fca_R_101_FPN_3x': 'COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml',
    'mask_rcnn_fca_R_50_FPN_1x': 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml',
}
FCA = dict(FREQUENCIES='top16', DCT_SIZE=[56, 28, 14, 7], REDUCTION=16, BASIS='dct', FOLD=True, IGNORE_PADDING=False)


def largest_difference(ours, theirs):
    """Relative to the largest entry of each."""
    return max(float(np.abs(ours[key] - theirs[key]).max() / np.abs(theirs[key]).max()) for key in ours)


def blocks(backbone):
    return [block for stage in backbone.stages for block in stage]


@pytest.fixture
def folded(monkeypatch):
    """The blocks that run folded."""
    calls = []
    for kind in (FcaBasicBlock, FcaBottleneckBlock):
        run = kind.run_folded
        monkeypatch.setattr(kind, 'run_folded', lambda block, x, run=run: (calls.append(block), run(block, x))[1])
    return calls


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
@pytest.mark.parametrize('depth', [34, 50])
def test_published_weights_give_the_features_of_the_reference(build, folded, published, depth, norm, fold):
    backbone = build(depth, norm, FCA__FOLD=fold)
    nn.init.zeros_(backbone.stem.conv1.weight)
    missing, unexpected = backbone.load_state_dict(published[depth], strict=False)
    assert (missing, unexpected) == ([], ['fc.weight', 'fc.bias'])
    for case in sorted({key.rsplit('/', 1)[0] for key in GOLDEN.files if key.startswith(f'fca{depth}/')}):
        shape = tuple(map(int, case.split('/')[1].split('x')))
        with torch.no_grad():
            features = backbone(torch.from_numpy(named_input(shape)))
        ours = {f'{case}/stage{stage}': samples(feature) for stage, feature in enumerate(features.values(), 1)}
        assert largest_difference({key: ours[key] for key in ours if key in GOLDEN.files}, GOLDEN) < 1e-5
        assert set(folded) == (set(blocks(backbone)) if fold else set())


@pytest.mark.parametrize('ignore_padding', [False, True])
@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
@pytest.mark.parametrize('depth', mmdet_backbone.DEPTHS)
def test_features_and_gradients_are_those_of_mmdets_backbone(build, depth, norm, fold, ignore_padding):
    case = f'{depth}/ignore_padding' if ignore_padding else f'{depth}'
    theirs = dict(zip(MMDET[f'{case}/names'], MMDET[f'{case}/values'], strict=True))
    backbone = build(depth, norm, FCA__FOLD=fold, FCA__IGNORE_PADDING=ignore_padding)
    features = mmdet_backbone.measure(backbone, fca.published_name)
    exact = mmdet_backbone.measure(backbone.double(), fca.published_name)
    assert set(theirs) - set(exact) == ({key for key in theirs if 'bn' in key or 'downsample.1' in key} if norm == 'FrozenBN' else set())
    differences = {
        'features in float32': largest_difference({key: features[key] for key in features if key.startswith('stage')}, theirs),
        'features in float64': largest_difference({key: exact[key] for key in exact if key.startswith('stage')}, theirs),
        'gradients in float64': largest_difference({key: exact[key] for key in exact if not key.startswith('stage')}, theirs),
    }
    print(f'depth {depth}, {norm}, {"folded" if fold else "readable"}: ', {key: f'{value:.1e}' for key, value in differences.items()})
    assert differences['features in float32'] < 1e-5
    assert differences['features in float64'] < 1e-12
    # Only in float64: rounding in float32 decides whether a ReLU at zero passes a gradient.
    assert differences['gradients in float64'] < 1e-11


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_every_block_of_every_depth_has_the_attention_of_its_stage(config, depth):
    backbone = build_backbone(config(depth))
    for stage, grid in zip(backbone.stages, (56, 28, 14, 7), strict=True):
        for block in stage:
            (attention,) = [module for module in block.modules() if isinstance(module, MultiSpectralAttention)]
            assert (attention.grid, attention.in_channels) == ((grid, grid), block.out_channels)


def test_options_reach_the_attention(config):
    backbone = build_backbone(config(FCA__FREQUENCIES='low2', FCA__DCT_SIZE=[28, 14, 7, 7], FCA__REDUCTION=8, FCA__BASIS='random'))
    attention = backbone.res2[0].conv3.activation
    assert (attention.basis, attention.grid, attention.reduction, len(attention.frequencies)) == ('random', (28, 28), 8, 2)


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'FrozenBN'])
def test_frozen_statistics_run_folded(build, folded, norm):
    backbone, x = build(norm=norm, RESNETS__DEPTH=50), torch.from_numpy(named_input((1, 3, 64, 96)))
    with torch.no_grad():
        exact = backbone(x)
    assert len(folded) == 16
    for block in blocks(backbone):
        block.fold = False
    with torch.no_grad():
        readable = backbone(x)
    assert len(folded) == 16
    for name, feature in readable.items():
        torch.testing.assert_close(exact[name], feature, rtol=1e-4, atol=1e-5)
    backbone.train()
    for block in blocks(backbone):
        block.fold = True
    if norm != 'SyncBN':  # its batch statistics need a GPU
        backbone(x)
    assert len(folded) == (32 if norm == 'FrozenBN' else 16)


def test_what_is_not_exact_is_not_folded(build, folded):
    backbone, x = build(), torch.rand(1, 3, 64, 64)
    spoilt = blocks(backbone)[:4]
    spoilt[0].conv1.register_forward_hook(lambda module, inputs, output: None)
    spoilt[1].conv2.activation = torch.tanh
    spoilt[2].conv3.norm = nn.GroupNorm(32, 256)
    spoilt[3].shortcut.norm = None
    with torch.no_grad():
        backbone(x)
    assert folded == blocks(backbone)[4:]


@pytest.mark.parametrize('channels_last', [False, True])
def test_half_precision(build, folded, channels_last):
    backbone, x = build(), torch.from_numpy(named_input((2, 3, 64, 96)))
    with torch.no_grad():
        expected = backbone(x)
        backbone.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        with torch.autocast('cpu', torch.bfloat16):
            features = backbone(x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format))
    assert len(folded) == 32
    for name, feature in expected.items():
        assert (features[name] - feature).abs().mean() < 0.02 * feature.abs().mean()


def test_frozen_stages(build):
    backbone = build(norm='BN', BACKBONE__FREEZE_AT=2)
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(('stem', 'res2')), name
    assert any('res2' in name and 'activation.fc' in name for name, _ in backbone.named_parameters())
    norms = {name: type(module) for name, module in backbone.named_modules() if name.endswith('norm')}
    assert norms == {name: FrozenBatchNorm2d if name.startswith(('stem', 'res2')) else nn.BatchNorm2d for name in norms}


def test_a_copy_is_independent(build):
    backbone, x = build(18), torch.rand(1, 3, 64, 64)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        with torch.no_grad():
            torch.testing.assert_close(twin(x), backbone(x))
            twin.res2[0].conv2.activation.fc[2].weight.add_(1)
            assert not torch.equal(twin(x)['res2'], backbone(x)['res2'])


def test_deformable_blocks_have_the_attention_and_run_readable(build, folded):
    backbone = build(RESNETS__DEFORM_ON_PER_STAGE=[False, True, False, False])
    plain, x = build(), torch.rand(1, 3, 64, 64)
    for block in backbone.res3:  # an offset of zero is a convolution
        nn.init.zeros_(block.conv2_offset.weight)
        nn.init.zeros_(block.conv2_offset.bias)
    with torch.no_grad():
        features = backbone(x)
        assert len(folded) == 12
        for name, feature in plain(x).items():
            torch.testing.assert_close(features[name], feature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['resnet', 'resnet_fpn', 'retinanet_resnet_fpn'])
def test_builders_differ_from_detectron2s_by_the_attention(config, build, name):
    levels = ['res3', 'res4', 'res5']  # all that RetinaNet can take
    ours = build(BACKBONE__NAME=f'build_fca_{name}_backbone', FPN__IN_FEATURES=levels)
    theirs = BACKBONE_REGISTRY.get(f'build_{name}_backbone')(config(FPN__IN_FEATURES=levels), ShapeSpec(channels=3)).eval()
    assert ours.output_shape() == theirs.output_shape()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert all('conv3.activation' in key for key in unexpected)
    x = torch.rand(1, 3, 64, 64)
    for module in ours.modules():
        if isinstance(module, MultiSpectralAttention):
            nn.init.zeros_(module.fc[2].weight)  # all gates are 1/2
    for module in theirs.modules():
        if hasattr(module, 'conv3'):
            module.conv3.norm.weight /= 2
            module.conv3.norm.bias /= 2
    with torch.no_grad():
        features = ours(x)
        for key, feature in theirs(x).items():
            torch.testing.assert_close(features[key], feature, rtol=1e-4, atol=1e-5)


def test_a_lazy_config(build):
    cfg = LazyConfig.load(model_zoo.get_config_file('common/models/mask_rcnn_fpn.py'))
    bottom_up = cfg.model.backbone.bottom_up
    bottom_up._target_ = FcaResNet
    bottom_up.stages.stride_in_1x1 = False
    bottom_up.update(frequencies=[(0, 0), (0, 1)], dct_size=[(56, 28), 28, 14, 7])
    backbone = instantiate(cfg.model.backbone).bottom_up
    assert backbone.res2[0].conv3.activation.grid == (56, 28)
    assert backbone.res5[2].conv3.activation.frequencies == ((0, 0), (0, 1))
    for key in ('frequencies', 'dct_size'):
        bottom_up.pop(key)
    backbone, other = instantiate(cfg.model.backbone).bottom_up.eval(), build()
    backbone.load_state_dict(other.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), other(x), rtol=0, atol=0)


def test_a_classifier(published):
    backbone = FcaResNet(BasicStem(norm='BN'), ResNet.make_default_stages(50, norm='BN'), num_classes=1000).eval()
    assert backbone.load_state_dict(published[50]).unexpected_keys == []
    torch.testing.assert_close(backbone.linear.weight, published[50]['fc.weight'], rtol=0, atol=0)


def flat(cfg, prefix=''):
    return {
        key: value
        for name, node in cfg.items()
        for key, value in (flat(node, f'{prefix}{name}.') if isinstance(node, dict) else {f'{prefix}{name}': node}).items()
    }


@pytest.mark.parametrize('name', ZOO)
def test_a_config_changes_the_backbone_of_a_config_of_the_model_zoo(name):
    cfg = get_cfg()
    fca.add_fca_config(cfg)
    cfg.merge_from_file(CONFIGS / f'{name}.yaml')
    zoo = flat(model_zoo.get_config(ZOO[name]))
    changed = {key: value for key, value in flat(cfg).items() if key not in zoo or zoo[key] != value}
    assert changed == {f'MODEL.FCA.{key}': value for key, value in FCA.items()} | {
        'MODEL.BACKBONE.NAME': 'build_fca_resnet_fpn_backbone',
        'MODEL.RESNETS.STRIDE_IN_1X1': False,
        'MODEL.PIXEL_MEAN': [123.675, 116.28, 103.53],
        'MODEL.PIXEL_STD': [58.395, 57.12, 57.375],
        'MODEL.WEIGHTS': f'https://github.com/cfzd/FcaNet/releases/download/v1.0/fca{cfg.MODEL.RESNETS.DEPTH}.pth',
        'INPUT.FORMAT': 'RGB',
    }


@pytest.mark.parametrize('zoo', ['COCO-Detection/retinanet_R_50_FPN_1x.yaml', 'COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml'])
def test_other_detectors_of_the_model_zoo(zoo, folded):
    cfg = get_cfg()
    fca.add_fca_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(zoo))
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = cfg.MODEL.BACKBONE.NAME.replace('build_', 'build_fca_'), 'cpu'
    model = build_model(cfg).eval()
    with torch.no_grad():
        (found,) = model([{'image': torch.randint(256, (3, 64, 96), dtype=torch.uint8)}])
    assert len(folded) == 16
    assert found['instances'].image_size == (64, 96)


def test_mistakes(config):
    cfg = config()
    del cfg.MODEL['FCA']
    with pytest.raises(UserError, match=r'cfg.MODEL.FCA is missing: call fca_mmdet.detectron2.add_fca_config'):
        build_backbone(cfg)
    for option, message in {
        ('FREQUENCIES', 'top17'): 'unknown frequency set',
        ('BASIS', 'searched'): "basis='searched' is trained with mmdet",
    }.items():
        with pytest.raises(ValueError, match=message):
            build_backbone(config(**{f'FCA__{option[0]}': option[1]}))
    with pytest.raises(ValueError, match=r'must give one grid for each of the 4 stages'):
        build_backbone(config(FCA__DCT_SIZE=[56, 28]))
    block = blocks(build_backbone(config()))[0]
    block.conv3 = nn.Conv2d(64, 256, 1)
    with pytest.raises(TypeError, match=r"FcaBottleneckBlock has no conv2 or conv3 of Detectron2's Conv2d"):
        FcaResNet(BasicStem(), [[block]])


@pytest.fixture
def detector(config):
    def make(depth=50, **options):
        cfg = config(depth, BACKBONE__NAME='build_fca_resnet_fpn_backbone', MASK_ON=False, **options)
        cfg.merge_from_file(model_zoo.get_config_file('Base-RCNN-FPN.yaml'))
        cfg.MODEL.BACKBONE.NAME = 'build_fca_resnet_fpn_backbone'
        return build_model(cfg)

    return make


def same_as(backbone, state):
    renamed = {name: fca.published_name(name) for name in backbone.state_dict()}
    return all(torch.equal(value, state[renamed[name]]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize('wrap', ['bare', 'state_dict', 'module', "mmdet's detector"])
def test_the_checkpointer_loads_published_weights(detector, published, tmp_path, caplog, wrap):
    state = published[50]
    torch.save(
        {
            'bare': state,
            'state_dict': {'state_dict': state, 'epoch': 100},
            'module': {f'module.{key}': value for key, value in state.items()},
            "mmdet's detector": {'state_dict': {f'backbone.{key}': value for key, value in state.items()} | {'rpn_head.x': torch.ones(1)}},
        }[wrap],
        tmp_path / 'fca50.pth',
    )
    model = detector()
    FcaCheckpointer(model).load(str(tmp_path / 'fca50.pth'))
    assert same_as(model.backbone.bottom_up, state)
    said = '\n'.join(record.getMessage() for record in caplog.records if record.levelname == 'WARNING')
    assert 'backbone.bottom_up' not in said.replace('backbone.bottom_up.fc.{bias, weight}', '')
    assert 'proposal_generator' in said


def test_its_own_checkpoints_and_detectron2s_load_as_before(detector, build, tmp_path):
    one, other = detector(18), detector(18)
    FcaCheckpointer(one, str(tmp_path)).save('model')
    FcaCheckpointer(other).load(str(tmp_path / 'model.pth'))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    # The model zoo's weights of a plain ResNet, in Detectron2's format and under its names.
    plain = {name: value for name, value in build(18).state_dict().items() if 'activation' not in name}
    content = {'model': {name: value.numpy() for name, value in plain.items()}, '__author__': 'test', 'matching_heuristics': True}
    (tmp_path / 'R-18.pkl').write_bytes(pickle.dumps(content))
    FcaCheckpointer(other).load(str(tmp_path / 'R-18.pkl'))
    assert all(torch.equal(value, other.backbone.bottom_up.state_dict()[name]) for name, value in plain.items())


def test_the_recipe_for_other_launchers(build, detector, published, tmp_path):
    backbone = build(norm='BN')
    backbone.load_state_dict(published[50], strict=False)
    torch.save({'model': backbone.state_dict(), 'matching_heuristics': True}, tmp_path / 'fca50_detectron2.pth')
    model = detector()
    DetectionCheckpointer(model).load(str(tmp_path / 'fca50_detectron2.pth'))
    assert same_as(model.backbone.bottom_up, published[50])


def test_weights_of_something_else_are_refused(detector, published, tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save(published[34], path)
    with pytest.raises(CheckpointError, match=r'stages of \[3, 4, 6, 3\] blocks with 2 convolutions each'):
        FcaCheckpointer(detector()).load(path)
    torch.save(published[50], path)
    with pytest.raises(
        CheckpointError,
        match=r"res2.0.conv3.activation.dct_layer.weight is frequencies='top16'.* in the checkpoint, but frequencies='bot16'",
    ):
        FcaCheckpointer(detector(FCA__FREQUENCIES='bot16')).load(path)
    with pytest.raises(CheckpointError, match=r'layer1.0.att.fc.0.weight is \[16, 256\] in the checkpoint, but \[32, 256\]'):
        FcaCheckpointer(detector(FCA__REDUCTION=8)).load(path)
    searched = torch.zeros(16, 49)
    searched[:, 5] = 1
    torch.save(published[50] | {'selection.logits': searched}, path)
    with pytest.raises(CheckpointError, match=r'selection.logits .*selects frequencies='):
        FcaCheckpointer(detector()).load(path)


def test_the_grid_that_our_weights_name_is_compared(detector, published, tmp_path):
    state = {f'backbone.{name}': value for name, value in published[50].items() if 'dct_layer' not in name}
    state = OrderedDict(state)
    state._metadata = {f'backbone.layer{stage}.0.att.dct_layer': {'dct_size': '(28, 28)'} for stage in (1, 2)}
    torch.save({'state_dict': state}, tmp_path / 'mmdet.pth')
    FcaCheckpointer(detector(FCA__DCT_SIZE=[28, 28, 14, 7])).load(str(tmp_path / 'mmdet.pth'))
    with pytest.raises(
        CheckpointError, match=r'res2.0.conv3.activation.dct_layer has dct_size=\(28, 28\) in the checkpoint, but \(56, 56\)'
    ):
        FcaCheckpointer(detector()).load(str(tmp_path / 'mmdet.pth'))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_no_code_of_a_checkpoint_runs(detector, tmp_path):
    torch.save({'state_dict': {}, 'meta': Payload(str(tmp_path / 'executed'))}, tmp_path / 'hostile.pth')
    with pytest.raises(CheckpointError, match=r'hostile.pth'):
        FcaCheckpointer(detector(18)).load(str(tmp_path / 'hostile.pth'))
    assert not (tmp_path / 'executed').exists()

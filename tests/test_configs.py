import math
import re
from pathlib import Path

import mmdet
import pytest
import torch
from mmcv.cnn.bricks import ContextBlock
from mmdet.models.task_modules.samplers import OHEMSampler
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from modelindex.load_model_index import load

from fca_mmdet import CanvasDetDataPreprocessor, EfficientChannelAttention, FcaResNet, MultiSpectralAttention, SqueezeExcitation

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))
DETECTORS = [path for path in CONFIGS if path.parent.name != 'imagenet']
STOCK = [path for path in DETECTORS if path.stem.endswith(('1x_coco', '2x_coco', '3x_coco'))]
PAPER = [path for path in DETECTORS if path.stem.endswith('paper_coco')]
LAYERS = {
    'fca': MultiSpectralAttention,
    'se': SqueezeExcitation,
    'eca': EfficientChannelAttention,
    'gc': ContextBlock,
}


def attention(path: Path) -> str | None:
    """What a detector's config is named after: ``se`` of ``mask-rcnn_se-r50_fpn_1x_coco``."""
    return match[1] if (match := re.search(r'_(\w+)-r\d+', path.stem)) else None


def build(path: Path):
    """The detector of a config, without initial weights."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    return MODELS.build(cfg.model)


def without_scope(value):
    """A config without the scope that inheriting across packages notes in every dict."""
    if isinstance(value, dict):
        return {key: without_scope(item) for key, item in value.items() if key != '_scope_'}
    return [without_scope(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(ours: dict, theirs: dict, at: str = '') -> set[str]:
    """The dotted names of what two configs do not share."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return set() if ours == theirs else {at}
    return set().union(*(differences(ours.get(key), theirs.get(key), f'{at}.{key}'.strip('.')) for key in ours.keys() | theirs.keys()))


def of_mmdet(path: Path) -> dict:
    """mmdet's config of the same detector, depth and schedule."""
    name = re.sub(r'_\w+-r', '_r', path.stem).replace('paper', '1x')
    return without_scope(Config.fromfile(MMDET_CONFIGS / path.parent.name / f'{name}.py').to_dict())


@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.stem)
def test_every_backbone_has_its_attention(path):
    cfg = Config.fromfile(path).model.backbone
    init_default_scope('mmdet')
    backbone = MODELS.build({**cfg, 'init_cfg': None})
    found = [sum(isinstance(module, layer) for module in backbone.modules()) for layer in LAYERS.values()]
    blocks = sum(backbone.stage_blocks)
    expected = {name: blocks - 3 * (name == 'gc') if name == attention(path) else 0 for name in LAYERS}  # GCNet leaves out stage 1
    assert found == list(expected.values())


STEPPED = [
    'faster_rcnn/faster-rcnn_fca-r50_fpn_1x_coco',
    'faster_rcnn/faster-rcnn_se-r50_fpn_paper_coco',
    'mask_rcnn/mask-rcnn_fca-r50_fpn_ms-poly-3x_coco',
    'mask_rcnn/mask-rcnn_fca-r50_fpn_paper_coco',
    'mask_rcnn/mask-rcnn_eca-r50_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_gc-r50_fpn_paper_coco',
    'ablation/faster-rcnn_fca-r50_fpn_1x_coco_learned-random',
    'small/mask-rcnn_fca-r18_fpn_small-heads',
    'small/mask-rcnn_fca-r50-thin_fpn_combined_small-heads',
    'small/mask-rcnn_fca-r50-thin_fpn_ignore-padding_small-heads',
    'small/mask-rcnn_fca-r50-thin_fpn_orthogonal-after-conv2_small-heads',
]


@pytest.mark.parametrize('name', STEPPED)
def test_a_detector_trains_a_step_and_predicts(name):
    model = build(ROOT / 'configs' / f'{name}.py')
    classes = model.roi_head.bbox_head.num_classes
    batch = demo_mm_inputs(2, image_shapes=[(3, 96, 128), (3, 128, 100)], num_classes=classes, with_mask=True)
    if isinstance(model.data_preprocessor, CanvasDetDataPreprocessor):
        model.data_preprocessor.canvas = (96, 160)  # smaller than the real one, for speed
    data = model.data_preprocessor(batch, True)
    loss, log = model.parse_losses(model.train()(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert ('loss_mask' in log) == ('mask' in name)
    assert model.backbone.layer4[-1].conv2.weight.grad is not None
    with torch.no_grad():
        predictions = model.eval()(**model.data_preprocessor(batch, False), mode='predict')
    assert len(predictions) == 2
    assert all(prediction.pred_instances.bboxes.shape[1] == 4 for prediction in predictions)


@pytest.mark.parametrize('path', [path for path in DETECTORS if path.parent.name == 'ablation'], ids=lambda path: path.stem)
def test_an_ablation_changes_one_thing(path):
    base = Config.fromfile(path.with_name('faster-rcnn_fca-r50_fpn_1x_coco_top16.py')).to_dict()
    changed = differences(Config.fromfile(path).to_dict(), base)
    if path.stem.endswith('_searched'):
        changed -= {'custom_hooks', 'optim_wrapper.paramwise_cfg'}  # what anneals and trains the selection
    if path.stem.endswith('_haar'):
        changed -= {'model.backbone.dct_size'}  # powers of two, which it needs
    assert len(changed) == (0 if path.stem.endswith('_top16') else 1)
    assert all(name.split('.')[-1] in ('frequencies', 'basis', 'dct_size', 'ignore_padding') for name in changed)
    cfg = Config.fromfile(path).model.backbone
    layer = MODELS.build({**cfg, 'init_cfg': None, '_scope_': 'mmdet'}).layer2[0].att
    assert re.search(f'_(top|low|bot){len(layer.frequencies)}$|_{layer.basis.replace("_", "-")}$|_grid|_ignore', path.stem)


@pytest.mark.parametrize('path', STOCK, ids=lambda path: path.stem)
def test_a_stock_config_changes_only_the_backbone(path):
    ours = without_scope(Config.fromfile(path).to_dict())
    changed = differences(ours, of_mmdet(path)) - {'custom_imports'}
    assert all(name.startswith('model.backbone.') for name in changed), changed
    if path.parent.name != 'ablation':
        allowed = {'fca': {'type', 'init_cfg.checkpoint'}, 'se': {'plugins', 'init_cfg.checkpoint', 'init_cfg.prefix'}}
        expected = allowed.get(attention(path), {'plugins'} if attention(path) else set())
        assert {name.removeprefix('model.backbone.') for name in changed} == expected


@pytest.mark.parametrize('path', PAPER, ids=lambda path: path.stem)
def test_a_paper_config_changes_what_the_paper_changed(path):
    ours = without_scope(Config.fromfile(path).to_dict())
    changed = differences(ours, of_mmdet(path)) - {'custom_imports'}
    stock = without_scope(Config.fromfile(path.with_name(path.name.replace('paper', '1x'))).to_dict())
    recipe = differences(ours, stock) - {'custom_imports'}
    if 'faster' in path.stem:
        preprocessor = {f'model.data_preprocessor.{name}' for name in ('type', 'canvas', 'pad_size_divisor')}
        assert recipe == preprocessor | {'optim_wrapper.optimizer.lr'}
    else:
        assert recipe == {
            'model.backbone.frozen_stages',
            'model.backbone.norm_cfg.requires_grad',
            'model.train_cfg.rcnn.sampler.type',
            'optim_wrapper.optimizer.lr',
            'train_dataloader.batch_size',
            'auto_scale_lr.base_batch_size',
        }
    assert {name for name in changed - recipe if not name.startswith('model.backbone.')} == set()


def test_the_papers_mask_rcnn_mines_hard_examples_and_freezes_the_stem_alone():
    model = build(ROOT / 'configs/mask_rcnn/mask-rcnn_fca-r50_fpn_paper_coco.py')
    assert isinstance(model.roi_head.bbox_sampler, OHEMSampler)
    assert not model.backbone.conv1.weight.requires_grad
    assert model.backbone.layer1[0].conv1.weight.requires_grad
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_the_papers_faster_rcnn_pads_to_the_canvas():
    model = build(ROOT / 'configs/faster_rcnn/faster-rcnn_fca-r50_fpn_paper_coco.py')
    assert isinstance(model.data_preprocessor, CanvasDetDataPreprocessor)
    for training in (True, False):
        batch = demo_mm_inputs(1, image_shapes=[(3, 800, 600)], num_classes=80)
        assert model.data_preprocessor(batch, training)['inputs'].shape == (1, 3, 1333, 800)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_arithmetic_at_the_top_is_that_of_the_config(path):
    if path.parent.name == 'imagenet':
        pytest.importorskip('mmpretrain', exc_type=ImportError)
    cfg = Config.fromfile(path)
    head = path.read_text()
    if path.parent.name == 'small':
        assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 4
        return
    gpus, images, batch, lr = re.search(r'# (\d+) GPUs x (\d+) images? = (\d+) per iteration, lr ([\d.]+)', head).groups()
    assert int(gpus) * int(images) == int(batch) == cfg.auto_scale_lr.base_batch_size
    assert path.parent.name == 'imagenet' or cfg.auto_scale_lr.enable is False  # mmdet's train.py asks for the key
    assert cfg.train_dataloader.batch_size == int(images)
    assert cfg.optim_wrapper.optimizer.lr == float(lr)
    if found := re.search(r'([\d,]+) images / (\d+) = ([\d,]+) iterations an epoch, (\d+) epochs = ([\d,]+)\.', head):
        count, by, epoch, epochs, total = (int(number.replace(',', '')) for number in found.groups())
        assert by == int(batch)
        assert epoch == math.ceil(count / by)
        assert total == epoch * epochs
        assert cfg.train_cfg.max_epochs == epochs
    else:
        assert cfg.train_dataloader.dataset.times == 3
        assert math.ceil(3 * 117_266 / 16) == 21_988
        assert '12 x 21,988 = 263,856' in head


def test_the_index_passes_the_ecosystems_schema_and_lists_every_config():
    index = load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    models = list(index.models)
    assert sorted(model.config for model in models) == [str(path.relative_to(ROOT)) for path in CONFIGS]
    for model in models:
        assert Path(model.config).stem == model.name
        assert model.in_collection in {collection.name for collection in index.collections}
    for path in CONFIGS:
        assert path.with_name('README.md').exists()


def test_a_result_is_marked_as_published():
    for path in {path.with_name('metafile.yml') for path in CONFIGS}:
        for entry in path.read_text().split('  - Name: ')[2:]:
            assert ('Results:' in entry) <= ('ublished by FcaNet' in entry), entry


def test_readmes_list_what_is_there():
    for folder in {path.parent for path in CONFIGS}:
        text = (folder / 'README.md').read_text()
        stems = {path.stem for path in CONFIGS if path.parent == folder}
        named = set(re.findall(r'\]\(([\w.-]+)\.py\)', text))
        assert named <= stems
        assert folder.name in ('ablation', 'imagenet') or named == stems


def test_fca_configs_load_the_published_weights_of_their_depth():
    for path in DETECTORS:
        if attention(path) == 'fca' and path.parent.name in ('faster_rcnn', 'mask_rcnn'):
            backbone = Config.fromfile(path).model.backbone
            assert backbone.init_cfg.checkpoint.endswith(f'/fca{backbone.depth}.pth')
            assert issubclass(MODELS.get(backbone.type), FcaResNet)

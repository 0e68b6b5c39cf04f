from pathlib import Path

import mmdet
import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fca_mmdet import FcaResNet

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds_trains_a_step_and_predicts(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, FcaResNet)
    classes = model.roi_head.bbox_head.num_classes
    batch = demo_mm_inputs(2, image_shapes=[(3, 96, 128), (3, 128, 100)], num_classes=classes, with_mask=True)
    data = model.data_preprocessor(batch, True)
    loss, log = model.parse_losses(model.train()(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert ('loss_mask' in log) == ('mask' in path.stem)
    assert model.backbone.layer4[-1].att.fc[0].weight.grad is not None
    with torch.no_grad():
        predictions = model.eval()(**model.data_preprocessor(batch, False), mode='predict')
    assert len(predictions) == 2
    assert all(prediction.pred_instances.bboxes.shape[1] == 4 for prediction in predictions)


def without_scope(value):
    """A config without the scope that inheriting across packages notes in every dict."""
    if isinstance(value, dict):
        return {key: without_scope(item) for key, item in value.items() if key != '_scope_'}
    return [without_scope(item) for item in value] if isinstance(value, list) else value


def test_coco_configs_change_only_the_backbone():
    for path in CONFIGS:
        if path.parent.name == 'small':
            continue
        ours = Config.fromfile(path)
        theirs = Config.fromfile(MMDET_CONFIGS / path.parent.name / path.name.replace('fca-', ''))
        ours.pop('custom_imports')
        backbone = ours.model.backbone
        assert backbone.pop('type') == 'FcaResNet'
        assert f'fca{backbone.depth}.pth' in backbone.init_cfg.checkpoint
        for part in (backbone, theirs.model.backbone):
            part.pop('init_cfg')
        theirs.model.backbone.pop('type')
        assert without_scope(ours.to_dict()) == without_scope(theirs.to_dict()), path.name


def test_the_index_lists_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = [model for entry in index['Import'] for model in yaml.safe_load((ROOT / entry).read_text())['Models']]
    assert sorted(model['Config'] for model in models) == [str(path.relative_to(ROOT)) for path in CONFIGS]
    assert all(Path(model['Config']).stem == model['Name'] for model in models)
    for path in CONFIGS:
        assert path.with_name('README.md').exists()
        assert path.stem in path.with_name('README.md').read_text()

import re
import sys
import zipfile
from pathlib import Path

import pytest
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from setuptools import build_meta

import fca_mmdet

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_the_package_and_the_payload_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', sys.argv[:1])
    monkeypatch.setenv('DIST_EXTRA_CONFIG', str(tmp_path / 'extra.cfg'))
    (tmp_path / 'extra.cfg').write_text(f'[build]\nbuild_base = {tmp_path}/build\n[egg_info]\negg_base = {tmp_path}\n')
    names = zipfile.ZipFile(tmp_path / build_meta.build_wheel(str(tmp_path))).namelist()
    assert {name.split('/')[0] for name in names} == {'fca_mmdet', f'fca_mmdet-{fca_mmdet.__version__}.dist-info'}
    for name in ('__init__.py', 'py.typed', '.mim/model-index.yml', '.mim/tools/train.py', '.mim/tools/dist_train.sh'):
        assert f'fca_mmdet/{name}' in names
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.*') if '__pycache__' not in path.parts}
    assert configs <= {name.removeprefix('fca_mmdet/.mim/') for name in names}


def test_the_requirements_name_neither_distribution():
    from importlib.metadata import requires

    plain = [requirement for requirement in requires('fca_mmdet') if 'extra ==' not in requirement]
    assert not [requirement for requirement in plain if re.search(r'mmdet|mmcv|mmengine', requirement)]
    assert {'onedl-mmdetection', 'mmdet'} <= {re.split(r'[<>=]', requirement)[0] for requirement in requires('fca_mmdet')}


def test_a_config_is_found_by_path_and_by_name():
    path = fca_mmdet.config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')
    assert path == fca_mmdet.config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco.py')
    assert Path(path) == ROOT / 'configs' / 'mask_rcnn' / 'mask-rcnn_fca-r50_fpn_1x_coco.py'
    assert get_config('fca_mmdet::mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco.py').to_dict() == Config.fromfile(path).to_dict()


def test_a_config_that_is_not_there():
    with pytest.raises(
        FileNotFoundError,
        match=r"has no config 'mask_rcnn/mask-rcnn_fca-r51_fpn_1x_coco'; the nearest are mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco, ",
    ):
        fca_mmdet.config_path('mask_rcnn/mask-rcnn_fca-r51_fpn_1x_coco')


def test_what_is_inherited_by_name_is_built_from_mmdets_registries():
    layer = MODELS.build(dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2, _scope_='fca_mmdet'))
    assert isinstance(layer, FPN)


def test_a_project_in_the_importable_style_inherits_what_it_wrote_out(tmp_path):
    Config.fromfile(fca_mmdet.config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')).dump(tmp_path / 'base_config.py')
    (tmp_path / 'mine.py').write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .base_config import *\nmodel['backbone']['depth'] = 101\n"
    )
    backbone = Config.fromfile(tmp_path / 'mine.py').model.backbone
    assert (backbone.type, backbone.depth) == ('FcaResNet', 101)

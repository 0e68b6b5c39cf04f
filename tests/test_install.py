"""What a project that depends on this package does, against the built wheel in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import mmdet
import pytest
from packaging.requirements import Requirement

from fca_mmdet.lab.shapes import CLASSES, make_shapes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'

# A Mask R-CNN on one small image, one iteration: what a route is to be followed to the end with.
TINY = """
model = dict(
    backbone=dict({backbone}init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes={classes}), mask_head=dict(num_classes={classes})),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=20)),
)
resize = dict(type='Resize', scale=(96, 96), keep_ratio=True)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True), resize]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
metainfo = dict(classes={names})
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    dataset=dict(data_root={data!r}, ann_file='annotations/train.json', data_prefix=dict(img='images/'), metainfo=metainfo,
                 pipeline=[*load, dict(type='PackDetInputs')]),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(data_root={data!r}, ann_file='annotations/val.json', data_prefix=dict(img='images/'), metainfo=metainfo,
                 pipeline=[*load, dict(type='PackDetInputs', meta_keys=keys)]),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={annotations!r})
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
"""

ROUTES = {
    'three lines over mmdet': """
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['fca_mmdet'], allow_failed_imports=False)
""",
    'by path': """
_base_ = __import__('fca_mmdet').config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco')
""",
    'by name': """
_base_ = 'fca_mmdet::mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco.py'
""",
}


def run(*command: object, cwd: Path) -> str:
    """Run a command away from the checkout; its whole output, or a failure that shows it."""
    inherited = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of the checkout, so that a build has nothing to spoil."""
    copy = tmp_path_factory.mktemp('source') / 'fca'
    ignored = shutil.ignore_patterns('.venv', '.git', '*_cache', '__pycache__', 'work_dirs', '*.egg-info', 'build')
    return Path(shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if not path.is_dir()}


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    """The wheel, built as pip builds it."""
    out = tmp_path_factory.mktemp('wheel')
    before = files(source)
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', out, source, cwd=out)
    assert files(source) == before
    (built,) = out.glob('*.whl')
    return built


def install(root: Path, *what: object) -> Path:
    """An environment that has what pip is told to install, and everything but this package from the environment of the tests."""
    venv.create(root, with_pip=False, symlinks=True)
    python = root / 'bin' / 'python'
    site = Path(sysconfig.get_path('purelib', vars={'base': str(root), 'platbase': str(root)}))
    # A line in a .pth file adds a folder, and not what that folder's own .pth files add: the checkout stays out.
    (site / 'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n')
    run(sys.executable, '-m', 'pip', '-q', '--python', python, 'install', '--no-deps', '--no-build-isolation', *what, cwd=root)
    return python


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp('environment'), wheel)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """One image to train on, one to test."""
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(folder, train=1, val=1)
    return folder


def write_config(folder: Path, route: str, data: Path) -> Path:
    """A downstream project's config."""
    backbone = "type='FcaResNet', " if route == 'three lines over mmdet' else ''
    tiny = TINY.format(
        backbone=backbone, classes=len(CLASSES), names=tuple(CLASSES), data=f'{data}/', annotations=f'{data}/annotations/val.json'
    )
    path = folder / 'project' / 'config.py'
    path.parent.mkdir()
    path.write_text(ROUTES[route] + tiny)
    return path


def test_the_installed_package_is_the_wheels(python, tmp_path):
    where = run(python, '-c', 'import fca_mmdet; print(fca_mmdet.__file__)', cwd=tmp_path).splitlines()[-1]
    assert Path(where).is_relative_to(python.parents[1])
    site = Path(where).parents[1]
    assert {path.name for path in site.iterdir()} - {'libraries.pth', '__pycache__'} == {
        'fca_mmdet',
        next(site.glob('fca_mmdet-*.dist-info')).name,
    }


@pytest.mark.parametrize('route', ROUTES)
def test_a_route_trains_an_iteration_under_the_installed_commands(route, python, data, tmp_path):
    config = write_config(tmp_path, route, data)
    (tmp_path / 'elsewhere').mkdir()
    site = next((python.parents[1] / 'lib').glob('python*')) / 'site-packages'
    tools = site / 'fca_mmdet' / '.mim' / 'tools' if route == 'by name' else MMDET_TOOLS
    output = run(python, tools / 'train.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path / 'elsewhere')
    assert 'coco/segm_mAP' in output
    assert (tmp_path / 'work' / 'epoch_1.pth').exists()
    assert "type='FcaResNet'" in (tmp_path / 'work' / 'config.py').read_text()
    assert 'Failed to search registry' not in output
    tested = run(python, tools / 'test.py', config, tmp_path / 'work' / 'epoch_1.pth', '--work-dir', tmp_path / 't', cwd=tmp_path)
    assert 'coco/segm_mAP' in tested


# By the distribution of mmdet: its mim, the package that mim is told to run, and the route by which the config inherits. OneDL's takes the
# folder of a package from the first file that pip lists, here the metadata's, and so finds no command of this package in a wheel.
MIM = {
    'mmdet': ('openmim==0.3.9', 'fca_mmdet', 'by name'),
    'onedl-mmdetection': ('onedl-mim==0.5.1', 'onedl-mmdetection', 'by path'),
}
MIM_NEEDS = ['tabulate', 'colorama', 'pandas', 'python-dateutil', 'requests', 'urllib3', 'idna', 'certifi', 'charset_normalizer']


def test_mim_trains_and_tests(wheel, data, tmp_path):
    requirement, package, route = MIM[packages_distributions()['mmdet'][0]]
    python = install(tmp_path / 'environment', wheel, requirement, *MIM_NEEDS)
    mim = [python, '-m', 'mim']
    config = write_config(tmp_path, route, data)
    trained = run(*mim, 'train', package, config, '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert 'Training finished successfully' in trained
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'
    tested = run(*mim, 'test', package, config, '--checkpoint', checkpoint, '--work-dir', tmp_path / 't', cwd=tmp_path)
    assert 'coco/segm_mAP' in tested
    assert 'Testing finished successfully' in tested


def needed_by(name: str, found: dict) -> dict:
    """The installed distributions that one needs, and itself, by name."""
    if name not in found:
        found[name] = distribution(name)
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
                needed_by(requirement.name, found)
    return found


WITHOUT_MMDET = """
import importlib.util, fca_mmdet, torch
assert not [name for name in ('mmdet', 'mmengine', 'mmcv', 'numpy') if importlib.util.find_spec(name)]
from fca_mmdet import FREQUENCY_SETS, Frequency, MultiSpectralAttention, stage_plugins
print(MultiSpectralAttention(64, 14)(torch.rand(2, 64, 9, 13)).shape, len(FREQUENCY_SETS))
try:
    from fca_mmdet import FcaResNet
except ImportError as error:
    print(error)
"""


def test_an_environment_with_torch_alone_has_the_attention(wheel, tmp_path):
    python = tmp_path / 'environment' / 'bin' / 'python'
    venv.create(tmp_path / 'environment', with_pip=False, symlinks=True)
    root = str(tmp_path / 'environment')
    site = Path(sysconfig.get_path('purelib', vars={'base': root, 'platbase': root}))
    for library in needed_by('torch', {}).values():
        for name in {file.parts[0] for file in library.files or []} - {'..', '__pycache__', 'bin'}:
            if not (site / name).exists():
                (site / name).symlink_to(library.locate_file(name))
    run(sys.executable, '-m', 'pip', '-q', '--python', python, 'install', '--no-deps', wheel, cwd=tmp_path)
    shape, said = run(python, '-W', 'ignore', '-c', WITHOUT_MMDET, cwd=tmp_path).splitlines()
    assert shape == 'torch.Size([2, 64, 9, 13]) 18'
    assert said.startswith('fca_mmdet.FcaResNet needs mmdet, which is not installed; install one of the two distributions, torch first: ')


PYTHON_USE = """
import fca_mmdet, numpy as np
from mmengine.hub import get_config
from mmdet.apis import inference_detector, init_detector
from fca_mmdet import FcaResNet, config_path
name = 'faster_rcnn/faster-rcnn_fca-r50_fpn_1x_coco'
image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
model = init_detector(config_path(name), device='cpu', cfg_options={'model.backbone.init_cfg': None})
assert isinstance(model.backbone, FcaResNet)
assert len(inference_detector(model, image).pred_instances.bboxes.shape) == 2
assert get_config(f'fca_mmdet::{name}.py').model.backbone.type == 'FcaResNet'
print('used')
"""


def test_python_use(python, tmp_path):
    assert run(python, '-c', PYTHON_USE, cwd=tmp_path).splitlines()[-1] == 'used'


def test_an_editable_install_is_the_checkout_and_changes_nothing_in_it(source, data, tmp_path):
    before = files(source)
    python = install(tmp_path / 'environment', '-e', source)
    assert files(source) == before
    path = "import fca_mmdet; print(fca_mmdet.config_path('mask_rcnn/mask-rcnn_fca-r50_fpn_1x_coco'))"
    assert Path(run(python, '-c', path, cwd=tmp_path).splitlines()[-1]).is_relative_to(source / 'configs')
    config = write_config(tmp_path, 'by name', data)
    tools = source / 'fca_mmdet' / '.mim' / 'tools'
    assert 'coco/segm_mAP' in run(python, tools / 'train.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path)


def test_the_source_distribution_builds_the_same_wheel(source, wheel, tmp_path):
    code = f'import os; os.chdir({str(source)!r}); from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))'
    name = run(sys.executable, '-c', code, cwd=tmp_path).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    (unpacked,) = (tmp_path / 'unpacked').iterdir()
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path / 'again', unpacked, cwd=tmp_path)
    (again,) = (tmp_path / 'again').glob('*.whl')
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert sorted(first.namelist()) == sorted(second.namelist())
    assert all(first.read(name) == second.read(name) for name in first.namelist() if 'dist-info' not in name)

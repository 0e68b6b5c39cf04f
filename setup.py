"""Metadata and extras of fca_mmdet, and the ``.mim`` payload of its wheel."""

import runpy
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# What mmdet users expect beside a package's code, under fca_mmdet/.mim: mim and mmengine's '_base_ = "fca_mmdet::..."' look there.
PAYLOAD = ('configs', 'tools', 'model-index.yml')
# Where setuptools works; by default it would leave build/ and *.egg-info in the source tree.
SCRATCH = tempfile.TemporaryDirectory(prefix='fca_mmdet-build-')


class BuildWithPayload(build_py):
    """build_py that also copies the payload into the build, and nothing into the source tree."""

    def run(self):
        """Copy the package, then the payload."""
        super().run()
        if self.editable_mode:
            return
        for name in PAYLOAD:
            source, target = HERE / name, Path(self.build_lib, 'fca_mmdet', '.mim', name)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)


setup(
    name='fca_mmdet',
    version=runpy.run_path(str(HERE / 'fca_mmdet' / 'version.py'))['__version__'],
    description='Frequency channel attention (FcaNet) for MMDetection',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['fca_mmdet', 'fca_mmdet.*']),
    package_data={'fca_mmdet': ['py.typed']},
    cmdclass={'build_py': BuildWithPayload},
    options={'build': {'build_base': SCRATCH.name}, 'egg_info': {'egg_base': SCRATCH.name}},
    # mmdet, mmengine and mmcv come from either of two distributions that shadow each other: the user names one.
    # pycocotools before 2.0.11 fails on a file without 'info'.
    install_requires=['torch>=2.6', 'numpy', 'pycocotools>=2.0.11'],
    extras_require={
        'onedl': ['onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmdetection>=3.5.1', 'imaug'],
        'openmmlab': ['mmengine>=0.10.7,<1', 'mmcv>=2.1.0,<2.2', 'mmdet>=3.3.0,<4'],
        # With torchvision as it fits the installed torch.
        'classification': ['onedl-mmpretrain>=1.3.6', 'torchvision'],
        'segmentation': ['onedl-mmsegmentation>=1.4.2'],
        'evaluation': ['hotcoco>=1.3'],
        'experiments': ['pandas', 'scipy', 'rich'],
        'ray': ['ray'],
        'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
        'openvino': ['openvino'],
        'int8': ['openvino', 'nncf'],
        'test': ['pytest', 'pytest-xdist', 'hypothesis', 'scipy', 'psutil>=7.2', 'model-index', 'import-linter', 'ruff', 'mypy'],
    },
)

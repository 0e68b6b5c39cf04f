"""The core without mmdet, mmengine and mmcv, whose imports are refused; ``test_install.py`` has an environment that lacks them."""

import subprocess
import sys
from pathlib import Path

import pytest

REFUSED = ('mmdet', 'mmengine', 'mmcv', 'numpy', 'pycocotools', 'cv2', 'matplotlib')
"""What the core must not even try to import. torch does, where it finds numpy."""

REFUSE = f"""
import importlib.util, sys, torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {REFUSED}:
            tried.append(name)
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

tried = []
for name in [name for name in sys.modules if name.partition('.')[0] in {REFUSED}]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
"""


def run(code: str, cwd: Path, before: str = REFUSE) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', before + code], capture_output=True, text=True, timeout=120, cwd=cwd)


def test_the_attention_needs_torch_alone(tmp_path):
    done = run(
        """
from fca_mmdet import FREQUENCY_SETS, Frequency, MultiSpectralAttention, stage_plugins
from fca_mmdet import attention, dct, errors, folding, frequency, projection, squeeze
attention = MultiSpectralAttention(64, 14, FREQUENCY_SETS['low4'][:2] + (Frequency(3, 1), (0, 0)), basis='searched')
x = torch.rand(2, 64, 9, 13, requires_grad=True)
attention(x).sum().backward()
print(tuple(x.grad.shape), len(stage_plugins()), set(tried) - {'mmdet'})
from fca_mmdet import *
print(sorted(name for name in globals() if name.startswith('Fca')))
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['(2, 64, 9, 13) 4 set()', '[]']


@pytest.mark.parametrize('name', ['FcaResNet', 'FastCocoMetric', 'config_path'])
def test_what_needs_mmdet_says_what_to_install(name, tmp_path):
    done = run(f'from fca_mmdet import {name}', tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f'ImportError: fca_mmdet.{name} needs mmdet, which is not installed; install one of the two distributions, torch first: '
        "pip install --no-build-isolation 'fca_mmdet[onedl]'"
    )


def test_a_name_that_is_not_there_is_an_attribute_error(tmp_path):
    done = run("import fca_mmdet\nprint(hasattr(fca_mmdet, 'FcaResNext'))\nfca_mmdet.FcaResNext", tmp_path)
    assert done.stdout == 'False\n'
    assert done.stderr.splitlines()[-1].startswith("AttributeError: module 'fca_mmdet' has no attribute 'FcaResNext'")


def test_an_mmdet_outside_the_window_is_an_error_nevertheless(tmp_path):
    (tmp_path / 'mmdet.py').write_text("__version__ = '2.28.2'\n")
    done = run('import fca_mmdet', tmp_path, before='import sys; sys.path.insert(0, "")\n')
    assert done.returncode == 1
    assert 'ImportError: fca_mmdet needs mmdet >= 3.3.0, < 4.0.0, but found 2.28.2; install one of' in done.stderr

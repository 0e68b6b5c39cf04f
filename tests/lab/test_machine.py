import re
import sys

import mmcv
import torch

from fca_mmdet.lab.machine import machine, origin


def test_the_machine_and_its_versions(monkeypatch):
    found = machine('cpu')
    assert re.fullmatch(r'\d+ cores .+', found['cpu'])
    assert found['gpu'] is None
    assert found['torch'] == torch.__version__
    assert [version for name, version in found.items() if name in ('mmcv', 'onedl-mmcv')] == [mmcv.__version__]
    monkeypatch.setattr(sys, 'argv', ['tools/soak.py', '--iterations', '20'])
    assert origin('cpu') == {'command': 'python tools/soak.py --iterations 20', 'machine': found}

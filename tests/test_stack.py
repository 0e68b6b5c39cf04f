import pickle
import sys

import mmcv
import mmdet
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import _load_checkpoint as load_checkpoint

from fca_mmdet.stack import check_versions


def test_this_stack_is_accepted():
    check_versions()


@pytest.mark.parametrize(('module', 'version'), [(mmdet, '2.28.2'), (mmdet, '4.0.0'), (mmcv, '2.0.1')])
def test_a_version_outside_the_window_names_the_extras(monkeypatch, module, version):
    monkeypatch.setattr(module, '__version__', version)
    with pytest.raises(
        ImportError, match=rf"needs {module.__name__} >= .*, but found {version}; install .*'fca_mmdet\[onedl\]'.*\[openmmlab\]"
    ):
        check_versions()


def test_a_missing_module_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    with pytest.raises(ImportError, match=r"needs mmdet >= 3.3.0, < 4.0.0, which cannot be imported .*'fca_mmdet\[onedl\]'"):
        check_versions()


def test_mmengines_log_loads_as_data(tmp_path):
    hub = MessageHub.get_instance('test_mmengines_log_loads_as_data')
    for value in (1.0, np.float64(2.0), torch.tensor(3.0)):
        hub.update_scalar('train/loss', value)
    torch.save({'message_hub': hub.state_dict()}, tmp_path / 'checkpoint.pth')
    loaded = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 2


def test_mmengine_loading_a_checkpoint_withdraws_nothing(tmp_path):
    torch.save({'log': HistoryBuffer([1.0], [1])}, tmp_path / 'checkpoint.pth')
    for _ in range(2):
        load_checkpoint(str(tmp_path / 'checkpoint.pth'))
        torch.load(tmp_path / 'checkpoint.pth', weights_only=True)


def test_getattr_in_a_checkpoint_finds_log_statistics_only(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(Reach(), tmp_path / 'hostile.pth')
    with pytest.raises(pickle.UnpicklingError, match=r"asks for attribute '__init__' of .*HistoryBuffer.*, which is not allowed"):
        torch.load(tmp_path / 'hostile.pth', weights_only=True)


def test_loading_as_data_still_refuses_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / 'executed'), 'w')

    torch.save({'state_dict': Payload()}, tmp_path / 'hostile.pth')
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(tmp_path / 'hostile.pth', weights_only=True)
    assert not (tmp_path / 'executed').exists()

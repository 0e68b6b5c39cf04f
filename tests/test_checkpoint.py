"""Checkpoints are read as data, and no code in them runs."""

import pytest
import torch
from helpers import pretrained
from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint as load_into

from fca_mmdet import CheckpointError, FcaResNet
from fca_mmdet.checkpoint import read_checkpoint, refuse_pickled_code


def test_no_code_of_a_checkpoint_runs(hostile):
    for read in (read_checkpoint, pretrained):
        with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data: it asks for \S*open, which could run code, so it is'):
            read(hostile)
    assert not hostile.with_name('executed').exists()


@pytest.mark.parametrize(
    'init_cfg',
    [
        lambda path: dict(type=PretrainedInit, checkpoint=path),
        lambda path: [dict(type='Pretrained', checkpoint=path)],
        lambda path: [dict(type='Kaiming', layer='Conv2d'), dict(type=PretrainedInit, checkpoint=path)],
        lambda path: dict(type='Pretrained', checkpoint=path, prefix='backbone'),
    ],
    ids=['class', 'list', 'list with a class', 'prefix'],
)
def test_no_code_runs_however_init_cfg_names_the_checkpoint(init_cfg, hostile):
    with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data'):
        FcaResNet(18, init_cfg=init_cfg(str(hostile))).init_weights()
    assert not hostile.with_name('executed').exists()


def test_no_code_of_a_download_runs(hostile, monkeypatch):
    """mmengine's own loader falls back to a full pickle; within the backbone's initialisation it cannot."""
    monkeypatch.setitem(CheckpointLoader._schemes, 'https://', lambda filename, map_location: torch.load(hostile, weights_only=False))
    with pytest.raises(CheckpointError, match=r'https://host/hostile.pth holds more than data'):
        pretrained('https://host/hostile.pth')
    assert not hostile.with_name('executed').exists()


def test_a_truncated_file_and_other_files(checkpoints, tmp_path):
    content = checkpoints['34'].read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / 'part.pth').write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r'part.pth is truncated or no checkpoint of torch.save \(\w+\): fetch it again'):
            pretrained(tmp_path / 'part.pth', 34)
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    with pytest.raises(CheckpointError, match=r'page.pth is truncated or no checkpoint'):
        read_checkpoint(tmp_path / 'page.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match=r'list.pth holds a list, not a state dict'):
        read_checkpoint(tmp_path / 'list.pth')
    with pytest.raises(FileNotFoundError, match=r'there is no checkpoint .*none.pth'):
        pretrained(tmp_path / 'none.pth')


def test_reading_as_data_for_a_whole_process(hostile, tmp_path, monkeypatch, log):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    refuse_pickled_code()
    with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data'):
        load_into(torch.nn.Linear(1, 1), str(hostile))
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(hostile, weights_only=False)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01).state_dict()
    torch.save(dict(state_dict=model.state_dict(), optimizer=optimizer, meta={}), tmp_path / 'old.pth')
    checkpoint = load_into(model, str(tmp_path / 'old.pth'))
    assert checkpoint['message_hub']['log_scalars'] == {}
    assert any('mmdet 2.x, which holds no learning rate schedule' in line for line in log)

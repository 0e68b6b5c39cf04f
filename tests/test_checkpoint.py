"""mmengine reads checkpoints as data, whichever way it is told of them, and reads each once."""

import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import mmengine
import pytest
import torch
from helpers import SHALLOW, Payload, pretrained
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint as load_into

from fca_mmdet import CheckpointError, FcaResNet, reading
from fca_mmdet.checkpoint import data_only, refuse_pickled_code

torch_load = torch.load
FORMS = {
    'text': lambda place: dict(type='Pretrained', checkpoint=place),
    'class': lambda place: dict(type=PretrainedInit, checkpoint=place),
    'list': lambda place: [dict(type='Pretrained', checkpoint=place)],
    'list of others too': lambda place: [dict(type='Kaiming', layer='Conv2d'), dict(type=PretrainedInit, checkpoint=place)],
    'prefix': lambda place: dict(type='Pretrained', checkpoint=place, prefix='backbone'),
    'class with prefix, in a list': lambda place: [dict(type=PretrainedInit, checkpoint=place, prefix='backbone.')],
    'map_location': lambda place: dict(type='Pretrained', checkpoint=place, map_location=None),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Weights of a backbone in a detector, and hostile ones, where mmengine finds them; its caches are in the folder too."""
    torch.manual_seed(0)
    weights = FcaResNet(**SHALLOW).state_dict()
    state_dict = weights | {f'backbone.{key}': value for key, value in weights.items()}
    torch.save({'state_dict': state_dict}, tmp_path / 'good.pth')
    torch.save({'state_dict': state_dict, 'meta': Payload(str(tmp_path / 'executed'))}, tmp_path / 'hostile.pth')
    (tmp_path / 'open_mmlab.json').write_text(json.dumps({name: f'{name}.pth' for name in ('good', 'hostile')}))
    for name in ('HOME', 'MMENGINE_HOME', 'TORCH_HOME'):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


@pytest.fixture
def server(folder):
    """The folder by HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def places(folder: Path, server: str, name: str) -> dict[str, str]:
    """Every kind of address that works without an account."""
    return {
        'file': f'{folder}/{name}.pth',
        'home': f'~/{name}.pth',
        'http': f'{server}/{name}.pth',
        'openmmlab': f'openmmlab://{name}',
        's3': f's3://bucket/{name}.pth',
    }


@pytest.fixture
def fetch(folder, server, monkeypatch):
    """Gives the address of a file, by its kind."""
    bucket = SimpleNamespace(get=lambda address: (folder / address.rpartition('/')[2]).read_bytes())
    monkeypatch.setattr(mmengine.runner.checkpoint, 'get_file_backend', lambda *_, **__: bucket)
    return lambda kind, name: places(folder, server, name)[kind]


OPENED: list[object] = []
sys.addaudithook(lambda event, arguments: OPENED.append(arguments[0]) if event == 'open' else None)


@pytest.mark.parametrize('kind', places(Path(), '', ''))
@pytest.mark.parametrize('form', FORMS)
def test_every_way_reads_data_only_and_once(form, kind, fetch, folder, monkeypatch):
    loads, load = [], reading.load
    monkeypatch.setattr(reading, 'load', lambda *args, **options: (loads.append(args), load(*args, **options))[1])
    monkeypatch.setattr(torch, 'load', lambda *args, **options: pytest.fail('mmengine read it without us'))
    schemes = dict(CheckpointLoader._schemes)
    hostile = FcaResNet(**SHALLOW, init_cfg=FORMS[form](fetch(kind, 'hostile')))
    with pytest.raises(CheckpointError, match=r'^(\S*hostile.pth|the checkpoint) holds more than data: it asks for \S*open, which could'):
        hostile.init_weights()
    assert not (folder / 'executed').exists()
    assert len(loads) == 1
    good = FcaResNet(**SHALLOW, init_cfg=FORMS[form](fetch(kind, 'good')))
    OPENED.clear()
    good.init_weights()
    assert len(loads) == 2
    assert kind == 's3' or kind == 'http' or OPENED.count(f'{folder}/good.pth') + OPENED.count(folder / 'good.pth') == 1
    stored = torch_load(folder / 'good.pth')['state_dict']
    assert all(torch.equal(value, stored[name]) for name, value in good.state_dict().items())
    assert CheckpointLoader._schemes == schemes


def test_within_a_detector_and_for_a_part(folder):
    class Detector(BaseModule):
        def __init__(self, init_cfg):
            super().__init__()
            self.backbone = FcaResNet(**SHALLOW, init_cfg=init_cfg)

    part = dict(type='Pretrained', name='layer1', checkpoint=f'{folder}/hostile.pth')
    for init_cfg in (FORMS['text'](f'{folder}/hostile.pth'), dict(type='Constant', layer='Conv2d', val=0, override=part)):
        with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data'):
            Detector(init_cfg).init_weights()
    with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data'):
        FcaResNet(**SHALLOW, pretrained=f'{folder}/hostile.pth').init_weights()
    assert not (folder / 'executed').exists()


def test_an_address_that_mmengine_does_not_know(folder):
    with pytest.raises(FileNotFoundError, match=r'there is no checkpoint file:/+\S*/good.pth'):
        pretrained((folder / 'good.pth').as_uri(), **SHALLOW)


def test_what_a_server_sends_instead(folder, server):
    (folder / 'page.pth').write_text('<html>sign in</html>')
    with pytest.raises(CheckpointError, match=rf'^{folder}/hub/checkpoints/page.pth is a web page, not a checkpoint'):
        pretrained(f'{server}/page.pth', **SHALLOW)
    torch.save([1], folder / 'list.pth')
    for init_cfg in (FORMS['text'](f'{server}/list.pth'), FORMS['prefix'](f'{server}/list.pth')):
        with pytest.raises(CheckpointError, match=r'list.pth holds a list, not a state dict'):
            FcaResNet(**SHALLOW, init_cfg=init_cfg).init_weights()


class Reach:
    """Pickled as an attribute of a class of mmengine's, by which the globals of a module can be reached."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('kind', ['file', 'openmmlab', 's3'])
def test_getattr_is_refused_also_where_mmengine_allows_it(kind, fetch, folder):
    torch.save({'state_dict': {}, 'meta': Reach()}, folder / 'hostile.pth')
    allowed = torch.serialization.get_safe_globals()
    with pytest.raises(CheckpointError, match=r"holds more than data: it asks for '__init__'"):
        pretrained(fetch(kind, 'hostile'), **SHALLOW)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


def test_a_checkpoint_leaves_the_training_log_of_the_process_alone(folder):
    log = HistoryBuffer([1.0], [1])
    log._statistics_methods = {'mean': 'nothing'}
    torch.save({'state_dict': FcaResNet(**SHALLOW).state_dict(), 'log': log}, folder / 'log.pth')
    pretrained(folder / 'log.pth', **SHALLOW)
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics('mean') == 2


def test_threads_take_turns(folder):
    """One that leaves would else give back mmengine's loaders while another still reads."""
    entered = threading.Event()

    def enter():
        with data_only():
            entered.set()

    thread = threading.Thread(target=enter)
    with data_only():
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set()


def test_elsewhere_in_the_process_nothing_changes(folder):
    pretrained(folder / 'good.pth', **SHALLOW)
    assert torch.load is torch_load
    torch.load(folder / 'hostile.pth', weights_only=False)
    assert (folder / 'executed').exists()


def test_reading_as_data_for_a_whole_process(folder, monkeypatch, log):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    refuse_pickled_code()
    with pytest.raises(CheckpointError, match=r'hostile.pth holds more than data'):
        load_into(torch.nn.Linear(1, 1), str(folder / 'hostile.pth'))
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(folder / 'hostile.pth', weights_only=False)
    assert not (folder / 'executed').exists()
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01).state_dict()
    torch.save(dict(state_dict=model.state_dict(), optimizer=optimizer, meta={}), folder / 'old.pth')
    checkpoint = load_into(model, str(folder / 'old.pth'))
    assert checkpoint['message_hub']['log_scalars'] == {}
    assert any('mmdet 2.x, which holds no learning rate schedule' in line for line in log)

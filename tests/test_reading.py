"""Files are read as data, or refused with a sentence; no code in them runs."""

import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SHALLOW, Payload, pretrained
from mmengine.logging import HistoryBuffer, MessageHub

from fca_mmdet import CheckpointError, FcaResNet
from fca_mmdet.reading import load_data, read_checkpoint


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Pickle asks that the function can be called."""


def saved(checkpoint: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(checkpoint, file, **options)
    return file.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name, member in content.items():
            archive.writestr(name, member)
    return file.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    return zipped(members(saved({})) | {'archive/data.pkl': pickled})


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    return file.getvalue()


def scripted() -> bytes:
    return zipped(members(saved({})) | {'archive/constants.pkl': b''})


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


SMALL = {'weight': torch.arange(6.0).reshape(2, 3), 'bias': torch.ones(2)}
TENSORS = json.dumps({'weight': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}).encode()
TRUNCATED = r'is truncated or no checkpoint of torch.save \(\w+\): fetch it again'
OTHER = {
    'empty': (b'', 'is empty: fetch it again'),
    'html': (b'\n<!DOCTYPE html><html>404</html>', 'is a web page, not a checkpoint of torch.save: download the file itself'),
    'lfs': (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n', 'is a pointer of Git LFS, not .*: run git lfs pull'),
    'png': (b'\x89PNG\r\n\x1a\n', 'is a PNG image, not a checkpoint of torch.save: name the checkpoint'),
    'numpy': (array(), 'is a numpy array, not a checkpoint'),
    'gzip': (b'\x1f\x8b\x08\x00', 'is a gzip archive, not a checkpoint of torch.save: unpack it first'),
    'safetensors': (struct.pack('<Q', len(TENSORS)) + TENSORS + bytes(4), 'is a safetensors file, not .*: read it with safetensors.torch'),
    'tar': (tarred(), 'is a tar archive, not a checkpoint of torch.save: unpack it first'),
    'zip': (zipped({'weights/readme.txt': b'text'}), 'is another zip archive, not a checkpoint'),
    'torchscript': (scripted(), r'is a TorchScript archive, not .*: save model.state_dict\(\) with torch.save'),
    'noise': (random.Random(0).randbytes(5000), TRUNCATED),
    'plain pickle': (pickle.dumps({'weight': 1}, 2), TRUNCATED),
    'half': (saved(SMALL)[:700], TRUNCATED),
    'half, legacy': (saved(SMALL, _use_new_zipfile_serialization=False)[:-5], TRUNCATED),
    'without a member': (zipped({k: v for k, v in members(saved(SMALL)).items() if k != 'archive/data/0'}), TRUNCATED),
    'expands': (zipped(members(saved({'weight': torch.zeros(10**5)})), zipfile.ZIP_DEFLATED), r'unpacks to more than its \d+ bytes'),
    'nested': (with_pickle(b'\x80\x02})' + b'\x85' * 10**6 + b'Ns.'), 'nests tuples deeper than 1000'),
    'nested, marks': (with_pickle(b'\x80\x02}' + b'(' * 1500 + b't' * 1500 + b'q\x00Nsh\x00.'), 'nests tuples deeper than 1000'),
    'protocol 4': (saved(SMALL, pickle_protocol=4), 'is pickled with protocol 4, and torch reads only protocol 2 as data: save it with'),
    'a list': (saved([1, 2]), 'holds a list, not a state dict'),
    'a tensor': (saved(torch.ones(1)), 'holds a Tensor, not a state dict'),
    'state_dict is a list': (saved({'state_dict': [1]}), 'state_dict of .* is a list, not a state dict'),
    'a key is a number': (saved({1: torch.ones(1)}), 'has a key that is a int, not a name'),
    'a key is nested': (with_pickle(b'\x80\x02})' + b'\x85' * 900 + b'Ns.'), 'has a key that is a tuple, not a name'),
    'absurd size': (with_pickle(pickle.dumps({'a': Call(torch.Tensor, 2**62)}, 2)), TRUNCATED),
    'absurd number': (with_pickle(pickle.dumps({'a': Call(torch.device, 2**900)}, 2)), TRUNCATED),
    'absurd log': (with_pickle(pickle.dumps({'a': Call(HistoryBuffer, 3, 4, 5)}, 2)), TRUNCATED),
}


@pytest.mark.parametrize('kind', OTHER)
def test_another_file(kind, tmp_path):
    content, says = OTHER[kind]
    (tmp_path / 'other.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'other.pth.* {says}' if 'state_dict of' not in says else says):
        read_checkpoint(tmp_path / 'other.pth')


def test_every_cut_of_a_file(tmp_path):
    path = tmp_path / 'part.pth'
    for legacy in (False, True):
        content = saved(SMALL, _use_new_zipfile_serialization=not legacy)
        for size in range(1, len(content), 37):
            path.write_bytes(content[:size])
            with pytest.raises(CheckpointError, match=TRUNCATED):
                read_checkpoint(path)


def system(path: Path) -> Call:
    return Call(os.system, f'touch {path}')


HOSTILE = {
    'open': (lambda path: Payload(str(path)), {}, r'\S*open'),
    'system': (system, {}, r'(posix|os)\.system'),
    'system, legacy': (system, dict(_use_new_zipfile_serialization=False), r'(posix|os)\.system'),
    'system, protocol 4': (system, dict(pickle_protocol=4), r'(posix|os)\.system'),
    'exec': (lambda path: Call(exec, f'open({str(path)!r}, "w")'), {}, r'\S*exec'),
    'getattr': (lambda path: Call(getattr, HistoryBuffer, '__init__'), {}, "'__init__'"),
    'a model': (lambda path: FcaResNet(**SHALLOW), {}, r'fca_mmdet\.resnet\.FcaResNet'),
    'a call of what is loaded': (lambda path: Call(Call(getattr, HistoryBuffer, 'mean'), 1), {}, '<function HistoryBuffer.mean at .*>'),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_what_is_more_than_data(kind, tmp_path):
    make, options, asked = HOSTILE[kind]
    torch.save({'state_dict': SMALL, 'meta': make(tmp_path / 'executed')}, tmp_path / 'hostile.pth', **options)
    for map_location in ('cpu', 'cuda:99'):
        with pytest.raises(
            CheckpointError, match=rf'hostile.pth holds more than data: it asks for {asked}, which could run code, so it is'
        ):
            read_checkpoint(tmp_path / 'hostile.pth', map_location)
    assert not (tmp_path / 'executed').exists()


def test_a_dict_whose_methods_are_hidden(tmp_path):
    for hidden in ({'items': torch.Tensor}, {'_metadata': 1}, {'_metadata': {'': 1}}, {'_metadata': {'': {'version': 'x'}}}):
        weights = OrderedDict(SMALL)
        weights.__dict__.update(hidden)
        for checkpoint in (weights, {'state_dict': weights}):
            torch.save(checkpoint, tmp_path / 'hidden.pth')
            with pytest.raises(
                CheckpointError, match=r'the state dict of \S*hidden.pth has (attributes|versions) that torch.save does not'
            ):
                read_checkpoint(tmp_path / 'hidden.pth')


def test_no_file_a_folder_and_one_without_permission(tmp_path):
    path = tmp_path / 'weights.pth'
    for name in ('none.pth', 'weights.pth/below'):
        path.write_bytes(saved(SMALL))
        with pytest.raises(FileNotFoundError, match=rf'^there is no checkpoint {tmp_path / name}$'):
            read_checkpoint(tmp_path / name)
    for other in (tmp_path, '/dev/zero'):
        with pytest.raises(CheckpointError, match='is a folder or a device, not a file: name the checkpoint'):
            read_checkpoint(other)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match=r'you have no permission to read .*weights.pth: run chmod u\+r on it, or ask its owner'):
            read_checkpoint(path)
    finally:
        os.seteuid(user)


def test_a_device_that_is_not_there(tmp_path):
    content = members(saved(SMALL))
    on_cuda = content['archive/data.pkl'].replace(b'X\3\0\0\0cpu', b'X\6\0\0\0cuda:0')
    assert on_cuda != content['archive/data.pkl']
    path = tmp_path / 'cuda.pth'
    path.write_bytes(zipped(content | {'archive/data.pkl': on_cuda}))
    assert torch.equal(read_checkpoint(path)['weight'], SMALL['weight'])
    assert torch.equal(load_data(path)['weight'], SMALL['weight'])
    with pytest.raises(CheckpointError, match=r"cuda.pth cannot be put on 'cuda:99' \(.+\): read it with map_location='cpu'"):
        read_checkpoint(path, 'cuda:99')
    (tmp_path / 'part.pth').write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=TRUNCATED):
        read_checkpoint(tmp_path / 'part.pth', 'cuda:99')


# Mutations of real checkpoints: refused with a sentence, or loaded as what the file says.

TINY = dict(depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,), base_channels=16, stem_channels=4)


@pytest.fixture(scope='module')
def real() -> dict[str, bytes]:
    """A backbone's weights, and a checkpoint as mmengine's runner saves it, in both formats of torch."""
    torch.manual_seed(0)
    model = FcaResNet(**TINY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hub = MessageHub.get_instance('real')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('iter', 3)
    checkpoint = dict(
        meta=dict(epoch=1, dataset_meta=dict(classes=('a', 'b'))),
        state_dict=model.state_dict(),
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
    )
    return {
        f'{name}, {"zip" if new else "legacy"}': saved(value, _use_new_zipfile_serialization=new)
        for name, value in (('weights', model.state_dict()), ('checkpoint', checkpoint))
        for new in (True, False)
    }


OPCODES = [bytes([code]) for code in b'()}]N.tR\x81bsuae02Q\x85\x86\x87\x93\x89'] + [
    b'cos\nsystem\n',
    b'cbuiltins\nexec\n',
    b'c__builtin__\ngetattr\n',
    b'ctorch\nTensor\n',
    b'h\x00',
    b'q\x00',
    b'K\x05',
    b'\x8a\x08' + b'\xff' * 7 + b'\x7f',
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One mutation: bits or bytes changed, copied, put in or cut off, opcodes and globals put in, or members swapped or left out."""
    changed = bytearray(content)
    start = content.index(b'\x80\x02')
    pickled = start, content.index(b'.PK', start) if content[:2] == b'PK' else content.rindex(b'\x80\x02]q')
    at = chance.randrange(*pickled)
    kind = chance.choice(['bits', 'bytes', 'copied', 'more', 'cut', 'opcode', 'opcode', 'members'])
    if kind == 'members' and content[:2] == b'PK':
        archive = members(content)
        one, other = chance.sample(list(archive), 2)
        archive[one], archive[other] = archive[other], archive[one]
        if chance.random() < 0.3:
            del archive[one]
        return zipped(archive)
    if kind == 'bits':
        for _ in range(chance.choice([1, 10])):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 'bytes':
        changed[at] = chance.randrange(256)
    elif kind == 'copied':
        source, length = chance.randrange(*pickled), chance.choice([1, 4, 16, 64])
        changed[at : at + length] = changed[source : source + length]
    elif kind == 'more':
        changed[at:at] = chance.randbytes(chance.choice([1, 2, 5]))
    elif kind == 'cut':
        del changed[chance.randrange(len(changed)) :]
    else:
        opcode = chance.choice(OPCODES)
        changed[at : at + len(opcode) * chance.randrange(2)] = opcode
    return bytes(changed)


WATCHED: list[tuple] = []
"""Calls of the system, of others' code, and files opened for writing, while the list is emptied and read by the test below."""


def watch(event: str, arguments: tuple) -> None:
    system = event.startswith(('os.', 'subprocess.', 'socket.', 'shutil.', 'ctypes.')) and event not in ('os.listdir', 'os.scandir')
    if system or (event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+')):
        WATCHED.append((event, arguments))


sys.addaudithook(watch)


@pytest.mark.skipif(torch.__version__ < '2.7', reason='torch 2.6 fills what a cut file lacks with whatever is in memory')
def test_mutations(real, tmp_path, monkeypatch):
    path = tmp_path / 'mutation.pth'
    ends = Counter()
    for number in range(600):
        name = list(real)[number % len(real)]
        content = mutated(real[name], random.Random(number))
        path.write_bytes(content)
        WATCHED.clear()
        try:
            checkpoint = read_checkpoint(path)
            end = 'loaded'
        except CheckpointError:
            end = 'refused'
        assert not WATCHED, number
        ends[name, end] += 1
        if end == 'loaded':
            for value in checkpoint.get('state_dict', checkpoint).values():
                if isinstance(value, torch.Tensor):
                    stored = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
                    assert stored.numpy().tobytes() in content, number
            try:
                pretrained(path, **TINY)
            except CheckpointError:
                ends[name, 'not a backbone'] += 1
    assert all(ends[name, end] >= 20 for name in real for end in ('refused', 'loaded')), ends

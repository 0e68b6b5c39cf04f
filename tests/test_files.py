"""Files are whole or absent, whatever happens while they are written."""

import os
import resource
import shutil
import signal
import subprocess
from multiprocessing import get_context
from pathlib import Path

import pytest

from fca_mmdet import UserError
from fca_mmdet.files import check_writable, unwritable, whole_file, write_whole


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_texts_and_bytes_replace_a_former_file_in_a_folder_that_is_made(tmp_path):
    for content in ('\u00fcber\n', b'\xff\x00'):
        write_whole(tmp_path / 'a' / 'b' / 'file', content)
        assert content_of(tmp_path / 'a' / 'b') == {'file': content if isinstance(content, bytes) else content.encode()}
    write_whole(str(tmp_path / 'file'), 'named by a str')
    assert (tmp_path / 'file').read_text() == 'named by a str'


@pytest.mark.parametrize('former', [None, b'former'])
def test_nothing_is_left_where_writing_fails(former, tmp_path):
    if former:
        (tmp_path / 'file').write_bytes(former)
    before = content_of(tmp_path)

    def write() -> None:
        with whole_file(tmp_path / 'file') as part:
            part.write_text('half')
            assert (tmp_path / 'file').exists() == bool(former)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert content_of(tmp_path) == before


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda file: (done.append('fsync'), fsync(file)))
    monkeypatch.setattr(os, 'replace', lambda one, other: (done.append('replace'), replace(one, other)))
    write_whole(tmp_path / 'file', 'whole')
    assert done == ['fsync', 'replace']


def killed_while_writing(path: Path, left: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, left))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends the process in the middle of its writing
    write_whole(path, b'new' * 1000)


def test_a_kill_in_the_middle_leaves_the_former_file(tmp_path):
    (tmp_path / 'file').write_bytes(b'former')
    process = get_context('fork').Process(target=killed_while_writing, args=(tmp_path / 'file', 1500))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGXFSZ
    assert content_of(tmp_path) == {'file': b'former', 'file.part': b'new' * 500}
    write_whole(tmp_path / 'file', b'newer')
    assert content_of(tmp_path) == {'file': b'newer'}


@pytest.fixture(params={'size=64k': 'No space left on device', 'ro': 'Read-only file system'}.items(), ids=['full', 'read-only'])
def disk(request, tmp_path):
    """A disk that cannot take a file of 128 KiB, and why."""
    options, reason = request.param
    if shutil.which('mount') is None or subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', tmp_path]).returncode:
        pytest.skip('a disk of this kind can be mounted by root alone')
    yield tmp_path, reason
    subprocess.run(['umount', tmp_path], check=True)


def test_a_disk_that_takes_no_more(disk):
    path, reason = disk
    with pytest.raises(OSError, match=reason):
        write_whole(path / 'file', bytes(2**17))
    assert content_of(path) == {}
    if reason.startswith('Read-only'):
        with pytest.raises(UserError, match=rf'^{path}/file cannot be written \({reason}\): name another file with --out$'):
            check_writable(path / 'file')


def test_a_folder_is_made_or_refused_before_there_is_something_to_write(tmp_path):
    check_writable(tmp_path / 'a' / 'b' / 'file')
    assert content_of(tmp_path / 'a' / 'b') == {}
    (tmp_path / 'text').touch()
    path = tmp_path / 'text' / 'file'
    with pytest.raises(UserError, match=rf'^{path} cannot be written \((Not a directory|File exists)\): name another file with --out$'):
        check_writable(path)
    assert str(unwritable(path, OSError(28, 'full'))) == f'{path} cannot be written (full): name another file with --out'

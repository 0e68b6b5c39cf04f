"""Reads a checkpoint as data: no code in it runs. Imports torch alone.

torch decides what counts as data (``weights_only=True``). This module refuses files that would crash the process before torch reads them,
and turns every error of torch into a sentence.
"""

import io
import os
import pickle
import pickletools
import re
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

from torch.serialization import get_safe_globals, load  # torch.load itself is replaced while mmengine reads a checkpoint

from .errors import CheckpointError

MAX_DEPTH = 1000
"""Levels of tuples in tuples. Python hashes them recursively and without a limit: 10^6 levels crash the process."""

KINDS = {
    b'<': ('a web page', 'download the file itself'),
    b'version https://git-lfs': ('a pointer of Git LFS', 'run git lfs pull'),
    b'\x89PNG': ('a PNG image', 'name the checkpoint'),
    b'\xff\xd8\xff': ('a JPEG image', 'name the checkpoint'),
    b'\x93NUMPY': ('a numpy array', 'name the checkpoint'),
    b'\x89HDF': ('an HDF5 file', 'save its weights with torch.save'),
    b'\x1f\x8b': ('a gzip archive', 'unpack it first'),
}
"""How other files begin, what they are, and what to do."""

DATA_MODULES = re.compile(r'(torch(\._utils|\._tensor|\.storage|\.serialization|\.nn\.parameter)?|collections|_codecs|numpy\S*) ')
"""Modules of the globals in checkpoints that hold only data."""


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint as data: tensors, plain containers, and mmengine's training log. No code in it runs.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it asks for code to be run, is truncated, is not a checkpoint, or you have no permission.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp(), 'weights.pth')
        >>> torch.save({'state_dict': {'weight': torch.ones(2)}}, path)
        >>> read_checkpoint(path)
        {'state_dict': {'weight': tensor([1., 1.])}}
    """
    checkpoint = load_data(path, map_location)
    check_checkpoint(checkpoint, path)
    return checkpoint


def load_data(file: str | os.PathLike | BinaryIO, map_location: Any = None) -> Any:
    """Load a file as ``torch.load`` does, but only data, and onto the CPU by default. Raises what ``read_checkpoint`` raises."""
    map_location = 'cpu' if map_location is None else map_location
    if not isinstance(file, str | os.PathLike):
        return _load(file, 'the checkpoint', map_location)
    path = Path(file).expanduser()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f'{path} is a folder or a device, not a file: name the checkpoint')
        with path.open('rb') as opened:
            return _load(opened, str(path), map_location)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'there is no checkpoint {path}') from None
    except PermissionError as error:
        raise CheckpointError(f'you have no permission to read {path}: run chmod u+r on it, or ask its owner to') from error
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read ({error.strerror})') from error


def check_checkpoint(checkpoint: Any, name: object) -> None:
    """Check that a checkpoint is a state dict, or holds one as ``state_dict``.

    Raises:
        CheckpointError: it does not.
    """
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{name} holds a {type(checkpoint).__name__}, not a state dict: save model.state_dict()')
    weights = dict.get(checkpoint, 'state_dict', checkpoint)
    if not isinstance(weights, dict):
        raise CheckpointError(f'state_dict of {name} is a {type(weights).__name__}, not a state dict: save model.state_dict()')
    if other := next((type(key).__name__ for key in weights if not isinstance(key, str)), None):
        raise CheckpointError(f'{name} has a key that is a {other}, not a name: save model.state_dict()')
    # A pickle can set attributes of an OrderedDict. torch sets _metadata, and all others would hide methods such as items.
    metadata = getattr(weights, '_metadata', {})
    for part in (checkpoint, weights, metadata):
        if not isinstance(part, dict) or getattr(part, '__dict__', {}).keys() - {'_metadata'}:
            raise CheckpointError(f'the state dict of {name} has attributes that torch.save does not write: fetch it again')
    if not all(type(entry) is dict and isinstance(entry.get('version'), int | None) for entry in metadata.values()):
        raise CheckpointError(f'the state dict of {name} has versions that torch.save does not write: fetch it again')


def _load(file: BinaryIO, name: str, map_location: Any) -> Any:
    """Load an open file of torch.save."""
    pickled = _Pickle()
    try:
        found = _find_pickle(file, name)
        pickled.inspect(found, 5 if found is file else 1, name)
        file.seek(0)
        return load(file, map_location=map_location, weights_only=True)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # of any type: a damaged file can cause all of them
        if map_location != 'cpu':
            _load(file, name, 'cpu')
            cause = str(error).partition('. ')[0]
            raise CheckpointError(f"{name} cannot be put on {map_location!r} ({cause}): read it with map_location='cpu'") from error
        raise CheckpointError(f'{name} {pickled.explain(error)}') from error


def _find_pickle(file: BinaryIO, name: str) -> BinaryIO:
    """Find the pickle in a file. A zip file's checksums are not compared: torch ignores them too, and can leave them out."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    if not size:
        raise CheckpointError(f'{name} is empty: fetch it again')
    kinds = [kind for start, kind in KINDS.items() if head.lstrip().startswith(start)]
    if head[8:9] == b'{':
        kinds = [('a safetensors file', 'read it with safetensors.torch.load_file, and save that with torch.save')]
    if head[257:262] == b'ustar':
        kinds = [('a tar archive', 'unpack it first')]
    if head.startswith(b'PK\3\4'):
        archive = ZipFile(file).infolist()
        members = {member.filename.partition('/')[2]: member for member in archive}
        if sum(member.file_size for member in archive) > size:
            raise CheckpointError(f'{name} unpacks to more than its {size} bytes, which no file of torch.save does: fetch it again')
        if 'constants.pkl' in members:
            kinds = [('a TorchScript archive', 'save model.state_dict() with torch.save')]
        elif 'data.pkl' not in members:
            kinds = [('another zip archive', 'unpack it first')]
        else:
            file.seek(members['data.pkl'].header_offset + 26)
            file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)
            return io.BytesIO(file.read(members['data.pkl'].file_size))
    if kinds:
        raise CheckpointError(f'{name} is {kinds[0][0]}, not a checkpoint of torch.save: {kinds[0][1]}')
    return file


class _Pickle:
    """Finds what a pickle asks for, without running it."""

    def __init__(self) -> None:
        self.globals: list[str] = []
        self.protocol: int | None = 2
        self.cut = False

    def inspect(self, file: BinaryIO, count: int, name: str) -> None:
        """Go through the pickles in a file, as far as they can be read; torch's legacy format has five.

        Raises:
            CheckpointError: nested deeper than ``MAX_DEPTH``.
        """
        try:
            for _ in range(count):
                self._walk(file, name)
        except CheckpointError:
            raise
        except Exception:  # torch meets it too
            self.cut = not file.read(1)

    def _walk(self, file: BinaryIO, name: str) -> None:
        """Go through one pickle, with the depth of each tuple on a stack of its own."""
        depths: list[int] = []
        marks: list[int] = []
        memo: dict[Any, int] = {}
        texts: list[str] = []
        for opcode, argument, _ in pickletools.genops(file):
            kind, before = opcode.name, opcode.stack_before
            if kind == 'PROTO':
                self.protocol = argument
            elif kind in ('GLOBAL', 'INST', 'STACK_GLOBAL'):
                self.globals.append(' '.join(texts[-2:]) if argument is None else argument)
            elif isinstance(argument, str):
                texts.append(argument)
            if kind == 'MARK':
                marks.append(len(depths))
            elif kind in ('BINPUT', 'LONG_BINPUT'):
                memo[argument] = depths[-1]
            elif kind in ('BINGET', 'LONG_BINGET'):
                depths.append(memo.get(argument, 0))
            else:
                marked = pickletools.markobject in before
                start = marks.pop() - before.index(pickletools.markobject) if marked else len(depths) - len(before)
                depth = 1 + max(depths[start:], default=0) if kind.startswith('TUPLE') else 0
                depths[start:] = [depth] * len(opcode.stack_after)
                if depth > MAX_DEPTH:
                    raise CheckpointError(f'{name} nests tuples deeper than {MAX_DEPTH}, which no state dict does: fetch it again')

    def explain(self, error: Exception) -> str:
        """Say why torch does not read the file as data."""
        message = str(error) if isinstance(error, pickle.UnpicklingError) else ''
        refused = re.search(r'(?:GLOBAL|attribute) (\S+)|unrecognized function (<.+?>)', message)
        asked = refused and (refused[1] or refused[2])
        if self.cut or 'Unsupported operand' in message:  # torch saw a part of a name, or stopped before the name
            own = {entry[1] for entry in get_safe_globals() if isinstance(entry, tuple)}
            names = (entry.replace('__builtin__', 'builtins').replace(' ', '.') for entry in self.globals if not DATA_MODULES.match(entry))
            asked = next((name for name in names if name not in own), None)
        if asked:
            return (
                f'holds more than data: it asks for {asked}, which could run code, so it is not read. Ask its author to save '
                'the state dict alone'
            )
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return 'needs more memory than there is: free some, or fetch it again if that is more than its size'
        if 'must be imported' in message:
            return 'holds nested or distributed tensors: save plain ones'
        if self.protocol != 2:
            return (
                f'is pickled with protocol {self.protocol}, and torch reads only protocol 2 as data: save it with the default of torch.save'
            )
        return f'is truncated or no checkpoint of torch.save ({type(error).__name__}): fetch it again'

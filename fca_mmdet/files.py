"""Files that are whole or absent at any time, whatever ends the process that writes them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give the name under which to write ``path``, which it replaces once all of it is on the disk; if writing fails, nothing is left.

    Example:
        >>> path = Path(tempfile.mkdtemp(), 'file')
        >>> with whole_file(path) as part:
        ...     part.write_text('whole')
        5
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with open(part, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a text, or bytes, as ``whole_file`` does."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(path: Path) -> None:
    """Make the folder of a file that a command is to write later.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UserError:
    """Say why a file that ``--out`` names cannot be written."""
    return UserError(f'{path} cannot be written ({error.strerror}): name another file with --out')

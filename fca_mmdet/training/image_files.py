"""One image file: what PIL says of it, and what the pipeline's loader makes of it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""EXIF's tag for how a picture is to be turned. From 5 on, its width and height are exchanged."""


class Kind(NamedTuple):
    """What may decide how a file is decoded, as PIL says it."""

    format: str | None
    mode: str
    compression: Any
    orientation: int
    deep: bool
    alpha: bool
    several: bool

    def __str__(self) -> str:
        """Name it for a message."""
        return f'{self.format} files of mode {self.mode}{f" ({self.compression})" if self.compression else ""}'


class Look(NamedTuple):
    """Which file of the disk it is, its kind (None: PIL does not read it), and its width and height (None: nothing reads it)."""

    identity: tuple[int, int]
    kind: Kind | None
    size: tuple[int, int] | None


def look(path: str, loader: Any, whole: bool) -> Look | None:
    """Look at the head of a file, or at all of it with ``whole``. Return None for a file that is missing."""
    try:
        file = open(path, 'rb')  # noqa: SIM115
    except OSError:
        return None
    with file:
        status, kind, size = os.fstat(file.fileno()), None, None
        with suppress(Exception):
            kind, size = _read_head(file, status.st_size)
    if whole or not size:
        picture = decode(path, loader)
        size = None if picture is None else (picture.shape[1], picture.shape[0])
    return Look((status.st_dev, status.st_ino), kind, size)


def _read_head(file: BinaryIO, length: int) -> tuple[Kind, tuple[int, int]]:
    with Image.open(file) as picture:
        mode, size, stored = picture.mode, picture.size, str(picture.tile and picture.tile[0][3])
        kind = Kind(
            format=picture.format,
            mode=mode,
            compression=picture.info.get('compression') if picture.format == 'TIFF' else None,
            # PIL would decode a PNG to look for it.
            orientation=picture.getexif().get(ORIENTATION, 1) if picture.format == 'TIFF' or 'exif' in picture.info else 1,
            deep=mode[0] in 'IF' or ';16' in stored,
            alpha='A' in mode or 'transparency' in picture.info,
            several=picture.format != 'MPO' and getattr(picture, 'n_frames', 1) > 1,
        )
        picture.verify()
        if kind.format == 'JPEG':
            file.seek(max(length - 1024, 0))  # a camera may write something after the picture
            if b'\xff\xd9' not in file.read():
                raise EOFError
    return kind, size


def decode(path: str, loader: Any) -> np.ndarray | None:
    """Decode a file with the pipeline's loader; None if it cannot."""
    with suppress(Exception):
        return loader.transform(dict(img_path=path))['img']
    return None


def is_whole(path: str) -> bool:
    """Tell whether PIL decodes a file."""
    with suppress(Exception), Image.open(path) as picture:
        picture.load()
        return True
    return False


def is_transparent(path: str) -> bool:
    """Tell whether a picture has transparent parts."""
    with Image.open(path) as picture:
        return bool(np.asarray(picture.convert('RGBA').getchannel('A')).min() < 255)


def is_turned(path: str, picture: np.ndarray | None) -> bool:
    """Tell whether the loader has turned a picture."""
    with Image.open(path) as stored:
        plain = np.asarray(stored.convert('RGB'), int)[..., ::-1]
    if picture is None or picture.shape[:2] != plain.shape[:2]:
        return True
    return np.abs(np.atleast_3d(picture) - plain).mean() > 4


def find_near(path: str, folder: str) -> str:
    """Find what may be meant by the path of a missing image, and say so."""
    plain = Path(path.replace('\\', '/'))
    parts = [Path(*plain.parts[:at], *plain.parts[at + 1 :]) for at in range(len(plain.parts) - 1)]
    alike = [other for other in plain.parent.glob('*') if other.stem.lower() == plain.stem.lower()] if plain.parent.is_dir() else []
    found = next((other for other in [plain, *parts, Path(folder, plain.name), *alike] if other.is_file()), None)
    if not found:
        return ''
    return f', and there is {found}: correct file_name{", with / for " + chr(92) if chr(92) in path else ""}'

"""How a command of ``tools/`` ends on a user's mistake."""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

from .errors import UserError

Result = TypeVar('Result')


def command(main: Callable[[], Result]) -> Callable[[], Result]:
    """Let a script's ``main`` end on a user's mistake, or on a file that cannot be read or written, with ``script: sentence``.

    Raises:
        SystemExit: with that line, which Python prints before it ends with 1.
    """
    name = Path(inspect.getfile(main)).stem

    @wraps(main)
    def run() -> Result:
        try:
            return main()
        except (UserError, OSError) as error:
            sys.exit(f'{name}: {error}')

    return run

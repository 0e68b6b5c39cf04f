"""End a command of ``tools/`` with one line on a user's mistake."""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

from .errors import UserError

Result = TypeVar('Result')


def command(main: Callable[[], Result]) -> Callable[[], Result]:
    """Wrap a script's ``main``: a user's mistake, or a file that cannot be read or written, ends it with ``script: sentence``.

    Raises:
        SystemExit: with that line. Python prints it, and exits with 1.
    """
    name = Path(inspect.getfile(main)).stem

    @wraps(main)
    def run() -> Result:
        try:
            return main()
        except (UserError, OSError) as error:
            sys.exit(f'{name}: {error}')

    return run

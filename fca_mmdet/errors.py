"""The exceptions of a user's mistake, and the check of a number that counts something. Imports nothing."""

import operator
from typing import Any

MOST = 2**16
"""More channels, or cells of a grid along an axis, are a mistake."""


class UserError(ValueError):
    """A mistake of the user's. The message names the value, what is allowed, and how to mend it; a command prints it alone."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used. Raised in the middle of loading, it leaves a model that is loaded in part."""


def check_count(name: str, value: Any, otherwise: str = '') -> int:
    """Check an argument that counts channels or cells, and return it as an int.

    Args:
        name: of the argument.
        value: an int, or what Python accepts as one (numpy's and torch's integers).
        otherwise: what else the argument may be, for the message.

    Raises:
        TypeError: not an integer.
        ValueError: negative, or above ``MOST``.

    Example:
        >>> check_count('in_channels', 64)
        64
    """
    message = f'{name}={value!r} must be an integer in 0..{MOST}{otherwise}'
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message) from None
    if not 0 <= number <= MOST:
        raise ValueError(message)
    return number

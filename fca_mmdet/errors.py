"""Exceptions for a user's mistakes, and the check of a count."""

import operator
from typing import Any

MAX_COUNT = 2**16
"""The largest accepted number of channels, or of a grid's cells along an axis."""


class UserError(ValueError):
    """A user's mistake. The message names the value, what is allowed and how to correct it. A command prints only the message."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used. Raised during loading, it leaves the model partly loaded."""


def check_count(name: str, value: Any, otherwise: str = '') -> int:
    """Check an argument that counts channels or cells, and return it as an int.

    Args:
        name: the argument's name.
        value: an int, or what Python accepts as one (numpy's and torch's integers).
        otherwise: the end of the message, with what else is allowed.

    Raises:
        TypeError: not an integer.
        ValueError: negative, or above ``MAX_COUNT``.

    Example:
        >>> check_count('in_channels', 64)
        64
    """
    message = f'{name}={value!r} must be an integer in 0..{MAX_COUNT}{otherwise}'
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message) from None
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(message)
    return number

"""Frequencies of the 7x7 DCT spectrum and the named sets of FcaNet.

Multi-spectral attention (FcaNet, ICCV 2021, https://arxiv.org/abs/2012.11879, section 3.3) gives each group of channels one
two-dimensional DCT frequency (u, v), u along the height and v along the width, both in 0..6. The three rankings below are published:
``top`` begins with the frequencies that reach the highest accuracy alone (FcaNet-TS), ``bot`` with those that reach the lowest, and
``low`` with the lowest frequencies (FcaNet-LF).

In the published code a frequency is an entry in each of two lists; here it is a (u, v) pair, and a set may be given as pairs.
"""

import numbers
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

SPECTRUM = 7
"""The number of frequencies along each axis of the spectrum of (u, v)."""


class Frequency(NamedTuple):
    """One component of the two-dimensional DCT: ``u`` half-periods along the height, ``v`` along the width."""

    u: int
    v: int


Frequencies: TypeAlias = str | Sequence[tuple[int, int]]
"""The type of ``frequencies=``: the name of a set, or (u, v) pairs."""

_RANKINGS = {
    'top': '00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13',
    'low': '00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43',
    'bot': '66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63',
}
_SIZES = (1, 2, 4, 8, 16, 32)

FREQUENCY_SETS: dict[str, tuple[Frequency, ...]] = {
    f'{name}{size}': tuple(Frequency(int(pair[0]), int(pair[1])) for pair in ranking.split()[:size])
    for name, ranking in _RANKINGS.items()
    for size in _SIZES
}
"""The 18 published sets, ``top1`` to ``bot32``; ``top1`` and ``low1`` are global average pooling up to a constant."""

CANDIDATES = tuple(Frequency(u, v) for u in range(SPECTRUM) for v in range(SPECTRUM))
"""All 49 frequencies of the spectrum, v fastest."""


def resolve_frequencies(frequencies: Frequencies) -> tuple[Frequency, ...]:
    """Return the (u, v) pairs of a set in ``FREQUENCY_SETS``, or the given pairs, with u and v in 0..6.

    Raises:
        TypeError: neither a name nor a sized collection.
        ValueError: an unknown name, no pair, an entry that is not a pair of integers, or a pair outside the spectrum.

    Example:
        >>> resolve_frequencies('low2')
        (Frequency(u=0, v=0), Frequency(u=0, v=1))
        >>> resolve_frequencies([(0, 0), (6, 1)])
        (Frequency(u=0, v=0), Frequency(u=6, v=1))
    """
    if isinstance(frequencies, str):
        if frequencies not in FREQUENCY_SETS:
            raise ValueError(
                f'unknown frequency set {frequencies!r}: use top, low or bot followed by '
                f'{", ".join(map(str, _SIZES))} (such as "top16"), or a sequence of (u, v) pairs'
            )
        return FREQUENCY_SETS[frequencies]
    try:
        len(frequencies)  # a generator would be empty when it is read again
    except TypeError:
        raise TypeError(f'frequencies={frequencies!r} must be the name of a set, such as "top16", or (u, v) pairs') from None
    pairs = []
    for pair in frequencies:
        try:
            u, v = pair
        except (TypeError, ValueError):
            raise ValueError(f'frequencies must be (u, v) pairs, got {pair!r} in {frequencies!r}') from None
        if not all(isinstance(index, numbers.Integral) and 0 <= index < SPECTRUM for index in (u, v)):
            raise ValueError(f'frequency ({u}, {v}) is outside the spectrum: u and v must be integers in 0..{SPECTRUM - 1}')
        pairs.append(Frequency(int(u), int(v)))
    if not pairs:
        raise ValueError('frequencies is empty: give at least one (u, v) pair, such as [(0, 0)]')
    return tuple(pairs)

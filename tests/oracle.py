"""Slow float64 loops straight from the definitions: what every fast path is compared with."""

import math

import numpy as np


def pool(channel: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Adaptive average pooling of one channel, ``[H, W]`` to ``[h, w]``, cell by cell."""
    height, width = channel.shape
    h, w = grid
    pooled = np.zeros(grid)
    for i in range(h):
        for j in range(w):
            top, bottom = math.floor(i * height / h), math.ceil((i + 1) * height / h)
            left, right = math.floor(j * width / w), math.ceil((j + 1) * width / w)
            pooled[i, j] = channel[top:bottom, left:right].mean()
    return pooled


def basis(u: int, x: int, length: int) -> float:
    """Entry x of the orthonormal DCT-II vector of frequency u."""
    value = math.cos(math.pi * u * (x + 0.5) / length) / math.sqrt(length)
    return value if u == 0 else value * math.sqrt(2)


def component(pooled: np.ndarray, u: int, v: int) -> float:
    """One two-dimensional DCT component of a pooled channel."""
    h, w = pooled.shape
    return sum(pooled[i, j] * basis(u, i, h) * basis(v, j, w) for i in range(h) for j in range(w))


def squeeze(x: np.ndarray, pairs: list[tuple[int, int]], grid: tuple[int, int]) -> np.ndarray:
    """The frequency vector of ``[N, C, H, W]``; ``pairs`` of the 7x7 spectrum, one per channel group."""
    scale = [max(cells // 7, 1) for cells in grid]
    per_group = x.shape[1] // len(pairs)
    freq = np.zeros(x.shape[:2])
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            u, v = pairs[c // per_group]
            freq[n, c] = component(pool(x[n, c], grid), u * scale[0], v * scale[1])
    return freq


def attention(x: np.ndarray, pairs: list[tuple[int, int]], grid: tuple[int, int], reduce: np.ndarray, expand: np.ndarray) -> np.ndarray:
    """The attention's output: excitation with the weights of its two linear layers, then scaling."""
    hidden = np.maximum(squeeze(x, pairs, grid) @ reduce.T, 0)
    gate = 1 / (1 + np.exp(-(hidden @ expand.T)))
    return x * gate[:, :, None, None]

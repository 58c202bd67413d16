"""The functions that are mapped; of a module, so that every system can send them by name."""

from __future__ import annotations

import zlib

import numpy as np

_BUFFER = memoryview(bytes(1 << 16))


def burn(amount: int) -> int:
    """Checksum that many bytes of a small buffer.

    Work of known length that needs no memory bandwidth, and lets other threads run meanwhile.
    """
    whole, rest = divmod(amount, len(_BUFFER))
    value = 0
    for _ in range(whole):
        value = zlib.crc32(_BUFFER, value)
    return zlib.crc32(_BUFFER[:rest], value)


def burn_block(block: np.ndarray) -> int:
    """As long as the block's number says."""
    return burn(int(block[0, 0]))


def first(row: np.ndarray) -> float:
    """As little as a function can do."""
    return row[0]


def corner(block: np.ndarray) -> float:
    """The same of a block."""
    return block[0, 0]


def mean_std(tile: np.ndarray) -> tuple[float, float]:
    """Two values of a tile."""
    return tile.mean(), tile.std()


def logistic(row: np.ndarray) -> float:
    """Iterate a map in pure Python, as many steps as the row says."""
    x = float(row[0])
    for _ in range(int(row[1])):
        x = 3.7 * x * (1.0 - x)
    return x


def blur(window: np.ndarray) -> np.ndarray:
    """SciPy's Gaussian filter, which reaches 12 pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(window, 3, truncate=4)


def halve(block: np.ndarray) -> np.ndarray:
    """First map of the chain."""
    return block * 0.5 + 1


def root(block: np.ndarray) -> np.ndarray:
    """Second map of the chain."""
    return np.sqrt(block)


def wave(block: np.ndarray) -> np.ndarray:
    """Third map of the chain."""
    return block * block - 0.25 * block


def add_one(block: np.ndarray) -> np.ndarray:
    """Output as large as the input."""
    return block + 1

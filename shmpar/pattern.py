"""Windows filled with a pattern, to see what was written and what was not.

Imports numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["FIRST", "SECOND", "fill", "left"]

Array = np.ndarray[Any, Any]

FIRST, SECOND = 0xA5, 0x5A  # bytes; what looks like one of them by chance does not like the other


def fill(window: Array, byte: int) -> None:
    """Make every byte of a window's elements this one.

    Examples
    --------
    >>> window = np.zeros(2, "u2")
    >>> fill(window, FIRST)
    >>> [hex(value) for value in window.tolist()]
    ['0xa5a5', '0xa5a5']
    """
    if window.itemsize:
        window.view(f"V{window.itemsize}")[...] = np.void(bytes([byte]) * window.itemsize)


def left(window: Array, byte: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which elements of a window, in C order, are still filled with this byte.

    Notes
    -----
    Cost: a copy of the window.
    """
    if not window.itemsize:
        return np.ones(window.size, bool)
    raw = window.view(f"V{window.itemsize}").tobytes()  # padding between fields too
    found = np.frombuffer(raw, np.uint8).reshape(-1, window.itemsize)
    same: np.ndarray[Any, np.dtype[np.bool_]] = (found == byte).all(axis=1)
    return same

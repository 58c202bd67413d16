"""Which bytes an array touches, by arithmetic on Python integers.

Imports nothing.

Guarantees
----------
Nothing wraps: shapes whose size overflows 64 bits give a large number, never a small one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dense", "fits", "nbytes", "span"]


def span(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Bytes [low, high) touched, relative to the element [0, ..., 0]; (0, 0) if there is none.

    Examples
    --------
    >>> span((3, 4), (-32, 8), 8)
    (-64, 32)
    """
    low, high = 0, itemsize
    for n, step in zip(shape, strides, strict=True):
        if n == 0:
            return 0, 0
        if step < 0:
            low += (n - 1) * step
        else:
            high += (n - 1) * step
    return low, high


def dense(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-ordered array without gaps.

    Examples
    --------
    >>> dense((3, 4), 8)
    (32, 8)
    """
    steps, step = [], itemsize
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


def fits(size: int, offset: int, touched: tuple[int, int]) -> bool:
    """Whether an array whose first element lies at ``offset`` stays within ``size`` bytes."""
    low, high = offset + touched[0], offset + touched[1]
    return low >= 0 and high <= size and 0 <= offset <= size


def nbytes(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of a dense array."""
    return math.prod(shape) * itemsize

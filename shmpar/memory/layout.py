"""The geometry of arrays in memory: the bytes that they span, and the layout of a copy.

Guarantees
----------
Sizes are Python integers: a shape that overflows 64 bits gives a large number, never a small one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Ints = Sequence[int]


def byte_bounds(shape: Ints, strides: Ints, itemsize: int) -> tuple[int, int]:
    """Return the bytes [low, high) of an array, relative to its element [0, ..., 0].

    An array without elements gives (0, 0).

    Examples
    --------
    >>> byte_bounds((3, 4), (-32, 8), 8)
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


def dense_nbytes(shape: Ints, itemsize: int) -> int:
    """Return the bytes of an array without gaps."""
    return math.prod(shape) * itemsize


def lies_within(size: int, offset: int, shape: Ints, strides: Ints | None, itemsize: int) -> bool:
    """Return True if an array with its first element at ``offset`` lies within ``size`` bytes."""
    if strides is None:
        return 0 <= offset <= size - dense_nbytes(shape, itemsize)
    low, high = byte_bounds(shape, strides, itemsize)
    return offset + low >= 0 and offset + high <= size and 0 <= offset <= size


def address_of(array: Array) -> int:
    """Return the address of the element [0, ..., 0]."""
    return int(array.__array_interface__["data"][0])


def spanned_bytes(array: Array) -> Array:
    """Return the bytes that an array spans, with those in its gaps; it has elements."""
    low, high = byte_bounds(array.shape, array.strides, array.itemsize)
    first = [slice(-1, None) if step < 0 else slice(1) for step in array.strides]
    # Why the ellipsis: without axes, the value would be a scalar in native byte order.
    lowest = array.view(np.ndarray)[(*first, ...)].reshape(1).view(np.uint8)
    return np.lib.stride_tricks.as_strided(lowest, (high - low,), (1,), writeable=False)


def has_padding(dtype: np.dtype[Any]) -> bool:
    """Return whether elements may have bytes that no assignment writes.

    Examples
    --------
    >>> has_padding(np.dtype("f8")), has_padding(np.dtype("i1, f8", align=True))
    (False, True)
    """
    return dtype.kind == "V" or dtype.char in "gG"  # long double


def protected(array: Array) -> Array:
    """Return a read-only view that NumPy does not make writable again.

    Examples
    --------
    >>> view = protected(np.arange(3))
    >>> view.setflags(write=True)
    Traceback (most recent call last):
    ValueError: cannot set WRITEABLE flag to True of this array
    """
    view = array.view(np.ndarray)
    if view.dtype.hasobject or not view.nbytes:
        view.flags.writeable = False
        return view
    # Why: NumPy finds the writable array under a view, but not under a read-only memoryview.
    memory = memoryview(spanned_bytes(view)).toreadonly()  # type: ignore[arg-type]
    low, _ = byte_bounds(view.shape, view.strides, view.itemsize)
    return np.ndarray(view.shape, view.dtype, memory, -low, view.strides)


class Layout(NamedTuple):
    """The place of an array in a copy of its memory.

    NumPy adds in the order of the memory, and a compiled function may take another way for other
    strides. So a copy has the strides of the array; only wide gaps become narrow.

    Attributes
    ----------
    offset : int
        Byte of the copy at which the element [0, ..., 0] lies.
    strides : tuple of int
        Bytes along each axis.
    nbytes : int
        Bytes of the copy.
    is_exact : bool
        The strides are those of the array.
    """

    offset: int
    strides: tuple[int, ...]
    nbytes: int
    is_exact: bool

    @classmethod
    def of(cls, array: Array) -> Layout:
        """Return the layout for a copy of an array.

        Examples
        --------
        >>> a = np.zeros((100, 100))
        >>> Layout.of(a[::-1].T).strides, Layout.of(a[::50, ::50]).strides
        ((8, -800), (40, 16))
        """
        strides, shape, itemsize = array.strides, array.shape, array.itemsize
        if not array.nbytes:  # Why: elements without bytes may have gaps, but need no place.
            return cls(0, strides if itemsize else (0,) * array.ndim, 0, is_exact=True)
        low, high = byte_bounds(shape, strides, itemsize)
        exact = high - low <= 2 * array.nbytes
        if not exact:
            narrow = _narrow(shape, strides, itemsize) or _scaled(shape, strides, itemsize)
            exact = narrow is None  # Why: elements share memory, so a copy without gaps is larger.
            strides = narrow or strides
        if not exact:
            low, high = byte_bounds(shape, strides, itemsize)
        # Why: NumPy goes another way for an array whose elements are not aligned.
        begin = 0 if array.flags.aligned else (address_of(array) + low) % array.dtype.alignment
        return cls(begin - low, strides, begin + high - low, exact)


def _narrow(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, ...] | None:
    """Return strides of the same order and signs with narrow gaps; None if elements overlap.

    Invariant: an axis follows the faster ones without a gap only if it did before. The remainder
    of a stride by the size of an element stays too, since NumPy looks at both.
    """
    steps = [0] * len(shape)
    dense = span = new_dense = new_span = itemsize  # of the axes so far: with and without the gap
    for axis in sorted(range(len(shape)), key=lambda axis: abs(strides[axis])):
        old, length = abs(strides[axis]), shape[axis]
        if old == 0 or length == 1:
            continue
        if old < span:
            return None
        new = new_dense if old == dense else (new_span if old < dense else new_dense + 1)
        new += (old - new) % itemsize if old != dense else 0
        new += itemsize if old != dense and new == new_dense else 0
        steps[axis] = new if strides[axis] > 0 else -new
        dense, span = old * length, old * (length - 1) + span
        new_dense, new_span = new * length, new * (length - 1) + new_span
    return tuple(steps)


def _scaled(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, ...] | None:
    """Return strides with a smaller common divisor, so that the same elements overlap.

    None if that would not be smaller. The remainder by the size of an element stays, as above.
    """
    pairs = zip(shape, strides, strict=True)
    step = math.gcd(*[stride for length, stride in pairs if length > 1])
    new = 2 * itemsize + step % itemsize
    return tuple([stride // step * new for stride in strides]) if new < step else None

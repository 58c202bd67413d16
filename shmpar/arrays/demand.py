"""What array is wanted: shape and dtype, checked before any memory is made.

Imports masked, and the segment package's extent.

Guarantees
----------
Sizes are Python integers: nothing wraps.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np

from shmpar.masked import is_masked
from shmpar.segment import extent

__all__ = ["Demand", "check_dtype", "check_input"]

_MAX_AXES: Final = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


class Demand(NamedTuple):
    """A shape and a dtype that fit into memory.

    Attributes
    ----------
    shape : tuple of int
        Elements along each axis.
    dtype : dtype
        Without Python objects, of a definite size, no subarray.

    Examples
    --------
    >>> Demand.of(3, "f8").nbytes
    24
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return extent.nbytes(self.shape, self.dtype.itemsize)

    @classmethod
    def of(cls, shape: Any, dtype: Any) -> Demand:
        """Check a user's shape and dtype (None is float64, as NumPy's).

        Raises
        ------
        TypeError
            The shape is no integers, or the dtype is unknown or holds Python objects.
        ValueError
            The shape is negative, has too many axes, or more bytes than can be addressed.
        """
        try:
            described = check_dtype(np.dtype(dtype))
        except SyntaxError:  # NumPy evaluates literals in it
            raise TypeError(f"no dtype: {dtype!r}") from None
        axes = _axes(shape)
        if described.subdtype is not None:  # as NumPy: its axes come last
            described, inner = described.subdtype
            axes += inner
        demand = cls(axes, np.empty(0, described).dtype)  # NumPy sizes "U" and "S"
        demand._check()
        return demand

    def _check(self) -> None:
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape {self.shape} has a negative length")
        if len(self.shape) > _MAX_AXES:
            raise ValueError(f"shape with {len(self.shape)} axes; NumPy has at most {_MAX_AXES}")
        nonzero = [n for n in self.shape if n]
        if extent.nbytes(nonzero, max(1, self.dtype.itemsize)) > sys.maxsize:
            raise ValueError(f"shape {self.shape} of dtype {self.dtype} has more than 2**63 bytes")


def _axes(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, (str, bytes, bool, np.bool_)) or shape is None:
        raise TypeError(f"shape must be an int or a sequence of ints, not {shape!r}")
    if isinstance(shape, Iterable) and getattr(shape, "ndim", 1) > 0:
        return tuple(map(_length, shape))
    return (_length(shape),)


def _length(n: Any) -> int:
    if isinstance(n, (bool, np.bool_)):
        raise TypeError(f"shape must hold ints, not {n!r}")
    try:
        return operator.index(n)
    except TypeError:
        raise TypeError(f"shape must hold ints, not {n!r}") from None


def check_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give back a dtype, or raise TypeError if its values are pointers."""
    if dtype.hasobject:
        raise TypeError(
            f"dtype {dtype} holds Python objects: their addresses mean nothing in another process; "
            "use a numeric, string ('U', 'S'), datetime or structured dtype"
        )
    return dtype


def check_input(values: Any) -> None:
    """Raise TypeError for arrays whose meaning a copy of their bytes would lose."""
    if is_masked(values):
        raise TypeError(
            "a masked array would lose its mask: pass x.filled(...), or x.data and the mask "
            "(numpy.ma.getmaskarray(x)) as a second input"
        )

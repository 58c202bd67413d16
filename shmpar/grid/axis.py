"""An axis of an array and its chunks, and the spreading of an argument over the axes.

Guarantees
----------
The chunks of an axis are in order, none is empty, and together they hold each element once.
All arithmetic is on Python ints. A regular axis is three numbers and makes no list of chunks.
Two axes with the same chunks are equal, however they were described.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import index
from reprlib import repr as brief
from sys import maxsize
from typing import Any

import numpy as np

from shmpar.errors import format_count


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis and its chunks, made by :meth:`regular` or :meth:`explicit`.

    An axis is also a sequence of slices, with one slice per chunk.

    Attributes
    ----------
    size : int
        Elements along the axis.
    step : int
        Elements of every chunk except the last; with `edges`, elements of the longest chunk.
    count : int
        Number of chunks; 0 where `size` is 0.
    edges : tuple of int or None
        For irregular chunks: ``count + 1`` positions from 0 to `size`.

    Examples
    --------
    >>> axis = Axis.regular(10, 4)
    >>> list(axis)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """

    size: int
    step: int
    count: int
    edges: tuple[int, ...] | None = None

    # Why: faster than the generic pickle of a dataclass, and runs once per axis and call.
    def __reduce__(self) -> tuple[Any, ...]:
        return Axis, (self.size, self.step, self.count, self.edges)

    @classmethod
    def regular(cls, size: int, step: int) -> Axis:
        """Divide `size` elements into chunks of `step` elements; the last may be shorter.

        Raises
        ------
        ValueError
            For a negative `size` or a `step` below 1.

        Examples
        --------
        >>> Axis.regular(10, 99)
        Axis(size=10, step=10, count=1, edges=None)
        """
        size, step = index(size), index(step)
        if size < 0 or step < 1:
            raise ValueError(f"cannot divide {size} elements by {step}; pass a positive step")
        step = max(1, min(step, size))
        return cls(size, step, -(-size // step))

    @classmethod
    def explicit(cls, lengths: Iterable[int]) -> Axis:
        """Make chunks of the given `lengths`, in elements; their sum is the size of the axis.

        Raises
        ------
        ValueError
            For a length below 1, except a single 0, which means an axis without elements.

        Examples
        --------
        >>> Axis.explicit((2, 5, 3)).span(1)
        (2, 7)
        >>> Axis.explicit((4, 4, 2)) == Axis.regular(10, 4)
        True
        """
        steps = [index(length) for length in lengths]
        if steps == [0]:
            return cls.regular(0, 1)
        for i, step in enumerate(steps):
            if step < 1:
                raise ValueError(f"chunk {i} would have {step} elements; pass positive lengths")
        longest = max(steps, default=1)
        if all(step == longest for step in steps[:-1]):
            return cls.regular(sum(steps), longest)
        return cls(sum(steps), longest, len(steps), tuple(accumulate(steps, initial=0)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[slice]:
        return map(self.__getitem__, range(self.count))

    def __getitem__(self, i: int) -> slice:
        return slice(*self.span(i))

    def span(self, i: int) -> tuple[int, int]:
        """Return chunk `i` as half-open ``(start, stop)`` in elements of the axis.

        Raises
        ------
        IndexError
            Unless ``0 <= i < len(axis)``; negative numbers do not count from the end.

        Examples
        --------
        >>> Axis.regular(10, 4).span(2)
        (8, 10)
        """
        i = index(i)
        if not 0 <= i < self.count:
            raise IndexError(f"chunk {i} of an axis with {format_count(self.count, 'chunk')}")
        if self.edges is not None:
            return self.edges[i], self.edges[i + 1]
        start = i * self.step
        return start, min(start + self.step, self.size)


def whole_number(value: Any, where: str) -> int:
    """Return `value` as a Python int; an error message begins with `where`.

    Raises
    ------
    TypeError
        For a bool, and for anything except an integer of Python or NumPy.

    Examples
    --------
    >>> whole_number(2.0, "depth=2.0")
    Traceback (most recent call last):
    ...
    TypeError: depth=2.0: 2.0 is a float; pass an int
    """
    # Why: Python and older NumPy accept True as an int, but no user means it as a number.
    if not isinstance(value, (bool, np.bool_)):
        try:
            return index(value)
        except TypeError:
            pass
    raise TypeError(f"{where}: {value!r} is a {type(value).__name__}; pass an int")


def positive_number(value: Any, name: str) -> int:
    """Return `value`, a number of things, as a Python int of 1 or more.

    Raises
    ------
    TypeError
        As :func:`whole_number`.
    ValueError
        For a number below 1.

    Examples
    --------
    >>> positive_number(0, "chunksize")
    Traceback (most recent call last):
    ...
    ValueError: chunksize is a number, 1 or more, not 0
    """
    number = whole_number(value, name)
    if number < 1:
        raise ValueError(f"{name} is a number, 1 or more, not {value!r}")
    return min(number, maxsize)  # Why: more of anything does not exist.


def axis_number(axis: Any, ndim: int, where: str) -> int:
    """Return `axis` as a number in ``[0, ndim)``; a negative axis counts from the end.

    Raises
    ------
    TypeError, ValueError
        For a value that is not an integer, or an axis that the array does not have.

    Examples
    --------
    >>> axis_number(-1, 3, "depth={-1: 2}")
    2
    """
    number = whole_number(axis, where)
    if -ndim <= number < ndim:
        return number % ndim
    if not ndim:
        raise ValueError(f"{where}: there is no axis {number}, the array has none; leave it out")
    remedy = f"pass {-ndim} to {ndim - 1}"
    raise ValueError(f"{where}: there is no axis {number} among {ndim}; {remedy}")


def _listed(axes: Any) -> list[Any]:
    # Why: a single axis may be an array without axes, which has no items.
    several = isinstance(axes, Iterable) and getattr(axes, "ndim", 1) > 0
    return list(axes) if several else [axes]


def axes_tuple(name: str, axes: Any, ndim: int) -> tuple[int, ...]:
    """Read an axis or a sequence of axes, which may count from the end.

    Examples
    --------
    >>> axes_tuple("drop_axis", [-1, 0], 3)
    (0, 2)
    """
    if axes is None:
        return ()
    found = sorted(axis_number(axis, ndim, name) for axis in _listed(axes))
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: {axes} names an axis twice")
    return tuple(found)


def output_axes(ndim: int, drop: Sequence[int], new_axis: Any) -> list[int | None]:
    """Return for each axis of the output the axis of the grid; None for a new one.

    Examples
    --------
    >>> output_axes(3, (1,), 0)
    [None, 0, 2]
    """
    axes: list[int | None] = [axis for axis in range(ndim) if axis not in drop]
    if new_axis is not None:
        added = _listed(new_axis)
        for axis in axes_tuple("new_axis", added, len(axes) + len(added)):
            axes.insert(axis, None)
    return axes


def per_axis(name: str, value: Any, ndim: int, *, missing: Any, array: str = "") -> list[Any]:
    """Spread an argument over the axes: one for all, a tuple with one per axis, or a dict.

    Parameters
    ----------
    name : str
        Name of the argument, for messages.
    value : object
        As the user passed it.
    ndim : int
        Number of axes.
    missing : object
        Value of the axes that a dict omits.
    array : str
        Description of the array, for messages.

    Raises
    ------
    TypeError, ValueError
        For a tuple of another length, or a dict with an unknown or a repeated axis.

    Examples
    --------
    >>> per_axis("depth", {-1: 2}, 3, missing=0)
    [0, 0, 2]
    """
    if isinstance(value, Mapping):
        entries: dict[int, Any] = {}
        for key, entry in value.items():
            axis = axis_number(key, ndim, f"{name}={brief(value)}")
            if axis in entries:
                raise ValueError(f"{name}={brief(value)}: axis {axis} is there twice; pass it once")
            entries[axis] = entry
        return [entries.get(axis, missing) for axis in range(ndim)]
    if not isinstance(value, (tuple, list)):
        return [value] * ndim
    if len(value) != ndim:
        raise ValueError(
            f"{name}={brief(value)} has {format_count(len(value), 'entry', 'entries')} for "
            f"{array or format_count(ndim, 'axis', 'axes')}; pass {ndim}, one per axis, or one "
            "value for all axes, or a dict {axis: value}"
        )
    return list(value)

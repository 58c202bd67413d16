"""The halo of a chunk, and the values beyond the border of the array.

Beyond the border of an array ``a b c d``::

    name here, Dask, SciPy        NumPy's np.pad
    reflect       c b a | a b c d | d c b   symmetric
    mirror        d c b | a b c d | c b a   reflect
    nearest       a a a | a b c d | d d d   edge
    periodic      b c d | a b c d | a b c   wrap
    a constant    k k k | a b c d | k k k   constant
    none                | a b c d |         no padding: the window ends with the array

``reflect`` has the meaning of SciPy and Dask, not of NumPy.

Guarantees
----------
A window equals the same window of the whole padded array, bit by bit, also for halos wider than
a chunk or than the array. Axes are padded in order, and both sides of an axis from its own
samples. So beyond two axes, the constant of the later axis replaces the constant of the earlier
axis, and a constant replaces every other mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import product
from numbers import Number
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from shmpar.errors import format_count
from shmpar.grid.axis import per_axis, whole_number

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from shmpar.grid.grid import Grid


class Mode(Enum):
    """Continuation of an array beyond its border; the values are the canonical names."""

    NONE = "none"
    REFLECT = "reflect"
    MIRROR = "mirror"
    NEAREST = "nearest"
    PERIODIC = "periodic"


#: One side of one axis: a mode, or the constant that lies beyond it.
Boundary: TypeAlias = Mode | complex | np.generic
#: Elements on both sides of one axis, or a pair (before, after).
AxisDepth: TypeAlias = int | tuple[int, int]
#: One for all axes, one per axis, or a dict of axes; an axis that it omits has none.
Depth: TypeAlias = int | Sequence[AxisDepth] | Mapping[int, AxisDepth]
#: A name, a constant, or None for "none".
SideBoundary: TypeAlias = str | complex | np.generic | None
#: One for all axes, one per axis, or a dict of axes; a pair (before, after) only nested.
Boundaries: TypeAlias = (
    SideBoundary
    | Sequence[SideBoundary | tuple[SideBoundary, SideBoundary]]
    | Mapping[int, SideBoundary | tuple[SideBoundary, SideBoundary]]
)

# "wrap" has the meaning of NumPy and of the filters of SciPy. The interpolation of SciPy gives
# "wrap" a period of one sample less, and calls this mode "grid-wrap".
BOUNDARIES: dict[str, Boundary] = {
    "none": Mode.NONE,
    "reflect": Mode.REFLECT,
    "symmetric": Mode.REFLECT,
    "grid-mirror": Mode.REFLECT,
    "mirror": Mode.MIRROR,
    "nearest": Mode.NEAREST,
    "edge": Mode.NEAREST,
    "periodic": Mode.PERIODIC,
    "wrap": Mode.PERIODIC,
    "grid-wrap": Mode.PERIODIC,
    "constant": 0,
    "grid-constant": 0,
}

_Bounds: TypeAlias = tuple[tuple[int, int], ...]
_Source: TypeAlias = "slice | NDArray[np.intp]"


class Halo(NamedTuple):
    """Extent of a window beyond the cell of a chunk, and the values beyond the array.

    Attributes
    ----------
    depth : tuple of (int, int)
        Elements (before, after) on each axis.
    boundary : tuple of (Boundary, Boundary)
        Continuation of the array (before, after) on each axis.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> grid = Grid.cut((6,), 3)
    >>> Halo.parse(2, "periodic", 1).gather(np.arange(6), grid, 0)
    array([4, 5, 0, 1, 2, 3, 4])
    """

    depth: tuple[tuple[int, int], ...]
    boundary: tuple[tuple[Boundary, Boundary], ...]

    @classmethod
    def parse(cls, depth: Depth, boundary: Boundaries, ndim: int) -> Halo:
        """Read ``depth=`` and ``boundary=`` for an array of `ndim` axes.

        Raises
        ------
        TypeError, ValueError
            For a wrong entry; the message names it, its axis and the remedy.

        Examples
        --------
        >>> Halo.parse({0: (0, 1)}, "edge", 2).depth
        ((0, 1), (0, 0))
        """
        return cls(parse_depth(depth, ndim), parse_boundary(boundary, ndim))

    def __bool__(self) -> bool:
        return any(before or after for before, after in self.depth)

    def pads(self) -> bool:
        """Return whether a window may extend beyond the array, and so be a copy."""
        pairs = zip(self.depth, self.boundary, strict=True)
        sides = [side for depths, modes in pairs for side in zip(depths, modes, strict=True)]
        return any(depth and mode is not Mode.NONE for depth, mode in sides)

    def longest_window(self, lengths: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the longest window of chunks of these `lengths` in an array.

        Examples
        --------
        >>> Halo.parse(3, ("edge", "none"), 2).longest_window((4, 4), (5, 5))
        (10, 5)
        """
        window = []
        sides = zip(lengths, shape, self.depth, self.boundary, strict=True)
        for length, size, depths, modes in sides:
            pairs = zip(depths, modes, strict=True)
            beyond = sum(min(n, size) if mode is Mode.NONE else n for n, mode in pairs)
            only_inside = all(mode is Mode.NONE for mode in modes)
            window.append(min(size, length + beyond) if only_inside else length + beyond)
        return tuple(window)

    def check_constants(self, dtype: DTypeLike) -> None:
        """Raise ``ValueError`` for a constant that an array of `dtype` cannot hold.

        Raises
        ------
        ValueError
            For example, for NaN in an array of integers.

        Examples
        --------
        >>> Halo.parse(1, 2.5, 1).check_constants("int16")
        Traceback (most recent call last):
        ...
        ValueError: boundary 2.5 on axis 0 does not fit an array of dtype int16; pass ...
        """
        kind = np.dtype(dtype)
        for axis, (depths, sides) in enumerate(zip(self.depth, self.boundary, strict=True)):
            for depth, side in zip(depths, sides, strict=True):
                if depth and not isinstance(side, Mode) and not _holds(kind, side):
                    raise ValueError(
                        f"boundary {side!r} on axis {axis} does not fit an array of dtype {kind}; "
                        "pass a constant that it can hold, or convert the array first"
                    )

    def window(self, grid: Grid, number: int) -> tuple[tuple[int, int], ...]:
        """Return the window of chunk `number`: half-open (start, stop) in array coordinates.

        A start below 0 or a stop beyond the array means padding. A side with the boundary
        "none" is clipped to the array instead.

        Raises
        ------
        IndexError
            Unless ``0 <= number < grid.size``.

        Examples
        --------
        >>> from shmpar.grid import Grid
        >>> Halo.parse(2, (("none", "nearest"),), 1).window(Grid.cut((6,), 6), 0)
        ((0, 8),)
        """
        bounds = []
        sides = zip(grid.core(number), grid.shape, self.depth, self.boundary, strict=True)
        for cell, size, (before, after), (low, high) in sides:
            start, stop = cell.start - before, cell.stop + after
            start = 0 if start < 0 and low is Mode.NONE else start
            bounds.append((start, size if stop > size and high is Mode.NONE else stop))
        return tuple(bounds)

    def trim(self, grid: Grid, number: int) -> tuple[slice, ...]:
        """Return the slices that select the cell of chunk `number` in its window.

        Raises
        ------
        IndexError
            Unless ``0 <= number < grid.size``.

        Examples
        --------
        >>> from shmpar.grid import Grid
        >>> Halo.parse(2, "none", 1).trim(Grid.cut((9,), 3), 1)
        (slice(2, 5, None),)
        """
        slices = []
        sides = zip(grid.core(number), self.depth, self.boundary, strict=True)
        for cell, (before, _), (low, _) in sides:
            first = min(before, cell.start) if low is Mode.NONE else before
            slices.append(slice(first, first + cell.stop - cell.start))
        return tuple(slices)

    def gather(self, array: NDArray[Any], grid: Grid, number: int) -> NDArray[Any]:
        """Return the window of chunk `number`, padded beyond the array.

        Parameters
        ----------
        array : ndarray, Store or Part
            Array of the shape of `grid`.
        grid : Grid
            Chunks of the array.
        number : int
            Number of the chunk.

        Returns
        -------
        ndarray
            A view of `array` if the window lies inside it, else a copy in the same memory
            order, writable if `array` is.

        Raises
        ------
        IndexError
            Unless ``0 <= number < grid.size``.
        ValueError
            For an array of another shape.

        Examples
        --------
        >>> from shmpar.grid import Grid
        >>> grid = Grid.cut((4, 4), (2, 4))
        >>> array = np.arange(16).reshape(4, 4)
        >>> Halo.parse(1, ("nearest", "none"), 2).gather(array, grid, 0)
        array([[ 0,  1,  2,  3],
               [ 0,  1,  2,  3],
               [ 4,  5,  6,  7],
               [ 8,  9, 10, 11]])
        """
        bounds = self.window(grid, number)
        shape = array.shape
        if shape != grid.shape:
            raise ValueError(f"array of shape {shape} on a grid of {grid.shape}; pass its own grid")
        for (start, stop), size in zip(bounds, shape, strict=True):
            if start < 0 or stop > size:
                return self._copy(array, bounds)
        # Why: the ellipsis keeps an array without axes an array.
        region: Any = (*[slice(start, stop) for start, stop in bounds], ...)
        window: NDArray[Any] = array[region]
        return window

    def _copy(self, array: Any, bounds: _Bounds) -> NDArray[Any]:
        """Copy the inside of the window by slices, and the padding by index arrays."""
        copied, constants = [], []
        for axis, (start, stop) in enumerate(bounds):
            size, (before, after) = array.shape[axis], self.boundary[axis]
            first, last = max(0, start), min(size, stop)
            # A part of the window along this axis, and the positions of its values in the array.
            parts: list[tuple[slice, _Source]] = [
                (slice(first - start, last - start), slice(first, last))
            ]
            for low, high, mode in ((start, first, before), (last, stop, after)):
                place = slice(low - start, high - start)
                if low < high and isinstance(mode, Mode):
                    parts.append((place, _fold(np.arange(low, high), size, mode)))
                elif low < high:
                    constants.append(((slice(None),) * axis + (place,), mode))
            copied.append(parts)
        if not isinstance(array, np.ndarray):  # Why: of a store or a part only windows are here.
            array = array.near([[source for _, source in parts] for parts in copied])
        memory: NDArray[Any] = array if isinstance(array, np.ndarray) else array.array
        window = np.empty_like(memory, shape=[stop - start for start, stop in bounds], subok=False)
        for combination in product(*copied):
            places, sources = zip(*combination, strict=True)
            window[places] = _take(array, sources)
        for corner, constant in constants:
            window[corner] = constant
        window.flags.writeable = memory.flags.writeable
        return window


def _fold(positions: NDArray[np.intp], size: int, mode: Mode) -> NDArray[np.intp]:
    """Map positions beyond an axis of `size` elements to the elements that they repeat."""
    if mode is Mode.NEAREST:
        return positions.clip(0, size - 1)
    if mode is Mode.PERIODIC:
        return positions % size
    if mode is Mode.REFLECT:
        turned = positions % (2 * size)
        return np.minimum(turned, 2 * size - 1 - turned)
    # Why: a mirror of a single element repeats it, with period 1 instead of 0.
    period = max(1, 2 * size - 2)
    turned = positions % period
    return np.minimum(turned, period - turned)


def _take(array: NDArray[Any], sources: Sequence[_Source]) -> NDArray[Any]:
    """Index by the outer product of slices and index arrays."""
    if sum(not isinstance(source, slice) for source in sources) <= 1:
        return array[tuple(sources)]
    full = [np.arange(one.start, one.stop) if isinstance(one, slice) else one for one in sources]
    return array[np.ix_(*full)]


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    """Return whether `dtype` holds the constant: exactly, or rounded for floats."""
    given = np.asarray(value)
    try:
        with np.errstate(all="ignore"):
            if dtype.kind in "biu":
                # Why: cast and compare, since older NumPy lets integers wrap with a warning.
                return given.dtype.kind not in "cmM" and bool(given.astype(dtype) == value)
            held = np.array(value, dtype=dtype)
            if dtype.kind in "fc":
                numeric = given.dtype.kind not in "mM"
                return numeric and (not np.isfinite(value) or bool(np.isfinite(held)))
            return dtype.kind not in "SU" or bool(held == given.astype(dtype.kind))
    except (TypeError, ValueError, OverflowError):
        return False


def parse_depth(depth: Depth, ndim: int, name: str = "depth") -> tuple[tuple[int, int], ...]:
    """Read ``depth=``: elements (before, after) on each axis; messages begin with `name`.

    Raises
    ------
    TypeError, ValueError
        For a value that is not an int, is negative, or does not fit `ndim`.

    Examples
    --------
    >>> parse_depth(((0, 1), 2), 2)
    ((0, 1), (2, 2))
    """
    return _pairs(name, depth, ndim, 0, "an int or a pair (before, after)", _parse_side_depth)


def parse_boundary(
    boundary: Boundaries, ndim: int, name: str = "boundary"
) -> tuple[tuple[Boundary, Boundary], ...]:
    """Read ``boundary=``: continuations (before, after) on each axis; messages begin with `name`.

    Raises
    ------
    TypeError, ValueError
        For a value that is no name and no constant, or does not fit `ndim`.

    Examples
    --------
    >>> parse_boundary((0, ("edge", None)), 2)
    ((0, 0), (<Mode.NEAREST: 'nearest'>, <Mode.NONE: 'none'>))
    """
    remedy = "a name, a constant or a pair (before, after)"
    return _pairs(name, boundary, ndim, None, remedy, _parse_side)


def _pairs(
    name: str, value: Any, ndim: int, missing: Any, remedy: str, parse: Callable[[Any, str], Any]
) -> tuple[tuple[Any, Any], ...]:
    """Read an argument that has one entry, or a pair (before, after), per axis."""
    pairs = []
    for axis, entry in enumerate(per_axis(name, value, ndim, missing=missing)):
        where = f"{name}={brief(value)}, axis {axis}"
        sides = entry if isinstance(entry, (tuple, list)) else (entry, entry)
        if len(sides) != 2:  # noqa: PLR2004 - before and after
            entries = format_count(len(entry), "entry", "entries")
            raise ValueError(f"{where}: {brief(entry)} has {entries}; pass {remedy}")
        pairs.append((parse(sides[0], where), parse(sides[1], where)))
    return tuple(pairs)


def _parse_side_depth(value: Any, where: str) -> int:
    depth = whole_number(value, where)
    if depth < 0:
        raise ValueError(f"{where}: a halo cannot have {depth} elements; pass 0 or more")
    return depth


def _parse_side(value: Any, where: str) -> Boundary:
    if value is None or isinstance(value, Mode):
        return value or Mode.NONE
    if isinstance(value, str) and value in BOUNDARIES:
        return BOUNDARIES[value]
    remedy = f"pass a constant or one of {', '.join(BOUNDARIES)}"
    if isinstance(value, str):  # Why first: a string of NumPy is also a generic.
        raise ValueError(f"{where}: {value!r} is unknown; {remedy}")  # noqa: TRY004 - a wrong name
    if isinstance(value, (Number, np.generic)):
        return value  # type: ignore[return-value]
    raise TypeError(f"{where}: {value!r} is a {type(value).__name__}; {remedy}")

"""A grid: how one array is cut into chunks, as a product of axes.

Imports :mod:`shmpar.grid.axis`, fixed, and what normalises a user's ``chunks=``.

Guarantees
----------
A grid is immutable and bound to one shape; it answers any question about any chunk from the
chunk's number alone.  The cells of all chunks tile the array exactly once.  Numbers are in C
order, and every bound is a plain int.  An array without elements has no chunks; one without
axes has a single chunk.
"""

from __future__ import annotations

from math import prod
from operator import index as as_int
from typing import TYPE_CHECKING, Any

from shmpar.grid.chunking import BLOCK_BYTES, Chunks, cut_axes
from shmpar.grid.fixed import Fixed, fix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmpar.grid.axis import Axis
    from shmpar.grid.halo import Halo

__all__ = ["Grid"]


class Grid(Fixed):
    """The chunks of an array of one shape.

    Attributes
    ----------
    axes : tuple of Axis
        How each axis is cut.
    shape : tuple of int
        Elements along each axis.
    size : int
        Number of chunks: 1 for an array without axes, 0 for one without elements.

    Examples
    --------
    >>> grid = Grid.cut((10, 7), (4, 3))
    >>> grid.numblocks, grid.size
    ((3, 3), 9)
    >>> grid.core(5)
    (slice(4, 8, None), slice(6, 7, None))
    """

    __slots__ = ("axes", "shape", "size")

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    size: int

    def __init__(self, axes: tuple[Axis, ...]) -> None:
        fix(self, "axes", axes)
        # What every call asks for several times.
        fix(self, "shape", tuple([axis.size for axis in axes]))
        fix(self, "size", prod([axis.count for axis in axes]))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Grid) and self.axes == other.axes)

    def __hash__(self) -> int:
        """Of what differs most often: grids are looked up at each call."""
        return hash((self.shape, self.size))

    def __reduce__(self) -> tuple[Any, ...]:
        return Grid, (self.axes,)

    def __repr__(self) -> str:
        return f"Grid(axes={self.axes!r})"

    @classmethod
    def cut(
        cls,
        shape: Sequence[int],
        chunks: Chunks,
        *,
        itemsize: int = 8,
        depth: Any = None,
        whole: Sequence[int] = (),
        most: int = BLOCK_BYTES,
    ) -> Grid:
        """Cut an array of `shape` as the user says with `chunks`.

        Parameters
        ----------
        shape : sequence of int
            Elements along each axis.
        chunks : int, None, str, sequence or mapping
            As in :data:`shmpar.grid.Chunks`.
        itemsize : int
            Bytes of one element; only "auto" looks at it.
        depth : int, sequence, mapping or None
            The halo, in elements: "auto" makes blocks at least twice as long as what a halo
            adds along an axis.
        whole : sequence of int
            Axes that "auto" does not cut.
        most : int
            Bytes of a block that "auto" does not exceed.

        Raises
        ------
        TypeError, ValueError
            For chunks that do not fit the shape; the message says which, where and what to pass.

        Examples
        --------
        >>> Grid.cut((100, 60), {0: 40}).numblocks
        (3, 1)
        """
        axes = cut_axes(shape, chunks, itemsize=itemsize, depth=depth, whole=whole, most=most)
        return cls(axes)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def numblocks(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple([axis.count for axis in self.axes])

    @property
    def slices(self) -> tuple[Axis, ...]:
        """The axes, as sequences of slices: ``grid.slices[k][i]`` is made when asked for."""
        return self.axes

    def index(self, number: int) -> tuple[int, ...]:
        """Return the index of chunk `number`, one int an axis, in C order.

        Raises
        ------
        IndexError
            Unless ``0 <= number < size``.

        Examples
        --------
        >>> Grid.cut((10, 7), (4, 3)).index(5)
        (1, 2)
        """
        rest = as_int(number)
        place = []
        try:
            for axis in reversed(self.axes):
                rest, i = divmod(rest, axis.count)
                place.append(i)
        except ZeroDivisionError:
            rest = -1
        # What is left over is 0 for every chunk there is, and for nothing else.
        if rest:
            raise self._outside(number)
        place.reverse()
        return tuple(place)

    def number(self, index: Sequence[int]) -> int:
        """Return the number of the chunk at `index`; the inverse of :meth:`index`.

        Raises
        ------
        IndexError
            For a wrong number of entries, or one outside ``[0, numblocks[axis])``.

        Examples
        --------
        >>> Grid.cut((10, 7), (4, 3)).number((1, 2))
        5
        """
        self._check_length("index", index)
        number = 0
        for axis, i in zip(self.axes, map(as_int, index), strict=True):
            if not 0 <= i < axis.count:
                raise IndexError(f"chunk index {tuple(index)} in a grid of {self.numblocks}")
            number = number * axis.count + i
        return number

    def core(self, number: int) -> tuple[slice, ...]:
        """Return the cell of chunk `number`: half-open slices in array coordinates.

        Raises
        ------
        IndexError
            Unless ``0 <= number < size``.

        Cost: under a microsecond in two dimensions; nothing is cached.

        Examples
        --------
        >>> Grid.cut((10, 7), (4, 3)).core(8)
        (slice(8, 10, None), slice(6, 7, None))
        """
        rest = as_int(number)
        cell = []
        try:
            for axis in reversed(self.axes):
                # As index() and Axis.span() do it: in here, once a chunk, it costs half.
                rest, i = divmod(rest, axis.count)
                if axis.edges is None:
                    start = i * axis.step
                    stop = start + axis.step
                    cell.append(slice(start, stop if stop < axis.size else axis.size))  # noqa: FURB136
                else:
                    cell.append(axis[i])
        except ZeroDivisionError:
            rest = -1
        if rest:
            raise self._outside(number)
        cell.reverse()
        return tuple(cell)

    def cutter(self) -> Callable[[int], tuple[slice, ...]]:
        """Make what cuts an array of this shape: :meth:`core`, in a third of its time.

        The function that is made does not check the number, and the last slice of an axis may
        reach over its end, as indices may.

        Examples
        --------
        >>> cut = Grid.cut((10, 7), (4, 3)).cutter()
        >>> cut(8)
        (slice(8, 12, None), slice(6, 9, None))
        """
        match self.axes:
            case (down, across) if down.edges is None and across.edges is None:
                return _cutter(down.step, across.step, across.count)
        return self.core

    def read(self, number: int, halo: Halo) -> tuple[slice, ...]:
        """Return the cell widened by `halo` and clipped to the array: what the chunk reads.

        Raises
        ------
        IndexError
            Unless ``0 <= number < size``.

        Examples
        --------
        >>> from shmpar.grid import Halo
        >>> Grid.cut((10, 7), (4, 3)).read(4, Halo.parse(1, "none", 2))
        (slice(3, 9, None), slice(2, 7, None))
        """
        region = []
        for axis, i, (before, after) in zip(self.axes, self.index(number), halo.depth, strict=True):
            start, stop = axis.span(i)
            region.append(slice(max(0, start - before), min(axis.size, stop + after)))
        return tuple(region)

    def block_shape(self, number: int) -> tuple[int, ...]:
        """Return the elements of chunk `number` along each axis, without a halo.

        Raises
        ------
        IndexError
            Unless ``0 <= number < size``.

        Examples
        --------
        >>> Grid.cut((10, 7), (4, 3)).block_shape(8)
        (2, 1)
        """
        return tuple([cell.stop - cell.start for cell in self.core(number)])

    def locate(self, position: Sequence[int]) -> int:
        """Return the number of the chunk that holds the element at `position`.

        Raises
        ------
        IndexError
            For a wrong number of entries, or one outside ``[0, shape[axis])``.

        Examples
        --------
        >>> Grid.cut((10, 7), (4, 3)).locate((9, 0))
        6
        """
        self._check_length("position", position)
        number = 0
        for axis, p in zip(self.axes, position, strict=True):
            number = number * axis.count + axis.locate(p)
        return number

    def check_invariants(self) -> None:
        """Assert that the cells tile the shape exactly once.

        A product of axes tiles if each axis does, so this is linear in the sum of `numblocks`.
        """
        for axis in self.axes:
            axis.check_invariants()
        for number in (0, self.size // 2, self.size - 1):
            if self.size and self.number(self.index(number)) != number:
                raise AssertionError(f"chunk {number} has index {self.index(number)} in {self}")

    def _check_length(self, name: str, entries: Sequence[int]) -> None:
        if len(entries) != len(self.axes):
            raise IndexError(f"{name} {tuple(entries)} in a grid of {len(self.axes)} axes")

    def _outside(self, number: int) -> IndexError:
        return IndexError(f"chunk {number} of a grid with {self.size} chunks")


def _cutter(high: int, wide: int, across: int) -> Callable[[int], tuple[slice, ...]]:
    """For chunks of two regular axes, so many to a row of them."""

    def cut(number: int) -> tuple[slice, ...]:
        row = number // across
        top, left = row * high, (number - row * across) * wide
        return slice(top, top + high), slice(left, left + wide)

    return cut

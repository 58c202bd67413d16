"""A grid: the chunks of an array as a product of axes, and the reading of ``chunks=``.

Guarantees
----------
A grid is immutable and bound to one shape. It answers any question about any chunk from the
number of the chunk alone. The cells of all chunks tile the array exactly once. Numbers are in C
order, and every bound is a plain int. An array without elements has no chunks; an array without
axes has a single chunk.

"auto" depends only on the shape, the itemsize and the depth of the halo, never on the number of
workers; so results do not depend on it either. All arguments are checked before any is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt, prod
from operator import index as as_int
from reprlib import repr as brief
from typing import Any, TypeAlias

from shmpar.errors import format_count
from shmpar.grid.axis import Axis, axis_number, per_axis, whole_number
from shmpar.grid.halo import parse_depth

#: One axis: elements, -1 or None for a whole axis, "auto", or the length of every chunk.
AxisChunks: TypeAlias = int | str | Sequence[int] | None
#: One for all axes, one per axis, or a dict of axes; an axis that it omits stays whole.
Chunks: TypeAlias = int | str | Sequence[AxisChunks] | Mapping[int, AxisChunks] | None

Shape: TypeAlias = Sequence[int]

LEAST_BYTES = 64 * 1024
BLOCK_BYTES = 1024 * 1024
"""Largest block of "auto", for functions whose temporaries should stay in the cache."""
HALO_BLOCK_BYTES = 2 * 1024 * 1024
"""The same with a halo, of which blocks of 1 MiB would read about a tenth twice."""
FEWEST_BLOCKS = 64
REDUCED_ELEMENTS = 64
"""Fewest elements for a partial result, so that these are a small part of the array."""
STORE_BLOCK_BYTES = 12 * 1024 * 1024
"""Largest block of "auto" for a store: reading a piece takes longer than a cache would save."""
FEWEST_STORE_BLOCKS = 16
_BLOCKS_AT_A_TIME = 16  # of workers

_REMEDY = 'pass a positive int, -1 or None for the whole axis, "auto", or a tuple of lengths'


@dataclass(frozen=True, slots=True)
class Grid:
    """The chunks of an array of one shape.

    Attributes
    ----------
    axes : tuple of Axis
        Chunks along each axis.
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

    axes: tuple[Axis, ...]
    # Why: stored, since every call reads them several times.
    shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple([axis.size for axis in self.axes]))
        object.__setattr__(self, "size", prod([axis.count for axis in self.axes]))

    def __reduce__(self) -> tuple[Any, ...]:
        return Grid, (self.axes,)

    @classmethod
    def cut(  # noqa: PLR0913 - the arguments of every verb
        cls,
        shape: Sequence[int],
        chunks: Chunks,
        *,
        itemsize: int = 8,
        depth: Any = None,
        whole: Sequence[int] = (),
        reduced: Sequence[int] = (),
        most: int = BLOCK_BYTES,
        least: int = LEAST_BYTES,
        units: Sequence[int] | None = None,
    ) -> Grid:
        """Divide an array of `shape` into `chunks`.

        Parameters
        ----------
        shape : sequence of int
            Elements along each axis.
        chunks : int, None, str, sequence or mapping
            As in :data:`shmpar.grid.Chunks`.
        itemsize : int
            Bytes of one element, for "auto".
        depth : int, sequence, mapping or None
            Depth of the halo, in elements. "auto" makes blocks at least twice as long as the
            halo adds along an axis.
        whole : sequence of int
            Axes that "auto" does not divide.
        reduced : sequence of int
            Axes along which blocks of "auto" have about 64 elements or more together, since a
            block gives one result along them; fewer if they would make it far too large.
        most, least : int
            Largest and smallest size of a block of "auto", in bytes; the smallest one prevails.
        units : sequence of int, optional
            Elements along each axis that stores hold in a piece. "auto" takes multiples of them,
            and larger blocks.

        Raises
        ------
        TypeError, ValueError
            For chunks that do not fit the shape; the message names the entry and the remedy.

        Examples
        --------
        >>> Grid.cut((100, 60), {0: 40}).numblocks
        (3, 1)
        """
        sizes = tuple(whole_number(size, f"shape={tuple(shape)}") for size in shape)
        if any(size < 0 for size in sizes):
            raise ValueError(f"shape={sizes}: an axis cannot have fewer than 0 elements")
        ndim, array = len(sizes), f"an array of shape {sizes}"
        entries = per_axis("chunks", chunks, ndim, missing=None, array=array)
        where = f"chunks={brief(chunks)}, axis"
        axes = [
            _parse_axis(entry, size, f"{where} {k} of shape {sizes}")
            for k, (entry, size) in enumerate(zip(entries, sizes, strict=True))
        ]
        for k in [axis_number(axis, ndim, f"whole={whole}") for axis in whole]:
            if axes[k] is None:
                axes[k] = _parse_axis(None, sizes[k], where)
        reach = [sum(pair) for pair in parse_depth(0 if depth is None else depth, ndim)]
        fixed = [None if axis is None else axis.step for axis in axes]
        nbytes = max(1, whole_number(itemsize, "itemsize"))
        if units is None:
            room = block_bytes(sizes, nbytes, most, least) // nbytes
            starts = _starts(sizes, fixed, [1] * ndim, reduced, room)
            lengths = _auto_lengths(sizes, fixed, reach, room, starts)
        else:
            part = prod(sizes) * nbytes // FEWEST_STORE_BLOCKS
            room = max(least, min(STORE_BLOCK_BYTES, part)) // nbytes
            starts = _starts(sizes, fixed, units, reduced, room)
            lengths = _lengths_by_units(sizes, fixed, reach, units, room, starts)
        found = zip(axes, sizes, lengths, strict=True)
        return cls(
            tuple([Axis.regular(n, step) if axis is None else axis for axis, n, step in found])
        )

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def numblocks(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple([axis.count for axis in self.axes])

    def index(self, number: int) -> tuple[int, ...]:
        """Return the index of chunk `number`, one int per axis, in C order.

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
        if not 0 <= rest < self.size:
            raise self._outside(rest)
        place = []
        for axis in reversed(self.axes):
            rest, i = divmod(rest, axis.count)
            place.append(i)
        return tuple(place[::-1])

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
        if len(index) != self.ndim:
            axes = format_count(self.ndim, "axis", "axes")
            raise IndexError(f"index {tuple(index)} in a grid of {axes}")
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

        Examples
        --------
        >>> Grid.cut((10, 7), (4, 3)).core(8)
        (slice(8, 10, None), slice(6, 7, None))
        """
        rest = as_int(number)
        if not 0 <= rest < self.size:
            raise self._outside(rest)
        cell = []
        for axis in reversed(self.axes):
            # Why: index() and Axis.span() are written out here, since calls would double the
            # cost of this method, which runs once per chunk.
            rest, i = divmod(rest, axis.count)
            if axis.edges is None:
                start = i * axis.step
                stop = start + axis.step
                cell.append(slice(start, stop if stop < axis.size else axis.size))  # noqa: FURB136
            else:
                cell.append(axis[i])
        cell.reverse()
        return tuple(cell)

    def cutter(self) -> Callable[[int], tuple[slice, ...]]:
        """Return a faster :meth:`core`, for arrays of this shape.

        It does not check the number, and the last slice of an axis may extend beyond the axis.

        Examples
        --------
        >>> cut = Grid.cut((10, 7), (4, 3)).cutter()
        >>> cut(8)
        (slice(8, 12, None), slice(6, 9, None))
        """
        if len(self.axes) != 2 or any(axis.edges is not None for axis in self.axes):  # noqa: PLR2004
            return self.core
        (height, width), columns = [axis.step for axis in self.axes], self.axes[1].count

        def cell(number: int) -> tuple[slice, ...]:
            row = number // columns
            top, left = row * height, (number - row * columns) * width
            return slice(top, top + height), slice(left, left + width)

        return cell

    def _outside(self, number: int) -> IndexError:
        return IndexError(f"chunk {number} of a grid with {format_count(self.size, 'chunk')}")


def _parse_axis(entry: Any, size: int, where: str) -> Axis | None:
    """Read the entry of one axis in ``chunks=``; return None for "auto"."""
    if isinstance(entry, str):
        if entry != "auto":
            raise ValueError(f'{where}: {entry!r} is unknown, the only word is "auto"; {_REMEDY}')
        return None
    if isinstance(entry, (tuple, list)):
        numbers = [whole_number(n, f"{where}, entry {i}") for i, n in enumerate(entry)]
        if sum(numbers) != size:
            raise ValueError(
                f"{where}: lengths {brief(entry)} sum to {sum(numbers)}, not to {size}; pass the "
                "length of every chunk, or one int"
            )
        try:
            return Axis.explicit(numbers)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    try:
        step = whole_number(-1 if entry is None else entry, where)
    except TypeError:
        raise TypeError(f"{where}: {entry!r} is a {type(entry).__name__}; {_REMEDY}") from None
    # Why: a length that was worked out from the shape may be 0 where there is nothing to cut.
    if step < 1 and step != -1 and (step or size):
        raise ValueError(f"{where}: a chunk cannot have {step} elements; {_REMEDY}")
    return Axis.regular(size, step if step > 0 else max(1, size))


def block_bytes(
    shape: Sequence[int], itemsize: int, most: int = BLOCK_BYTES, least: int = LEAST_BYTES
) -> int:
    """Return the largest number of bytes that "auto" gives to a block.

    It is `most`, or less if the array would have fewer than 64 blocks, but at least `least`.

    Examples
    --------
    >>> block_bytes((1000, 1000), 8)
    125000
    """
    return max(least, min(most, prod(shape) * itemsize // FEWEST_BLOCKS))


def _starts(
    shape: Shape, fixed: Sequence[int | None], units: Shape, reduced: Sequence[int], room: int
) -> list[int]:
    """Return the least length of a block of "auto" along each axis, for axes that are reduced.

    Fewer elements than 64 are enough if they take more than the room of a block, as those of a
    store whose units are whole planes.

    Examples
    --------
    >>> _starts((100, 7, 1000), [None] * 3, (1, 1, 1), (0, 1), 1 << 17)
    [10, 7, 1]
    >>> _starts((1600, 4096, 4096), [None] * 3, (1, 4096, 4096), (0,), 1 << 20)
    [10, 1, 1]
    """
    others = [min(shape[k], fixed[k] or units[k]) for k in range(len(shape)) if k not in reduced]
    # Why the root: then the partial results take no more memory than the blocks of some workers.
    enough = isqrt(prod([shape[k] for k in reduced]) // _BLOCKS_AT_A_TIME)
    need = min(REDUCED_ELEMENTS, max(enough, room // max(1, prod(others))))
    starts = [1] * len(shape)
    for k in sorted(reduced, reverse=True):
        starts[k] = max(1, fixed[k] or min(shape[k], need))
        need = -(-need // starts[k])
    return starts


def _auto_lengths(
    shape: Shape, fixed: Sequence[int | None], reach: Shape, room: int, starts: Shape
) -> list[int]:
    """Choose chunk lengths, in elements, for the axes that are not fixed.

    Without a halo, blocks are contiguous in memory: the last axes are whole and the first axes
    are divided, since bands of rows are faster to read than tiles. Axes with a halo share the
    bytes of a block in proportion to its depth, which reads the fewest elements twice.

    Parameters
    ----------
    shape : sequence of int
        Elements along each axis.
    fixed : sequence of int or None
        Elements of the longest chunk; None for an axis whose chunks are to be chosen.
    reach : sequence of int
        Elements that the halo adds along each axis, on both sides together.
    room : int
        Largest size of a block, in elements.
    starts : sequence of int
        Least length of a block along each axis.

    Examples
    --------
    >>> _auto_lengths((10_000, 10_000), (None, None), (0, 0), 1 << 17, (1, 1))
    [13, 10000]
    >>> _auto_lengths((10_000, 10_000), (None, None), (4, 4), 1 << 17, (1, 1))
    [257, 500]
    >>> _auto_lengths((10_000, 10_000), (None, None), (0, 0), 1 << 17, (64, 1))
    [64, 2000]
    """
    free = [k for k, length in enumerate(fixed) if length is None]
    lengths = [
        max(start, min(size, 2 * around)) if length is None else max(1, length)
        for size, length, around, start in zip(shape, fixed, reach, starts, strict=True)
    ]
    weights = [around if length is None else 0 for around, length in zip(reach, fixed, strict=True)]
    if fixed and fixed[-1] is None:
        # Why: longer contiguous runs make up for a few more elements that are read twice.
        weights[-1] = max(2 * weights[-1], *weights)
    _widen(lengths, shape, weights, room)
    for k in reversed(free):
        left = room // prod(lengths[:k] + lengths[k + 1 :])
        lengths[k] = max(lengths[k], min(shape[k], left))
    for k in free:
        lengths[k] = _even(shape[k], lengths[k], 2 * reach[k])
    return lengths


def _lengths_by_units(
    shape: Shape,
    fixed: Sequence[int | None],
    reach: Shape,
    units: Shape,
    room: int,
    starts: Shape,
) -> list[int]:
    """Choose chunk lengths that are multiples of the units of stores, for the free axes.

    Along an axis with a halo a chunk has at least two units, since those of its neighbours are
    read again. It is also at least twice as long as the halo adds. The axes with a halo grow
    together; then the last axes grow first.

    Examples
    --------
    >>> _lengths_by_units((10_000, 10_000), (None, None), (0, 0), (512, 512), 3 << 20, (1, 1))
    [512, 6144]
    >>> _lengths_by_units((10_000, 10_000), (None, None), (6, 6), (512, 512), 3 << 20, (1, 1))
    [1536, 2048]
    """
    free = [k for k, length in enumerate(fixed) if length is None]
    lengths = [max(1, length or 1) for length in fixed]
    for k in free:
        pieces = max(2, -(-2 * reach[k] // units[k])) if reach[k] else -(-starts[k] // units[k])
        lengths[k] = max(1, min(shape[k], pieces * units[k]))
    growing = {k for k in free if reach[k] and lengths[k] < shape[k]}
    while growing:
        k = min(growing, key=lambda k: (lengths[k] / reach[k], -k))
        longer = min(shape[k], lengths[k] + units[k])
        if longer == lengths[k] or prod(lengths) // lengths[k] * longer > room:
            growing.remove(k)
        else:
            lengths[k] = longer
    for k in reversed(free):
        most = room // (prod(lengths) // lengths[k])
        longer = shape[k] if most >= shape[k] else most // units[k] * units[k]
        lengths[k] = max(lengths[k], longer)
    return lengths


def _widen(lengths: list[int], shape: Shape, weights: list[int], budget: int) -> None:
    """Lengthen in place, by an eighth at a time, the axis that is shortest for its weight."""
    growing = {k for k, weight in enumerate(weights) if weight}
    while growing:
        # Why: fixed point with 32 fractional bits, which distinguish any two useful ratios.
        k = max(growing, key=lambda k: ((weights[k] << 32) // lengths[k], k))
        longer = min(shape[k], lengths[k] + max(1, lengths[k] // 8))
        others = prod(lengths[:k] + lengths[k + 1 :])
        if longer <= lengths[k] or others * longer > budget:
            growing.remove(k)
        else:
            lengths[k] = longer


def _even(size: int, length: int, least: int) -> int:
    """Shorten `length` as far as the number of chunks allows, so that all are about equal."""
    count = -(-size // length)
    count = max(1, min(count, size // least) if least else count)
    return max(1, -(-size // count))

"""From a user's ``chunks=`` to the axes of a grid.

Imports :mod:`shmpar.grid.axis`, and from :mod:`shmpar.grid.halo` how a depth is read.

Guarantees
----------
What "auto" chooses depends on the shape, the itemsize and the halo's depth, and on nothing
else: never on the number of workers, so that a result does not either.  Arguments are checked
whole before anything is made of them.

A grid: how one array is cut into chunks, as a product of axes.

Imports :mod:`shmpar.grid.axis`, fixed, and what normalises a user's ``chunks=``.

Guarantees
----------
A grid is immutable and bound to one shape; it answers any question about any chunk from the
chunk's number alone.  The cells of all chunks tile the array exactly once.  Numbers are in C
order, and every bound is a plain int.  An array without elements has no chunks; one without
axes has a single chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from operator import index as as_int
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, TypeAlias

from shmpar.grid.axis import Axis, Fixed, axis_number, fix, per_axis, whole_number
from shmpar.grid.halo import parse_depth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shmpar.grid.axis import Axis
    from shmpar.grid.halo import Halo

__all__ = ["BLOCK_BYTES", "Chunks", "Grid", "auto_lengths", "block_bytes", "cut_axes"]

#: One axis: elements, -1 or None for a whole axis, "auto", or the length of every chunk.
AxisChunks: TypeAlias = int | str | Sequence[int] | None
#: One for all axes, one an axis, or a dict of axes, where a missing one is not cut.
Chunks: TypeAlias = int | str | Sequence[AxisChunks] | Mapping[int, AxisChunks] | None

LEAST_BYTES = 64 * 1024
BLOCK_BYTES = 1024 * 1024
"""What "auto" makes a block at most, for functions whose temporaries are to stay in the cache."""
FEWEST_BLOCKS = 64

_REMEDY = 'pass a positive int, -1 or None for the whole axis, "auto", or a tuple of lengths'


def cut_axes(
    shape: Sequence[int],
    chunks: Chunks,
    *,
    itemsize: int,
    depth: Any,
    whole: Iterable[int],
    most: int = BLOCK_BYTES,
) -> tuple[Axis, ...]:
    """Cut each axis of an array; arguments as in :meth:`shmpar.grid.Grid.cut`.

    Raises
    ------
    TypeError, ValueError
        For anything in `chunks`, `depth` or `whole` that does not fit the shape.

    Examples
    --------
    >>> cut_axes((9, 4), (4, None), itemsize=8, depth=None, whole=())
    (Axis(size=9, step=4, count=3, edges=None), Axis(size=4, step=4, count=1, edges=None))
    """
    sizes = _sizes(shape)
    entries = per_axis(
        "chunks", chunks, len(sizes), missing=None, array=f"an array of shape {sizes}"
    )
    axes = [
        _cut_one(entry, size, f"chunks={brief(chunks)}, axis {k} of shape {sizes}")
        for k, (entry, size) in enumerate(zip(entries, sizes, strict=True))
    ]
    uncut = {axis_number(axis, len(sizes), f"whole={whole}") for axis in whole}
    reach = [sum(pair) for pair in parse_depth(0 if depth is None else depth, len(sizes))]
    fixed = [
        axis.step if axis is not None else (size if k in uncut else None)
        for k, (axis, size) in enumerate(zip(axes, sizes, strict=True))
    ]
    lengths = auto_lengths(sizes, fixed, whole_number(itemsize, "itemsize"), reach, most)
    return tuple(
        Axis.regular(size, length) if axis is None else axis
        for axis, size, length in zip(axes, sizes, lengths, strict=True)
    )


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(whole_number(size, f"shape={tuple(shape)}") for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape={sizes}: an axis cannot have fewer than 0 elements")
    return sizes


def _cut_one(entry: Any, size: int, where: str) -> Axis | None:
    """Cut one axis by its entry of ``chunks=``; None leaves it to "auto"."""
    if entry is None:
        return Axis.regular(size, max(1, size))
    if isinstance(entry, str):
        if entry != "auto":
            raise ValueError(f'{where}: {entry!r} is unknown, the only word is "auto"; {_REMEDY}')
        return None
    if isinstance(entry, (tuple, list)):
        return _cut_by_lengths(entry, size, where)
    try:
        step = whole_number(entry, where)
    except TypeError:
        raise TypeError(f"{where}: {entry!r} is a {type(entry).__name__}; {_REMEDY}") from None
    if step < 1 and step != -1:
        raise ValueError(f"{where}: a chunk cannot have {step} elements; {_REMEDY}")
    return Axis.regular(size, step if step > 0 else max(1, size))


def _cut_by_lengths(lengths: Sequence[Any], size: int, where: str) -> Axis:
    numbers = [whole_number(n, f"{where}, entry {i}") for i, n in enumerate(lengths)]
    if sum(numbers) != size:
        raise ValueError(
            f"{where}: lengths {brief(lengths)} sum to {sum(numbers)}, not to {size}; pass the "
            f"length of every chunk, or one int"
        )
    try:
        return Axis.explicit(numbers)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def block_bytes(shape: Sequence[int], itemsize: int, most: int = BLOCK_BYTES) -> int:
    """Return the bytes that "auto" aims at for one block, which no block exceeds by itself.

    `most` (1 MiB), less where that would give fewer than 64 blocks, but 64 KiB at the least.

    Examples
    --------
    >>> block_bytes((1000, 1000), 8)
    125000
    """
    return min(most, max(LEAST_BYTES, prod(shape) * itemsize // FEWEST_BLOCKS))


def auto_lengths(
    shape: Sequence[int],
    fixed: Sequence[int | None],
    itemsize: int,
    reach: Sequence[int],
    most: int = BLOCK_BYTES,
) -> list[int]:
    """Choose chunk lengths, in elements, for the axes that are not fixed.

    Without a halo, blocks are runs of memory: the last axes whole, the first ones cut, because
    a tile of an image is twice as slow to stream as a band of rows with as many bytes.  Axes
    with a halo share what there is in proportion to it, which reads the fewest elements twice.

    Parameters
    ----------
    shape : sequence of int
        Elements along each axis.
    fixed : sequence of int or None
        Elements of the longest chunk where that is settled, None where it is to be chosen.
    itemsize : int
        Bytes of one element.
    reach : sequence of int
        What the halo adds along each axis, both sides together, in elements.
    most : int
        Bytes that a block may have.

    Examples
    --------
    >>> auto_lengths((10_000, 10_000), (None, None), 8, (0, 0))
    [13, 10000]
    >>> auto_lengths((10_000, 10_000), (None, None), 8, (4, 4))
    [257, 500]
    """
    free = [k for k, length in enumerate(fixed) if length is None]
    budget = block_bytes(shape, max(1, itemsize), most) // max(1, itemsize)
    lengths = [
        max(1, min(size, 2 * around)) if length is None else max(1, length)
        for size, length, around in zip(shape, fixed, reach, strict=True)
    ]
    _widen(lengths, shape, _weights(free, reach), budget)
    for k in reversed(free):
        room = budget // prod(lengths[:k] + lengths[k + 1 :])
        lengths[k] = max(lengths[k], min(shape[k], room))
    for k in free:
        lengths[k] = _even(shape[k], lengths[k], 2 * reach[k])
    return lengths


def _weights(free: Sequence[int], reach: Sequence[int]) -> dict[int, int]:
    """Return how much each free axis gains from length, for those that gain anything."""
    weights = {k: reach[k] for k in free}
    last = len(reach) - 1
    if last in weights:
        # Longer runs of memory are worth a few elements more that are read twice.
        weights[last] = max(2 * weights[last], *weights.values(), 0)
    return {k: weight for k, weight in weights.items() if weight}


def _widen(lengths: list[int], shape: Sequence[int], weights: dict[int, int], budget: int) -> None:
    """Lengthen, in place and by an eighth at a time, the axis that is short for its weight."""
    growing = set(weights)
    while growing:
        # Compared as integers: 32 bits below the point tell any two useful ratios apart.
        k = max(growing, key=lambda k: ((weights[k] << 32) // lengths[k], k))
        longer = min(shape[k], lengths[k] + max(1, lengths[k] // 8))
        others = prod(lengths[:k] + lengths[k + 1 :])
        if longer <= lengths[k] or others * longer > budget:
            growing.remove(k)
        else:
            lengths[k] = longer


def _even(size: int, length: int, least: int) -> int:
    """Shorten `length` as far as the number of chunks allows, so that the last is no sliver."""
    count = -(-size // length)
    if least:
        count = min(count, size // least)
    count = max(1, count)
    return max(1, -(-size // count))


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

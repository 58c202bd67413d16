"""The plan of a call: all that a worker needs to compute a chunk, except function and memory.

A verb makes a plan once per call, and it is the same for every worker and engine.

==============  =====================================================================
part            owns
==============  =====================================================================
verb            the meaning of the arguments; makes the plan
plan            the grid, the arguments of a chunk, the place of its result
scheduler       the chunks that are still to be computed
engine          processes or threads, memory in them, messages
worker          one chunk at a time: calls the function, checks and stores its result
==============  =====================================================================
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from shmpar.errors import format_count
from shmpar.grid import Axis, Grid, Halo

Shape = tuple[int, ...]
Window = tuple[slice | int, ...]
DType = np.dtype[Any]


KEY_BYTES = 16

SMALLER_WINDOW = 'pass a smaller depth=, shorter chunks=, or boundary="none", which pads nothing'
CAST_RESULTS = "pass dtype= (or out=) to have results cast"


class ResultError(Exception):
    """The result of the function does not fit; the message names the reason and the remedy."""


class PerChunk:
    """Placement of the chunk with index ``(i, j)`` at ``out[i, j]``."""

    def shape(self, grid: Grid, result: Shape) -> Shape:
        """Return the shape of the whole output, from the shape of the result of one chunk."""
        return (*grid.numblocks, *result)

    def windows(self, grid: Grid, shape: Shape | None = None) -> Callable[[int], Window]:
        """Return the function from a chunk number to its window in an output.

        The windows of an output of known `shape` are faster. They may extend beyond the output,
        and have no ellipsis.
        """
        return grid.index


class PerItem(PerChunk):
    """Placement of chunk ``i`` at ``out[i]``, for a grid of one axis with chunks of one element."""

    def windows(self, grid: Grid, shape: Shape | None = None) -> Callable[[int], Window]:
        """Return the function from a chunk number to the index of the chunk."""
        return lambda chunk: (chunk,)


class InBlocks(NamedTuple):
    """Placement of blocks beside one another.

    Attributes
    ----------
    axes : tuple of (int or None)
        For each axis of the output, the axis of the grid that it corresponds to; None for a new
        axis.
    cuts : tuple of (Axis or None)
        Chunks along each axis of the output; None for an axis in one chunk of any length.
    """

    axes: tuple[int | None, ...]
    cuts: tuple[Axis | None, ...]

    @classmethod
    def exactly(cls, grid: Grid) -> Self:
        """Make the placement of blocks that have the lengths of the chunks of the grid."""
        return cls(tuple(range(grid.ndim)), grid.axes)

    @classmethod
    def like(cls, grid: Grid) -> Self:
        """Make the placement of blocks that may have any length along an axis in one chunk."""
        cuts = tuple([axis if axis.count != 1 else None for axis in grid.axes])
        return cls(tuple(range(grid.ndim)), cuts)

    def shape(self, grid: Grid, result: Shape) -> Shape:
        """Return the shape of the whole output; axes in one chunk have the result's length."""
        axes = len(self.axes)
        if len(result) == axes:
            pairs = zip(self.cuts, result, strict=True)
            return tuple([length if cut is None else cut.size for cut, length in pairs])
        raise ResultError(explain_axes(result, axes))

    def follows(self, grid: Grid, shape: Shape | None) -> bool:
        """Return whether an output of this shape has the same cells as the grid."""
        if shape != grid.shape or self.axes != tuple(range(grid.ndim)):
            return False
        pairs = zip(self.cuts, grid.axes, strict=True)
        return all(len(axis) == 1 if cut is None else cut == axis for cut, axis in pairs)

    def lengths(self, grid: Grid, chunk: int) -> tuple[int | None, ...]:
        """Return the lengths of the block of a chunk in the output; None for any length."""
        index = grid.index(chunk)
        pairs = zip(self.axes, self.cuts, strict=True)
        spans = [
            None if cut is None else cut.span(index[k] if k is not None else 0) for k, cut in pairs
        ]
        return tuple([None if span is None else span[1] - span[0] for span in spans])

    def windows(self, grid: Grid, shape: Shape | None = None) -> Callable[[int], Window]:
        """Return the function from a chunk number to the window of the block."""
        if self.follows(grid, shape):
            return grid.cutter()
        pairs = list(zip(self.axes, self.cuts, strict=True))

        def window(chunk: int) -> Window:
            index = grid.index(chunk)
            return tuple(
                [slice(None) if k is None or cut is None else cut[index[k]] for k, cut in pairs]
            )

        return window


class Along(NamedTuple):
    """Placement of blocks in which the axes of a line's result replace the axis of the line.

    Attributes
    ----------
    axis : int
        Axis of the lines, which lies in one chunk.
    """

    axis: int

    def shape(self, grid: Grid, result: Shape) -> Shape:
        """Return the shape of the output of :func:`numpy.apply_along_axis`."""
        middle = result[self.axis : len(result) - (grid.ndim - 1 - self.axis)]
        return (*grid.shape[: self.axis], *middle, *grid.shape[self.axis + 1 :])

    def windows(self, grid: Grid, shape: Shape | None = None) -> Callable[[int], Window]:
        """Return the function from a chunk number to the window of the block."""
        middle: Any = (...,) if shape is None else (slice(None),) * (len(shape) - grid.ndim + 1)

        def window(chunk: int) -> Window:
            cell = grid.core(chunk)
            return (*cell[: self.axis], *middle, *cell[self.axis + 1 :])

        return window


Placement = PerChunk | InBlocks | Along


class Blocks(NamedTuple):
    """Argument of which each chunk gets a block.

    Attributes
    ----------
    array : int
        Index among the arrays of the run.
    axes : tuple of (int or None)
        For each axis of the array, the axis of the grid; None for an axis that stays whole.
    halo : Halo or None
        Halo of the block, along the axes of the array.
    """

    array: int
    axes: tuple[int | None, ...]
    halo: Halo | None = None


class Rows(NamedTuple):
    """Argument of which chunk ``i`` gets ``arrays[array][i]``.

    Attributes
    ----------
    array : int
        Index among the arrays of the run.
    axis : int
        Axis of the rows in the array of the user; here they lie along the first one.
    """

    array: int
    axis: int = 0


class Items(NamedTuple):
    """Argument of which chunk ``i`` gets item ``i`` of the sequence ``values[value]``."""

    value: int


class Whole(NamedTuple):
    """Argument of which every chunk gets ``values[value]``."""

    value: int


Argument = Blocks | Rows | Items | Whole


class Output(NamedTuple):
    """Shape, in elements, and dtype of one whole output."""

    shape: Shape
    dtype: DType


class Announcement(NamedTuple):
    """Shapes and dtypes of the outputs, as declared or as derived from the first result.

    Attributes
    ----------
    outputs : tuple of Output
        One per output; empty if the function returns None.
    is_tuple : bool
        The function, and so the verb, returns a tuple.
    chunk : int
        The chunk of the first result; -1 if the outputs were declared.
    """

    outputs: tuple[Output, ...]
    is_tuple: bool
    chunk: int = -1

    def pack(self) -> tuple[Any, ...]:
        """Return it as plain tuples, which pickle faster."""
        return tuple((shape, spell(dtype)) for shape, dtype in self.outputs), *self[1:]

    @classmethod
    def unpack(cls, packed: tuple[Any, ...]) -> Self:
        """Make it from the result of :meth:`pack`."""
        outputs = tuple(Output(shape, np.dtype(dtype)) for shape, dtype in packed[0])
        return cls(outputs, *packed[1:])

    def digest(self) -> int:
        """Return a number that is equal for announcements that agree; never 0."""
        # Why: equal dtypes may differ in metadata, which str() omits.
        names = [str(dtype) if dtype.kind == "V" else dtype.str for _, dtype in self.outputs]
        shapes = [shape for shape, _ in self.outputs]
        return 1 + zlib.crc32(repr((shapes, names, self.is_tuple)).encode())

    def disagrees(self, first: Self) -> str | None:
        """Return how the result differs from the first result, or None if it does not."""
        if self[:2] == first[:2]:
            return None
        if not self.outputs or not first.outputs or self.is_tuple != first.is_tuple:
            return "the function returned another kind of result here than for another chunk"
        for mine, other in zip(self.outputs, first.outputs, strict=False):
            if mine.dtype != other.dtype:
                here = f"the function returned dtype {mine.dtype} here but {other.dtype} for"
                return f"{here} another chunk; {CAST_RESULTS}"
            if mine.shape != other.shape:
                here = f"the function's result makes an output of shape {mine.shape}, but"
                due = f"{other.shape} by another chunk"
                return f"{here} {due}; every chunk must return the same shape"
        here = f"the function returned {format_count(len(self.outputs), 'output')} here but"
        return f"{here} {len(first.outputs)} for another chunk"


def spell(dtype: DType) -> str | DType:
    """Return the argument of :class:`numpy.dtype` for this dtype that pickles fastest.

    Examples
    --------
    >>> spell(np.dtype("f4")), spell(np.dtype([("a", "u1")]))
    ('<f4', dtype([('a', 'u1')]))
    """
    return dtype.str if dtype.kind in "?biufcSUmM" and dtype.metadata is None else dtype


class ResultsFile(NamedTuple):
    """A file to which workers append the results of items, for ``ledger=``.

    Attributes
    ----------
    path : str
        Absolute path.
    keys : bytes
        For each chunk, `KEY_BYTES` that identify its item in the call.
    """

    path: str
    keys: bytes

    def key(self, chunk: int) -> bytes:
        """Return the key of the item of a chunk."""
        return self.keys[chunk * KEY_BYTES : (chunk + 1) * KEY_BYTES]


class Plan(NamedTuple):
    """A call of a verb, without its function and its memory.

    Attributes
    ----------
    verb : str
        Name of the verb, for messages.
    grid : Grid
        Chunks of the input.
    arguments : tuple of Argument
        Arguments of the function, in order.
    placement : Placement
        Position of the results in the outputs.
    halo : Halo or None
        Halo of the results along the axes of the grid; None if no block has a halo.
    trim : bool
        The halo is removed from the result.
    dtypes : tuple of (dtype or None) or None
        Dtypes declared by ``dtype=`` or ``out=``, to which results are cast. Without one, each
        result must have the dtype of the first.
    is_tuple : bool or None
        The function returns a tuple; None: the first result decides.
    returns_objects : bool
        Results are Python objects, which are pickled.
    special_parameters : frozenset of str
        Those of ``block_id``, ``block_info`` and ``rng`` that are passed to the function.
    pass_out : bool
        The function is passed its window of the output as ``out``.
    seed : int, sequence of int or None
        Entropy of the random streams of the run.
    fail_fast : bool
        The first exception stops the run.
    timed : bool
        Workers record when they begin a chunk.
    check : bool
        Workers verify that each window is written once and whole.
    results_file : ResultsFile or None
        Where workers record results that are objects.
    base : int
        Number of the chunk that the ledger and the tickets call 0. So the ledger of a host has the
        chunks of its span alone. Grid, windows and the function keep the numbers of the whole call.
    span : int or None
        Number of the chunks of a span of the call, which begins at `base`; None: the whole call.
    """

    verb: str
    grid: Grid
    arguments: tuple[Argument, ...]
    placement: Placement
    halo: Halo | None = None
    trim: bool = True
    dtypes: tuple[DType | None, ...] | None = None
    is_tuple: bool | None = None
    returns_objects: bool = False
    special_parameters: frozenset[str] = frozenset()
    pass_out: bool = False
    seed: Any = None
    fail_fast: bool = True
    timed: bool = False
    check: bool = False
    results_file: ResultsFile | None = None
    base: int = 0
    span: int | None = None

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self.grid.size if self.span is None else self.span

    def region(self, chunk: int) -> tuple[slice, ...]:
        """Return the cell of a chunk, half-open, in array coordinates."""
        return self.grid.core(chunk)

    def window(self, chunk: int) -> Window:
        """Return the window of a chunk in an output."""
        return self.placement.windows(self.grid)(chunk)

    def check_shape(self, out: Any) -> None:
        """Raise ``ValueError`` if `out` cannot have the shape of the output."""
        places = ", ".join(map(str, self.grid.numblocks))
        due = f"({places}, ...) with the axes of a result at the end"
        fits = out.shape[: self.grid.ndim] == self.grid.numblocks
        if isinstance(self.placement, InBlocks):
            lengths = tuple([None if cut is None else cut.size for cut in self.placement.cuts])
            due, fits = describe_shape(lengths), fits_shape(out.shape, lengths)
        if not fits:
            found = f"{self.verb}: out= has shape {out.shape}"
            raise ValueError(f"{found}; the results make an array of shape {due}")

    def windows(self, chunk: int, outputs: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
        """Return the views of the outputs that belong to a chunk; read those of a store."""
        where: tuple[Any, ...] = self.window(chunk)
        if ... not in where:
            where = (*where, ...)  # Why: without an ellipsis, a scalar would be copied
        return [output[where] for output in outputs]


class Function(NamedTuple):
    """The function of the user and its arguments that are not arrays.

    Attributes
    ----------
    call : callable
        The function.
    keywords : dict
        Keyword arguments.
    values : tuple
        Constants, and sequences of items.
    """

    call: Callable[..., Any]
    keywords: dict[str, Any]
    values: tuple[Any, ...]


def window_bounds(window: Window, shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first element of a window along each axis of an array, and the end.

    An axis that the window does not name is whole; it has no ellipsis.

    Examples
    --------
    >>> window_bounds((2, slice(1, None)), (4, 5, 6))
    [(2, 3), (1, 5), (0, 6)]
    """
    named = [
        part.indices(length)[:2] if isinstance(part, slice) else (part, part + 1)
        for part, length in zip(window, shape, strict=False)
    ]
    return [*named, *[(0, length) for length in shape[len(named) :]]]


def window_around(first: Window, last: Window, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the smallest window of an array that contains two windows.

    Examples
    --------
    >>> window_around((0, slice(2, 4)), (1, slice(0, 2)), (3, 4))
    (slice(0, 2, None), slice(0, 4, None))
    """
    pairs = zip(window_bounds(first, shape), window_bounds(last, shape), strict=True)
    return tuple([slice(min(a, b), max(c, d)) for (a, c), (b, d) in pairs])


def fits_shape(shape: Shape, due: Sequence[int | None]) -> bool:
    """Return whether a shape has these lengths; None stands for any length."""
    pairs = zip(due, shape, strict=False)
    return len(shape) == len(due) and all(n is None or n == found for n, found in pairs)


def describe_shape(due: Sequence[int | None]) -> str:
    """Format a shape in which None stands for any length.

    Examples
    --------
    >>> describe_shape((3, 5)), describe_shape((1000, None))
    ('(3, 5)', '(1000, n) for any n')
    """
    if None not in due:
        return str(tuple(due))
    names = iter("nmklpqrs" * len(due))
    lengths = [next(names) if length is None else str(length) for length in due]
    free = ", ".join([length for length in lengths if length.isalpha()])
    return f"({', '.join(lengths)}{',' * (len(due) == 1)}) for any {free}"


def explain_axes(result: Shape, axes: int) -> str:
    """Return the message for a result with another number of axes than its block.

    Examples
    --------
    >>> explain_axes((), 2)
    'the function returned a scalar where a block is due; use block_reduce for that'
    """
    if not result:
        return "the function returned a scalar where a block is due; use block_reduce for that"
    remedy = "drops in drop_axis" if len(result) < axes else "adds in new_axis"
    due = f"a block is due with {format_count(axes, 'axis', 'axes')}"
    return f"the function returned shape {result} where {due}; name the axes that it {remedy}"


def describe_region(region: Sequence[slice]) -> str:
    """Format a window as in an index expression.

    Examples
    --------
    >>> describe_region((slice(0, 10), slice(20, 30)))
    '[0:10, 20:30]'
    """
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"

"""Where the result of a chunk goes in an output.

Imports grid.

The plan: all that a worker needs, besides the function and the memory, to compute any chunk.

Imports grid and placement.  A plan is made by a verb, once a call, and is the same for every worker
and engine.

==============  =====================================================================
who             owns
==============  =====================================================================
verb            the meaning of the arguments; makes the plan
plan            the grid, how a chunk's arguments are cut, where its result goes
scheduler       which chunks are still to be computed
engine          processes or threads, memory in them, messages
worker          one chunk at a time: calls the function, checks and stores its result
==============  =====================================================================
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmpar.grid import Axis, Grid, Halo

__all__ = [
    "Along",
    "Announcement",
    "Argument",
    "Blocks",
    "Failure",
    "Function",
    "InBlocks",
    "Items",
    "Output",
    "PerChunk",
    "PerItem",
    "Placement",
    "Plan",
    "ResultError",
    "Rows",
    "Whole",
    "describe_region",
]

Shape = tuple[int, ...]


class ResultError(Exception):
    """What the function returned does not fit; the message says how and what to do."""


class Placement(Protocol):
    """Where the result of a chunk goes in an output."""

    def shape(self, grid: Grid, index: Shape, result: Shape) -> Shape:
        """Shape of the whole output, from the shape of one chunk's result."""
        ...

    def window(self, grid: Grid, index: Shape) -> tuple[slice | int, ...]:
        """The chunk's window in the output."""
        ...

    def windows(self, grid: Grid, shape: Shape) -> Callable[[int], tuple[slice | int, ...]]:
        """The function from a chunk's number to its window in an output of this shape."""
        ...


class PerItem(NamedTuple):
    """Chunk ``i`` goes to ``out[i]``."""

    kind: str = "item"  # tuples are equal if their fields are, and plans are looked up by them

    def shape(self, grid: Grid, index: Shape, result: Shape) -> Shape:
        """Shape of the whole output: ``(items, *result)``."""
        return (grid.size, *result)

    def window(self, grid: Grid, index: Shape) -> tuple[slice | int, ...]:
        """The item's place."""
        return index

    def windows(self, grid: Grid, shape: Shape) -> Callable[[int], tuple[slice | int, ...]]:
        """The item's number is its place."""
        return lambda chunk: (chunk,)


class PerChunk(NamedTuple):
    """The chunk with index ``(i, j)`` goes to ``out[i, j]``."""

    kind: str = "chunk"

    def shape(self, grid: Grid, index: Shape, result: Shape) -> Shape:
        """Shape of the whole output: ``numblocks + result``."""
        return (*grid.numblocks, *result)

    def window(self, grid: Grid, index: Shape) -> tuple[slice | int, ...]:
        """The chunk's place."""
        return index

    def windows(self, grid: Grid, shape: Shape) -> Callable[[int], tuple[slice | int, ...]]:
        """The chunk's index is its place."""
        return grid.index


class InBlocks(NamedTuple):
    """Results are blocks that are put together.

    Attributes
    ----------
    axes : tuple of (int or None)
        For each axis of the output the grid's axis that it comes from; None for a new one.
    cuts : tuple of (Axis or None)
        How each axis of the output is cut; None where it lies in one chunk, which may have any
        length.
    """

    axes: tuple[int | None, ...]
    cuts: tuple[Axis | None, ...]

    @classmethod
    def exactly(cls, grid: Grid) -> InBlocks:
        """Blocks of the output have the lengths of the grid's chunks, whatever those are."""
        return cls(tuple(range(grid.ndim)), grid.axes)

    @classmethod
    @functools.lru_cache(maxsize=64)
    def like(cls, grid: Grid) -> InBlocks:
        """Blocks of the output lie where the chunks of the grid do."""
        cuts = tuple(axis if len(axis) != 1 else None for axis in grid.axes)
        return cls(tuple(range(grid.ndim)), cuts)

    def shape(self, grid: Grid, index: Shape, result: Shape) -> Shape:
        """Shape of the whole output; axes in one chunk have the result's length."""
        if len(result) != len(self.axes):
            raise ResultError(self._wrong_ndim(grid, result))
        return tuple(
            length if cut is None else cut.size
            for cut, length in zip(self.cuts, result, strict=True)
        )

    def window(self, grid: Grid, index: Shape) -> tuple[slice | int, ...]:
        """The block's window, half-open, in elements of the output."""
        return tuple(
            slice(None) if cut is None or axis is None else slice(*cut.span(index[axis]))
            for axis, cut in zip(self.axes, self.cuts, strict=True)
        )

    def follows(self, grid: Grid, shape: Shape) -> bool:
        """Whether an output of this shape is cut like the input."""
        if shape != grid.shape or self.axes != tuple(range(grid.ndim)):
            return False
        pairs = zip(self.cuts, grid.axes, strict=True)
        return all(len(axis) == 1 if cut is None else cut == axis for cut, axis in pairs)

    def windows(self, grid: Grid, shape: Shape) -> Callable[[int], tuple[slice | int, ...]]:
        """Where the output is cut like the input, the chunk's own cell."""
        if self.follows(grid, shape):
            return grid.cutter()
        return lambda chunk: self.window(grid, grid.index(chunk))

    def _wrong_ndim(self, grid: Grid, result: Shape) -> str:
        said = f"the function returned an array of shape {result} where a block is due"
        if not result:
            return "the function returned a scalar where a block is due; use block_reduce for that"
        if len(result) < len(self.axes):
            return f"{said} with {len(self.axes)} axes; name the axes that it drops in drop_axis"
        return f"{said} with {len(self.axes)} axes; name the axes that it adds in new_axis"


class Along(NamedTuple):
    """Blocks in which one axis, that is not cut, is replaced by the axes of a line's result.

    Attributes
    ----------
    axis : int
        Which one.
    """

    axis: int

    def shape(self, grid: Grid, index: Shape, result: Shape) -> Shape:
        """Shape of the whole output, as :func:`numpy.apply_along_axis`."""
        middle = result[self.axis : len(result) - (grid.ndim - 1 - self.axis)]
        return (*grid.shape[: self.axis], *middle, *grid.shape[self.axis + 1 :])

    def window(self, grid: Grid, index: Shape) -> tuple[slice | int, ...]:
        """The block's window, with an ellipsis for the axes of a line's result."""
        cell = [slice(*axis.span(i)) for axis, i in zip(grid.axes, index, strict=True)]
        middle: Any = ...
        return (*cell[: self.axis], middle, *cell[self.axis + 1 :])

    def windows(self, grid: Grid, shape: Shape) -> Callable[[int], tuple[slice | int, ...]]:
        """Windows whose axes are all there."""
        middle = (slice(None),) * (len(shape) - (grid.ndim - 1))

        def window(chunk: int) -> tuple[slice | int, ...]:
            cell = grid.core(chunk)
            return (*cell[: self.axis], *middle, *cell[self.axis + 1 :])

        return window


DType = np.dtype[Any]


class Blocks(NamedTuple):
    """An array that is cut by the grid.

    Attributes
    ----------
    array : int
        Its place among the run's arrays.
    axes : tuple of (int or None)
        For each of its axes, the grid's axis that cuts it, or None if it arrives whole.
    """

    array: int
    axes: tuple[int | None, ...]


class Rows(NamedTuple):
    """An array of which chunk ``i`` gets ``array[i]``; `array` is its place among the arrays."""

    array: int
    kind: str = "rows"  # tuples are equal if their fields are, and plans are looked up by them


class Items(NamedTuple):
    """A sequence of which chunk ``i`` gets item ``i``; `value` is its place among the values."""

    value: int
    kind: str = "items"


class Whole(NamedTuple):
    """An argument that every call gets as it is; `value` is its place among the values."""

    value: int
    kind: str = "whole"


Argument = Blocks | Rows | Items | Whole


class Output(NamedTuple):
    """Shape (elements) and dtype of one whole output."""

    shape: Shape
    dtype: DType


class Announcement(NamedTuple):
    """What the first result says of the outputs.

    Attributes
    ----------
    outputs : tuple of Output
        One an output; empty if the function returns None.
    is_tuple : bool
        Whether the function returns a tuple, and so the verb.
    chunk : int
        The chunk whose result it was; -1 if the outputs were declared.
    """

    outputs: tuple[Output, ...]
    is_tuple: bool
    chunk: int = -1

    def pack(self) -> tuple[Any, ...]:
        """As plain tuples, which pickle in a third of the time."""
        outputs = tuple((shape, spell(dtype)) for shape, dtype in self.outputs)
        return outputs, self.is_tuple, self.chunk

    @classmethod
    def unpack(cls, packed: tuple[Any, ...]) -> Announcement:
        """What :meth:`pack` made."""
        outputs, is_tuple, chunk = packed
        return cls(
            tuple(Output(shape, np.dtype(dtype)) for shape, dtype in outputs), is_tuple, chunk
        )

    def digest(self) -> int:
        """A number that is equal for announcements that agree; never 0."""
        return _digest(self.outputs, self.is_tuple)

    def disagrees(self, first: Announcement) -> str | None:
        """Say in what the result differs from the first one; None if it does not."""
        if self[:2] == first[:2]:
            return None
        if not self.outputs or not first.outputs or self.is_tuple != first.is_tuple:
            return "the function returned another kind of result here than for the first chunk"
        for mine, other in zip(self.outputs, first.outputs, strict=False):
            if mine.dtype != other.dtype:
                return (
                    f"the function returned dtype {mine.dtype} here but {other.dtype} for the "
                    f"first chunk; pass dtype= (or out=) to have results cast"
                )
            if mine.shape != other.shape:
                return (
                    f"the function's result makes an output of shape {mine.shape}, but "
                    f"{other.shape} by the first chunk; every chunk must return the same shape"
                )
        return (
            f"the function returned {len(self.outputs)} outputs here but "
            f"{len(first.outputs)} for the first chunk"
        )


@functools.lru_cache(maxsize=64)
def _digest(outputs: tuple[Output, ...], is_tuple: bool) -> int:
    said = [(shape, spell(dtype)) for shape, dtype in outputs], is_tuple
    return 1 + zlib.crc32(repr(said).encode())


def spell(dtype: DType) -> str | DType:
    """A dtype as what is quickest to pickle, and is that dtype again to :class:`numpy.dtype`.

    Examples
    --------
    >>> spell(np.dtype("f4")), spell(np.dtype([("a", "u1")]))
    ('<f4', dtype([('a', 'u1')]))
    """
    return dtype.str if dtype.kind in "?biufcSUmM" and dtype.metadata is None else dtype


class Plan(NamedTuple):
    """One call of a verb, without its function and its memory.

    Attributes
    ----------
    verb : str
        Its name, for messages.
    grid : Grid
        How the input is cut.
    arguments : tuple of Argument
        What the function gets for a chunk, in order.
    placement : Placement
        Where its result goes.
    halo : Halo or None
        How far blocks reach over their chunk.
    trim : bool
        Whether the halo is cut off the result.
    dtypes : tuple of (dtype or None) or None
        What the user declared, by ``dtype=`` or ``out=``: results are cast to it. None: each
        result must have the dtype of the first.
    is_tuple : bool or None
        Whether the function returns a tuple; None: the first result says.
    returns_objects : bool
        Results are objects that travel by pickle.
    special_parameters : frozenset of str
        Which of ``block_id``, ``block_info`` and ``rng`` the function is passed.
    pass_out : bool
        The function is passed its window of the output as ``out``.
    seed : int, sequence of int or None
        Entropy of the run's random streams.
    fail_fast : bool
        The first exception stops the run.
    timed : bool
        Workers note when they began with a chunk.
    check : bool
        Workers look whether windows are written once and whole.
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

    def __hash__(self) -> int:
        """Of what differs most often: plans are looked up at each call."""
        return hash((self.verb, self.grid, self.seed))

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return self.grid.size

    def region(self, chunk: int) -> tuple[slice, ...]:
        """The chunk's window in array coordinates, half-open."""
        return self.grid.core(chunk)

    def window(self, chunk: int) -> tuple[slice | int, ...]:
        """The chunk's window in an output."""
        return self.placement.window(self.grid, self.grid.index(chunk))

    def windows(
        self, chunk: int, outputs: Sequence[np.ndarray[Any, Any]]
    ) -> list[np.ndarray[Any, Any]]:
        """The chunk's views of the outputs."""
        where: tuple[Any, ...] = self.window(chunk)
        if ... not in where:  # else the window of a scalar would be a copy, not a view
            where = (*where, ...)
        return [output[where] for output in outputs]


class Function(NamedTuple):
    """The user's function with what it is called with.

    Attributes
    ----------
    call : callable
        The function.
    keywords : dict
        Its ``kwargs``.
    values : tuple
        Arguments that are no arrays: constants, and sequences of items.
    """

    call: Callable[..., Any]
    keywords: dict[str, Any]
    values: tuple[Any, ...]


class Failure(NamedTuple):
    """One chunk that failed.

    Attributes
    ----------
    chunk : int
        Its number.
    error : BaseException
        What the function raised, or a :class:`ResultError`.
    shape : tuple of int or None
        Shape of the block that the function got.
    """

    chunk: int
    error: BaseException
    shape: tuple[int, ...] | None


def describe_region(region: Sequence[slice]) -> str:
    """Write a window as it would be typed.

    Examples
    --------
    >>> describe_region((slice(0, 10), slice(20, 30)))
    '[0:10, 20:30]'
    """
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"

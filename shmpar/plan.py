"""The plan: all that a worker needs, besides the function and the memory, to compute any chunk.

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
from typing import Any, NamedTuple

import numpy as np

from shmpar.grid import Grid, Halo
from shmpar.placement import Placement

__all__ = [
    "Announcement",
    "Argument",
    "Blocks",
    "Failure",
    "Function",
    "Items",
    "Output",
    "Plan",
    "Rows",
    "Whole",
    "describe_region",
]

Shape = tuple[int, ...]
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
    several : bool
        Whether the function returns a tuple, and so the verb.
    chunk : int
        The chunk whose result it was; -1 if the outputs were declared.
    """

    outputs: tuple[Output, ...]
    several: bool
    chunk: int = -1

    def pack(self) -> tuple[Any, ...]:
        """As plain tuples, which pickle in a third of the time."""
        outputs = tuple((shape, spell(dtype)) for shape, dtype in self.outputs)
        return outputs, self.several, self.chunk

    @classmethod
    def unpack(cls, packed: tuple[Any, ...]) -> Announcement:
        """What :meth:`pack` made."""
        outputs, several, chunk = packed
        return cls(
            tuple(Output(shape, np.dtype(dtype)) for shape, dtype in outputs), several, chunk
        )

    def digest(self) -> int:
        """A number that is equal for announcements that agree; never 0."""
        return _digest(self.outputs, self.several)

    def disagrees(self, first: Announcement) -> str | None:
        """Say in what the result differs from the first one; None if it does not."""
        if self[:2] == first[:2]:
            return None
        if not self.outputs or not first.outputs or self.several != first.several:
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
def _digest(outputs: tuple[Output, ...], several: bool) -> int:
    said = [(shape, spell(dtype)) for shape, dtype in outputs], several
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
    several : bool or None
        Whether the function returns a tuple; None: the first result says.
    collects : bool
        Results are objects that travel by pickle.
    wants : frozenset of str
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
    several: bool | None = None
    collects: bool = False
    wants: frozenset[str] = frozenset()
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

"""Where the result of a chunk goes in an output.

Imports grid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from shmpar.grid import Axis, Grid

__all__ = ["Along", "InBlocks", "PerChunk", "PerItem", "Placement", "ResultError"]

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

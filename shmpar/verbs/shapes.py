"""Where the blocks of an output lie: ``drop_axis``, ``new_axis``, ``out_chunks``; does it fit.

Imports grid and plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shmpar.grid import Axis, Grid
from shmpar.grid.axis import per_axis, whole_number
from shmpar.placement import InBlocks
from shmpar.plan import Plan

__all__ = ["axes_tuple", "check_shape", "place_blocks"]


def axes_tuple(name: str, axes: Any, ndim: int) -> tuple[int, ...]:
    """Read an axis or several, counted from either end.

    Examples
    --------
    >>> axes_tuple("drop_axis", [-1, 0], 3)
    (0, 2)
    """
    if axes is None:
        return ()
    found = list(axes) if isinstance(axes, Iterable) else [axes]
    for axis in found:
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"{name} is an axis or a sequence of axes, not {axis!r}")
        if not -ndim <= axis < ndim:
            raise ValueError(f"{name}: axis {axis} is out of bounds for {ndim} axes")
    result = sorted(int(axis) % ndim for axis in found)
    if len(set(result)) != len(result):
        raise ValueError(f"{name}: {axes} names an axis twice")
    return tuple(result)


def place_blocks(grid: Grid, drop: Sequence[int], new_axis: Any, out_chunks: Any) -> InBlocks:
    """Say which axis of the output comes from which of the grid, and how it is cut.

    Raises
    ------
    ValueError
        If a dropped axis is cut, or `out_chunks` does not fit.
    """
    if not drop and new_axis is None and out_chunks is None:
        return InBlocks.like(grid)
    for axis in drop:
        if grid.numblocks[axis] > 1:
            raise ValueError(
                f"drop_axis: axis {axis} is cut into {grid.numblocks[axis]} chunks, whose results "
                f"would fall on one another; leave it whole with chunks={{{axis}: -1}}"
            )
    axes: list[int | None] = [axis for axis in range(grid.ndim) if axis not in drop]
    added = list(new_axis) if isinstance(new_axis, Iterable) else [new_axis]
    for axis in () if new_axis is None else axes_tuple("new_axis", added, len(axes) + len(added)):
        axes.insert(axis, None)
    cuts = [_as_cut(grid, axis) for axis in axes]
    if out_chunks is not None:
        cuts = _declared(grid, axes, cuts, out_chunks)
    return InBlocks(tuple(axes), tuple(cuts))


def _as_cut(grid: Grid, axis: int | None) -> Axis | None:
    """Like the grid where that is cut; where it is not, the result says."""
    return None if axis is None or grid.numblocks[axis] == 1 else grid.axes[axis]


def _declared(
    grid: Grid, axes: Sequence[int | None], cuts: Sequence[Axis | None], out_chunks: Any
) -> list[Axis | None]:
    words = f"an output of {len(axes)} axes"
    entries = per_axis("out_chunks", out_chunks, len(axes), missing=None, array=words)
    blocks = [1 if axis is None else grid.numblocks[axis] for axis in axes]
    return [
        cut if entry is None else _cut(position, entry, count)
        for position, (entry, cut, count) in enumerate(zip(entries, cuts, blocks, strict=True))
    ]


def _cut(position: int, entry: Any, blocks: int) -> Axis:
    where = f"out_chunks, axis {position}"
    if isinstance(entry, str) or not isinstance(entry, Iterable):
        lengths = [whole_number(entry, where)] * blocks
    else:
        lengths = [whole_number(length, where) for length in entry]
    if len(lengths) != blocks:
        raise ValueError(f"{where} has {len(lengths)} lengths for {blocks} chunks")
    try:
        return Axis.explicit(lengths)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_shape(plan: Plan, out: np.ndarray[Any, Any]) -> None:
    """Raise ``ValueError`` if `out` cannot have the shape of the output."""
    placement = plan.placement
    if isinstance(placement, InBlocks):
        fits = out.ndim == len(placement.cuts) and all(
            cut is None or cut.size == length
            for cut, length in zip(placement.cuts, out.shape, strict=True)
        )
        due = tuple("any" if cut is None else cut.size for cut in placement.cuts)
    else:
        lead = plan.grid.numblocks
        fits = out.shape[: len(lead)] == lead
        due = (*lead, "...")
    if not fits:
        raise ValueError(f"{plan.verb}: out= has shape {out.shape}; the results make {due}")

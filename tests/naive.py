"""Naive implementations of grids and halos, for comparison.

Nothing here is clever, and nothing here imports the package.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
Sides = tuple[Any, Any]

# Our name, and the mode of np.pad that it means.  Not read from the package, on purpose.
NUMPY_MODES = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "periodic": "wrap"}


def cells(lengths: Sequence[Sequence[int]]) -> list[tuple[slice, ...]]:
    """Cells of all chunks in C order, from the length of every chunk of every axis."""
    axes = []
    for steps in lengths:
        stops = list(itertools.accumulate(steps))
        axes.append([slice(stop - step, stop) for stop, step in zip(stops, steps, strict=True)])
    return list(itertools.product(*axes))


def pad(array: Array, depth: Sequence[tuple[int, int]], sides: Sequence[Sides]) -> Array:
    """Pad a whole array: axis by axis, each side from the axis' own samples."""
    for axis in range(array.ndim):
        before, after = depth[axis]
        size = array.shape[axis]
        low = np.take(pad_side(array, axis, (before, 0), sides[axis][0]), range(before), axis)
        last = range(size, size + after)
        high = np.take(pad_side(array, axis, (0, after), sides[axis][1]), last, axis)
        # A side that is not padded has nothing to put there.
        parts = [low, array, high]
        for part, mode in ((0, sides[axis][0]), (2, sides[axis][1])):
            if mode == "none":
                parts[part] = np.take(array, [], axis)
        array = np.concatenate(parts, axis)
    return array


def pad_side(array: Array, axis: int, width: tuple[int, int], mode: Any) -> Array:
    """Pad one side of one axis with np.pad."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = width
    if mode == "none":
        return np.pad(array, widths)
    if mode in NUMPY_MODES:
        return np.pad(array, widths, mode=NUMPY_MODES[mode])
    return np.pad(array, widths, constant_values=mode)


def window(
    array: Array,
    cell: tuple[slice, ...],
    depth: Sequence[tuple[int, int]],
    sides: Sequence[Sides],
) -> Array:
    """Cut the window of one cell out of the whole padded array."""
    where = []
    for part, (before, after), (low, _) in zip(cell, depth, sides, strict=True):
        origin = 0 if low == "none" else before
        start = part.start + origin - before
        where.append(slice(max(0, start), part.stop + origin + after))
    return pad(array, depth, sides)[tuple(where)]

"""Naive implementations of grids and halos, for comparison; they do not import the package."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
Sides = tuple[Any, Any]

# Boundary names and the modes of np.pad.  Why: a copy, so that tests find changes in the package.
NUMPY_MODES = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "periodic": "wrap"}


def cells(lengths: Sequence[Sequence[int]]) -> list[tuple[slice, ...]]:
    """Return the cells of all chunks in C order, from the lengths of the chunks of every axis."""
    axes = []
    for steps in lengths:
        stops = list(itertools.accumulate(steps))
        axes.append([slice(stop - step, stop) for stop, step in zip(stops, steps, strict=True)])
    return list(itertools.product(*axes))


def pad(array: Array, depth: Sequence[tuple[int, int]], sides: Sequence[Sides]) -> Array:
    """Pad a whole array, axis by axis."""
    for axis in range(array.ndim):
        before, after = depth[axis]
        size = array.shape[axis]
        low = np.take(pad_side(array, axis, (before, 0), sides[axis][0]), range(before), axis)
        last = range(size, size + after)
        high = np.take(pad_side(array, axis, (0, after), sides[axis][1]), last, axis)
        # A side with the mode "none" is not padded.
        parts = [low, array, high]
        for part, mode in ((0, sides[axis][0]), (2, sides[axis][1])):
            if mode == "none":
                parts[part] = np.take(array, [], axis)
        array = np.concatenate(parts, axis)
    return array


def pad_side(array: Array, axis: int, width: tuple[int, int], mode: Any) -> Array:
    """Pad a side of an axis with np.pad."""
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
    """Return the window of a cell in the padded array."""
    where = []
    for part, (before, after), (low, _) in zip(cell, depth, sides, strict=True):
        origin = 0 if low == "none" else before
        start = part.start + origin - before
        where.append(slice(max(0, start), part.stop + origin + after))
    return pad(array, depth, sides)[tuple(where)]

"""Naive implementations of the verbs as loops over slices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def cells(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield the windows of the chunks in C order."""
    axes = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, chunks, strict=True)
    ]
    yield from itertools.product(*axes)


def map_blocks(func: Callable[[Array], Array], array: Array, chunks: tuple[int, ...]) -> Array:
    """Apply a function to each block; results have the shape of the blocks."""
    results = [(cell, func(array[cell])) for cell in cells(array.shape, chunks)]
    out = np.empty(array.shape, results[0][1].dtype)
    for cell, result in results:
        out[cell] = result
    return out


def block_reduce(func: Callable[[Array], Any], array: Array, chunks: tuple[int, ...]) -> Array:
    """Return a value per chunk."""
    values = np.array([func(array[cell]) for cell in cells(array.shape, chunks)])
    numblocks = tuple(-(-size // step) for size, step in zip(array.shape, chunks, strict=True))
    return values.reshape(numblocks + values.shape[1:])


def noise(shape: tuple[int, ...], chunks: tuple[int, ...], seed: int) -> Array:
    """Return normal numbers from the random stream of each chunk."""
    out = np.empty(shape)
    windows = list(cells(shape, chunks))
    for child, cell in zip(np.random.SeedSequence(seed).spawn(len(windows)), windows, strict=True):
        out[cell] = np.random.default_rng(child).normal(size=out[cell].shape)
    return out


MODES = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "periodic": "wrap"}
"""Names of boundaries, and those of np.pad for the same."""


def window(
    array: Array, cell: tuple[slice, ...], depths: list[tuple[int, int]], boundaries: list[Any]
) -> tuple[Array, list[tuple[int, int]]]:
    """Pad the whole array, cut a window; return it and the elements (before, after) of its halo."""
    padded, place, halo = array, [], []
    sides = zip(cell, array.shape, depths, boundaries, strict=True)
    for axis, (part, size, (before, after), boundary) in enumerate(sides):
        if boundary == "none":
            low, high = min(before, part.start), min(after, size - part.stop)
            place.append(slice(part.start - low, part.stop + high))
        else:
            low, high = before, after
            widths = [(before, after) if k == axis else (0, 0) for k in range(array.ndim)]
            if boundary in MODES:
                padded = np.pad(padded, widths, MODES[boundary])
            else:
                padded = np.pad(padded, widths, constant_values=boundary)
            place.append(slice(part.start, part.stop + before + after))
        halo.append((low, high))
    return padded[tuple(place)], halo


def map_overlap(
    func: Callable[[Array], Array],
    array: Array,
    chunks: tuple[int, ...],
    depths: list[tuple[int, int]],
    boundaries: list[Any],
    axes: list[int | None],
    *,
    trim: bool,
) -> Array:
    """Apply a function to each window and join the results, whose axes are those of the array.

    Parameters
    ----------
    axes : list of (int or None)
        For each axis of a result, the axis of the array; None for a new axis.
    """
    out = None
    for cell in cells(array.shape, chunks):
        part, halo = window(array, cell, depths, boundaries)
        result = func(part)
        if trim:
            ends = [(0, 0) if k is None else halo[k] for k in axes]
            pairs = zip(ends, result.shape, strict=True)
            result = result[tuple(slice(low, n - high) for (low, high), n in pairs)]
        if out is None:
            pairs = zip(axes, result.shape, strict=True)
            out = np.empty([n if k is None else array.shape[k] for k, n in pairs], result.dtype)
        out[tuple(slice(None) if k is None else cell[k] for k in axes)] = result
    assert out is not None
    return out

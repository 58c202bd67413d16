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

"""Selection of elements by their rank, in two passes over the blocks of an array.

Guarantees
----------
- The elements are exactly those of the sorted array, for any chunks.
- The first pass takes the square root of the number of its elements from each block, at even ranks.
  They enclose each wanted element, and the second pass takes the elements in between.
- A further pass follows only if these would take more than 64 MiB for several ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Collect = Callable[[Callable[[Array], Any]], list[Any]]  # the results of a function for all blocks
Keep = Callable[[Array], Array]

_MOST_BYTES: Final = 64 << 20


class Sketch(NamedTuple):
    """Some elements of a block in order.

    Attributes
    ----------
    nans, size : int
        Number of NaN and of other elements in the block.
    values, ranks : ndarray
        Elements, the first and the last among them, and their ranks in the block.
    """

    nans: int
    size: int
    values: Array
    ranks: Array


class Selection:
    """The elements of an array in order, NaN left out.

    Parameters
    ----------
    collect : callable
        Calls a function for all blocks of the array.
    keep : callable, optional
        Returns those elements of a block that take part.

    Attributes
    ----------
    nans, size : int
        Number of NaN and of other elements.

    Examples
    --------
    >>> parts = np.array_split(np.arange(100) * 7 % 100, 3)
    >>> selection = Selection(lambda function: [function(part) for part in parts])
    >>> selection.at([0, 50, 99])
    array([ 0, 50, 99])
    """

    def __init__(self, collect: Collect, keep: Keep = np.ravel) -> None:
        self._collect, self._keep = collect, keep
        parts = [Sketch(*part) for part in collect(partial(_sketch, keep=keep))]
        self.nans = int(sum(part.nans for part in parts))
        self.size = int(sum(part.size for part in parts))
        values = np.concatenate([part.values for part in parts])
        order = values.argsort(kind="stable")
        self._values = values[order]
        before = [np.diff(part.ranks, prepend=-1) for part in parts]
        after = [np.diff(part.ranks, append=part.size) for part in parts]
        # Invariant: so many elements, or more, are at most the value of this index.
        self._up_to = np.concatenate(before)[order].cumsum()
        # Invariant: so many elements, or fewer, are less than the value of this index.
        self._below = self.size - np.concatenate(after)[order][::-1].cumsum()[::-1]

    def at(self, ranks: Sequence[Any]) -> Array:
        """Return the elements of these ranks."""
        lows = np.searchsorted(self._below, ranks, "right") - 1
        highs = np.searchsorted(self._up_to, ranks, "right")
        found = self._values[lows]
        between = np.maximum(self._below[highs] - self._up_to[lows], 1)  # or fewer
        todo = np.flatnonzero(found != self._values[highs])
        while todo.size:
            room = np.cumsum(between[todo]) <= _MOST_BYTES // found.itemsize
            room[0] = True
            now, todo = todo[room], todo[~room]
            ends: dict[Any, Any] = dict.fromkeys(
                zip(lows[now].tolist(), highs[now].tolist(), strict=True)
            )
            limits = [(self._values[low], self._values[high]) for low, high in ends]
            parts = self._collect(partial(_inside, keep=self._keep, limits=limits))
            for k, pair in enumerate(ends):
                counts, inside = zip(*[part[k] for part in parts], strict=True)
                ends[pair] = sum(counts), np.sort(np.concatenate(inside))
            for k in now:
                up_to, inside = ends[int(lows[k]), int(highs[k])]
                place = ranks[k] - up_to
                if place >= len(inside):
                    found[k] = self._values[highs[k]]
                elif place >= 0:
                    found[k] = inside[place]
        return found


def _sketch(block: Array, keep: Keep) -> Sketch:
    values = keep(block)
    # Why: NumPy's stable sort of short integers is a radix sort.
    short = values.dtype.kind in "iub" and values.itemsize <= 2  # noqa: PLR2004
    values = np.sort(values, axis=None, kind="stable" if short else None)
    nans = int(np.isnan(values).sum()) if values.dtype.kind in "fcmM" else 0
    size = len(values) - nans  # Why: NumPy sorts NaN to the end.
    count = math.isqrt(size) + 1 if size > 1 else size
    ranks = np.linspace(0, size - 1, count).astype(np.intp)
    return Sketch(nans, size, values[ranks], ranks)


def _inside(block: Array, keep: Keep, limits: Sequence[tuple[Any, Any]]) -> list[tuple[int, Array]]:
    """Return, for each pair, the number of elements up to the low end, and those in between."""
    values = keep(block)
    return [
        (int(np.count_nonzero(values <= low)), values[(values > low) & (values < high)])
        for low, high in limits
    ]

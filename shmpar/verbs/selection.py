"""Selection of elements by their rank, in two passes over the blocks of an array.

Guarantees
----------
- The elements are exactly those of the sorted array, for any chunks.
- The first pass takes a random sample. The second pass takes the elements between two values of it
  that enclose a wanted element, and counts those below (Floyd and Rivest, 1975).
- If the values do not enclose it, or for short integers, two further passes take the square root of
  the number of its elements from each sorted block, and the elements in between.
- Further passes follow only if these would take more than 64 MiB for several ranks.
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
_SAMPLED: Final = 64  # elements of a block for each that the sample has
_WHOLE: Final = 1 << 12  # elements of a block that is its own sample
_MARGIN: Final = 4  # standard deviations of a rank in the sample


class Sketch(NamedTuple):
    """Some elements of a block in order.

    Attributes
    ----------
    size : int
        Number of elements in the block, NaN left out.
    values, ranks : ndarray
        Elements, the first and the last among them, and their ranks in the block.
    """

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
        parts = collect(partial(_sample, keep=keep))
        self.nans = sum(nans for nans, *_ in parts)
        self.size = sum(size for _, size, *_ in parts)
        self._is_whole = all(is_whole for *_, is_whole in parts)
        sample = np.concatenate([values for _, _, values, _ in parts])
        # Why: several arrays are joined in the byte order of this machine.
        sample = sample.astype(parts[0][2].dtype, copy=False)
        weights = [np.full(len(values), size / max(len(values), 1)) for _, size, values, _ in parts]
        order = sample.argsort(kind="stable")
        self._sample, self._ranks = sample[order], np.concatenate(weights)[order].cumsum()

    def at(self, ranks: Sequence[Any]) -> Array:
        """Return the elements of these ranks."""
        if self._is_whole:
            return self._sample[np.asarray(ranks).astype(np.intp)]
        found = np.empty(len(ranks), self._sample.dtype)
        todo = np.arange(len(ranks))
        # Why the length: a random sample may have NaN alone, which are left out.
        if len(self._sample) and not _sorts_fast(self._sample):
            todo = self._near_the_sample(ranks, found)
        if todo.size:
            found[todo] = _Sketches(self._collect, self._keep).at([ranks[int(k)] for k in todo])
        return found

    def _near_the_sample(self, ranks: Sequence[Any], found: Array) -> Array:
        """Fill in the elements that the sample encloses; return the indices of the others."""
        count, share = len(self._sample), np.asarray(ranks) / self.size
        reach = 2 + _MARGIN * np.sqrt(count * share * (1 - share))
        places = np.searchsorted(self._ranks, ranks)
        lows = np.clip(places - reach, 0, count - 1).astype(np.intp)
        highs = np.clip(places + reach, 0, count - 1).astype(np.intp)
        most = _MOST_BYTES * count // (self.size * found.itemsize)
        todo, missed = np.arange(len(ranks)), []
        while todo.size:
            room = np.cumsum(highs[todo] - lows[todo]) <= most
            room[0] = True
            now, todo = todo[room], todo[~room]
            limits = [(self._sample[lows[k]], self._sample[highs[k]]) for k in now]
            parts = self._collect(partial(_around, keep=self._keep, limits=limits))
            for k, (low, high), *each in zip(now, limits, *parts, strict=True):
                below, up_to, after = (sum(one[n] for one in each) for n in range(3))
                inside = np.concatenate([one[3] for one in each])
                rank = ranks[k]
                if below <= rank < up_to:
                    found[k] = low
                elif up_to <= rank < up_to + len(inside):
                    found[k] = np.partition(inside, rank - up_to)[rank - up_to]
                elif up_to + len(inside) <= rank < after:
                    found[k] = high
                else:
                    missed.append(k)
        return np.asarray(missed, np.intp)


class _Sketches:
    """The sketches of all blocks, which enclose each element."""

    def __init__(self, collect: Collect, keep: Keep) -> None:
        self._collect, self._keep = collect, keep
        parts = [Sketch(*part) for part in collect(partial(_sketch, keep=keep))]
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


def _sorts_fast(values: Array) -> bool:
    # Why: NumPy's stable sort of short integers is a radix sort.
    return values.dtype.kind in "iub" and values.itemsize <= 2  # noqa: PLR2004


def _count_nans(values: Array) -> int:
    return int(np.count_nonzero(np.isnan(values))) if values.dtype.kind in "fcmM" else 0


def _sample(block: Array, keep: Keep) -> tuple[int, int, Array, bool]:
    """Return the number of NaN and of other elements of a block, some of these, and if all."""
    values = keep(block)
    nans, is_whole = _count_nans(values), len(values) <= _WHOLE
    if not is_whole:
        # Why a seed: a pass that is repeated for a lost worker takes the same elements.
        chosen = np.random.default_rng(len(values)).integers(
            0, len(values), max(_WHOLE, len(values) // _SAMPLED)
        )
        some = values[chosen]
    else:
        some = values
    if nans:
        some = some[~np.isnan(some)]
    # Invariant: the number of elements of a random sample does not tell if these are all.
    return nans, len(values) - nans, some, is_whole


def _around(block: Array, keep: Keep, limits: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Return, for each pair, counts of elements and the elements between its ends.

    The counts are of elements below the low end, up to it, and up to the high end.
    """
    values, found = keep(block), []
    for low, high in limits:
        up_to_low, below_high = values <= low, values < high
        inside = values[below_high & ~up_to_low]
        below = int(np.count_nonzero(values < low))
        up_to = int(np.count_nonzero(up_to_low))
        found.append((below, up_to, int(np.count_nonzero(values <= high)), inside))
    return found


def _sketch(block: Array, keep: Keep) -> Sketch:
    values = keep(block)
    values = np.sort(values, axis=None, kind="stable" if _sorts_fast(values) else None)
    size = len(values) - _count_nans(values)  # Why: NumPy sorts NaN to the end.
    count = math.isqrt(size) + 1 if size > 1 else size
    ranks = np.linspace(0, size - 1, count).astype(np.intp)
    return Sketch(size, values[ranks], ranks)


def _inside(block: Array, keep: Keep, limits: Sequence[tuple[Any, Any]]) -> list[tuple[int, Array]]:
    """Return, for each pair, the number of elements up to the low end, and those in between."""
    values = keep(block)
    return [
        (int(np.count_nonzero(values <= low)), values[(values > low) & (values < high)])
        for low, high in limits
    ]

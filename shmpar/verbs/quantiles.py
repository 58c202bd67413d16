"""Medians and quantiles, block by block, and the selection of elements by their rank.

NumPy computes short lines, several in a block. Longer ones are selected by rank, and NumPy
interpolates between the selected elements.

Guarantees
----------
- The selected elements are exactly those of the sorted array, for any chunks.
- The first pass takes a random sample of each block; of integers of 8 bits it takes the counts.
- The second pass takes the elements between two values of the sample that enclose a wanted element.
  It also counts those below (Floyd and Rivest, 1975). At most about 64 MiB are taken at a time, so
  many ranks need several passes.
- If the values do not enclose it, both passes are repeated for the elements beyond them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Unpack

import numpy as np

from shmpar.grid import Axis, Grid
from shmpar.verbs.arguments import blocks
from shmpar.verbs.call import Call
from shmpar.verbs.options import ReductionOptions, with_shared_text
from shmpar.verbs.outputs import place_blocks
from shmpar.verbs.partials import Axes, Partials

Array = np.ndarray[Any, Any]
Collect = Callable[[Callable[[Array], Any]], list[Any]]  # the results of a function for all blocks
Keep = Callable[[Array], Array]

# Why: NumPy copies a line before it reorders its elements.
_LINE_BYTES: Final = 8 << 20
_MOST_BYTES: Final = 64 << 20
_SAMPLED: Final = 64  # elements of a block for each that the sample has
_WHOLE: Final = 1 << 12  # elements of a block that is its own sample
_MARGIN: Final = 4  # standard deviations of a rank in the sample


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
        sample, weights = (np.concatenate([part[k] for part in parts]) for k in (2, 3))
        # Why: several arrays are joined in the byte order of this machine.
        sample = sample.astype(parts[0][2].dtype, copy=False)
        order = sample.argsort(kind="stable")
        self._sample, self._up_to = sample[order], weights[order].cumsum()

    def at(self, ranks: Sequence[Any]) -> Array:
        """Return the elements of these ranks."""
        if self._is_whole:
            return self._sample[np.searchsorted(self._up_to, ranks, "right")]
        found = np.empty(len(ranks), self._sample.dtype)
        count, share = len(self._sample), np.asarray(ranks) / self.size
        reach = 2 + _MARGIN * np.sqrt(count * share * (1 - share))
        places = np.searchsorted(self._up_to, ranks)
        lows = np.clip(places - reach, 0, count - 1).astype(np.intp)
        highs = np.clip(places + reach, 0, count - 1).astype(np.intp)
        most = _MOST_BYTES * count // (self.size * found.itemsize)
        todo = np.arange(len(ranks))
        while todo.size:
            room = np.cumsum(highs[todo] - lows[todo]) <= most
            room[0] = True
            now, todo = todo[room], todo[~room]
            pairs = [(self._sample[lows[k]], self._sample[highs[k]]) for k in now]
            limits = list(dict.fromkeys(pairs))  # Why: equal elements have one pair for many ranks.
            parts = self._collect(partial(_around, keep=self._keep, limits=limits))
            around = dict(zip(limits, zip(*parts, strict=True), strict=True))
            for k, (low, high) in zip(now, pairs, strict=True):
                each = around[low, high]
                below, up_to, after = (sum(one[n] for one in each) for n in range(3))
                inside = np.concatenate([one[3] for one in each])
                rank = ranks[k]
                if rank < below:
                    found[k] = self._beyond(np.less, low, rank)
                elif rank < up_to:
                    found[k] = low
                elif rank < up_to + len(inside):
                    found[k] = np.partition(inside, rank - up_to)[rank - up_to]
                elif rank < after:
                    found[k] = high
                else:
                    found[k] = self._beyond(np.greater, high, rank - after)
        return found

    def _beyond(self, compare: Any, limit: Any, rank: Any) -> Any:
        """Return the element of a rank among those beyond a limit, which the sample missed."""
        keep = partial(_compared, keep=self._keep, compare=compare, limit=limit)
        return Selection(self._collect, keep).at([rank])[0]


Finish = Callable[[Selection], Any]  # the result of one line


@with_shared_text
class Quantiles(Partials):
    """Gives a pool medians and quantiles."""

    def median(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Median, as :func:`numpy.median`.

        {selected}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.median([3, 1, 2, 9]))
        2.5
        """
        return self._selected(np.median, _median, array, axis, options)

    def nanmedian(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Median of the elements that are not NaN, as :func:`numpy.nanmedian`.

        {selected}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.nanmedian([3, 1, np.nan, 2, 9]))
        2.5
        """
        return self._selected(np.nanmedian, _median, array, axis, options)

    def percentile(
        self,
        array: Any,
        q: Any,
        axis: Any = None,
        *,
        method: str = "linear",
        **options: Unpack[ReductionOptions],
    ) -> Any:
        """Percentiles, as :func:`numpy.percentile`.

        Parameters
        ----------
        array : array_like
            Array to reduce.
        q : float or array_like of float
            Percentages from 0 to 100.
        {quantile}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.percentile(range(101), [25, 99.5])
        array([25. , 99.5])
        """
        return self._quantile(np.percentile, array, q, axis, method, options)

    def nanpercentile(
        self,
        array: Any,
        q: Any,
        axis: Any = None,
        *,
        method: str = "linear",
        **options: Unpack[ReductionOptions],
    ) -> Any:
        """Percentiles of the elements that are not NaN, as :func:`numpy.nanpercentile`.

        Parameters
        ----------
        array : array_like
            Array to reduce.
        q : float or array_like of float
            Percentages from 0 to 100.
        {quantile}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.nanpercentile([1, np.nan, 3], 50))
        2.0
        """
        return self._quantile(np.nanpercentile, array, q, axis, method, options)

    def quantile(
        self,
        array: Any,
        q: Any,
        axis: Any = None,
        *,
        method: str = "linear",
        **options: Unpack[ReductionOptions],
    ) -> Any:
        """Quantiles, as :func:`numpy.quantile`.

        Parameters
        ----------
        array : array_like
            Array to reduce.
        q : float or array_like of float
            Fractions from 0 to 1.
        {quantile}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.quantile(range(101), 0.25))
        25.0
        """
        return self._quantile(np.quantile, array, q, axis, method, options)

    def nanquantile(
        self,
        array: Any,
        q: Any,
        axis: Any = None,
        *,
        method: str = "linear",
        **options: Unpack[ReductionOptions],
    ) -> Any:
        """Quantiles of the elements that are not NaN, as :func:`numpy.nanquantile`.

        Parameters
        ----------
        array : array_like
            Array to reduce.
        q : float or array_like of float
            Fractions from 0 to 1.
        {quantile}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.nanquantile([1, np.nan, 3], 0.5))
        2.0
        """
        return self._quantile(np.nanquantile, array, q, axis, method, options)

    def _quantile(
        self, whole: Any, array: Any, q: Any, axis: Any, method: str, options: Any
    ) -> Any:
        shape = np.shape(q)
        if len(shape) == 2:  # noqa: PLR2004
            # Why: NumPy mixes up the axes of the result for NaN.
            found = self._quantile(whole, array, np.ravel(q), axis, method, options)
            return found.reshape(shape + found.shape[1:])
        percent = "percentile" in whole.__name__
        finish = partial(interpolated, q=q, percent=percent, method=method)
        of_array = partial(whole, q=q, method=method)
        return self._selected(of_array, finish, array, axis, options, ndim=len(shape))

    def _selected(
        self, whole: Any, finish: Finish, array: Any, axis: Any, options: Any, *, ndim: int = 0
    ) -> Any:
        """Reduce each line along the axes to a result of `ndim` axes, which come first."""
        chunks, keepdims = options.pop("chunks", "auto"), options.pop("keepdims", False)
        verb = getattr(whole, "func", whole).__name__
        call = self._reduction(verb, whole, array, options)
        (values,) = call.inputs.arrays
        # Why an iterator too: NumPy takes one here, and it can be read once.
        axis = tuple(axis) if isinstance(axis, list | Iterator) else axis
        if values.size == 0 or values.ndim == 0:
            return whole(values[...], axis=axis, keepdims=keepdims)
        try:
            axes = self._axes(call, axis)
        except TypeError:
            # Why: NumPy refuses the median of dates, but not of NaT alone.
            if not _has_no_date(values):
                raise
            return whole(values[...], axis=axis, keepdims=keepdims)
        line = math.prod(values.shape[k] for k in axes) * values.itemsize
        short = len(axes) < values.ndim and line <= _LINE_BYTES
        grid = call.inputs.cut(chunks, whole=axes if short else ())
        if short or all(grid.numblocks[k] == 1 for k in axes):
            grid = _with(grid, {k: values.shape[k] for k in axes})
            like_first = len(axes) < values.ndim and _depends_on_nan(whole, values.dtype)
            reduce = partial(_of_lines, whole) if like_first else whole
            call.func, call.grid = partial(reduce, axis=axes), grid
            call.placement = place_blocks(grid, axes, tuple(range(ndim)) or None, None)
            found = self._unfilled(call)
            if like_first and (first := _line_of_nan(values, axes)):
                found = found.astype(np.asarray(whole(values[first].ravel())).dtype, copy=False)
        else:
            found = self._select_lines(call, axes, grid, finish)
        found = found[()] if isinstance(found, np.ndarray) else found  # Why: text is a scalar
        return np.expand_dims(found, tuple(ndim + k for k in axes)) if keepdims else found

    def _select_lines(self, call: Call, axes: Axes, grid: Grid, finish: Finish) -> Array:
        """Return the results of all lines along the axes, each by a selection of its own."""
        (values,), whole, leaves_nan_out = call.inputs.arrays, call.func, call.verb[:3] == "nan"
        # Why: every pass would copy an array that is not in shared memory.
        values = self._share(values)
        kept = [k for k in range(values.ndim) if k not in axes]
        grid, results = _with(grid, dict.fromkeys(kept, 1)), []
        for place in itertools.product(*[range(values.shape[k]) for k in kept]):
            line = [slice(None)] * values.ndim
            for k, n in zip(kept, place, strict=True):
                line[k] = slice(n, n + 1)
            # Why the condition: a part of a store is read, and the whole store need not be.
            call.inputs = blocks(call.verb, (values[tuple(line)] if kept else values,))
            selection = Selection(partial(self._collect, call, grid))
            if selection.size if leaves_nan_out else not selection.nans:
                results.append(finish(selection))
            else:
                missing = "NaT" if values.dtype.kind in "mM" else np.nan
                # Why lines: NumPy gives the quantile of all elements another dtype.
                lines = np.full((1,) * values.ndim, missing, values.dtype)
                results.append(whole(lines, axis=axes)[(..., *[0] * len(kept))])
        # Why: several arrays are joined in the byte order of this machine.
        found = np.stack(results, axis=-1).astype(np.asarray(results[0]).dtype, copy=False)
        return found.reshape((*found.shape[:-1], *[values.shape[k] for k in kept]))


def _has_no_date(values: Any) -> bool:
    """Return whether an array is one of dates that are all missing."""
    if values.dtype.kind != "M":
        return False
    first = values[(slice(1),) * values.ndim]  # Why: mostly the rest of a store need not be read.
    return bool(np.isnat(first).all() and np.isnat(values[...]).all())


def _with(grid: Grid, lengths: dict[int, int]) -> Grid:
    """Return the grid with a single chunk of the given length along some axes."""
    one = {k: Axis.regular(length, length) for k, length in lengths.items()}
    return Grid(tuple(one.get(k, axis) for k, axis in enumerate(grid.axes)))


def _depends_on_nan(whole: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether NumPy gives lines another dtype if the first one has NaN alone."""
    leaves_nan_out = isinstance(whole, partial) and whole.func.__name__[:3] == "nan"
    return leaves_nan_out and dtype.kind == "f" and whole(np.zeros(1, dtype)).dtype != dtype


def _of_lines(whole: Any, block: Array, axis: Axes) -> Any:
    """Reduce the lines of a block, in the dtype that NumPy gives to a line with elements."""
    first = _line_of_nan(block, axis)
    if not first:
        return whole(block, axis=axis)
    block = block.copy()
    block[first] = 0
    found = whole(block, axis=axis)
    found[(..., *[0] * (block.ndim - len(axis)))] = np.nan
    return found


def _line_of_nan(values: Array, axes: Axes) -> tuple[Any, ...]:
    """Return the index of the first line along the axes; empty unless it has NaN alone."""
    first = tuple(slice(None) if k in axes else 0 for k in range(values.ndim))
    return first if np.isnan(values[first]).all() else ()


def _compared(block: Array, keep: Keep, compare: Any, limit: Any) -> Array:
    values = keep(block)
    with np.errstate(invalid="ignore"):  # Why: of complex NaN.
        found: Array = values[compare(values, limit)]
    return found


def _sample(
    block: Array, keep: Keep, block_id: Sequence[int] = (0,)
) -> tuple[int, int, Array, Array, bool]:
    """Return the numbers of NaN and of other elements of a block, and some of its elements.

    They come with the number of elements that each of them stands for, and True if it is exact.
    """
    values = keep(block)
    nans = int(np.count_nonzero(np.isnan(values))) if values.dtype.kind in "fcmM" else 0
    size = len(values) - nans
    if values.dtype.kind in "biu" and values.itemsize == 1:
        counts = np.bincount(values.view("u1"))
        there = np.flatnonzero(counts)
        return nans, size, there.astype("u1").view(values.dtype), counts[there], True
    is_whole = size <= _WHOLE
    if is_whole:
        chosen = values
    else:
        # Why this seed: a pass that is repeated for a lost worker takes the same elements. Blocks
        # with the same values need samples of their own, which tell more than the same one.
        rng, count = np.random.default_rng(block_id), max(_WHOLE, len(values) // _SAMPLED)
        chosen = values[rng.integers(0, len(values), count)]
    if nans:
        some = chosen[~np.isnan(chosen)]
        # Why: a random sample may have NaN alone.
        chosen = some if len(some) else values[~np.isnan(values)]
    return nans, size, chosen, np.full(len(chosen), size / max(len(chosen), 1)), is_whole


def _around(block: Array, keep: Keep, limits: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Return, for each pair, counts of elements and the elements between its ends.

    The counts are of elements below the low end, up to it, and up to the high end.
    """
    values, found = keep(block), []
    for low, high in limits:
        with np.errstate(invalid="ignore"):  # Why: of complex NaN.
            below = int(np.count_nonzero(values < low))
            near = values[(values >= low) & (values <= high)]
        up_to = below + int(np.count_nonzero(near == low))
        found.append((below, up_to, below + len(near), near[(near > low) & (near < high)]))
    return found


def _median(selection: Selection) -> Any:
    size = selection.size
    return np.median(selection.at(sorted({(size - 1) // 2, size // 2})))


def interpolated(selection: Selection, q: Any, *, percent: bool, method: str) -> Any:
    """Return the quantiles of all elements, in the arithmetic of NumPy."""
    place_of, weight_of = _METHODS[method]
    size, share = selection.size, np.asarray(np.true_divide(q, 100) if percent else q)
    if not share.size:
        return np.quantile(selection.at([0]), share, method=method)  # type: ignore[call-overload]
    place = np.asarray(place_of(size, share))
    if weight_of is None or (method == "linear" and place.dtype.kind in "iu"):
        return selection.at(place.ravel().tolist()).reshape(place.shape)
    first = np.floor(place)
    weight = np.asarray(weight_of(place - first, place), place.dtype)
    weight = np.where((place < 0) | (place >= size - 1), weight.dtype.type(0), weight)
    # Why: a place before the first element lies between that element and itself, as in NumPy.
    low, high = [(first + k).clip(0, size - 1).astype(np.intp).ravel().tolist() for k in (0, 1)]
    pairs = selection.at([*low, *high]).reshape(2, -1).T
    # Why: NumPy interpolates between two elements as between neighbours in the sorted array.
    if place.ndim == 0:
        plain = type(q) in {int, float}
        return np.quantile(pairs[0], float(weight) if plain else weight)
    each = [np.quantile(pair, [part]) for pair, part in zip(pairs, weight.ravel(), strict=True)]
    return np.concatenate(each).reshape(place.shape)


def _rounded(index: Any, take_lower: Any) -> Any:
    lower = np.floor(index)
    return np.where(take_lower(index - lower, lower), lower, lower + 1).clip(0).astype(np.intp)


def _between(alpha: float, beta: float) -> Any:
    return lambda n, q: n * q + (alpha + q * (1 - alpha - beta)) - 1, _fraction


def _fraction(gamma: Any, _: Any) -> Any:
    return gamma


# The place of each method in the sorted array, and the weight of the next element; None for places
# of elements. They are those of Hyndman and Fan, "Sample quantiles in statistical packages", The
# American Statistician 50 (1996), and NumPy's variants of "linear".
_METHODS: Final[dict[str, tuple[Any, Any]]] = {
    "linear": (lambda n, q: (n - 1) * q, _fraction),
    "lower": (lambda n, q: np.floor((n - 1) * q).astype(np.intp), None),
    "higher": (lambda n, q: np.ceil((n - 1) * q).astype(np.intp), None),
    "nearest": (lambda n, q: np.around((n - 1) * q).astype(np.intp), None),
    "midpoint": (
        lambda n, q: 0.5 * (np.floor((n - 1) * q) + np.ceil((n - 1) * q)),
        lambda _, place: np.where(place % 1 == 0, 0.0, 0.5),
    ),
    "inverted_cdf": (lambda n, q: _rounded(n * q - 1, lambda gamma, _: gamma == 0), None),
    "averaged_inverted_cdf": (
        lambda n, q: n * q - 1,
        lambda gamma, _: np.where(gamma == 0, 0.5, 1.0),
    ),
    "closest_observation": (
        lambda n, q: _rounded(
            n * q - 1 - 0.5, lambda gamma, lower: (gamma == 0) & (lower % 2 == 1)
        ),
        None,
    ),
    "interpolated_inverted_cdf": _between(0, 1),
    "hazen": _between(0.5, 0.5),
    "weibull": _between(0, 0),
    "median_unbiased": _between(1 / 3.0, 1 / 3.0),
    "normal_unbiased": _between(3 / 8.0, 3 / 8.0),
}

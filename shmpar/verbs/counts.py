"""Counts of values, block by block, and NumPy's rules for the number of bins of a histogram.

Guarantees
----------
- No pass of a rule holds more than a block in a worker, and a few numbers per block in the caller.
- The quartiles of a rule are exact, so they are equal for any chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Unpack

import numpy as np

from shmpar.grid.grid import LEAST_BYTES
from shmpar.runtime.error_texts import warn_user
from shmpar.stores.store import Store
from shmpar.verbs.arguments import as_input, blocks
from shmpar.verbs.options import PassOptions, with_shared_text
from shmpar.verbs.partials import Partials, accumulator
from shmpar.verbs.quantiles import Collect, Selection, interpolated

Array = np.ndarray[Any, Any]
Limits = tuple[Any, Any]
Measure = Callable[[Callable[[Array], Any]], Any]  # the results of a function for all blocks

# Why: the counts of all blocks are a small part of the array.
_ELEMENTS_PER_COUNT: Final = 16
_AUTO: Final = ("fd", "sqrt", "sturges")


@with_shared_text
class Counts(Partials):
    """Gives a pool the verbs that count values."""

    def histogram(
        self,
        array: Any,
        bins: Any = 10,
        range: Any = None,  # noqa: A002 - NumPy's name
        *,
        density: bool = False,
        weights: Any = None,
        **options: Unpack[PassOptions],
    ) -> tuple[Array, Array]:
        """Counts of values in bins, as :func:`numpy.histogram`.

        Parameters
        ----------
        array : array_like
            Array of any shape, whose elements are counted.
        bins : int, sequence of float or str
            Number of bins of equal width, or their edges, or a rule that gives the number: "auto",
            "doane", "fd", "rice", "scott", "sqrt", "stone" or "sturges", as in
            :func:`numpy.histogram_bin_edges` of NumPy 2.4.
        range : (float, float), optional
            Ends of bins of equal width; by default the smallest and the largest element.
        density : bool
            Return the probability density instead of counts.
        weights : array_like, optional
            Weights of the elements, of the shape of the array: a bin has the sum of its weights, in
            their dtype.
        {exact_chunks}
            The last digits of sums of weights may.
        {reduction_options}

        Returns
        -------
        counts : ndarray of shape (bins,)
            Exactly as in NumPy; sums of weights up to the order of additions.
        edges : ndarray of shape (bins + 1,)
            The first bin is ``edges[0] <= x < edges[1]``; the last one has both ends.

        Raises
        ------
        ValueError, TypeError
            As in NumPy.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As in :meth:`map_blocks`.

        Notes
        -----
        Cost: one pass over the array, and another pass for the smallest and the largest element
        if there is no `range`, unless `bins` are edges.

        A rule costs one pass more; "scott" two, "doane" three. "fd" and "auto" cost three, or two
        for integers of 8 bits, to select the quartiles. "stone" takes a pass per candidate: the
        square root of the number of elements, at least 100. For long double NumPy computes the
        rule, on a copy. The last digits of the sums in "scott" and "doane" may make one bin more
        or less; those of float16 are added in float32.

        NumPy counts each block in the same bins, and the counts are added, which is exact. "auto"
        makes blocks of at least 16 elements per bin.

        With ``on_error="fill"`` a block that fails in a pass before the last one is an error too,
        since no value stands for its elements: pass `range`, and the number of bins.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.histogram([1, 2, 2, 5], bins=2)
        ...     pool.histogram([1, 2, 2, 5], bins=2, weights=[0.5, 1, 2, 4])
        (array([3, 1]), array([1., 3., 5.]))
        (array([3.5, 4. ]), array([1., 3., 5.]))
        """
        chunks = options.pop("chunks", "auto")
        values: Any = as_input(array, "histogram")
        weigh = weights is not None
        factors = as_input(weights, "histogram") if weigh else np.empty(0)
        if weigh and factors.shape != values.shape:
            shapes = f"{factors.shape}, not {values.shape}"
            raise ValueError(f"histogram: weights have shape {shapes} as the array")
        if values.dtype == bool:
            stored = isinstance(values, Store)
            values = values.viewed(np.uint8) if stored else values.view(np.uint8)
        call = self._reduction("histogram", np.histogram, values, options)
        # Why: NumPy raises its own errors for bins, range and weights before anything starts.
        few, ones = np.zeros(int(weigh), values.dtype), np.zeros(1, factors.dtype)
        if (
            values.size == 0
            or values.ndim == 0
            or not len(np.histogram(few, bins, range, weights=ones if weigh else None)[0])
        ):
            weights = factors[...] if weigh else None
            return np.histogram(values[...], bins, range, density, weights)
        call.inputs.arrays = [values := self._share(values)]
        measure = partial(self._measure, call, chunks=chunks)
        if range is None and np.ndim(bins) == 0:
            low, high = measure(_extremes)
            range = low.min(), high.max()  # noqa: A001 - NumPy's name
            np.histogram_bin_edges(np.array(range), 1)  # Why: NumPy raises its own error.
        if isinstance(bins, str):
            collect = partial(self._collect, call, call.inputs.cut(chunks))
            bins = _bins_by_rule(bins, values, range, measure, collect)
        edges = np.histogram(few[:0], bins, range)[1]
        count = partial(_count_in_bins, bins=bins, limits=range)
        if weigh:
            call.inputs = blocks("histogram", (values, factors))
        least = _least_bytes(values, len(edges) - 1)
        parts = self._map(call, count, chunks, least=least).reshape(-1, len(edges) - 1)
        # Why cast at the end: a sum in another byte order, or in a unit of time, takes no dtype.
        counts: Array = np.add.reduce(parts, axis=0).astype(parts.dtype, copy=False)
        if density:
            return counts / np.array(np.diff(edges), float) / counts.sum(), edges
        return counts, edges

    def bincount(
        self, array: Any, weights: Any = None, minlength: int = 0, **options: Unpack[PassOptions]
    ) -> Array:
        """Count the occurrences of each number, as :func:`numpy.bincount`.

        Parameters
        ----------
        array : array_like
            Integers, 0 or more, along one axis.
        weights : array_like, optional
            Weights of the elements, as many: a number has the sum of its weights, as float64.
        minlength : int, default 0
            Least number of counts.
        {exact_chunks}
            The last digits of sums of weights may.
        {reduction_options}

        Returns
        -------
        ndarray
            The count of each number from 0 to the largest element: exactly as in NumPy; sums of
            weights up to the order of additions.

        Raises
        ------
        ValueError, TypeError
            As in NumPy.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As in :meth:`map_blocks`.

        Notes
        -----
        Cost: two passes over the array, the first for the largest element. Each block gives all
        counts, so "auto" makes blocks of at least 16 elements per count. With ``on_error="fill"``
        a block that fails in the first pass is an error too.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.bincount([1, 2, 2, 5])
        array([0, 1, 2, 0, 0, 1])
        """
        chunks = options.pop("chunks", "auto")
        values: Any = as_input(array, "bincount")
        factors = None if weights is None else as_input(weights, "bincount")
        call = self._reduction("bincount", np.bincount, values, options)
        if (
            values.size == 0
            or values.ndim != 1
            or (factors is not None and factors.shape != values.shape)
        ):
            given = values[...] if isinstance(values, Store) else array
            return np.bincount(given, None if factors is None else factors[...], minlength)
        few = np.zeros(1, values.dtype)
        np.bincount(few, None if factors is None else np.zeros(1, factors.dtype), minlength)
        call.inputs.arrays = [values := self._share(values)]
        low, high = self._measure(call, _extremes, chunks=chunks)
        least = int(low.min())
        if least < 0:
            return np.bincount(np.array([least]))
        length = max(int(high.max()) + 1, int(minlength))
        if factors is not None:
            call.inputs = blocks("bincount", (values, factors))
        least = _least_bytes(values, length)
        parts = self._map(call, partial(np.bincount, minlength=length), chunks, least=least)
        counts: Array = np.add.reduce(parts, axis=0)
        return counts

    def unique(
        self, array: Any, *, return_counts: bool = False, **options: Unpack[PassOptions]
    ) -> Any:
        """Sorted unique elements, as :func:`numpy.unique`.

        Parameters
        ----------
        array : array_like
            Array of any shape.
        return_counts : bool, default False
            Return how often each of them occurs, too.
        {exact_chunks}
        {reduction_options}

        Returns
        -------
        values : ndarray
            Exactly as in NumPy; a single NaN.
        counts : ndarray of int
            Only with `return_counts`.

        Raises
        ------
        TypeError
            As in NumPy, if the elements have no order.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As in :meth:`map_blocks`.

        Notes
        -----
        Cost: one pass over the array. Each block gives its unique elements and their counts, so an
        array with few equal elements is copied as a whole. With ``on_error="fill"`` a failed block
        is an error too.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.unique([[5, 2], [2, 2]], return_counts=True)
        (array([2, 5]), array([3, 1]))
        """
        chunks = options.pop("chunks", "auto")
        whole = partial(np.unique, return_counts=return_counts)
        call = self._reduction("unique", whole, array, options)
        (values,) = call.inputs.arrays
        if values.size == 0 or values.ndim == 0:
            return whole(values[...])
        np.unique(np.zeros(1, values.dtype))  # Why: NumPy raises its own error.
        parts = self._collect(call, call.inputs.cut(chunks), partial(np.unique, return_counts=True))
        together, counts = map(np.concatenate, zip(*parts, strict=True))
        found, place = np.unique(together, return_inverse=True)
        found = found.astype(values.dtype)
        if not return_counts:
            return found
        total = np.zeros(len(found), np.intp)
        np.add.at(total, place, counts)
        return found, total


def _least_bytes(values: Array, counts: int) -> int:
    """Return the bytes of a block of which the counts are a small part."""
    return max(LEAST_BYTES, _ELEMENTS_PER_COUNT * counts * values.itemsize)


def _extremes(block: Array) -> tuple[Any, Any]:
    return block.min(), block.max()


def _count_in_bins(block: Array, weights: Any = None, *, bins: Any, limits: Any) -> Array:
    """Return the counts of one block, or the sums of its weights."""
    return np.histogram(block, bins, limits, weights=weights)[0]


# NumPy's rules for the number of bins


def _bins_by_rule(
    rule: str, values: Array, limits: Limits, measure: Measure, collect: Collect
) -> int:
    """Return the number of bins of :func:`numpy.histogram_bin_edges`."""
    first, last = limits
    if first == last:
        first, last = limits = first - 0.5, last + 0.5
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:  # noqa: PLR2004 - no long double
        return len(np.histogram_bin_edges(values[...], rule, limits)) - 1
    wide, _ = accumulator(values, None)
    sizes, lows, highs, sums = measure(partial(_facts, limits=limits, dtype=wide))
    if not sizes.any():
        return 1
    size, ends = int(sizes.sum()), (lows[sizes > 0].min(), highs[sizes > 0].max())
    span = _span(*ends)
    total = size, span, sums.sum()
    rules: dict[str, Callable[[], Any]] = {
        "sqrt": lambda: span / np.sqrt(size),
        "sturges": lambda: span / (np.log2(size) + 1.0),
        "rice": lambda: span / (2.0 * size ** (1.0 / 3)),
        "scott": lambda: _width_by_moments(rule, values, total, limits, measure),
        "doane": lambda: _width_by_moments(rule, values, total, limits, measure),
        "stone": lambda: _width_by_stone(size, span, limits, measure),
        "fd": lambda: _width_by_quartiles(size, collect, limits),
    }
    fine, *coarse = [rules[one]() for one in {"auto": _AUTO}.get(rule, (rule,))]
    width = min(max(fine, coarse[0] / 2), coarse[1]) if coarse else fine
    if not width:
        return 1
    return int(np.ceil(_span(first, last) / (width if values.dtype.kind == "f" else max(width, 1))))


def _inside(block: Array, limits: Limits) -> Any:
    return block[(block >= limits[0]) & (block <= limits[1])]


def _span(low: Any, high: Any) -> Any:
    """Return the difference, of integers as an unsigned one, as NumPy's histogram takes it."""
    dtype = np.result_type(low, high)
    due = np.dtype(f"u{dtype.itemsize}") if dtype.kind == "i" else dtype
    return np.subtract(np.asarray(high, dtype), np.asarray(low, dtype), dtype=due, casting="unsafe")


def _facts(block: Array, limits: Limits, dtype: Any) -> tuple[Any, ...]:
    inside = _inside(block, limits)
    ends = inside if inside.size else block
    return np.intp(inside.size), ends.min(), ends.max(), inside.sum(dtype=dtype)


def _width_by_moments(
    rule: str, values: Array, total: tuple[int, Any, Any], limits: Limits, measure: Measure
) -> Any:
    size, span, added = total
    wide, narrow = accumulator(values, None)
    mean = np.true_divide(added, size, dtype=wide or added.dtype)
    narrow = np.dtype(narrow or mean.dtype).type
    powers = partial(_sum_of_powers, limits=limits, dtype=mean.dtype)
    squares = measure(partial(powers, mean=mean, scale=mean.dtype.type(1), power=2)).sum()
    sigma = narrow(np.sqrt(squares / size))
    if rule == "scott":
        return (24.0 * np.pi**0.5 / size) ** (1.0 / 3.0) * sigma
    if size <= 2 or not sigma > 0:  # noqa: PLR2004 - NumPy's number
        return 0.0
    cubes = measure(partial(powers, mean=narrow(mean), scale=sigma, power=3)).sum()
    error = np.sqrt(6.0 * (size - 2) / ((size + 1.0) * (size + 3)))
    skew = np.log2(1.0 + np.absolute(narrow(cubes / size)) / error)
    return span / (1.0 + np.log2(size) + skew)


def _sum_of_powers(
    block: Array, *, limits: Limits, mean: Any, scale: Any, power: int, dtype: Any
) -> Any:
    deviations = (_inside(block, limits) - mean) / scale
    return np.power(deviations, power).sum(dtype=dtype)


def _width_by_stone(size: int, span: Any, limits: Limits, measure: Measure) -> Any:
    """Return the width that minimizes the estimate of the squared error, by cross-validation."""
    if size <= 1 or span == 0:
        return 0

    def loss(number: int) -> Any:
        counts = measure(partial(_count_in_bins, bins=number, limits=limits))
        share = counts.reshape(-1, number).sum(0) / size
        return (2 - (size + 1) * share.dot(share)) / (span / number)

    most = max(100, int(np.sqrt(size)))
    best = min(range(1, most + 1), key=loss)
    if best == most:
        text = "The number of bins estimated may be suboptimal."
        warn_user(text)
    return span / best


def _width_by_quartiles(size: int, collect: Collect, limits: Limits) -> Any:
    selection = Selection(collect, partial(_inside, limits=limits))
    quartiles = interpolated(selection, (75, 25), percent=True, method="linear")
    return 2.0 * np.subtract(*quartiles) * size ** (-1.0 / 3.0)

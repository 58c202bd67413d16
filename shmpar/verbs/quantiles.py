"""Medians and quantiles, block by block.

NumPy computes short lines, several in a block. Longer ones are selected by rank, and NumPy
interpolates between the selected elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Unpack

import numpy as np

from shmpar.grid import Axis, Grid
from shmpar.stores.store import Store
from shmpar.verbs.arguments import blocks
from shmpar.verbs.call import Call
from shmpar.verbs.options import ReductionOptions, with_shared_text
from shmpar.verbs.outputs import place_blocks
from shmpar.verbs.partials import Axes, Partials
from shmpar.verbs.selection import Selection

Array = np.ndarray[Any, Any]
Finish = Callable[[Selection], Any]  # the result of one line

# Why: NumPy copies a line before it reorders its elements.
_LINE_BYTES: Final = 8 << 20


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
        finish = partial(_interpolated, q=q, percent=percent, method=method)
        of_array = partial(whole, q=q, method=method)
        return self._selected(of_array, finish, array, axis, options, ndim=len(shape))

    def _selected(
        self,
        whole: Any,
        finish: Finish,
        array: Any,
        axis: Any,
        options: Any,
        *,
        ndim: int = 0,
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
        axes = self._axes(call, axis)
        line = math.prod(values.shape[k] for k in axes) * values.itemsize
        short = len(axes) < values.ndim and line <= _LINE_BYTES
        grid = call.inputs.cut(chunks, whole=axes if short else ())
        if short or all(grid.numblocks[k] == 1 for k in axes):
            grid = _with(grid, {k: values.shape[k] for k in axes})
            call.func, call.grid = partial(whole, axis=axes), grid
            call.placement = place_blocks(grid, axes, tuple(range(ndim)) or None, None)
            found = self._unfilled(call)
        else:
            found = self._select_lines(call, axes, grid, finish)
        if keepdims:
            found = np.expand_dims(found, tuple(ndim + k for k in axes))
        return found[()] if isinstance(found, np.ndarray) else found  # Why: text is a scalar

    def _select_lines(self, call: Call, axes: Axes, grid: Grid, finish: Finish) -> Array:
        """Return the results of all lines along the axes, each by a selection of its own."""
        (values,), whole, leaves_nan_out = call.inputs.arrays, call.func, call.verb[:3] == "nan"
        # Why: every pass would copy an array that is not in shared memory.
        values = values if isinstance(values, Store) else self._share(values)
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
                results.append(whole(np.full(1, missing, values.dtype)))
        found = np.stack(results, axis=-1)
        return found.reshape((*found.shape[:-1], *[values.shape[k] for k in kept]))


def _with(grid: Grid, lengths: dict[int, int]) -> Grid:
    """Return the grid with a single chunk of the given length along some axes."""
    one = {k: Axis.regular(length, length) for k, length in lengths.items()}
    return Grid(tuple(one.get(k, axis) for k, axis in enumerate(grid.axes)))


def _median(selection: Selection) -> Any:
    size = selection.size
    return np.median(selection.at(sorted({(size - 1) // 2, size // 2})))


def _interpolated(selection: Selection, q: Any, *, percent: bool, method: str) -> Any:
    """Return the quantiles of all elements, in the arithmetic of NumPy."""
    place_of, weight_of = _METHODS[method]
    size, share = selection.size, np.asarray(np.true_divide(q, 100) if percent else q)
    if not share.size:
        return np.quantile(selection.at([0]), share)
    place = np.asarray(place_of(size, share))
    if weight_of is None or (method == "linear" and place.dtype.kind in "iu"):
        return selection.at(place.ravel().tolist()).reshape(place.shape)[()]
    first = np.floor(place)
    weight = np.asarray(weight_of(place - first, place), place.dtype)
    weight = np.where((place < 0) | (place >= size - 1), weight.dtype.type(0), weight)
    low = first.clip(0, size - 1).astype(np.intp).ravel()
    pairs = selection.at([*low.tolist(), *np.minimum(low + 1, size - 1).tolist()]).reshape(2, -1).T
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

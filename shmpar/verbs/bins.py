"""NumPy's rules for the number of bins of a histogram, by exact passes over the blocks.

Guarantees
----------
- No pass holds more than a block in a worker, and a few numbers per block in the caller.
- The quartiles are exact, so they are equal for any chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from shmpar.runtime.error_texts import levels_to_user
from shmpar.verbs.selection import Collect, Selection

Array = np.ndarray[Any, Any]
Limits = tuple[Any, Any]
Measure = Callable[[Callable[[Array], Any]], Any]  # the results of a function for all blocks


_AUTO = ("fd", "sqrt", "sturges")


def bins_by_rule(
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
        "fd": lambda: 2.0 * np.subtract(*_quartiles(collect, limits)) * size ** (-1.0 / 3.0),
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
        counts = measure(partial(count_in_bins, bins=number, limits=limits))
        share = counts.reshape(-1, number).sum(0) / size
        return (2 - (size + 1) * share.dot(share)) / (span / number)

    most = max(100, int(np.sqrt(size)))
    best = min(range(1, most + 1), key=loss)
    if best == most:
        text = "The number of bins estimated may be suboptimal."
        warnings.warn(text, RuntimeWarning, stacklevel=levels_to_user())
    return span / best


def _quartiles(collect: Collect, limits: Limits) -> list[Any]:
    """Return the upper and the lower quartile, as :func:`numpy.percentile`."""
    selection = Selection(collect, partial(_inside, limits=limits))
    last = selection.size - 1
    places = [last * share for share in (0.75, 0.25)]
    ranks = [min(int(place) + more, last) for place in places for more in (0, 1)]
    found = selection.at(ranks).reshape(2, 2)
    # Why: NumPy interpolates between two elements as between neighbours in the sorted array.
    return [np.quantile(pair, [k % 1])[0] for pair, k in zip(found, places, strict=True)]


def count_in_bins(block: Array, weights: Any = None, *, bins: Any, limits: Any) -> Array:
    """Return the counts of one block, or the sums of its weights."""
    return np.histogram(block, bins, limits, weights=weights)[0]


def accumulator(values: Array, dtype: Any) -> Limits:
    """Return the dtype of the accumulator, and that of the result if it differs."""
    if dtype is not None:
        return np.dtype(dtype), None
    if values.dtype.kind in "?biu":
        return np.dtype("f8"), None
    if values.dtype.type is np.float16:
        return np.dtype("f4"), np.dtype("f2")
    return None, None

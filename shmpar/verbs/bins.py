"""NumPy's rules for the number of bins of a histogram, by exact passes over the blocks.

Guarantees
----------
- No pass holds more than a block in a worker, and a few numbers per block in the caller.
- The quartiles are selected by the bits of the numbers, not by their values: equal for any chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from shmpar.runtime.error_texts import levels_to_user

Array = np.ndarray[Any, Any]
Limits = tuple[Any, Any]
Measure = Callable[[Callable[[Array], Any]], Any]  # the results of a function for all blocks


_AUTO = ("fd", "sqrt", "sturges")


def bins_by_rule(rule: str, values: Array, limits: Limits, measure: Measure) -> int:
    """Return the number of bins of :func:`numpy.histogram_bin_edges`."""
    first, last = limits
    if first == last:
        first, last = limits = first - 0.5, last + 0.5
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:  # noqa: PLR2004 - as `_keys`
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
        "fd": lambda: 2.0 * np.subtract(*_quartiles(size, ends, measure)) * size ** (-1.0 / 3.0),
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


def _quartiles(size: int, ends: Limits, measure: Measure) -> list[Any]:
    """Return the upper and the lower quartile, as :func:`numpy.percentile`."""
    places = [(size - 1) * share for share in (0.75, 0.25)]
    ranks = [min(int(place) + more, size - 1) for place in places for more in (0, 1)]
    found = np.array(_select(ranks, ends, measure)).reshape(2, 2)
    # Why: NumPy interpolates between two elements as between neighbours in the sorted array.
    return [np.percentile(pair, 100 * (k % 1)) for pair, k in zip(found, places, strict=True)]


def _select(ranks: list[int], ends: Limits, measure: Measure) -> list[Any]:
    """Return the elements of these ranks among those between the ends, by a radix selection.

    The ends are the smallest and the largest of these elements.
    """
    first, last = map(int, _keys(np.array(ends)))
    shift, dtype = (first ^ last).bit_length(), ends[0].dtype
    keys, left = [first >> shift] * len(ranks), list(ranks)
    while shift:
        bits = min(8, shift)
        shift -= bits
        known, rest = sorted(set(keys)), shift + bits
        parts = [(max(k << rest, first), min((k + 1 << rest) - 1, last)) for k in known]
        # Why by value too: a comparison is cheaper than a key, and few elements are left.
        within = [(_value_of_key(low, dtype), _value_of_key(high, dtype)) for low, high in parts]
        digits = partial(_count_digits, known=known, ends=within, shift=shift, bits=bits)
        counts = measure(digits).reshape(-1, len(known), 1 << bits).sum(0)
        for number, rank in enumerate(left):
            below = counts[known.index(keys[number])].cumsum()
            digit = int(np.searchsorted(below, rank, "right"))
            keys[number] = keys[number] << bits | digit
            left[number] = rank - int(below[digit - 1] if digit else 0)
    return [_value_of_key(key, dtype) for key in keys]


def _count_digits(
    block: Array, known: list[int], ends: list[Limits], shift: int, bits: int
) -> Array:
    """Count the next bits of the keys that begin with the known ones, which lie between ends."""
    counts = []
    for one, limits in zip(known, ends, strict=True):
        keys = _keys(_inside(block, limits)).astype(np.uint64) >> np.uint64(shift)
        # Why again: 0.0 and -0.0 are equal, and their keys are not.
        keys = keys[keys >> np.uint64(bits) == np.uint64(one)] & np.uint64((1 << bits) - 1)
        counts.append(np.bincount(keys.astype(np.intp), minlength=1 << bits))
    return np.array(counts)


def _keys(values: Array) -> Any:
    """Return unsigned integers that have the order of the values, none of which is NaN."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    bits: Array = values.view(f"u{values.itemsize}")
    top = bits.dtype.type(1 << (8 * values.itemsize - 1))
    if values.dtype.kind == "u":
        return bits
    return bits ^ top if values.dtype.kind == "i" else np.where(bits >= top, ~bits, bits | top)


def _value_of_key(key: int, dtype: np.dtype[Any]) -> Any:
    top = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind != "u":
        key = key ^ top if dtype.kind == "i" or key >= top else key ^ (2 * top - 1)
    return np.array(key, f"u{dtype.itemsize}").view(dtype.newbyteorder("="))[()]


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

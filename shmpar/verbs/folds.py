"""How reductions are computed: blocks by NumPy, their partial results in the order of the chunks.

Imports build, options and the neighbours' records.

The result does not depend on the workers. Sums of partial sums are NumPy's (pairwise); variances
are folded by the update of Chan, Golub and LeVeque, "Algorithms for computing the sample
variance", The American Statistician 37 (1983), in a tree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from shmpar.grid import Axis
from shmpar.placement import InBlocks
from shmpar.run import Run
from shmpar.verbs import build
from shmpar.verbs.inputs import as_input, blocks, cut
from shmpar.verbs.options import Options, parse_options
from shmpar.verbs.shapes import axes_tuple
from shmpar.verbs.verbs import Verbs

__all__ = ["Folds"]

Array = np.ndarray[Any, Any]

#: Keywords of all verbs that mean something to a reduction.
TAKEN = ("progress", "on_error", "fill_value", "retries", "task_timeout")


class Folds(Verbs):
    """Gives a pool the arithmetic of :class:`Reductions`; arguments are as there."""

    def _sum(
        self, array: Any, axis: Any, dtype: Any, keepdims: bool, chunks: Any, options: Options
    ) -> Any:
        values = as_input(array, "sum")
        wide, narrow = dtype, None
        if values.dtype.type is np.float16 and (dtype is None or np.dtype(dtype) == np.float16):
            wide, narrow = np.dtype("f4"), np.dtype("f2")
        block = partial(np.sum, dtype=wide)
        total = self._fold("sum", values, block, block, axis, keepdims, chunks, options)
        return total if narrow is None else total.astype(narrow)

    def _mean(
        self, array: Any, axis: Any, dtype: Any, keepdims: bool, chunks: Any, options: Options
    ) -> Any:
        values = as_input(array, "mean")
        whole = partial(np.mean, dtype=dtype)
        if self._is_numpys("mean", values, whole, axis, options):
            return whole(values, axis=_numpy_axis(axis), keepdims=keepdims)
        wide, narrow = _accumulator(values, dtype)
        block = partial(np.sum, dtype=wide)
        total = self._fold("mean", values, block, block, axis, keepdims, chunks, options)
        mean = np.true_divide(total, np.intp(_count(values, axis)))
        return mean.astype(narrow or total.dtype, copy=False)

    def _histogram(
        self, array: Any, bins: Any, limits: Any, density: bool, chunks: Any, options: Options
    ) -> tuple[Array, Array]:
        values = as_input(array, "histogram")
        if isinstance(bins, str):
            raise ValueError(  # noqa: TRY004 - the type is NumPy's, the value is not ours
                f"histogram: bins={bins!r} is a rule that needs the whole array; pass a number, or "
                f"edges such as np.histogram_bin_edges(a_sample, {bins!r})"
            )
        self._check(options, "histogram")
        if values.dtype == bool:
            values = values.view(np.uint8)
        nothing = np.histogram(np.empty(0, values.dtype), bins, limits)  # NumPy's errors
        if values.size == 0 or values.ndim == 0 or nothing[0].size == 0:
            return np.histogram(values, bins, limits, density)
        if limits is None and np.ndim(bins) == 0:
            low, high = self._each_block(
                lambda block: (block.min(), block.max()), values, chunks, options
            )
            limits = (low.min(), high.max())
        edges = np.histogram(np.empty(0, values.dtype), bins, limits)[1]
        counted = self._each_block(
            lambda block: np.histogram(block, bins, limits)[0], values, chunks, options
        )
        counts: Array = counted.reshape(-1, len(edges) - 1).sum(0)
        if density:
            return counts / np.diff(edges) / counts.sum(), edges
        return counts, edges

    def _each_block(
        self, func: Callable[..., Any], values: Array, chunks: Any, options: Options
    ) -> Any:
        """What a function returns for each block."""
        request = self._request("histogram", func, None, None, options)
        return self._start(build.block_reduce(request, (values,), chunks, (0, "none")), options)

    def _check(self, options: Options, verb: str) -> None:
        """Raise ``TypeError`` or ``ValueError`` for options that a reduction does not have."""
        if not options.get("wait", True):
            raise TypeError(f"{verb}: a reduction is waited for; map_blocks has wait=False")
        foreign = [name for name in options if name not in (*TAKEN, "wait")]
        if foreign:
            raise TypeError(
                f"{verb}() got an unexpected keyword argument {foreign[0]!r}; beside its own a "
                f"reduction takes {', '.join(TAKEN)}. For another one use block_reduce, and NumPy "
                "on its result"
            )
        parse_options(verb, options, self._defaults())

    def _is_numpys(
        self, verb: str, values: Array, whole: Callable[..., Any], axis: Any, options: Options
    ) -> bool:
        """Whether NumPy is to reduce the array itself, since there is nothing to cut.

        Otherwise it reduces a single element, so that what it refuses is refused, by its own
        error, before anything starts.
        """
        self._check(options, verb)
        if values.size == 0 or values.ndim == 0:
            return True
        with np.errstate(all="ignore"):
            whole(np.zeros((1,) * values.ndim, values.dtype), axis=_numpy_axis(axis))
        return False

    def _fold(  # noqa: PLR0913, PLR0917 - what all reductions have
        self,
        verb: str,
        array: Any,
        block: Callable[..., Any],
        fold: Callable[..., Any],
        axis: Any,
        keepdims: bool,
        chunks: Any,
        options: Options,
    ) -> Any:
        """Reduce each block with one function, and the partial results with another."""
        values = as_input(array, verb)
        if self._is_numpys(verb, values, block, axis, options):
            return block(values, axis=_numpy_axis(axis), keepdims=keepdims)
        axes = _axes(values, axis)
        partials = self._partials(
            verb, values, partial(block, axis=axes, keepdims=True), axes, chunks, options
        )
        return fold(partials, axis=axes, keepdims=keepdims)

    def _partials(
        self,
        verb: str,
        values: Array,
        block: Callable[..., Any],
        axes: tuple[int, ...],
        chunks: Any,
        options: Options,
    ) -> Any:
        """The blocks' results: along reduced axes one element a chunk."""
        inputs = blocks(verb, (values,))
        grid = cut(inputs, chunks)
        cuts = tuple(
            Axis.regular(len(one), 1) if number in axes else one
            for number, one in enumerate(grid.axes)
        )
        placement = InBlocks(tuple(range(grid.ndim)), cuts)
        request = self._request(verb, block, None, None, options)
        run: Run = build.reduction(request, inputs, build.Cut(grid, placement))
        return self._start(run, options)

    def _variance(
        self,
        verb: str,
        array: Any,
        axis: Any,
        dtype: Any,
        how: tuple[float, bool, Any],
        options: Options,
    ) -> Any:
        ddof, keepdims, chunks = how
        values = as_input(array, verb)
        if dtype is not None and np.dtype(dtype).kind not in "fc":
            raise TypeError(f"{verb}: dtype={dtype!r} would cut deviations off; pass a float dtype")
        whole = partial(np.var, dtype=dtype)
        if self._is_numpys(verb, values, whole, axis, options):
            return whole(values, axis=_numpy_axis(axis), ddof=ddof, keepdims=keepdims)
        freedom = max(_count(values, axis) - ddof, 0)
        wide, narrow = _accumulator(values, None)
        if dtype is not None:
            wide, narrow = np.result_type(wide or values.dtype, dtype), np.dtype(dtype)
        axes = _axes(values, axis)
        moments = partial(_moments, axes=axes, dtype=wide)
        mean, square, count = self._partials(verb, values, moments, axes, chunks, options)
        square = _chan(mean, square, count, axes)
        if freedom <= 0:
            warnings.warn("Degrees of freedom <= 0 for slice", RuntimeWarning, stacklevel=3)
        with np.errstate(divide="ignore", invalid="ignore"):
            result = np.true_divide(square, freedom)
        if not keepdims:
            result = result.squeeze(axes)
        return result.astype(narrow or square.dtype, copy=False)[()]


def _numpy_axis(axis: Any) -> Any:
    return tuple(axis) if isinstance(axis, list) else axis


def _axes(values: Array, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(values.ndim))
    return axes_tuple("axis", axis, values.ndim)


def _count(values: Array, axis: Any) -> int:
    return math.prod(values.shape[number] for number in _axes(values, axis))


def _accumulator(values: Array, dtype: Any) -> tuple[Any, Any]:
    """The dtype to add in, and the one to give back if that is another."""
    if dtype is not None:
        return np.dtype(dtype), None
    if values.dtype.kind in "?biu":
        return np.dtype("f8"), None
    if values.dtype.type is np.float16:
        return np.dtype("f4"), np.dtype("f2")
    return None, None


def _moments(block: Array, axes: tuple[int, ...], dtype: Any) -> tuple[Any, Any, Any]:
    """Mean, sum of squares about it, and number of elements of a block."""
    mean = np.mean(block, axes, dtype, keepdims=True)
    off = block - mean
    square = (off.real**2 + off.imag**2 if off.dtype.kind == "c" else off * off).sum(
        axes, keepdims=True
    )
    number, exact = block.size // max(square.size, 1), np.result_type(square, np.float64)
    count = np.full(square.shape, number, exact)
    return np.asarray(mean), np.asarray(square), count


def _chan(mean: Array, square: Array, count: Array, axes: tuple[int, ...]) -> Array:
    """Fold the sums of squares of all blocks, two and two, in the order of the chunks."""
    parts = [np.moveaxis(one, axes, range(len(axes))) for one in (mean, square, count)]
    lead = int(np.prod(parts[0].shape[: len(axes)]))
    rest = parts[0].shape[len(axes) :]
    mean, square, count = (np.ascontiguousarray(one).reshape(lead, *rest) for one in parts)
    while len(mean) > 1:
        half = len(mean) // 2
        last = slice(2 * half, None)
        one, other = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        both = count[one] + count[other]
        delta = mean[other] - mean[one]
        spread = delta.real**2 + delta.imag**2 if delta.dtype.kind == "c" else delta * delta
        joined = square[one] + square[other] + spread * (count[one] * count[other] / both)
        middle = mean[one] + delta * (count[other] / both)
        mean = np.concatenate([middle.astype(mean.dtype), mean[last]])
        square = np.concatenate([joined.astype(square.dtype), square[last]])
        count = np.concatenate([both, count[last]])
    return np.expand_dims(square[0], axes)

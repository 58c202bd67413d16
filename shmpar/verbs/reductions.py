"""NumPy's reductions, block by block, and their arithmetic.

NumPy reduces each block, and the partial results are combined in the order of the chunks, so the
result does not depend on the workers. Sums of partial sums are pairwise, as in NumPy. Variances
are combined in a tree by the update of Chan, Golub and LeVeque, "Algorithms for computing the
sample variance", The American Statistician 37 (1983).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from reprlib import repr as brief
from typing import Any, Final, Unpack

import numpy as np

from shmpar.grid import Axis
from shmpar.plan import InBlocks, PerChunk
from shmpar.stores.store import Store
from shmpar.verbs.arguments import as_input, blocks
from shmpar.verbs.bins import accumulator, bins_by_rule, count_in_bins
from shmpar.verbs.blocks import BlockVerbs
from shmpar.verbs.call import Call
from shmpar.verbs.options import Options, suggestion, with_shared_text
from shmpar.verbs.outputs import axes_tuple
from shmpar.verbs.rows import RowVerbs

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]

REDUCTION_OPTIONS: Final = (
    "progress", "on_error", "fill_value", "retries", "task_timeout", "io_retries",
)  # fmt: skip


@with_shared_text
class Reductions(BlockVerbs, RowVerbs):
    """Gives a pool all verbs: NumPy's reductions, and the verbs of blocks and rows."""

    def sum(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Sum, as :func:`numpy.sum`.

        Parameters
        ----------
        {reduced}
        dtype : dtype, optional
            Dtype of the sum and of the partial sums; by default as in NumPy.
        {keepdims}
        {rounded_chunks}
        {reduction_options}

        Returns
        -------
        ndarray or scalar
            As in NumPy: exact for integers. Values of float16 are added in float32.

        Raises
        ------
        {reduction_raises}

        Notes
        -----
        {reduction_cost}

        Along an axis that is contiguous in memory, NumPy adds pairwise, so that rounding errors
        grow with the logarithm of the number of elements: Higham, "The accuracy of floating point
        summation", SIAM Journal on Scientific Computing 14 (1993). NumPy also adds the sums of
        the blocks, in the order of the chunks.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.sum(np.arange(12).reshape(3, 4), axis=0)
        array([12, 15, 18, 21])
        """
        add = self._folded("sum", array, (np.sum, np.sum), dtype, options)
        return add(axis, chunks, keepdims=keepdims)

    def min(
        self,
        array: Any,
        axis: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Smallest element, as :func:`numpy.min`.

        {extreme}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.min([[3, 1], [2, 5]], axis=1)
        array([1, 2])
        """
        call = self._reduction("min", np.min, array, options)
        return self._reduce(call, axis, chunks, keepdims=keepdims)

    def max(
        self,
        array: Any,
        axis: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Largest element, as :func:`numpy.max`.

        {extreme}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.max([[3, 1], [2, 5]], axis=1)
        array([3, 5])
        """
        call = self._reduction("max", np.max, array, options)
        return self._reduce(call, axis, chunks, keepdims=keepdims)

    def mean(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Arithmetic mean, as :func:`numpy.mean`.

        Parameters
        ----------
        {reduced}
        dtype : dtype, optional
            Dtype of the mean and of the partial sums; by default float64 for integers, else the
            dtype of the array.
        {keepdims}
        {rounded_chunks}
        {reduction_options}

        Returns
        -------
        ndarray or scalar
            As in NumPy. Values of float16 are added in float32. The mean of no elements is NaN,
            with the warning of NumPy.

        Raises
        ------
        {reduction_raises}

        Notes
        -----
        {reduction_cost}

        It is :meth:`sum`, divided by the number of elements, and as accurate.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.mean([1, 2, 3, 6]))
        3.0
        """
        values = as_input(array, "mean")
        wide, narrow = accumulator(values, dtype)
        add = partial(np.sum, dtype=wide)

        def combine(sums: Array, axis: Axes, *, keepdims: bool) -> Any:
            total = add(sums, axis=axis, keepdims=keepdims)
            mean = np.true_divide(total, np.intp(_count(values, axis)))
            return mean.astype(narrow or total.dtype, copy=False)

        call = self._reduction("mean", partial(np.mean, dtype=dtype), values, options)
        return self._reduce(call, axis, chunks, add, combine, keepdims=keepdims)

    def var(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Variance, as :func:`numpy.var`, in one pass.

        Parameters
        ----------
        {reduced}
        dtype : dtype, optional
            Dtype of the result, floating or complex; by default float64 for integers, else the
            dtype of the array. The precision of the computation is at least that of the array. Any
            other dtype is a TypeError, since it would truncate deviations.
        {ddof}
        {keepdims}
        {rounded_chunks}
        {reduction_options}

        Returns
        -------
        ndarray or scalar
            As in NumPy; real for complex arrays. Values of float16 are computed in float32.

        Raises
        ------
        {reduction_raises}

        Notes
        -----
        Cost: one pass over the array. The partial results are three times as large as the result,
        times the chunks along the reduced axes. In each worker, the deviations of a block take as
        much memory as the block.

        Each block gives its mean, and the sum of squares about its mean. These are combined in
        pairs by the update of Chan, Golub and LeVeque, "Algorithms for computing the sample
        variance", The American Statistician 37 (1983). So the result is accurate also if the mean
        is large compared to the deviations, as with the two passes of NumPy.

        If `ddof` leaves no degree of freedom, the result is NaN or infinite, with the
        RuntimeWarning of NumPy.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.var([1, 2, 3, 6], ddof=1))
        4.666666666666667
        """
        call = self._reduction("var", partial(np.var, dtype=dtype), array, options)
        return self._variance(call, axis, dtype, chunks, ddof=ddof, keepdims=keepdims)

    def std(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Standard deviation, as :func:`numpy.std`, in one pass.

        Parameters
        ----------
        {reduced}
        dtype : dtype, optional
            As in :meth:`var`.
        {ddof}
        {keepdims}
        {rounded_chunks}
        {reduction_options}

        Returns
        -------
        ndarray or scalar
            The square root of :meth:`var`.

        Raises
        ------
        {reduction_raises}

        Notes
        -----
        Cost and method are those of :meth:`var`.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.std([1, 1, 5, 5]))
        2.0
        """
        call = self._reduction("std", partial(np.var, dtype=dtype), array, options)
        return np.sqrt(self._variance(call, axis, dtype, chunks, ddof=ddof, keepdims=keepdims))

    def prod(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Product, as :func:`numpy.prod`.

        {rounded}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.prod(np.array([[1, 2], [3, 4]]), axis=0)
        array([3, 8])
        """
        add = self._folded("prod", array, (np.prod, np.prod), dtype, options)
        return add(axis, chunks, keepdims=keepdims)

    def nansum(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Sum of the elements that are not NaN, as :func:`numpy.nansum`.

        {rounded}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.nansum(np.array([[1, np.nan], [3, 4]]), axis=0)
        array([4., 4.])
        """
        add = self._folded("nansum", array, (np.nansum, np.sum), dtype, options)
        return add(axis, chunks, keepdims=keepdims)

    def any(
        self,
        array: Any,
        axis: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Return whether any element is true, as :func:`numpy.any`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.any(np.array([[1, 0], [3, 0]]), axis=0)
        array([ True, False])
        """
        call = self._reduction("any", np.any, array, options)
        return self._reduce(call, axis, chunks, keepdims=keepdims)

    def all(
        self,
        array: Any,
        axis: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Return whether all elements are true, as :func:`numpy.all`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.all(np.array([[1, 0], [3, 0]]), axis=0)
        array([ True, False])
        """
        call = self._reduction("all", np.all, array, options)
        return self._reduce(call, axis, chunks, keepdims=keepdims)

    def nanmin(
        self,
        array: Any,
        axis: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Smallest element that is not NaN, as :func:`numpy.nanmin`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.nanmin(np.array([[1, np.nan], [3, 4]]), axis=0)
        array([1., 4.])
        """
        call = self._reduction("nanmin", np.nanmin, array, options)
        # Why not the function itself: it warns of each block of NaN.
        steps = np.fmin.reduce, np.nanmin
        return self._reduce(call, axis, chunks, *steps, keepdims=keepdims)

    def nanmax(
        self,
        array: Any,
        axis: Any = None,
        *,
        keepdims: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> Any:
        """Largest element that is not NaN, as :func:`numpy.nanmax`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.nanmax(np.array([[1, np.nan], [3, 4]]), axis=0)
        array([3., 4.])
        """
        call = self._reduction("nanmax", np.nanmax, array, options)
        # Why not the function itself: it warns of each block of NaN.
        steps = np.fmax.reduce, np.nanmax
        return self._reduce(call, axis, chunks, *steps, keepdims=keepdims)

    def histogram(
        self,
        array: Any,
        bins: Any = 10,
        range: Any = None,  # noqa: A002 - NumPy's name
        *,
        density: bool = False,
        weights: Any = None,
        chunks: Any = "auto",
        **options: Unpack[Options],
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

        A rule costs one pass more; "scott" two, "doane" three. "fd" and "auto" take up to one per
        byte of an element, to select the quartiles without a copy of the array. "stone" takes a
        pass per candidate: the square root of the number of elements, at least 100. For long
        double NumPy computes the rule, on a copy. The last digits of the sums in "scott" and
        "doane" may make one bin more or less; those of float16 are added in float32.

        NumPy counts each block in the same bins, and the counts are added, which is exact.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.histogram([1, 2, 2, 5], bins=2)
        ...     pool.histogram([1, 2, 2, 5], bins=2, weights=[0.5, 1, 2, 4])
        (array([3, 1]), array([1., 3., 5.]))
        (array([3.5, 4. ]), array([1., 3., 5.]))
        """
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
        tried = np.histogram(few, bins, range, weights=ones if weigh else None)
        if values.size == 0 or values.ndim == 0 or tried[0].size == 0:
            weights = factors[...] if weigh else None
            return np.histogram(values[...], bins, range, density, weights)
        if range is None and np.ndim(bins) == 0:
            low, high = self._map(call, _extremes, chunks)
            range = low.min(), high.max()  # noqa: A001 - NumPy's name
        if isinstance(bins, str):
            measure = partial(self._map, call, chunks=chunks)
            bins = bins_by_rule(bins, values, range, measure)
        edges = np.histogram(few[:0], bins, range)[1]
        count = partial(count_in_bins, bins=bins, limits=range)
        if weigh:
            call.inputs = blocks("histogram", (values, factors))
        parts = self._map(call, count, chunks).reshape(-1, len(edges) - 1)
        counts: Array = np.add.reduce(parts, axis=0, dtype=parts.dtype)
        if density:
            return counts / np.array(np.diff(edges), float) / counts.sum(), edges
        return counts, edges

    def _reduction(self, verb: str, func: Any, array: Any, options: Options) -> Call:
        """Make the call of a reduction, whose function reduces the whole array."""
        values = as_input(array, verb)
        if not options.get("wait", True):
            raise TypeError(f"{verb}: a reduction always waits; map_blocks has wait=False")
        if foreign := [name for name in options if name not in (*REDUCTION_OPTIONS, "wait")]:
            known = [*inspect.signature(getattr(self, verb)).parameters, *REDUCTION_OPTIONS]
            meant = suggestion(foreign[0], known)
            raise TypeError(
                f"{verb}() got an unexpected keyword argument {foreign[0]!r}{meant}; beside its "
                f"own a reduction takes {', '.join(REDUCTION_OPTIONS)}. For another one use "
                "block_reduce, and NumPy on its result"
            )
        call = self._call(verb, func, options)
        call.inputs = blocks(verb, (values,))
        return call

    def _folded(
        self, verb: str, array: Any, steps: tuple[Any, Any], dtype: Any, options: Options
    ) -> Callable[..., Any]:
        """Return a reduction by a function of blocks, and one of the partial results."""
        values = as_input(array, verb)
        half = values.dtype.type is np.float16 and (dtype is None or np.dtype(dtype) == np.float16)
        block, combine = (partial(one, dtype=np.float32 if half else dtype) for one in steps)
        call = self._reduction(verb, block, values, options)

        def reduce(axis: Any, chunks: Any, **final: Any) -> Any:
            total = self._reduce(call, axis, chunks, block, combine, **final)
            return total.astype(np.float16) if half else total

        return reduce

    def _reduce(self, call: Call, axis: Any, chunks: Any, *steps: Any, **final: Any) -> Any:
        """Reduce each block, then the partial results.

        Parameters
        ----------
        *steps : callable
            Reductions of a block and of the partial results; without them, that of the call.
        **final
            Keyword arguments of the reductions of the whole array and of the partial results.
        """
        (values,), whole = call.inputs.arrays, call.func
        block, combine = steps or (whole, whole)
        axis = tuple(axis) if isinstance(axis, list) else axis
        if values.size == 0 or values.ndim == 0:
            return whole(values[...], axis=axis, **final)
        # Why: NumPy raises its own errors on a single element, before anything starts.
        with np.errstate(all="ignore"):
            whole(np.zeros((1,) * values.ndim, values.dtype), axis=axis)
        axes = tuple(range(values.ndim)) if axis is None else axes_tuple("axis", axis, values.ndim)
        partials = self._map(call, partial(block, axis=axes, keepdims=True), chunks, axes)
        return combine(partials, axis=axes, **final)

    def _map(self, call: Call, block: Any, chunks: Any, axes: Any = None) -> Any:
        """Return the results of all blocks, joined with one element per chunk along `axes`."""
        call.func, call.placement = block, PerChunk()
        grid = call.grid = call.inputs.cut(chunks)
        if axes is not None:
            cuts = [Axis.regular(len(a), 1) if k in axes else a for k, a in enumerate(grid.axes)]
            call.placement = InBlocks(tuple(range(grid.ndim)), tuple(cuts))
        return self._run(call)

    def _variance(
        self, call: Call, axis: Any, dtype: Any, chunks: Any, *, ddof: float, keepdims: bool
    ) -> Any:
        (values,) = call.inputs.arrays
        if dtype is not None and np.dtype(dtype).kind not in "fc":
            remedy = f"dtype={dtype!r} would truncate deviations; pass a float dtype"
            raise TypeError(f"{call.verb}: {remedy}")
        if np.asarray(ddof).dtype.kind not in "biuf" or np.ndim(ddof):
            raise TypeError(f"{call.verb}: ddof is a number, not {brief(ddof)}")
        wide, narrow = accumulator(values, None)
        if dtype is not None:
            wide, narrow = np.result_type(wide or values.dtype, dtype), np.dtype(dtype)

        def combine(parts: Any, axis: Axes, *, ddof: float, keepdims: bool) -> Any:
            square = _combine(parts, axis)
            freedom = _count(values, axis) - ddof
            if freedom <= 0:
                warnings.warn("Degrees of freedom <= 0 for slice", RuntimeWarning, stacklevel=5)
            with np.errstate(divide="ignore", invalid="ignore"):
                result = np.true_divide(square, max(freedom, 0))
            result = result if keepdims else result.squeeze(axis)
            return result.astype(narrow or square.dtype, copy=False)[()]

        return self._reduce(
            call, axis, chunks, partial(_moments, dtype=wide), combine, ddof=ddof, keepdims=keepdims
        )


def _count(values: Array, axes: Axes) -> int:
    return math.prod(values.shape[axis] for axis in axes)


def _extremes(block: Array) -> tuple[Any, Any]:
    return block.min(), block.max()


def _squared(values: Array) -> Array:
    """Return the squared absolute values."""
    return values.real**2 + values.imag**2 if values.dtype.kind == "c" else values * values


def _moments(block: Array, axis: Axes, dtype: Any, *, keepdims: bool) -> tuple[Any, Any, Any]:
    """Return the mean of a block, the sum of squares about it, and the number of elements."""
    mean = np.mean(block, axis, dtype, keepdims=keepdims)
    square = _squared(block - mean).sum(axis, keepdims=keepdims)
    number, exact = block.size // max(square.size, 1), np.result_type(square, np.float64)
    return np.asarray(mean), np.asarray(square), np.full(square.shape, number, exact)


def _combine(moments: Sequence[Array], axes: Axes) -> Array:
    """Combine the sums of squares of all blocks, in pairs, in the order of the chunks."""
    parts = [np.moveaxis(one, axes, range(len(axes))) for one in moments]
    lead, rest = math.prod(parts[0].shape[: len(axes)]), parts[0].shape[len(axes) :]
    mean, square, count = (np.ascontiguousarray(one).reshape(lead, *rest) for one in parts)
    while len(mean) > 1:
        half = len(mean) // 2
        one, other, last = slice(0, 2 * half, 2), slice(1, 2 * half, 2), slice(2 * half, None)
        both = count[one] + count[other]
        delta = mean[other] - mean[one]
        between = _squared(delta) * (count[one] * count[other] / both)
        joined = square[one] + square[other] + between
        middle = mean[one] + delta * (count[other] / both)
        mean = np.concatenate([middle.astype(mean.dtype), mean[last]])
        square = np.concatenate([joined.astype(square.dtype), square[last]])
        count = np.concatenate([both, count[last]])
    return np.expand_dims(square[0], axes)

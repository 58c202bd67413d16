"""How reductions are computed: blocks by NumPy, their partial results in the order of the chunks.

Imports build, options and the neighbours' records.

The result does not depend on the workers. Sums of partial sums are NumPy's (pairwise); variances
are folded by the update of Chan, Golub and LeVeque, "Algorithms for computing the sample
variance", The American Statistician 37 (1983), in a tree.

Reductions: NumPy's, computed block by block.

Imports folds and options.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import numpy as np

from shmpar.grid import Axis
from shmpar.plan import InBlocks
from shmpar.runtime.run import Run
from shmpar.verbs import call
from shmpar.verbs.arguments import as_input, blocks, cut
from shmpar.verbs.blocks import Verbs
from shmpar.verbs.options import Options, parse_options
from shmpar.verbs.outputs import axes_tuple

__all__ = ["Folds", "Reductions"]

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
        return self._start(call.block_reduce(request, (values,), chunks, (0, "none")), options)

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
        run: Run = call.reduction(request, inputs, call.Cut(grid, placement))
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


class Reductions(Folds):
    """Gives a pool NumPy's reductions."""

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
        array : array_like
            What to reduce.
        axis : int, tuple of int or None
            Axes to reduce; None: all.
        dtype : dtype, optional
            Of the sum and of the partial sums; NumPy's default.
        keepdims : bool
            Leave the reduced axes, with length 1.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result of floats depends on it in the last digits.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            As NumPy's: exact for integers; float16 is added in float32.

        Raises
        ------
        AxisError, TypeError
            As NumPy's, before anything starts.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array; the partial results are as large as the result, times the
        chunks along the reduced axes.

        Along the axis that is contiguous in memory NumPy adds pairwise, so that rounding errors
        grow with the logarithm of the number of elements: Higham, "The accuracy of floating point
        summation", SIAM Journal on Scientific Computing 14 (1993). The sums of the blocks are added
        by NumPy too, in the order of the chunks.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.sum(np.arange(12).reshape(3, 4), axis=0)
        array([12, 15, 18, 21])
        """
        return self._sum(array, axis, dtype, keepdims, chunks, options)

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

        Parameters
        ----------
        array : array_like
            What to reduce.
        axis : int, tuple of int or None
            Axes to reduce; None: all.
        keepdims : bool
            Leave the reduced axes, with length 1.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result does not depend on it.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            Of the array's dtype; NaN or NaT where there is one among the elements.

        Raises
        ------
        AxisError, TypeError
            As NumPy's, before anything starts.
        ValueError
            If there is no element, as NumPy's.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array; the partial results are as large as the result, times the
        chunks along the reduced axes.

        The smallest elements of the blocks are folded by NumPy as the elements are, so the
        result is exactly NumPy's.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.min([[3, 1], [2, 5]], axis=1)
        array([1, 2])
        """
        return self._fold("min", array, np.min, np.min, axis, keepdims, chunks, options)

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

        Parameters
        ----------
        array : array_like
            What to reduce.
        axis : int, tuple of int or None
            Axes to reduce; None: all.
        keepdims : bool
            Leave the reduced axes, with length 1.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result does not depend on it.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            Of the array's dtype; NaN or NaT where there is one among the elements.

        Raises
        ------
        AxisError, TypeError
            As NumPy's, before anything starts.
        ValueError
            If there is no element, as NumPy's.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array; the partial results are as large as the result, times the
        chunks along the reduced axes.

        The largest elements of the blocks are folded by NumPy as the elements are, so the
        result is exactly NumPy's.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.max([[3, 1], [2, 5]], axis=1)
        array([3, 5])
        """
        return self._fold("max", array, np.max, np.max, axis, keepdims, chunks, options)

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
        array : array_like
            What to reduce.
        axis : int, tuple of int or None
            Axes to reduce; None: all.
        dtype : dtype, optional
            Of the mean and of the partial sums; by default float64 for integers, else the array's.
        keepdims : bool
            Leave the reduced axes, with length 1.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result of floats depends on it in the last digits.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            As NumPy's; float16 is added in float32. Of no elements it is NaN, with NumPy's warning.

        Raises
        ------
        AxisError, TypeError
            As NumPy's, before anything starts.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array; the partial results are as large as the result, times the
        chunks along the reduced axes.

        It is :meth:`sum`, divided by the number of elements, and as accurate.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.mean([1, 2, 3, 6]))
        3.0
        """
        return self._mean(array, axis, dtype, keepdims, chunks, options)

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
        array : array_like
            What to reduce.
        axis : int, tuple of int or None
            Axes to reduce; None: all.
        dtype : dtype, optional
            Of the result, floating or complex; by default float64 for integers, else the array's.
            It is computed in no less than the array's precision.
        ddof : float
            The sum of squares is divided by the number of elements less this.
        keepdims : bool
            Leave the reduced axes, with length 1.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result of floats depends on it in the last digits.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            As NumPy's; real for complex arrays. Float16 is computed in float32.

        Raises
        ------
        AxisError, TypeError
            As NumPy's, before anything starts; and for a `dtype` that would cut deviations off.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array; the partial results are three times as large as the result,
        times the chunks along the reduced axes.
        A block's deviations take as much memory as the block, in each worker.

        Each block gives its mean and the sum of squares about it. These are folded, two and two, by
        the update of Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The
        American Statistician 37 (1983). So a mean that is large beside the spread does no harm, as
        in NumPy's two passes.

        Where `ddof` leaves no degree of freedom, the result is NaN or infinite, and NumPy's
        RuntimeWarning says so.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.var([1, 2, 3, 6], ddof=1))
        4.666666666666667
        """
        return self._variance("var", array, axis, dtype, (ddof, keepdims, chunks), options)

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
        array : array_like
            What to reduce.
        axis : int, tuple of int or None
            Axes to reduce; None: all.
        dtype : dtype, optional
            As of :meth:`var`.
        ddof : float
            The sum of squares is divided by the number of elements less this.
        keepdims : bool
            Leave the reduced axes, with length 1.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result of floats depends on it in the last digits.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            The square root of :meth:`var`.

        Raises
        ------
        AxisError, TypeError
            As of :meth:`var`.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost and method: those of :meth:`var`, whose squares are folded by the update of Chan, Golub
        and LeVeque (1983).

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.std([1, 1, 5, 5]))
        2.0
        """
        return np.sqrt(self._variance("std", array, axis, dtype, (ddof, keepdims, chunks), options))

    def histogram(
        self,
        array: Any,
        bins: Any = 10,
        range: Any = None,  # noqa: A002 - NumPy's name
        *,
        density: bool = False,
        chunks: Any = "auto",
        **options: Unpack[Options],
    ) -> tuple[Array, Array]:
        """Counts of values in bins, as :func:`numpy.histogram`.

        Parameters
        ----------
        array : array_like
            Its elements are counted, whatever its shape.
        bins : int or sequence of float
            How many of equal width, or their edges.
        range : (float, float), optional
            Where bins of equal width begin and end; by default at the smallest and the largest
            element.
        density : bool
            Return the probability density instead of counts.
        chunks : int, tuple, dict or "auto"
            How the array is cut; the result does not depend on it.
        **options
            `progress`, `on_error`, `fill_value`, `retries` and `task_timeout`, as of all verbs; see
            :class:`shmpar.verbs.Options`.

        Returns
        -------
        counts : ndarray of shape (bins,)
            Exactly NumPy's.
        edges : ndarray of shape (bins + 1,)
            The first bin is ``edges[0] <= x < edges[1]``; the last one has both ends.

        Raises
        ------
        ValueError, TypeError
            As NumPy's; a rule such as ``bins="auto"`` needs the whole array, so that is one too.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array, and another one where the smallest and the largest element
        are looked for: `bins` is a number and there is no `range`.

        Blocks are counted by NumPy in the same bins, and the counts are added, which is exact.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.histogram([1, 2, 2, 5], bins=2)
        (array([3, 1]), array([1., 3., 5.]))
        """
        return self._histogram(array, bins, range, density, chunks, options)

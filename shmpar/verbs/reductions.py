"""NumPy's reductions, block by block, and their arithmetic.

NumPy reduces each block, and the partial results are combined in the order of the chunks, so the
result does not depend on the workers. Sums of partial sums are pairwise, as in NumPy. The sum of
squares about the mean is that within the blocks, and that of the means of the blocks: Chan, Golub
and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from reprlib import repr as brief
from typing import Any, Unpack

import numpy as np

from shmpar.runtime.error_texts import warn_user
from shmpar.verbs.arguments import as_input
from shmpar.verbs.blocks import Verbs
from shmpar.verbs.counts import Counts
from shmpar.verbs.labels import with_axis_names
from shmpar.verbs.options import ReductionOptions, with_shared_text
from shmpar.verbs.partials import Axes, accumulator, check_dtype
from shmpar.verbs.quantiles import Quantiles

Array = np.ndarray[Any, Any]


@with_axis_names
@with_shared_text
class Reductions(Quantiles, Counts, Verbs):
    """Gives a pool all verbs: NumPy's reductions, and the verbs of blocks and rows."""

    def sum(
        self, array: Any, axis: Any = None, dtype: Any = None, **options: Unpack[ReductionOptions]
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
        return self._folded("sum", array, axis, dtype, options, np.sum, np.sum)

    def min(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Smallest element, as :func:`numpy.min`.

        {extreme}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.min([[3, 1], [2, 5]], axis=1)
        array([1, 2])
        """
        return self._reduced("min", np.min, array, axis, options)

    def max(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Largest element, as :func:`numpy.max`.

        {extreme}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.max([[3, 1], [2, 5]], axis=1)
        array([3, 5])
        """
        return self._reduced("max", np.max, array, axis, options)

    def mean(
        self, array: Any, axis: Any = None, dtype: Any = None, **options: Unpack[ReductionOptions]
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
        return self._mean("mean", np.mean, array, axis, dtype, options)

    def var(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        ddof: float = 0,
        **options: Unpack[ReductionOptions],
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
        Cost: one pass over the array. The partial results are four times as large as the result,
        times the chunks along the reduced axes. In each worker, the deviations of a block take as
        much memory as the block.

        Each block gives its mean, and the sum of squares about its mean. The squares of the means
        about the mean of all are added, as by Chan, Golub and LeVeque, "Algorithms for computing
        the sample variance", The American Statistician 37 (1983). So the result is accurate also
        if the mean is large compared to the deviations, as with the two passes of NumPy.

        If `ddof` leaves no degree of freedom, the result is NaN or infinite, with the
        RuntimeWarning of NumPy.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.var([1, 2, 3, 6], ddof=1))
        4.666666666666667
        """
        return self._variance("var", array, axis, dtype, ddof, options)

    def std(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        ddof: float = 0,
        **options: Unpack[ReductionOptions],
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
        return np.sqrt(self._variance("std", array, axis, dtype, ddof, options))

    def prod(
        self, array: Any, axis: Any = None, dtype: Any = None, **options: Unpack[ReductionOptions]
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
        return self._folded("prod", array, axis, dtype, options, np.prod, np.prod)

    def nansum(
        self, array: Any, axis: Any = None, dtype: Any = None, **options: Unpack[ReductionOptions]
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
        return self._folded("nansum", array, axis, dtype, options, np.nansum, np.sum)

    def any(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Return whether any element is true, as :func:`numpy.any`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.any(np.array([[1, 0], [3, 0]]), axis=0)
        array([ True, False])
        """
        return self._reduced("any", np.any, array, axis, options)

    def all(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Return whether all elements are true, as :func:`numpy.all`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.all(np.array([[1, 0], [3, 0]]), axis=0)
        array([ True, False])
        """
        return self._reduced("all", np.all, array, axis, options)

    def nanmin(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Smallest element that is not NaN, as :func:`numpy.nanmin`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.nanmin(np.array([[1, np.nan], [3, 4]]), axis=0)
        array([1., 4.])
        """
        # Why not the function itself in blocks: it warns of each block of NaN.
        steps = np.nanmin, array, axis, options, np.fmin.reduce, np.nanmin
        return self._reduced("nanmin", *steps)

    def nanmax(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Largest element that is not NaN, as :func:`numpy.nanmax`.

        {exact}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.nanmax(np.array([[1, np.nan], [3, 4]]), axis=0)
        array([3., 4.])
        """
        # Why not the function itself in blocks: it warns of each block of NaN.
        steps = np.nanmax, array, axis, options, np.fmax.reduce, np.nanmax
        return self._reduced("nanmax", *steps)

    def nanmean(
        self, array: Any, axis: Any = None, dtype: Any = None, **options: Unpack[ReductionOptions]
    ) -> Any:
        """Arithmetic mean of the elements that are not NaN, as :func:`numpy.nanmean`.

        {rounded}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.nanmean(np.array([[1, np.nan], [3, 4]]), axis=0)
        array([2., 4.])
        """
        return self._mean("nanmean", np.nanmean, array, axis, dtype, options)

    def nanvar(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        ddof: float = 0,
        **options: Unpack[ReductionOptions],
    ) -> Any:
        """Variance of the elements that are not NaN, as :func:`numpy.nanvar`, in one pass.

        {nanvariance}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.nanvar([1, 2, np.nan, 3, 6], ddof=1))
        4.666666666666667
        """
        return self._variance("nanvar", array, axis, dtype, ddof, options)

    def nanstd(
        self,
        array: Any,
        axis: Any = None,
        dtype: Any = None,
        *,
        ddof: float = 0,
        **options: Unpack[ReductionOptions],
    ) -> Any:
        """Standard deviation of the elements that are not NaN, as :func:`numpy.nanstd`.

        {nanvariance}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     float(pool.nanstd([1, 1, np.nan, 5, 5]))
        2.0
        """
        return np.sqrt(self._variance("nanstd", array, axis, dtype, ddof, options))

    def argmin(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Index of the smallest element, as :func:`numpy.argmin`.

        {place}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.argmin([[3, 1], [2, 1]], axis=1), int(pool.argmin([[3, 1], [2, 1]]))
        (array([1, 1]), 1)
        """
        return self._place("argmin", np.argmin, array, axis, options)

    def argmax(self, array: Any, axis: Any = None, **options: Unpack[ReductionOptions]) -> Any:
        """Index of the largest element, as :func:`numpy.argmax`.

        {place}

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.argmax([[3, 1], [2, 5]], axis=1), int(pool.argmax([[3, 1], [2, 5]]))
        (array([0, 1]), 3)
        """
        return self._place("argmax", np.argmax, array, axis, options)

    def _place(self, verb: str, find: Any, array: Any, axis: Any, options: Any) -> Any:
        steps = partial(_first_in_block, find=find), partial(_first, find=find)
        return self._reduced(verb, find, array, axis, options, *steps)

    def _mean(self, verb: str, whole: Any, array: Any, axis: Any, dtype: Any, options: Any) -> Any:
        values = as_input(array, verb)
        check_dtype(verb, dtype)
        wide, narrow = accumulator(values, dtype)
        may_be_nan = verb == "nanmean" and values.dtype.kind in "fc"
        add = partial(np.nansum if may_be_nan else np.sum, dtype=wide)

        def combine(parts: Any, axis: Axes, *, keepdims: bool) -> Any:
            sums, counts = parts if may_be_nan else (parts, None)
            total = np.sum(sums, axis=axis, dtype=wide, keepdims=keepdims)
            number: Any = np.intp(math.prod(values.shape[k] for k in axis))
            if counts is not None:
                number = counts.sum(axis=axis, keepdims=keepdims)
                if not np.all(number):
                    text = "Mean of empty slice"
                    warn_user(text)
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = np.true_divide(total, number)
            return mean.astype(narrow or total.dtype, copy=False)

        block = partial(_sum_and_count, add=add) if may_be_nan else add
        steps = partial(whole, dtype=dtype), values, axis, options, block, combine
        return self._reduced(verb, *steps)

    def _variance(
        self, verb: str, array: Any, axis: Any, dtype: Any, ddof: float, options: Any
    ) -> Any:
        """Return the variance also for the standard deviation."""
        values = as_input(array, verb)
        wide, narrow = accumulator(values, None)
        may_be_nan = verb[:3] == "nan" and values.dtype.kind in "fc"
        if dtype is not None:
            if np.dtype(dtype).kind not in "fc":
                remedy = f"dtype={dtype!r} would truncate deviations; pass a float dtype"
                raise TypeError(f"{verb}: {remedy}")
            wide, narrow = np.result_type(wide or values.dtype, dtype), np.dtype(dtype)
        if np.asarray(ddof).dtype.kind not in "biuf" or np.ndim(ddof):
            raise TypeError(f"{verb}: ddof is a number, not {brief(ddof)}")

        def combine(parts: Any, axis: Axes, *, ddof: float, keepdims: bool) -> Any:
            square, count = _combine(parts, axis)
            freedom = count - ddof
            if np.any(freedom <= 0):
                text = "Degrees of freedom <= 0 for slice"
                warn_user(text)
            least = np.nan if may_be_nan else 0
            with np.errstate(divide="ignore", invalid="ignore"):
                result = np.true_divide(square, np.where(freedom <= 0, least, freedom))
            result = result if keepdims else result.squeeze(axis)
            return result.astype(narrow or square.dtype, copy=False)[()]

        steps = partial(_nan_moments if may_be_nan else _moments, dtype=wide), combine
        of_array = partial(getattr(np, verb.replace("std", "var")), dtype=dtype)
        return self._reduced(verb, of_array, values, axis, options, *steps, ddof=ddof)


def _sum_and_count(block: Array, axis: Axes, *, keepdims: bool, add: Any) -> tuple[Any, Any]:
    """Return the sum and the number of the elements that are not NaN."""
    number = np.count_nonzero(~np.isnan(block), axis, keepdims=keepdims)
    return add(block, axis, keepdims=keepdims), np.asarray(number)


def _first_in_block(
    block: Array, axis: Axes, block_info: Any, *, keepdims: bool, find: Any
) -> tuple[Any, Any]:
    """Return the element that is found first in a block, and its index in the array."""
    starts = [start for start, _ in block_info[0]["array-location"]]
    if len(axis) == 1:
        place = find(block, axis=axis[0], keepdims=keepdims)
        return np.take_along_axis(block, place, axis[0]), place + starts[axis[0]]
    index = np.unravel_index(find(block), block.shape)
    at = [start + k for start, k in zip(starts, index, strict=True)]
    place = np.ravel_multi_index(at, block_info[0]["shape"])
    # Why no scalar: that of a text has its own length, which differs from block to block.
    element = block[tuple([slice(k, k + 1) for k in index])]
    return element, np.asarray(place).reshape(element.shape)


def _first(parts: tuple[Array, Array], axis: Axes, *, keepdims: bool, find: Any) -> Any:
    """Return the index in the array of the element that is found first among those of blocks."""
    values, places = parts
    one, along = (1,) * values.ndim, axis[0]
    if len(axis) > 1:
        values, places, along = values.ravel(), places.ravel(), 0
    order = places.argsort(along)
    values, places = (np.take_along_axis(part, order, along) for part in (values, places))
    found = np.take_along_axis(places, find(values, axis=along, keepdims=True), along)
    if not keepdims:
        return found.squeeze(along)[()]
    return found if len(axis) == 1 else found.reshape(one)


def _squared(values: Array, out: Array | None = None) -> Array:
    """Return the squared absolute values."""
    squares: Array = np.multiply(values.real, values.real, out=out)
    return squares + values.imag**2 if values.dtype.kind == "c" else squares


def _moments(block: Array, axis: Axes, dtype: Any, *, keepdims: bool) -> tuple[Array, ...]:
    """Return the mean of a block, the sums of deviations from it and of their squares, the number.

    The sum of the deviations is the part of the mean that was rounded off.
    """
    mean = np.mean(block, axis, dtype, keepdims=keepdims)
    number = block.size // max(mean.size, 1)
    return _sums(mean, np.asarray(block - mean), np.full(mean.shape, number), axis)


def _nan_moments(block: Array, axis: Axes, dtype: Any, *, keepdims: bool) -> tuple[Array, ...]:
    """Do as :func:`_moments`, with the elements that are not NaN."""
    with np.errstate(all="ignore"):
        total = block.sum(axis, dtype, keepdims=keepdims)
    if not np.isnan(total).any():  # Why: then no element is NaN, and no mask is needed.
        return _moments(block, axis, dtype, keepdims=keepdims)
    there = ~np.isnan(block)
    values = np.array(block)
    _clear(values, there)
    number = np.count_nonzero(there, axis, keepdims=keepdims)
    total = values.sum(axis, dtype, keepdims=keepdims)
    mean = np.true_divide(total, np.maximum(number, 1)).astype(total.dtype)
    deviations = np.asarray(values - mean)
    _clear(deviations, there)
    return _sums(mean, deviations, number, axis)


def _sums(mean: Any, deviations: Array, number: Any, axis: Axes) -> tuple[Array, ...]:
    """Return the moments of a block; its deviations may be overwritten."""
    rest = deviations.sum(axis, keepdims=True)
    in_place = deviations if deviations.dtype.kind == "f" else None
    square = _squared(deviations, in_place).sum(axis, keepdims=True)
    exact = np.result_type(square, np.float64)
    return np.asarray(mean), rest, square, np.asarray(number, exact)


def _clear(values: Array, kept: Array) -> None:
    """Set the elements that are not kept to zero, in place."""
    if values.itemsize <= 8:  # noqa: PLR2004 - the bytes of the largest integer
        # Why as integers: a mask has a branch for each element, which takes longer.
        bits = values.view(f"i{values.itemsize}")
        bits *= kept
    else:
        values[~kept] = 0


def _combine(moments: Sequence[Array], axes: Axes) -> tuple[Array, Array]:
    """Add the squares of all blocks, about the mean of all.

    Return the sums and the numbers of elements.
    """
    mean, rest, square, count = moments
    number = count.sum(axes, keepdims=True)
    # Why precise enough: the sum about another value than the mean has an error of second order.
    middle = (count * mean).sum(axes, keepdims=True) / np.maximum(number, 1)
    # Why: the square of the offset of no elements may be infinite.
    offset = np.where(count, mean - middle, 0)
    between = _squared(offset) * count + 2 * (offset.conj() * rest).real
    total = square.sum(axes, keepdims=True) + between.sum(axes, keepdims=True)
    return total.astype(square.dtype, copy=False), number

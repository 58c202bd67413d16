"""Reductions: NumPy's, computed block by block.

Imports folds and options.
"""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from shmpar.verbs.folds import Folds
from shmpar.verbs.options import Options

__all__ = ["Reductions"]

Array = np.ndarray[Any, Any]


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

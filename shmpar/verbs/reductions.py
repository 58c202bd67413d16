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
            Those of all verbs, but `wait`; see :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray or scalar
            As NumPy's: exact for integers, pairwise for floats; float16 is added in float32.

        Raises
        ------
        AxisError, TypeError
            As NumPy's.
        ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As of all verbs.

        Notes
        -----
        Cost: one pass over the array; the partial results are as large as the result, times the
        chunks along the reduced axes.

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
        """Smallest element, as :func:`numpy.min`; NaN if there is one. See :meth:`sum`.

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
        """Largest element, as :func:`numpy.max`; NaN if there is one. See :meth:`sum`.

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
        """Arithmetic mean, as :func:`numpy.mean`. See :meth:`sum`.

        Partial sums are float64 for integers and float32 for float16, as in NumPy.

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
        """Variance, as :func:`numpy.var`: about the mean, in one pass. See :meth:`sum`.

        Parameters
        ----------
        array, axis, keepdims, chunks, **options
            As in :meth:`sum`.
        dtype : dtype, optional
            Floating or complex: each deviation from the mean is of it.
        ddof : float
            The sum of squares is divided by the number of elements less this.

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
        """Standard deviation, as :func:`numpy.std`: the root of :meth:`var`.

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
            element, which costs another pass.
        density : bool
            Return the probability density instead of counts.
        chunks, **options
            As in :meth:`sum`.

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

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.histogram([1, 2, 2, 5], bins=2)
        (array([3, 1]), array([1., 3., 5.]))
        """
        return self._histogram(array, bins, range, density, chunks, options)

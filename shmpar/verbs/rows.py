"""The verb of rows and items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from shmpar.plan import PerItem
from shmpar.verbs.arguments import items
from shmpar.verbs.call import Caller
from shmpar.verbs.options import Options, with_shared_text


@with_shared_text
class RowVerbs(Caller):
    """Gives a pool the verb of rows and items."""

    def parallel_map(
        self,
        func: Callable[..., Any],
        array: Any,
        *arrays: Any,
        axis: int = 0,
        out: Any = None,
        dtype: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Call a function on each row of an array, or on each item of any iterable.

        Parameters
        ----------
        func : callable
            It gets a row of each array (or an item of each iterable), and returns a scalar or an
            array of the same shape for all rows. If it returns a tuple, there are several
            outputs; if it always returns None, so does the verb.
        array, *arrays : ndarray or iterable
            An ndarray, or an array with DLPack, gives its rows along `axis`, as read-only views.
            So does a pandas DataFrame or Series or an xarray DataArray, whose index the results
            keep. A zarr array, h5py dataset, Dask array or :class:`shmpar.Store` gives rows that
            the workers read. Any other iterable gives its items, pickled. All have the same length.
        axis : int or str
            Axis of the rows in the arrays; a name for xarray.
        {out}
            The input itself works in place.
        {dtype}
        {empty_values}
            A ufunc of rows needs neither.
        {objects}
        {options}

        Returns
        -------
        ndarray, tuple of ndarray, None or Run
            The results stacked along axis 0; the run with ``wait=False``. For rows of pandas a
            Series of one value per row, or a DataFrame of several; for rows of xarray a DataArray.

        Raises
        ------
        {raises}

        Notes
        -----
        A chunk is one row or item.

        {cost}
        Items of iterables are pickled once per call, not once per item.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.parallel_map(np.sum, np.arange(6).reshape(3, 2))
        ...     pool.parallel_map(len, ["a", "bc", "def"])
        array([1, 5, 9])
        array([1, 2, 3])
        """
        call = self._call("parallel_map", func, options)
        call.inputs = items("parallel_map", (array, *arrays), axis)
        call.grid = call.inputs.cut((1,))
        call.placement = PerItem()
        call.declare_output(out, dtype, objects=True, in_place=True)
        return self._run(call)

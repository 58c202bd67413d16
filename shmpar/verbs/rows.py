"""The verb of rows and items.

The first argument decides: an ndarray gives rows, and their results make an array. Anything else
gives items, and their results make a list, unless the call declares an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np

from shmpar.plan import PerItem
from shmpar.verbs.arguments import items
from shmpar.verbs.call import Caller
from shmpar.verbs.first_guesses import unzipped
from shmpar.verbs.options import Options, with_shared_text
from shmpar.verbs.outputs import OutputSpec


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
            It gets a row of each array (or an item of each iterable). For a row it returns a scalar
            or an array of the same shape for all rows. If it returns a tuple, there are several
            outputs; if it always returns None, so does the verb. For an item it returns anything.
        array, *arrays : ndarray or iterable
            An ndarray gives its rows along `axis`, as read-only views. So does a pandas DataFrame
            or Series or an xarray DataArray, by its values alone; a zarr array, h5py dataset, Dask
            array or :class:`shmpar.Store` gives rows that the workers read. Any other iterable
            gives its items, pickled: a list, a range, a generator, the paths of a glob, an object
            with ``__getitem__`` and ``__len__``. All have the same length.
        axis : int
            Axis of the rows in the arrays.
        {out}
            The input itself works in place. The results of items are put into it too.
        {dtype}
            The results of items are put into an array of it, or a tuple of arrays.
        {empty_values}
            A ufunc of rows needs neither; nor do items, which give an empty list.
        {objects}
        {options}

        Returns
        -------
        list, ndarray, tuple of ndarray, None or Run
            If `array` is an ndarray: the results stacked along axis 0. Otherwise: a list, in order,
            of exactly the values that the function returned, or an array with `out` or `dtype`.
            The run with ``wait=False``.

        Raises
        ------
        {raises}

        Notes
        -----
        A chunk is one row or item.

        {cost}
        Items of iterables are pickled once per call, not once per item. A result in a list is
        pickled; an array of more than 64 KiB in it is copied once, into shared memory. Errors name
        the item, and have it as ``error.item``. ``run.table()`` has a record of each item.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.parallel_map(np.sum, np.arange(6).reshape(3, 2))
        ...     pool.parallel_map(len, ["a", "bc", "def"])
        ...     pool.parallel_map(len, ["a", "bc", "def"], dtype="u1")
        array([1, 5, 9])
        [1, 2, 3]
        array([1, 2, 3], dtype=uint8)
        """
        call = self._call("parallel_map", func, options)
        call.inputs = items("parallel_map", (array, *arrays), axis, func)
        call.remedy = unzipped("parallel_map", func, array) if not arrays else ""
        call.grid = call.inputs.cut((1,))
        call.placement = PerItem()
        call.declare_output(out, dtype, objects=True, in_place=True)
        # Why the first: further arguments belong to its rows or items.
        call.over_items = not isinstance(array, np.ndarray)
        if call.over_items and out is None and dtype is None:
            call.output = OutputSpec(returns_objects=True, as_list=True)
        return self._run(call)

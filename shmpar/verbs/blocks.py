"""The verbs of blocks, and the verb of rows and items.

For :meth:`Verbs.parallel_map` the first argument decides: an ndarray gives rows, and their
results make an array. Anything else gives items, and their results make a list, unless the call
declares an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Unpack

import numpy as np

from shmpar.grid import BLOCK_BYTES
from shmpar.grid.axis import whole_number
from shmpar.plan import Along, InBlocks, Items, PerChunk, PerItem
from shmpar.verbs.arguments import blocks, items
from shmpar.verbs.call import Caller
from shmpar.verbs.first_guesses import unzipped
from shmpar.verbs.functions import check_callable, check_signature
from shmpar.verbs.labels import BlockLabels
from shmpar.verbs.options import Options, with_shared_text
from shmpar.verbs.outputs import (
    OutputSpec,
    declared_shape,
    find_targets,
    place_blocks,
    read_axes,
)
from shmpar.worker.compute import ApplyAlongAxis

# Why: more than BLOCK_BYTES, since a ufunc has no temporaries that should stay in the cache.
_UFUNC_BLOCK_BYTES: Final = 8 << 20


@with_shared_text
class Verbs(Caller):
    """Gives a pool the verbs of blocks, and the verb of rows and items."""

    def map_blocks(  # noqa: PLR0913 - the contract
        self,
        func: Callable[..., Any],
        *arrays: Any,
        chunks: Any = "auto",
        out: Any = None,
        dtype: Any = None,
        drop_axis: Any = None,
        new_axis: Any = None,
        out_chunks: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Call a function on each block of an array, and join the blocks that it returns.

        Parameters
        ----------
        func : callable
            It gets a block of each array, as a read-only view, and returns a block. If it returns
            a tuple of blocks, there are several outputs. A parameter named ``block_id``,
            ``block_info`` or ``rng`` gets the index of the chunk, its position, or its own random
            generator.
        {arrays}
            Without an array, `chunks` has the length of every chunk, as ``((4, 4), (6,))`` for
            an output of 8 x 6, or `out` is an array. The function then gets no block.
        chunks : int, tuple, dict or "auto"
            Elements of a block along each axis; -1 is a whole axis. "auto" is up to 1 MiB, or
            8 MiB for a ufunc, in bands that are contiguous in memory.
        {out}
            The input itself works in place.
        {dtype}
        {empty}
        drop_axis, new_axis : int or sequence of int, optional
            Axes that the function removes (they must lie in one chunk), and axes of the result
            that it adds. For xarray also names; a new axis comes first, or at the position that a
            dict gives it.
        out_chunks : int, tuple or dict, optional
            Elements of the blocks of the result along an axis, if they differ from the input: one
            length for all chunks, or one per chunk. They hold for each result of a tuple.
        {options}

        Returns
        -------
        ndarray, tuple of ndarray, or Run
            The joined blocks, in shared memory; `out` if it was given; the run with
            ``wait=False``.

        Raises
        ------
        {raises}

        Notes
        -----
        {cost}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_blocks(lambda block: block * 2, np.arange(6), chunks=3)
        array([ 0,  2,  4,  6,  8, 10])
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_blocks(lambda block_id: np.full(3, block_id[0]), chunks=((3, 3),))
        array([0, 0, 0, 1, 1, 1])
        """
        call = self._call("map_blocks", func, options)
        out = find_targets("map_blocks", out)
        inputs = call.inputs = blocks("map_blocks", arrays, lambda: declared_shape(chunks, out))
        (chunks,) = inputs.numbered(chunks=chunks)
        dropped, new_axis, out_chunks = read_axes(inputs, out, drop_axis, new_axis, out_chunks)
        most = _UFUNC_BLOCK_BYTES if isinstance(func, np.ufunc) else BLOCK_BYTES
        grid = call.grid = inputs.cut(chunks, whole=dropped, most=most)
        # Why: without an input, only the chunk tells the function which shape to return.
        exact = not inputs.arrays
        call.placement = place_blocks(grid, dropped, new_axis, out_chunks, exact=exact)
        writes = call.pass_out or out is not None
        like_input = writes and call.placement == InBlocks.like(grid)
        if call.pass_out and like_input:
            # Why: the function writes into a window, which has the length of the chunk.
            call.placement = InBlocks.exactly(grid)
        # Invariant: in place, the output of a chunk lies where its input does.
        call.declare_output(out, dtype, in_place=like_input)
        return self._run(call)

    def block_reduce(
        self,
        func: Callable[..., Any],
        *arrays: Any,
        chunks: Any = "auto",
        depth: Any = 0,
        boundary: Any = "none",
        out: Any = None,
        dtype: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Call a function on each block of an array, and collect the values that it returns.

        Parameters
        ----------
        func : callable
            It gets a block of each array, as a read-only view, and returns a scalar or an array
            of the same shape for all blocks. If it returns a tuple, there are several outputs.
        {arrays}
        chunks : int, tuple, dict or "auto"
            Elements of a block along each axis; -1 is a whole axis. "auto" is up to 1 MiB, or
            2 MiB with a halo.
        depth, boundary
            Halo of the blocks, as in :meth:`map_overlap`.
        {out}
        {dtype}
        {empty_values}
        {objects}
        {options}

        Returns
        -------
        ndarray, tuple of ndarray, or Run
            Array of shape ``numblocks + result.shape``, with one place per block; the run with
            ``wait=False``.

        Raises
        ------
        {raises}

        Notes
        -----
        To reduce a whole array, reduce the result of this verb with NumPy.

        {cost}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> image = np.arange(16.0).reshape(4, 4)
        >>> with shmpar.Pool(2) as pool:
        ...     mean, peak = pool.block_reduce(lambda t: (t.mean(), t.max()), image, chunks=2)
        >>> mean
        array([[ 2.5,  4.5],
               [10.5, 12.5]])
        """
        call = self._call("block_reduce", func, options)
        inputs = call.inputs = blocks("block_reduce", arrays)
        call.cut_with_halo(*inputs.numbered(chunks=chunks, depth=depth, boundary=boundary))
        call.placement, call.trim = PerChunk(), False
        call.declare_output(out, dtype, objects=True)
        return self._run(call)

    def map_overlap(  # noqa: PLR0913 - the contract
        self,
        func: Callable[..., Any],
        *arrays: Any,
        depth: Any = None,
        boundary: Any = "none",
        chunks: Any = "auto",
        trim: bool = True,
        out: Any = None,
        dtype: Any = None,
        drop_axis: Any = None,
        new_axis: Any = None,
        out_chunks: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Call a function on each block of an array with a halo around it.

        The result equals the function on the whole array if the function is local: each of its
        values depends on at most `depth` elements to either side.

        Parameters
        ----------
        func : callable
            It gets a window of each array, that is a block with its halo, as a read-only view. It
            returns an array of the shape of the window, from which the halo is removed. With
            ``trim=False`` it returns an array of the shape of the block itself; this needs a
            `boundary`, so that every window has its whole halo. If it returns a tuple, there are
            several outputs.
        {arrays}
            An axis of length 1 that is broadcast has no halo.
        depth : int, tuple, dict or list
            Elements of the halo: one number, or one per axis, or a dict of axes (missing: 0). In
            a tuple or dict, a pair (before, after) may replace a number: ``((0, 1), 0)``. A list
            has one of these per input, for the axes of that input; anything else is for the
            axes of the broadcast inputs.
        boundary : str, number, tuple, dict or list
            Values beyond the array: one for all axes, or one per axis, or a pair (before, after)
            per axis. The default, ``"none"``, makes windows at the border smaller; a SciPy filter
            then treats the border as in the whole array, and nothing is copied. This does not
            hold for a filter with ``mode="wrap"``: pass ``boundary="wrap"``. Otherwise pass a
            constant, or a name from SciPy and Dask: ``"reflect"`` (repeats the edge; NumPy's
            ``"symmetric"``), ``"mirror"`` (does not repeat it; NumPy's ``"reflect"``),
            ``"nearest"`` (``"edge"``), ``"periodic"`` (``"wrap"``). A list has an entry per input.
        chunks : int, tuple, dict or "auto"
            Elements of a block along each axis, without the halo; -1 is a whole axis. "auto" is
            up to 2 MiB, in blocks so wide that the halo adds at most half.
        trim : bool
            Remove the halo from the results of the function, along the axes that they keep. With
            a list of depths, it is the halo of the input with the most axes, the first of these.
        {out}
            It cannot be an input.
        {dtype}
        {empty}
        drop_axis, new_axis : int or sequence of int, optional
            Axes that the function removes (they must lie in one chunk), and axes of the result
            that it adds. For xarray also names; a new axis comes first, or at the position that a
            dict gives it.
        out_chunks : int, tuple or dict, optional
            Elements of the blocks of the result along an axis, without the halo, if they differ
            from the input: one length for all chunks, or one per chunk.
        {options}

        Returns
        -------
        ndarray, tuple of ndarray, or Run
            The joined blocks, by default of the shape of the input; the run with
            ``wait=False``.

        Raises
        ------
        {raises}

        Notes
        -----
        A window is a view of the same memory. Only windows that extend beyond the border of the
        array are copied, unless the boundary is "none".

        {cost}

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> def slope(window):
        ...     return np.gradient(window)
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_overlap(slope, np.arange(8.0) ** 2, depth=1, chunks=3)
        array([ 1.,  2.,  4.,  6.,  8., 10., 12., 13.])

        Smooth the rows of an image, and add them up:

        >>> def smooth(window):
        ...     return np.convolve(window.sum(axis=0), [0.25, 0.5, 0.25], "same")
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_overlap(smooth, np.eye(3, 6), depth=(0, 1), chunks=(-1, 2), drop_axis=0)
        array([0.75, 1.  , 0.75, 0.25, 0.  , 0.  ])
        """
        call = self._call("map_overlap", func, options)
        inputs = call.inputs = blocks("map_overlap", arrays)
        given = inputs.numbered(chunks=chunks, depth=depth, boundary=boundary)
        chunks, depth, boundary = given
        out = find_targets("map_overlap", out)
        dropped, new_axis, out_chunks = read_axes(inputs, out, drop_axis, new_axis, out_chunks)
        call.cut_with_halo(chunks, depth, boundary, whole=dropped)
        if call.pass_out and call.halo is not None and trim:
            raise ValueError(
                "map_overlap: with pass_out=True the function gets the window of its chunk, "
                "without halo, so pass trim=False"
            )
        call.placement = place_blocks(call.grid, dropped, new_axis, out_chunks, exact=True)
        call.trim = trim
        call.declare_output(out, dtype)
        return self._run(call)

    def apply_along_axis(
        self, func1d: Callable[..., Any], axis: int, arr: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function on each line of an array, as :func:`numpy.apply_along_axis`.

        Parameters
        ----------
        func1d : callable
            It gets a line of the array, of shape ``(arr.shape[axis],)``, and returns a scalar or
            an array of the same shape for all lines.
        axis : int
            Axis of the lines.
        arr : array_like
            The array.
        *args, **kwargs
            Further arguments of the function. All options are the defaults of the pool.

        Returns
        -------
        ndarray
            The axes of a result replace `axis`, as in :func:`numpy.apply_along_axis`.

        Raises
        ------
        AxisError
            As in NumPy, before anything starts.
        {raises}

        Notes
        -----
        A chunk is a block of lines.

        {cost}
        In addition, each line costs as much as in NumPy.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.apply_along_axis(np.sort, 0, [[3, 1], [2, 5]])
        array([[2, 1],
               [3, 5]])
        """
        verb = "apply_along_axis"
        check_callable(verb, func1d)
        check_signature(verb, func1d, 1 + len(args), kwargs, frozenset())
        if np.ndim(axis):
            raise TypeError(f"{verb}: the axis comes second: write {verb}(func1d, axis, arr)")
        inputs = blocks(verb, (arr,))
        (array,), labels = inputs.arrays, inputs.labels
        axis = labels.axes("axis", axis) if isinstance(labels, BlockLabels) else axis
        axis = whole_number(axis, f"{verb}: axis={axis!r}")
        if array.size == 0 or not -array.ndim <= axis < array.ndim:
            return np.apply_along_axis(func1d, axis, array[...], *args, **kwargs)
        axis %= array.ndim
        call = self._call(verb, ApplyAlongAxis(func1d, axis, args, kwargs), {})
        call.inputs, call.placement = inputs, Along(axis)
        call.grid = inputs.cut("auto", whole=(axis,))
        call.output = OutputSpec(is_tuple=False)
        return self._run(call)

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
            outputs; if it always returns None, so does the verb, without `dtype` and `out`. For an
            item it returns anything.
        array, *arrays : ndarray or iterable
            An ndarray, or an array with DLPack, gives its rows along `axis`, as read-only views.
            So does a pandas DataFrame or Series or an xarray DataArray, whose index the results
            keep. A zarr array, h5py dataset, Dask array or :class:`shmpar.Store` gives rows that
            the workers read. Any other iterable gives its items, pickled: a list, a range, a
            generator, the paths of a glob, an object with ``__getitem__`` and ``__len__``. All have
            the same length.
        axis : int or str
            Axis of the rows in the arrays; a name for xarray. Items have none.
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
            For rows of pandas a Series of one value per row, or a DataFrame of several; for rows of
            xarray a DataArray. The run with ``wait=False``.

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
        call.over_items = isinstance(call.inputs.arguments[0], Items)
        if call.over_items and out is None and dtype is None:
            call.output = OutputSpec(returns_objects=True, as_list=True)
        return self._run(call)

"""The public verbs, as methods of whatever executes runs.

Imports the neighbours in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np

from shmpar.grid.axis import whole_number
from shmpar.runtime.execution import Policy
from shmpar.runtime.progress import observe
from shmpar.runtime.run import Run
from shmpar.verbs import call
from shmpar.verbs.arguments import as_input, check_callable, check_signature
from shmpar.verbs.options import Defaults, Options, parse_options
from shmpar.worker.compute import ApplyAlongAxis

__all__ = ["Verbs"]


class Verbs:
    """Gives a pool its verbs; the pool gives them defaults and executes their runs."""

    def _defaults(self) -> Defaults:
        raise NotImplementedError

    def _policy(self) -> Policy:
        """What the defaults come to."""
        raise NotImplementedError

    def _execute(self, run: Run, *, wait: bool) -> Any:
        raise NotImplementedError

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
        """Call a function on each block of an array, and put the blocks it returns together.

        Parameters
        ----------
        func : callable
            Gets a block of each array, as a read-only view, and returns a block; a tuple of them
            is several outputs. If it has a parameter named ``block_id``, ``block_info`` or
            ``rng``, it is passed the chunk's index, where it lies, or its own random generator.
        *arrays : array_like
            They broadcast as NumPy's; axes of length 1 arrive whole, scalars as they are.
        chunks : int, tuple, dict or "auto"
            Elements of a block along each axis; -1 is a whole axis. "auto" is about 1 MiB, or
            8 MiB for a ufunc, in bands that lie together in memory.
        out : ndarray, path or tuple of these, optional
            Where the result goes, and what is returned. The very input works in place. A path
            that ends in ``.npy`` is a file to make, which is returned as a np.memmap.
        dtype : dtype or tuple of dtype, optional
            Of the result; what the function returns is cast as a ufunc casts into ``out``.
        drop_axis, new_axis : int or sequence of int, optional
            Axes that the function takes away (they must lie in one chunk), and axes of the result
            that it adds.
        out_chunks : int, tuple or dict, optional
            Elements of the result's blocks, where they differ from the input's along an axis that
            is cut: one length for all, or one a chunk.
        **options
            Those of all verbs: `kwargs`, `progress`, `on_error`, `fill_value`, `retries`,
            `task_timeout`, `seed`, `pass_out`, `wait`; see :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray, tuple of ndarray, or Run
            The blocks put together, in shared memory; `out` if it was given; the run with
            ``wait=False``.

        Raises
        ------
        ValueError, TypeError
            For bad arguments, before anything starts.
        PlanError
            If the function cannot be sent to a worker.
        ChunkError
            If the function raises on a block, or what it returns does not fit.
        WorkerDied, TaskTimeout
            If a worker dies, or takes too long, more often than `retries` allows.
        SegmentFull
            If there is no memory for the result.

        Notes
        -----
        Cost: an input that is not in shared memory, nor a mapped file, is copied once a call; the
        result is written once, by the workers. Nothing but chunk numbers passes through pipes.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_blocks(lambda block: block * 2, np.arange(6), chunks=3)
        array([ 0,  2,  4,  6,  8, 10])
        """
        request = self._request("map_blocks", func, out, dtype, options)
        run = call.map_blocks(request, arrays, chunks, drop_axis, new_axis, out_chunks)
        return self._start(run, options)

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
        """Call a function on each block of an array, and collect the value that it returns.

        Parameters
        ----------
        func : callable
            Gets a block of each array, as a read-only view, and returns a scalar or an array of
            one shape for all blocks; a tuple of them is several outputs.
        *arrays : array_like
            They broadcast as NumPy's; axes of length 1 arrive whole, scalars as they are.
        chunks : int, tuple, dict or "auto"
            Elements of a block along each axis; -1 is a whole axis. "auto" is about 1 MiB.
        depth, boundary
            How far blocks reach over their chunk, as in :meth:`map_overlap`.
        out : ndarray, path or tuple of these, optional
            Where the result goes, and what is returned.
        dtype : dtype or tuple of dtype, optional
            Of the result; what the function returns is cast as a ufunc casts into ``out``.
            ``object`` collects whatever it returns, pickled.
        **options
            Those of all verbs; see :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray, tuple of ndarray, or Run
            Of shape ``numblocks + result.shape``: one place a block.

        Raises
        ------
        ValueError, TypeError, PlanError, ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As :meth:`map_blocks`.

        Notes
        -----
        Cost: as :meth:`map_blocks`. A reduction of the whole array is this, and NumPy on its
        result.

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
        request = self._request("block_reduce", func, out, dtype, options)
        return self._start(call.block_reduce(request, arrays, chunks, (depth, boundary)), options)

    def map_overlap(  # noqa: PLR0913 - the contract
        self,
        func: Callable[..., Any],
        *arrays: Any,
        depth: Any,
        boundary: Any = "none",
        chunks: Any = "auto",
        trim: bool = True,
        out: Any = None,
        dtype: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Call a function on each block of an array with a halo around it.

        The result equals the function on the whole array, wherever the function is local: each
        of its values depends on no more than `depth` elements to either side.

        Parameters
        ----------
        func : callable
            Gets a window of each array, the block and its halo, as a read-only view, and returns
            an array of the window's shape, of which the halo is cut off; with ``trim=False`` it
            returns one of the block's shape itself, and needs a `boundary`, so that no window
            lacks part of its halo. A tuple of them is several outputs.
        *arrays : array_like
            They broadcast as NumPy's; axes of length 1 arrive whole, scalars as they are.
        depth : int, tuple or dict
            Elements of the halo: one number, or one an axis, or a dict of axes (missing: 0). A
            pair (before, after) takes the place of a number inside a tuple or dict:
            ``((0, 1), 0)``.
        boundary : str, number, tuple or dict
            What lies beyond the array: one for all, or one an axis, or a pair (before, after) of
            an axis. ``"none"``, the default, makes windows at the border smaller, which a SciPy
            filter then treats as it would treat the whole array; nothing is copied. This does not
            hold for a filter with ``mode="wrap"``, whose window lacks the array's other end: pass
            ``boundary="wrap"``. Otherwise a constant, or a name of SciPy's and Dask's:
            ``"reflect"`` (repeats the edge; NumPy's ``"symmetric"``), ``"mirror"`` (does not;
            NumPy's ``"reflect"``), ``"nearest"`` (``"edge"``), ``"periodic"`` (``"wrap"``).
        chunks : int, tuple, dict or "auto"
            Elements of a block along each axis, without halo; -1 is a whole axis. "auto" makes
            blocks of about 1 MiB, wide enough that the halo adds at most half.
        trim : bool
            Whether to cut the halo off what the function returns.
        out : ndarray, path or tuple of these, optional
            Where the result goes, and what is returned; no input.
        dtype : dtype or tuple of dtype, optional
            Of the result; what the function returns is cast as a ufunc casts into ``out``.
        **options
            Those of all verbs; see :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray, tuple of ndarray, or Run
            Of the shape of the input.

        Raises
        ------
        ValueError, TypeError, PlanError, ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As :meth:`map_blocks`.

        Notes
        -----
        Cost: as :meth:`map_blocks`. A halo is a wider view of the same memory; only windows that
        reach over the array's border are copied, unless the boundary is "none".

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> def slope(window):
        ...     return np.gradient(window)
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_overlap(slope, np.arange(8.0) ** 2, depth=1, chunks=3)
        array([ 1.,  2.,  4.,  6.,  8., 10., 12., 13.])
        """
        request = self._request("map_overlap", func, out, dtype, options)
        run = call.map_overlap(request, arrays, chunks, (depth, boundary), trim=trim)
        return self._start(run, options)

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
        """Call a function on each row of an array, or on each item of anything iterable.

        Parameters
        ----------
        func : callable
            Gets one row of each array (or item of each iterable) and returns a scalar or an
            array of one shape for all; a tuple of them is several outputs; None for all of them
            makes the verb return None.
        array, *arrays : ndarray or iterable
            An ndarray gives its rows along `axis`, as read-only views; any other iterable its
            items, pickled. They must have equally many.
        axis : int
            Which axis of the arrays is the items'.
        out : ndarray, path or tuple of these, optional
            Where the result goes, and what is returned. The very input works in place.
        dtype : dtype or tuple of dtype, optional
            Of the result; what the function returns is cast as a ufunc casts into ``out``.
            ``object`` collects whatever it returns, pickled.
        **options
            Those of all verbs; see :class:`shmpar.verbs.Options`.

        Returns
        -------
        ndarray, tuple of ndarray, None or Run
            The results stacked along axis 0.

        Raises
        ------
        ValueError, TypeError, PlanError, ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As :meth:`map_blocks`; a chunk is one item.

        Notes
        -----
        Cost: as :meth:`map_blocks`; items of iterables are pickled once a call, not once an item.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.parallel_map(np.sum, np.arange(6).reshape(3, 2))
        ...     pool.parallel_map(len, ["a", "bc", "def"])
        array([1, 5, 9])
        array([1, 2, 3])
        """
        request = self._request("parallel_map", func, out, dtype, options)
        return self._start(call.parallel_map(request, (array, *arrays), axis), options)

    def apply_along_axis(
        self, func1d: Callable[..., Any], axis: int, arr: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function on each line of an array along an axis, as NumPy's of this name.

        Parameters
        ----------
        func1d : callable
            Gets a line of the array, of shape ``(arr.shape[axis],)``, and returns a scalar or an
            array of one shape for all lines.
        axis : int
            The axis along which the lines lie.
        arr : array_like
            The array.
        *args, **kwargs
            All for the function; the pool's defaults hold for everything else.

        Returns
        -------
        ndarray
            The axes of a result take the place of `axis`; as :func:`numpy.apply_along_axis`.

        Raises
        ------
        AxisError, ValueError
            As NumPy's, before anything starts.
        PlanError, ChunkError, WorkerDied, TaskTimeout, SegmentFull
            As :meth:`map_blocks`; a chunk is a block of lines.

        Notes
        -----
        Cost: as :meth:`map_blocks`, and what NumPy's costs a line.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.apply_along_axis(np.sort, 0, [[3, 1], [2, 5]])
        array([[2, 1],
               [3, 5]])
        """
        check_callable("apply_along_axis", func1d)
        check_signature("apply_along_axis", func1d, 1 + len(args), kwargs, frozenset())
        axis = whole_number(axis, f"apply_along_axis: axis={axis!r}")
        values = as_input(arr, "apply_along_axis")
        if values.size == 0 or not -values.ndim <= axis < values.ndim:
            return np.apply_along_axis(func1d, axis, values, *args, **kwargs)
        along = ApplyAlongAxis(func1d, axis % values.ndim, args, kwargs)
        request = self._request("apply_along_axis", along, None, None, {})
        return self._start(call.apply_along_axis(request, values, along.axis), {})

    def _request(
        self, verb: str, func: Callable[..., Any], out: Any, dtype: Any, options: Options
    ) -> call.Request:
        if not options:
            return call.Request(verb, func, {}, out, dtype, None, self._policy())
        policy = parse_options(verb, options, self._defaults())
        keywords, seed = options.get("kwargs") or {}, options.get("seed")
        pass_out = bool(options.get("pass_out"))
        ledger = options.get("ledger")
        return call.Request(verb, func, keywords, out, dtype, seed, policy, pass_out, ledger)

    def _start(self, run: Run, options: Options) -> Any:
        progress = options.get("progress", self._defaults()["progress"])
        run.observer = observe(progress, run.execution.plan.verb)
        return self._execute(run, wait=options.get("wait", True))

"""Options of all verbs, their defaults, and the text that docstrings of verbs share."""

from __future__ import annotations

import difflib
import inspect
import numbers
import os
import re
import textwrap
import threading
import types
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as brief
from typing import Any, TypedDict, TypeVar

import numpy as np

from shmpar.grid.axis import whole_number
from shmpar.runtime.execution import Policy
from shmpar.runtime.progress import Progress, observe


class Options(TypedDict, total=False):
    """Keywords of every verb except ``apply_along_axis``.

    Attributes
    ----------
    kwargs : mapping
        Keyword arguments for the function.
    progress : bool, str or callable
        True shows a tqdm bar, and a str is its label. A callable is called with ``(done, total)``
        in chunks, about ten times per second and at the end.
    on_error : {"raise", "collect", "fill"}
        Stop at the first failed chunk; or compute the others and raise all errors; or fill the
        windows of failed chunks.
    fill_value : scalar
        Value of each element for ``on_error="fill"``; None is NaN or NaT. Any object with
        ``dtype=object``.
    retries : int
        Number of times that a chunk is computed again after its worker died.
    task_timeout : float or None
        Seconds that a chunk may take, on the processes engine; None and infinity are no limit.
    io_retries : int
        Number of times that a window of a store is read or written again after a fault that may
        pass, such as a timeout of the network; 2 by default.
    seed : int, sequence of int or None
        Entropy of the random streams of the chunks.
    pass_out : bool
        Pass the function its window of the output as ``out=``; the function writes there, and its
        return value is ignored. This needs ``out=`` in memory, or in `map_blocks` and `map_overlap`
        (with ``trim=False``) ``dtype=``. NumPy's ufuncs always write into their window in memory.
    ledger : path
        A file that records completed chunks, so that the same call in a later process computes
        only the others. This needs ``out=`` on disk (a ``.npy`` or ``.zarr`` path, a zarr array or
        a np.memmap), or a function that returns None. The file stays after the last chunk; then the
        call computes nothing. Changed values of an input that lies in a store are not noticed.
    wait : bool
        False returns the :class:`shmpar.Run`.
    """

    kwargs: Mapping[str, Any]
    progress: Progress
    on_error: str
    fill_value: Any
    retries: int
    task_timeout: float | None
    io_retries: int
    seed: int | Sequence[int] | None
    pass_out: bool
    ledger: str | os.PathLike[str] | None
    wait: bool


class Defaults(TypedDict):
    """Defaults that a pool sets for its verbs."""

    progress: Progress
    on_error: str
    retries: int
    task_timeout: float | None
    check: bool


_OTHER_NAMES = {
    "block_size": "chunks",
    "blocks": "chunks",
    "chunk_size": "chunks",
    "chunksize": "chunks",
    "errors": "on_error",
    "fill": "fill_value",
    "progress_bar": "progress",
    "random_state": "seed",
    "retry": "retries",
    "timeout": "task_timeout",
    "verbose": "progress",
}
_OF_POOL = {
    "backend": "engine",
    "engine": "engine",
    "max_workers": "n_workers",
    "n_jobs": "n_workers",
    "n_workers": "n_workers",
    "num_workers": "n_workers",
    "processes": "n_workers",
    "scheduler": "engine",
    "workers": "n_workers",
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return advice for an unknown keyword: the name that was meant, as far as that is clear.

    Examples
    --------
    >>> suggestion("chunksize", ["axis", "chunks"])
    '; did you mean chunks=?'
    """
    known, other = list(known), _OTHER_NAMES.get(name, "")
    close = [other] if other in known else difflib.get_close_matches(name, known, 1, 0.75)
    if close:
        return f"; did you mean {close[0]}=?"
    if name in _OF_POOL:
        return f"; a pool has it: shmpar.Pool({_OF_POOL[name]}=...)"
    return ""


def _explain_unknown(verb: str, name: str, value: Any, pool: object) -> str:
    """Return the message for a keyword that is neither of the verb nor an option."""
    verbs = {verb, "map_blocks", "map_overlap", "block_reduce", "parallel_map"}
    methods = {one: getattr(pool, one, None) for one in sorted(verbs)}
    own = {one: inspect.signature(m).parameters for one, m in methods.items() if m is not None}
    known = [one for one in own.get(verb, ()) if one not in {"func", "arrays", "options"}]
    found = suggestion(name, [*known, *Options.__annotations__])
    if not found and (takers := [one for one, parameters in own.items() if name in parameters]):
        found = f"; {' and '.join(takers)} take{'s' * (len(takers) == 1)} {name}="
    return (
        f"{verb}() got an unexpected keyword argument {name!r}{found}; keyword arguments for the "
        f"function go into kwargs={{{name!r}: {brief(value)}}}"
    )


def parse_options(
    verb: str, options: Mapping[str, Any], defaults: Defaults, pool: object = None
) -> Policy:
    """Check the options of a call of a pool's verb, and add the defaults of the pool.

    Raises
    ------
    TypeError, ValueError
        For an unknown option, or an invalid value.
    """
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise TypeError(_explain_unknown(verb, name, value, pool))
    chosen = {**defaults, **options}
    if chosen["on_error"] not in ("raise", "collect", "fill"):
        raise ValueError(
            f"on_error is 'raise', 'collect' or 'fill', not {brief(chosen['on_error'])}"
        )
    kwargs = options.get("kwargs")
    if not (kwargs is None or isinstance(kwargs, Mapping)):
        raise TypeError(f"kwargs is a dict of the function's keywords, not {brief(kwargs)}")
    observe(chosen["progress"], verb)
    _check_seed(options.get("seed"))
    times, timeout = _times(chosen["retries"]), _seconds(chosen["task_timeout"])
    _times(chosen.get("io_retries", 0), "io_retries")
    fill_value = chosen.get("fill_value")
    return Policy(chosen["on_error"], fill_value, times, timeout, check=chosen["check"])


def _times(retries: Any, name: str = "retries") -> int:
    try:
        times = whole_number(retries, name)
    except TypeError:
        times = -1
    if times < 0:
        raise ValueError(f"{name} is a number of times, 0 or more, not {brief(retries)}")
    return times


def _seconds(timeout: Any) -> float | None:
    """Return ``task_timeout=`` in seconds; None for a time that no clock has, such as infinity."""
    if timeout is None:
        return None
    # Why: a bool is a Real too, and means no time; NaN is not above 0.
    is_number = isinstance(timeout, numbers.Real) and not isinstance(timeout, bool)
    seconds = float(timeout) if is_number else -1.0
    if not seconds > 0:
        due = f"a number of seconds above 0, or None, not {brief(timeout)}"
        raise ValueError(f"task_timeout is {due}")
    return None if seconds > threading.TIMEOUT_MAX else seconds


def _check_seed(seed: Any) -> None:
    if seed is not None:
        try:
            np.random.SeedSequence(seed)
        except (TypeError, ValueError) as error:
            due = f"an int, 0 or more, or a sequence of these, not {brief(seed)}"
            raise type(error)(f"seed is {due}") from None


class _SharedText:
    """Text that the docstrings of verbs share; each part follows its name in braces.

    {arrays}
    *arrays : array_like
        Arrays, which broadcast as in NumPy. Axes of length 1 arrive whole; scalars are passed
        unchanged. Zarr arrays, h5py datasets, Dask arrays, lazy xarray objects and
        :class:`shmpar.Store` are not read as a whole: each worker reads the blocks of its chunks,
        and "auto" makes blocks of about 8 to 12 MiB in multiples of their units.

    {out}
    out : ndarray, zarr.Array, h5py.Dataset, Store, path or tuple of these, optional
        Output of the results, which is also returned. A path that ends in ``.npy`` is a file that
        the call returns as a np.memmap. It appears, or replaces an older file, when every chunk is
        done. A path that ends in ``.zarr`` is a zarr array with the chunks of the grid, or the one
        that exists there. No two chunks may write into one unit (shard or chunk) of a store.

    {dtype}
    dtype : dtype or tuple of dtype, optional
        Dtype of the result. Results of the function are cast to it as a ufunc casts into ``out``.

    {empty}
        An input without elements needs it, or `out`, since the function is never called; a ufunc
        needs neither.

    {empty_values}
        An input without elements needs it for scalar results, and `out` for results that are
        arrays, since the function is never called.

    {objects}
        ``object`` collects any Python objects, pickled.

    {options}
    **options
        Options of all verbs: `kwargs`, `progress`, `on_error`, `fill_value`, `retries`,
        `task_timeout`, `seed`, `pass_out`, `ledger`, `wait`; see :class:`shmpar.verbs.Options`.

    {raises}
    ValueError, TypeError
        For invalid arguments, before anything starts.
    PlanError
        If the function cannot be sent to a worker.
    ChunkError
        If the function raises on a chunk, or its result does not fit.
    WorkerDied, TaskTimeout
        If a worker dies, or a chunk exceeds `task_timeout`, more often than `retries` allows.
    SegmentFull
        If there is no memory for the result.

    {cost}
    Cost: an input that is neither in shared memory nor a mapped file is copied once per call. The
    workers write the result once. Only chunk numbers pass through pipes.

    {reduced}
    array : array_like
        Array to reduce; also a zarr array, h5py dataset, Dask array or :class:`shmpar.Store`, of
        which each worker reads its blocks.
    axis : int, tuple of int or None
        Axes to reduce; None: all.

    {keepdims}
    keepdims : bool
        Keep the reduced axes, with length 1.

    {ddof}
    ddof : float
        The sum of squares is divided by the number of elements minus this.

    {rounded_chunks}
    chunks : int, tuple, dict or "auto"
        Elements of a block along each axis. The last digits of a result of floats depend on it.

    {exact_chunks}
    chunks : int, tuple, dict or "auto"
        Elements of a block along each axis. The result does not depend on it.

    {reduction_options}
    **options
        Options of all verbs that a reduction takes: `progress`, `on_error`, `fill_value`,
        `retries`, `task_timeout`; see :class:`shmpar.verbs.Options`.

    {reduction_raises}
    AxisError, TypeError
        As in NumPy, before anything starts.
    ChunkError
        If the computation of a block fails.
    WorkerDied, TaskTimeout
        If a worker dies, or a chunk exceeds `task_timeout`, more often than `retries` allows.
    SegmentFull
        If there is no memory for the partial results.

    {reduction_cost}
    Cost: one pass over the array. The partial results are as large as the result, times the chunks
    along the reduced axes.

    {extreme}

    Parameters
    ----------
    {reduced}
    {keepdims}
    {exact_chunks}
    {reduction_options}

    Returns
    -------
    ndarray or scalar
        Exactly as in NumPy; NaN or NaT if an element is.

    Raises
    ------
    ValueError
        If there is no element, as in NumPy.
    {reduction_raises}

    Notes
    -----
    {reduction_cost}

    {exact}

    Parameters
    ----------
    {reduced}
    {keepdims}
    {exact_chunks}
    {reduction_options}

    Returns
    -------
    ndarray or scalar
        Exactly as in NumPy.

    Raises
    ------
    ValueError
        As in NumPy; of no element, if it has no such value.
    {reduction_raises}

    Notes
    -----
    {reduction_cost}

    {rounded}

    Parameters
    ----------
    {reduced}
    dtype : dtype, optional
        Dtype of the result and of the partial results; by default as in NumPy.
    {keepdims}
    {rounded_chunks}
    {reduction_options}

    Returns
    -------
    ndarray or scalar
        As in NumPy: exact for integers. Values of float16 are computed in float32.

    Raises
    ------
    ValueError
        As in NumPy; of no element, if it has no such value.
    {reduction_raises}

    Notes
    -----
    {reduction_cost}
    """


C = TypeVar("C")


def with_shared_text(cls: type[C]) -> type[C]:
    """Replace each line ``{name}`` in the docstrings of methods by the shared text of that name.

    Examples
    --------
    >>> @with_shared_text
    ... class Example:
    ...     def method(self):
    ...         '''{ddof}'''
    >>> print(Example.method.__doc__)
    ddof : float
        The sum of squares is divided by the number of elements minus this.
    """
    # Why `or`: `python -OO` removes all docstrings.
    parts = re.split(r"(?:^|\n\n)\{(\w+)\}\n", inspect.cleandoc(_SharedText.__doc__ or ""))
    texts = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}

    def expand(text: str) -> str:
        return re.sub(
            r"(?m)^( *)\{(\w+)\}$",
            lambda line: textwrap.indent(expand(texts[line[2]]), line[1]),
            text,
        )

    for method in vars(cls).values():
        if isinstance(method, types.FunctionType) and method.__doc__:
            method.__doc__ = expand(method.__doc__)
    return cls

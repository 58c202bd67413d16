"""Options of all verbs, their defaults, and the text that docstrings of verbs share."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import re
import threading
import types
from collections.abc import Mapping, Sequence
from reprlib import repr as brief
from typing import Any, Final, TypedDict, TypeVar

import numpy as np

from shmpar.grid.axis import whole_number
from shmpar.runtime.execution import Policy
from shmpar.runtime.progress import Progress, observe
from shmpar.tracebacks import hide_frames
from shmpar.verbs.functions import parameters_of
from shmpar.verbs.other_names import suggestion


class CommonOptions(TypedDict, total=False):
    """Keywords of every verb except ``apply_along_axis``, and of every reduction."""

    progress: Progress
    on_error: str
    fill_value: Any
    retries: int
    task_timeout: float | None
    io_retries: int


class Options(CommonOptions, total=False):
    """Keywords of every verb except ``apply_along_axis``.

    The defaults of `progress`, `on_error`, `retries` and `task_timeout` are those of the pool; the
    shown ones are those of a pool that sets no others.

    Attributes
    ----------
    kwargs : mapping, default None
        Keyword arguments for the function.
    progress : bool, str or callable, default False
        True shows a tqdm bar that counts chunks and failures, and a str is its label. A callable is
        called with ``(done, total)`` in chunks, about ten times per second and at the end. False
        shows nothing.
    on_error : {"raise", "collect", "fill"}, default "raise"
        Stop at the first failed chunk and raise its error; or compute the others and raise all
        errors; or fill the windows of failed chunks, warn, and return the result.
    fill_value : scalar, default None
        Value of each element for ``on_error="fill"``; None is NaN or NaT. Any object, and None
        itself, in a list of results and with ``dtype=object``.
    retries : int, default 1
        Number of times that a chunk is computed again after its worker died; then it has failed.
    task_timeout : float or None, default None
        Seconds that a chunk may take, on the processes engine; then its worker is killed. None and
        infinity are no limit.
    io_retries : int, default 2
        Number of times that a window of a store is read or written again, or the store opened,
        after a fault that may pass, such as a timeout of the network.
    seed : int, sequence of int or None, default None
        Entropy of the random streams of the chunks, for a function with a parameter named ``rng``:
        the same seed gives the same numbers. None is other numbers in each call.
    pass_out : bool, default False
        Pass the function its window of the output as ``out=``; the function writes there, and its
        return value is ignored. This needs ``out=`` in memory, or in `map_blocks` and `map_overlap`
        (with ``trim=False``) ``dtype=``. NumPy's ufuncs always write into their window in memory.
    ledger : path, default None
        A file that records completed chunks, so that the same call in a later process computes
        only the others. This needs ``out=`` on disk (a ``.npy`` or ``.zarr`` path, a zarr array or
        a np.memmap), or a function that returns None. A list of results needs neither: they lie in
        a second file, with the suffix ``.results``, and items may be added. The files stay after
        the last chunk; then the call computes nothing. Changed values of an input that lies in a
        store are not noticed.
    wait : bool, default True
        True returns the result. False returns the :class:`shmpar.Run` at once.
    """

    kwargs: Mapping[str, Any]
    seed: int | Sequence[int] | None
    pass_out: bool
    ledger: str | os.PathLike[str] | None
    wait: bool


class PassOptions(CommonOptions, total=False):
    """Keywords of the verbs that pass over an array and return no blocks, as `histogram`."""

    chunks: Any


class ReductionOptions(PassOptions, total=False):
    """Keywords of every reduction along axes."""

    keepdims: bool


REDUCTION_OPTIONS: Final = tuple(CommonOptions.__annotations__)

# Why a table: the verbs take them as ``**options``, and a signature shows their defaults.
_DEFAULTS: Final[dict[str, Any]] = {
    "chunks": "auto",
    "keepdims": False,
    "kwargs": None,
    "progress": False,
    "on_error": "raise",
    "fill_value": None,
    "retries": 1,
    "task_timeout": None,
    "io_retries": 2,
    "seed": None,
    "pass_out": False,
    "ledger": None,
    "wait": True,
}


class Defaults(TypedDict):
    """Defaults that a pool sets for its verbs."""

    progress: Progress
    on_error: str
    retries: int
    task_timeout: float | None
    check: bool


def _explain_unknown(verb: str, name: str, value: Any, pool: object, func: Any) -> str:
    """Return the message for a keyword that is neither of the verb nor an option."""
    text = f"{verb}() got an unexpected keyword argument {name!r}"
    of_function = (
        f"; keyword arguments for the function go into kwargs={{{name!r}: {brief(value)}}}"
    )
    verbs = {verb, "map_blocks", "map_overlap", "block_reduce", "parallel_map"}
    methods = {one: getattr(pool, one, None) for one in sorted(verbs)}
    own = {one: inspect.signature(m).parameters for one, m in methods.items() if m is not None}
    known = [one for one in own.get(verb, ()) if one not in {"func", "arrays", "options"}]
    found = suggestion(name, [*known, *Options.__annotations__])
    if not found and (takers := [one for one, parameters in own.items() if name in parameters]):
        found = f"; {' and '.join(takers)} take{'s' * (len(takers) == 1)} {name}="
    # Why: only a keyword that the function names, or that is like none of ours, can be meant so.
    is_its_own = name in parameters_of(func)
    return text + found + of_function * (is_its_own or not found)


def parse_options(
    verb: str,
    options: Mapping[str, Any],
    defaults: Defaults,
    pool: object = None,
    func: Any = None,
) -> Policy:
    """Check the options of a call of a pool's verb, and add the defaults of the pool.

    Raises
    ------
    TypeError, ValueError
        For an unknown option, or an invalid value.
    """
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise TypeError(_explain_unknown(verb, name, value, pool, func))
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
    if fill_value is not None and chosen["on_error"] != "fill":
        due = "is for the windows of failed chunks, which nothing fills"
        raise ValueError(f'fill_value= {due}; pass on_error="fill" too, or leave it out')
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
    try:
        seconds = float(timeout) if is_number else -1.0
    except OverflowError:  # an int that is too large, or too small
        seconds = math.inf if timeout > 0 else -1.0
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
        and "auto" makes blocks of about 8 to 12 MiB in multiples of their units. Arrays of xarray
        broadcast by the names of their axes. Options may use these names, as in
        ``chunks={"y": 512}``, and the result is a DataArray with the coordinates that are left.

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
        which each worker reads its blocks. A DataArray of xarray gives a DataArray, and `axis` and
        `chunks` may name its axes.
    axis : int, tuple of int or None, default None
        Axes to reduce; None: all.

    {keepdims}
    keepdims : bool, default False
        Keep the reduced axes, with length 1.

    {ddof}
    ddof : float, default 0
        The sum of squares is divided by the number of elements minus this.

    {rounded_chunks}
    chunks : int, tuple, dict or "auto", default "auto"
        Elements of a block along each axis. The last digits of a result of floats depend on it.

    {exact_chunks}
    chunks : int, tuple, dict or "auto", default "auto"
        Elements of a block along each axis. The result does not depend on it.

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
    along the reduced axes; "auto" gives each of them about 64 elements or more, or all. If the
    units of a store are large, it gives them fewer.

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

    {nanvariance}

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
        As in NumPy: NaN, with its RuntimeWarning, if `ddof` leaves no degree of freedom. Values of
        float16 are computed in float32.

    Raises
    ------
    {reduction_raises}

    Notes
    -----
    Cost and method are those of :meth:`var`; the elements of a block that are not NaN are counted.

    {place}

    Parameters
    ----------
    array : array_like
        Array to search.
    axis : int or None, default None
        Axis to search along; None: the flat array.
    {keepdims}
    {exact_chunks}
    {reduction_options}

    Returns
    -------
    ndarray of int or int
        Exactly as in NumPy: the first index of several, and that of the first NaN or NaT if there
        is any.

    Raises
    ------
    ValueError
        If there is no element, as in NumPy.
    {reduction_raises}

    Notes
    -----
    {reduction_cost}

    {selected}

    Parameters
    ----------
    {reduced}
    {keepdims}
    {exact_chunks}
    {reduction_options}

    Returns
    -------
    ndarray or scalar
        As in NumPy: the middle element, or the mean of both, is exact.

    Raises
    ------
    {reduction_raises}

    Notes
    -----
    {selection_cost}

    {quantile}
    axis : int, tuple of int or None, default None
        Axes to reduce; None: all.
    method : str, default "linear"
        How to compute a quantile between two elements: any method of NumPy.
    {keepdims}
    {exact_chunks}
    {reduction_options}

    Returns
    -------
    ndarray or scalar
        As in NumPy 2.4: the elements are exact, and the axes of `q` come first.

    Raises
    ------
    ValueError
        As in NumPy, for a wrong `q` or `method`.
    {reduction_raises}

    Notes
    -----
    {selection_cost}

    {selection_cost}
    Cost: lines up to 8 MiB along the reduced axes are not cut; a worker copies such a line. Longer
    lines, and the whole array, take two passes each. The first takes a sample of each block, and
    the second the elements around the wanted ones. Both are a small part of a large array.
    Elements that the sample does not enclose take two passes more. Integers of 8 bits take a single
    pass, which counts them. Of many quantiles at most 64 MiB of elements are taken at a time, by
    further passes.

    With ``on_error="fill"`` a failed block is an error too, since no value stands for its elements.
    """


C = TypeVar("C")


def with_shared_text(cls: type[C]) -> type[C]:
    """Complete the public methods of a class of verbs: their docstrings and signatures.

    Each line ``{name}`` in a docstring becomes the shared text of that name. A signature shows the
    keywords that ``**options`` takes, with their defaults.

    They get short tracebacks too.

    Examples
    --------
    >>> @with_shared_text
    ... class Example:
    ...     def method(self, *, ddof: float = 0, **options: Unpack[ReductionOptions]):
    ...         '''{ddof}'''
    >>> print(Example.method.__doc__)
    ddof : float, default 0
        The sum of squares is divided by the number of elements minus this.
    >>> list(inspect.signature(Example.method).parameters)[1:5]
    ['ddof', 'chunks', 'keepdims', 'progress']
    """
    texts = _shared_texts()

    def expand(text: str) -> str:
        return re.sub(
            r"(?m)^( *)\{(\w+)\}$",
            lambda line: re.sub(r"(?m)^(?=.)", line[1], expand(texts[line[2]])),
            text,
        )

    for name, method in list(vars(cls).items()):
        if isinstance(method, types.FunctionType) and not name.startswith("_"):
            # Why: `python -OO` removes all docstrings.
            method.__doc__ = method.__doc__ and expand(method.__doc__)
            method.__signature__ = _explicit(inspect.signature(method))  # type: ignore[attr-defined]
            setattr(cls, name, hide_frames(method))
    return cls


@functools.cache
def _shared_texts() -> dict[str, str]:
    """Return the texts of `_SharedText` by their names, and those of the options."""
    parts = re.split(r"(?:^|\n\n)\{(\w+)\}\n", inspect.cleandoc(_SharedText.__doc__ or ""))
    texts = {name: text.rstrip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    entries = re.split(r"\n(?=\w+ : )", inspect.cleandoc(getattr(Options, "__doc__", None) or ""))[
        1:
    ]
    options = {entry.partition(" ")[0]: entry for entry in entries}
    texts["options"] = "\n".join(entries)
    texts["reduction_options"] = "\n".join(options.get(name, "") for name in REDUCTION_OPTIONS)
    return texts


def _explicit(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature with the keywords of a TypedDict in place of ``**options``."""
    shown = list(signature.parameters.values())
    kinds = {f"Unpack[{kind.__name__}]": kind for kind in (Options, PassOptions, ReductionOptions)}
    if shown[-1].annotation not in kinds:
        return signature
    last = shown.pop()
    keywords = kinds[last.annotation].__annotations__
    added = [
        last.replace(
            name=name,
            kind=inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=keywords[name].__forward_arg__,
        )
        for name, default in _DEFAULTS.items()
        if name in keywords
    ]
    return signature.replace(parameters=[*shown, *added])

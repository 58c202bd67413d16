"""The default pool, and the verbs of the module, which run on it."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from shmpar.pool import Pool
from shmpar.runtime.run import Run
from shmpar.tracebacks import hide_frames

__all__ = [
    "all", "any", "apply_along_axis", "argmax", "argmin", "bincount", "block_reduce",
    "default_pool", "histogram", "map_blocks", "map_overlap", "max", "mean", "median", "min",
    "nanmax", "nanmean", "nanmedian", "nanmin", "nanpercentile", "nanquantile", "nanstd", "nansum",
    "nanvar", "parallel_map", "percentile", "prod", "quantile", "std", "sum", "unique", "var",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


class _Default:
    """The one pool of this interpreter, made when it is first asked for."""

    # Why reentrant: a signal handler may call a verb while its thread makes the pool.
    lock = threading.RLock()
    pool: Pool | None = None
    pid = 0


def default_pool() -> Pool:
    """Return the pool of the module's verbs, with as many workers as CPUs.

    The first call of a verb of the module, or of this function, makes it. It ends with the
    interpreter, or before with ``shmpar.default_pool().shutdown()``; then the next call makes
    another one. ``shmpar.last_run`` is its latest run.

    Returns
    -------
    Pool
        The same one in each call, until it is closed. A forked child has another one.

    Notes
    -----
    Cost: that of :class:`Pool` in the first call.

    Examples
    --------
    >>> import shmpar
    >>> int(shmpar.sum([1, 2, 3]))
    6
    >>> shmpar.last_run.done()
    True
    >>> shmpar.default_pool().shutdown()
    """
    if _Default.pid != os.getpid():  # a forked child's copy of a lock may never be released
        _Default.lock, _Default.pool, _Default.pid = threading.RLock(), None, os.getpid()
    with _Default.lock:
        if _Default.pool is None or _Default.pool.closed:
            made = Pool()
            if _Default.pool is None or _Default.pool.closed:
                _Default.pool = made
            else:  # a signal handler has made one meanwhile
                made.shutdown()
        return _Default.pool


def last_default_run() -> Run | None:
    """Return the latest run of the default pool, without making a pool."""
    return None if _Default.pool is None else _Default.pool.last_run


def _on_default(method: Callable[Concatenate[Pool, P], R]) -> Callable[P, R]:
    """The method as a function on the default pool."""

    @hide_frames
    @wraps(method)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(default_pool(), *args, **kwargs)

    _, *shown = inspect.signature(method).parameters.values()
    function.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    function.__module__, function.__qualname__ = "shmpar", method.__name__
    return function


map_blocks = _on_default(Pool.map_blocks)
apply_along_axis = _on_default(Pool.apply_along_axis)
map_overlap = _on_default(Pool.map_overlap)
block_reduce = _on_default(Pool.block_reduce)
parallel_map = _on_default(Pool.parallel_map)
sum = _on_default(Pool.sum)  # noqa: A001 - NumPy's name
mean = _on_default(Pool.mean)
var = _on_default(Pool.var)
std = _on_default(Pool.std)
min = _on_default(Pool.min)  # noqa: A001 - NumPy's name
max = _on_default(Pool.max)  # noqa: A001 - NumPy's name
histogram = _on_default(Pool.histogram)
prod = _on_default(Pool.prod)
nansum = _on_default(Pool.nansum)
any = _on_default(Pool.any)  # noqa: A001 - NumPy's name
all = _on_default(Pool.all)  # noqa: A001 - NumPy's name
nanmin = _on_default(Pool.nanmin)
nanmax = _on_default(Pool.nanmax)
argmax = _on_default(Pool.argmax)
argmin = _on_default(Pool.argmin)
bincount = _on_default(Pool.bincount)
median = _on_default(Pool.median)
nanmean = _on_default(Pool.nanmean)
nanmedian = _on_default(Pool.nanmedian)
nanpercentile = _on_default(Pool.nanpercentile)
nanquantile = _on_default(Pool.nanquantile)
nanstd = _on_default(Pool.nanstd)
nanvar = _on_default(Pool.nanvar)
percentile = _on_default(Pool.percentile)
quantile = _on_default(Pool.quantile)
unique = _on_default(Pool.unique)

"""The pool that the module's verbs use.

Imports pool.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from shmpar.pool.pool import Pool

__all__ = [
    "apply_along_axis",
    "block_reduce",
    "default_pool",
    "histogram",
    "map_blocks",
    "map_overlap",
    "max",
    "mean",
    "min",
    "parallel_map",
    "std",
    "sum",
    "var",
]

P = ParamSpec("P")
R = TypeVar("R")


class _Default:
    """The one pool of this interpreter, made when it is first asked for."""

    lock = threading.Lock()
    pool: Pool | None = None
    pid = 0


def default_pool() -> Pool:
    """The pool of the module's verbs: as many workers as CPUs; it ends with the interpreter."""
    if _Default.pid != os.getpid():  # a forked child's copy of a lock may never be released
        _Default.lock, _Default.pool, _Default.pid = threading.Lock(), None, os.getpid()
    with _Default.lock:
        if _Default.pool is None or _Default.pool.closed:
            _Default.pool = Pool()
        return _Default.pool


def _on_default(method: Callable[Concatenate[Pool, P], R]) -> Callable[P, R]:
    """The method as a function on the default pool."""

    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(default_pool(), *args, **kwargs)

    functools.update_wrapper(function, method)
    del function.__wrapped__  # type: ignore[attr-defined]  # its signature has self
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

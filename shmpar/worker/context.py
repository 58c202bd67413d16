"""Whether the code that asks runs inside a worker.

Imports nothing of the package.  Calls from inside a worker run serially there: workers that
waited for workers could wait for each other.

Processes that the user's function forks inside a worker, and that come back from it.

Imports the standard library.

Such a child has the worker's socket, its counters and its slot of the ledger: if it went on, two
processes would be one worker, and nobody would end it.  So it ends where it leaves the function.

Guarantees
----------
- It marks no chunk, claims none and says nothing: the slot is taken from it as it is forked, and
  what it returns or raises is the end of the process, as if the function were its program.

What of the parent's state a function may depend on, and how a worker takes it on.

Imports travel, and messages in this package.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings

import numpy as np

from shmpar.ipc.protocol import Environment
from shmpar.pickling.unpack import unpack

__all__ = [
    "apply_environment",
    "exit_if_forked",
    "guard_forks",
    "has_changed",
    "in_worker",
    "inside_worker",
]


class _Where(threading.local):
    depth = 0


_where = _Where()


def in_worker() -> bool:
    """Whether this thread is running the function of a run."""
    return _where.depth > 0


class inside_worker:  # noqa: N801 - reads as a verb: with inside_worker()
    """Mark this thread as a worker, in a block."""

    __slots__ = ()

    def __enter__(self) -> None:
        _where.depth += 1

    def __exit__(self, *_: object) -> None:
        _where.depth -= 1


class _Here:
    """What this process knows of itself."""

    slot: memoryview | None = None
    forked = False


def guard_forks(slot: memoryview) -> None:
    """A worker process is going to call the user's function, with this slot of the ledger."""
    if _Here.slot is None:
        os.register_at_fork(after_in_child=_after_fork)
    _Here.slot = slot


def _after_fork() -> None:
    _Here.forked = True
    if _Here.slot is not None:
        _Here.slot.release()


def exit_if_forked(error: BaseException | None = None) -> None:
    """End this process if it is no worker but was forked by one; do nothing in any other.

    Parameters
    ----------
    error : BaseException, optional
        What its function has raised.
    """
    if not _Here.forked:
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None and "released memoryview" not in str(error):  # else it has returned
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status & 0xFF)


_filters: list[list[object]] = []  # as they were taken on


def apply_environment(environment: Environment) -> None:
    """Have the parent's working directory, path, error handling and warning filters."""
    with contextlib.suppress(OSError):  # a directory that is gone is no reason to fail
        if environment.directory is not None:
            os.chdir(environment.directory)
    if environment.path is not None:
        sys.path[:] = environment.path
    np.seterr(**environment.errors)
    if environment.filters is not None:
        warnings.filters[:] = unpack(environment.filters)[0]  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]  # noqa: SLF001
        _filters[:] = [list(warnings.filters)]


def has_changed(environment: Environment) -> bool:
    """Whether a function has changed any of it in this process since.  Cost: 3 us."""
    if environment.path is not None and sys.path != environment.path:
        return True
    if np.geterr() != environment.errors or (_filters and warnings.filters != _filters[0]):
        return True
    try:
        return environment.directory is not None and os.getcwd() != environment.directory
    except OSError:  # it was removed, or is the function's that has been
        return True

"""Context of the user's function in a worker: nested calls, forked children, the parent's state.

Guarantees
----------
- Calls from inside a worker run serially there: workers that wait for workers could wait for each
  other.
- A child that the user's function forks marks no chunk, claims none and sends nothing. It inherits
  the worker's socket, counters and slot of the ledger, so it must not go on as a second worker. It
  exits when it leaves the function, as if the function were its program.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from typing import Any

import numpy as np

from shmpar.ipc.protocol import Environment
from shmpar.pickling.unpack import unpack

_thread = threading.local()  # Its `depth` counts the functions of runs that the thread is in.


def in_worker() -> bool:
    """Return whether this thread runs the function of a run."""
    return getattr(_thread, "depth", 0) > 0


class _Inside:
    """Why a class: a generator's context manager sets an attribute of the exception."""

    def __enter__(self) -> None:
        _thread.depth = getattr(_thread, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _thread.depth -= 1


def inside_worker() -> _Inside:
    """Mark that this thread runs the function of a run, for the block."""
    return _Inside()


_slot: memoryview | None = None  # the worker's slot of the ledger
_forked = False  # True in a child that the user's function has forked


def guard_forks(slot: memoryview) -> None:
    """Prepare a worker process for functions that fork, before it calls one with this slot."""
    global _slot  # noqa: PLW0603 - a process has one
    if _slot is None:
        os.register_at_fork(after_in_child=_after_fork)
    _slot = slot


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 - a process has one
    _forked = True
    if _slot is not None:
        _slot.release()  # Why: a child that goes on computing must fail before it marks a chunk


def exit_if_forked(error: BaseException | None = None) -> None:
    """Exit if this process was forked by the user's function; do nothing in a worker.

    Parameters
    ----------
    error : BaseException, optional
        The exception of the function.
    """
    if not _forked:
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    # Why: a child that returned from the function fails at the released slot, not by its own fault.
    elif error is not None and "released memoryview" not in str(error):
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status & 0xFF)


_filters: list[Any] = []  # the warning filters that were applied last


def apply_environment(environment: Environment) -> None:
    """Apply the parent's working directory, sys.path, NumPy error state and warning filters."""
    with contextlib.suppress(OSError):  # Why: a directory that is gone is no reason to fail
        if environment.directory is not None:
            os.chdir(environment.directory)
    if environment.path is not None:
        sys.path[:] = environment.path
    np.seterr(**environment.errors)
    if environment.filters is not None:
        _filters[:] = unpack(environment.filters)[0]
        # Why: resetwarnings also forgets which warnings were shown, as new filters require.
        warnings.resetwarnings()
        warnings.filters.extend(_filters)  # type: ignore[attr-defined]


def has_changed(environment: Environment) -> bool:
    """Return whether a function has changed the applied environment in this process."""
    if environment.path is not None and sys.path != environment.path:
        return True
    if environment.filters is not None and warnings.filters != _filters:
        return True
    try:
        moved = environment.directory is not None and os.getcwd() != environment.directory
    except OSError:  # Why: the directory was removed, so it may be one that a function changed to
        return True
    return moved or np.geterr() != environment.errors

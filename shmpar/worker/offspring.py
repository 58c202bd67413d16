"""Processes that the user's function forks inside a worker, and that come back from it.

Imports the standard library.

Such a child has the worker's socket, its counters and its slot of the ledger: if it went on, two
processes would be one worker, and nobody would end it.  So it ends where it leaves the function.

Guarantees
----------
- It marks no chunk, claims none and says nothing: the slot is taken from it as it is forked, and
  what it returns or raises is the end of the process, as if the function were its program.
"""

from __future__ import annotations

import os
import sys

__all__ = ["end_offspring", "watch"]


class _Here:
    """What this process knows of itself."""

    slot: memoryview | None = None
    forked = False


def watch(slot: memoryview) -> None:
    """A worker process is going to call the user's function, with this slot of the ledger."""
    if _Here.slot is None:
        os.register_at_fork(after_in_child=_after_fork)
    _Here.slot = slot


def _after_fork() -> None:
    _Here.forked = True
    if _Here.slot is not None:
        _Here.slot.release()


def end_offspring(error: BaseException | None = None) -> None:
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

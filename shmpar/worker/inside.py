"""Whether the code that asks runs inside a worker.

Imports nothing of the package.  Calls from inside a worker run serially there: workers that
waited for workers could wait for each other.
"""

from __future__ import annotations

import threading

__all__ = ["entered", "in_worker"]


class _Where(threading.local):
    depth = 0


_where = _Where()


def in_worker() -> bool:
    """Whether this thread is running the function of a run."""
    return _where.depth > 0


class entered:  # noqa: N801 - reads as a verb: with entered()
    """Mark this thread as a worker, in a block."""

    __slots__ = ()

    def __enter__(self) -> None:
        _where.depth += 1

    def __exit__(self, *_: object) -> None:
        _where.depth -= 1

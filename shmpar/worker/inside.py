"""Whether the code that asks runs inside a worker.

Imports nothing of the package.  Calls from inside a worker run serially there: workers that
waited for workers could wait for each other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["entered", "in_worker"]


class _Where(threading.local):
    depth = 0


_where = _Where()


def in_worker() -> bool:
    """Whether this thread is running the function of a run."""
    return _where.depth > 0


@contextlib.contextmanager
def entered() -> Iterator[None]:
    """Mark this thread as a worker."""
    _where.depth += 1
    try:
        yield
    finally:
        _where.depth -= 1

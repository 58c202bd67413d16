"""File descriptors: how many the segments use, and room for more, for workers too.

Imports the standard library only.

Guarantees
----------
``born`` and ``died`` may run in any thread and inside a finalizer: they take no lock.
The soft limit is only ever raised, never beyond the hard one.
No memory and no worker gets the number of a standard stream that is closed: whoever printed would
write into an array.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["born", "died", "fill_standard", "keep_room", "opened", "scarce", "used"]

_T = TypeVar("_T")
# Until 3.13 mmap keeps a duplicate of the descriptor that it was made of.
PER_SEGMENT: Final = 1 if sys.version_info >= (3, 13) else 2
MARGIN: Final = 640  # more than come with one message, with what maps them

_alive: set[int] = set()
born = _alive.add
died = _alive.discard


def used() -> int:
    """Descriptors that the segments of this process hold."""
    return len(_alive) * PER_SEGMENT


def scarce() -> bool:
    """Whether segments use more than a quarter of what this process may open."""
    if resource is None:
        return False
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 <= soft < 4 * used()


def fill_standard() -> None:
    """Open ``/dev/null`` in the place of each standard stream that is closed.  Cost: 1 us."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            if null != fd:
                os.dup2(null, fd, inheritable=False)
                os.close(null)


def keep_room(fd: int) -> None:
    """Raise the limit before numbers come near it, of which this one is the newest.

    For what comes through a socket: the kernel drops descriptors that there is no room for, and
    they cannot be asked for again.
    """
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < fd + MARGIN and soft != hard:
            _raise_limit()


def opened(open_: Callable[[], _T]) -> _T:
    """Call ``open_``; where the process is out of descriptors, raise its limit and call again.

    What is called leaves nothing open when it fails.

    Raises
    ------
    OSError
        EMFILE if the hard limit is reached too, saying what to do; any other unchanged.
    """
    try:
        return open_()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    if _raise_limit():
        return open_()
    raise OSError(
        errno.EMFILE,
        f"{os.strerror(errno.EMFILE)}: {used()} descriptors are held by shared arrays; "
        "drop arrays, use fewer workers, or raise the hard limit (ulimit -Hn)",
    )


def _raise_limit() -> bool:
    if resource is None:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    with suppress(ValueError, OSError):  # macOS refuses an unlimited soft limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return True
    return False

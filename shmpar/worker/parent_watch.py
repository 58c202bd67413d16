"""How a worker ends with its parent, however that one ends.

Imports nothing of the package, and runs before numpy is imported.

Guarantees
----------
- The worker is gone within milliseconds of its parent, also in the middle of C code that holds
  the interpreter's lock, since it is the kernel that sends SIGKILL.
- It does not end with the *thread* that started it, as with PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

__all__ = ["exit_with_parent"]


def exit_with_parent(fd: int) -> None:
    """Watch the read end of a pipe whose write end the parent alone holds.

    Parameters
    ----------
    fd : int
        Stays open as long as the process lives.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    else:
        _watch(fd)
    # A parent that was gone before the signal was asked for sends none any more.
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    if poll.poll(0):
        os._exit(1)


def _watch(fd: int) -> None:
    """Where the kernel has no signal of choice for a pipe: a thread that waits for its end."""
    import threading

    def wait() -> None:
        os.read(fd, 1)
        os._exit(1)

    threading.Thread(target=wait, name="shmpar-life", daemon=True).start()

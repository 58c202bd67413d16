"""Make a worker process exit with its parent.  This module runs before numpy is imported.

Guarantees
----------
- The worker exits within milliseconds after its parent, even in the middle of C code that holds the
  interpreter's lock, since the kernel sends SIGKILL.
- It does not exit with the *thread* that started it, as it would with PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal

from shmpar.memory import system


def exit_with_parent(fd: int) -> None:
    """Watch the read end of a pipe; the parent alone holds the write end.

    Parameters
    ----------
    fd : int
        Stays open as long as the process lives.
    """
    system.attempt("F_SETSIG", lambda: _request_signal(fd), lambda: _start_thread(fd))
    # Why: a parent that exited before the signal was requested causes no signal.
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    if poll.poll(0):
        os._exit(1)


def _request_signal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ASYNC:  # Why: a system may ignore the flag
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _start_thread(fd: int) -> None:
    import threading

    threading.Thread(target=_exit_at_end, args=(fd,), name="shmpar-life", daemon=True).start()


def _exit_at_end(fd: int) -> None:
    os.read(fd, 1)
    os._exit(1)

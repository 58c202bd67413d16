"""Make a worker process exit with its parent.  This module runs before numpy is imported.

Guarantees
----------
- The worker exits within milliseconds after its parent, even in the middle of C code that holds the
  interpreter's lock, since the kernel sends SIGKILL.
- Neither closed descriptors nor another process group nor blocked signals keep it alive.
- The processes that the user's code has started in its group are killed too.
- It does not exit with the *thread* that started it, as it would with PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal

from shmpar.memory import system


def exit_with_parent(fd: int, group: int = -1) -> None:
    """Watch the read end of a pipe; the parent alone holds the write end.

    Parameters
    ----------
    fd : int
        The read end. The parent has the same open file, so that it stays open after the user's
        code has closed this number.
    group : int
        The same pipe as another open file, whose owner is the process group; -1 without it.
    """
    system.attempt("F_SETSIG", lambda: _request_kill(fd, os.getpid()), lambda: _start_thread(fd))
    if group >= 0 and os.getpgrp() == os.getpid():  # Why: another group is not the worker's.
        system.attempt("F_SETSIG", lambda: _request_kill(group, -os.getpid()), lambda: None)
    # Why: a parent that exited before the signal was requested causes no signal.
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    if poll.poll(0):
        os._exit(1)


def _request_kill(fd: int, owner: int) -> None:
    """Have a process, or a process group if negative, killed when the write end is closed."""
    os.set_inheritable(fd, False)  # noqa: FBT003 - positional by its signature
    fcntl.fcntl(fd, fcntl.F_SETOWN, owner)
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

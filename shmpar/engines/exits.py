"""The end of a worker process: waiting for it, and what it means.

Imports nothing of the package.
"""

from __future__ import annotations

import select
import signal
import subprocess
import time

__all__ = ["await_exit", "describe_exit"]

_ADVICE = {
    signal.SIGKILL: "most often the kernel's, for lack of memory: try smaller chunks or fewer "
    "workers, and look at dmesg",
    signal.SIGSEGV: "a fault in compiled code: run the chunk with engine='serial' under "
    "python -X faulthandler",
    signal.SIGBUS: "a mapped file was truncated, or its disk is full",
    signal.SIGABRT: "compiled code gave up: its message is on standard error",
    signal.SIGILL: "compiled code for another processor",
    signal.SIGFPE: "a fault in compiled arithmetic",
}


def await_exit(process: subprocess.Popen[bytes], pidfd: int, deadline: float) -> None:
    """Reap a process; kill it if it has not ended by `deadline`, of the monotonic clock."""
    if pidfd >= 0:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
    if process.poll() is None:
        process.kill()
        process.wait()


def describe_exit(code: int | None) -> str:
    """Say how a process ended, and what to look at.

    Parameters
    ----------
    code : int or None
        As in :class:`subprocess.Popen`; None if it could not be found out.

    Examples
    --------
    >>> describe_exit(3)
    'exited with status 3'
    >>> describe_exit(-11)[:27]
    'was ended by signal SIGSEGV'
    """
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    advice = _ADVICE.get(name)
    return f"was ended by signal {name.name}" + (f" ({advice})" if advice else "")

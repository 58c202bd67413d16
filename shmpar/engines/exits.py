"""The end of a worker process: waiting for it, and what it means.

Imports nothing of the package.
"""

from __future__ import annotations

import select
import signal
import subprocess
import time
from typing import NamedTuple

__all__ = ["Exit", "await_exit"]

_SMALLER = "try smaller chunks or fewer workers"
_ADVICE = {
    signal.SIGKILL: "by somebody's kill, or the kernel's for lack of memory, though it does not "
    f"say so here: look at dmesg; if so, {_SMALLER}",
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


class Exit(NamedTuple):
    """How a worker process ended.

    Attributes
    ----------
    code : int or None
        As in :class:`subprocess.Popen`; None if it could not be found out.
    out_of_memory : bool
        The kernel has ended processes for lack of memory meanwhile.
    """

    code: int | None
    out_of_memory: bool = False

    def describe(self) -> str:
        """Say how it ended, and what to look at.

        Examples
        --------
        >>> Exit(3).describe()
        'exited with status 3'
        >>> Exit(-11).describe()[:27]
        'was ended by signal SIGSEGV'
        """
        code = self.code
        if code is None:
            return "ended"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code)
        except ValueError:
            return f"was ended by signal {-code}"
        if name == signal.SIGKILL and self.out_of_memory:
            return f"was ended by the kernel for lack of memory (an OOM kill): {_SMALLER}"
        advice = _ADVICE.get(name)
        return f"was ended by signal {name.name}" + (f" ({advice})" if advice else "")

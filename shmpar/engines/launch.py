"""Starting a worker: an interpreter that is executed, not forked, with an inherited socket.

Imports wire and segment.

Guarantees
----------
- The new process has three descriptors of the parent's above 2: its socket, its bell, the read
  end of its life pipe, and none of the user's.
- Nothing is imported in it before its `sys.path` is the parent's, and numpy not before the caps
  on its threads are in its environment.
- `__main__` of the parent is not imported there.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from shmpar.ipc.wire import Wire
from shmpar.memory import limits

__all__ = ["BOOT", "CAPS", "Launched", "Launcher"]

CAPS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

BOOT = """
import sys, posix, _signal
_signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # an interrupt is the parent's to handle
sock, life, bell, number = map(int, sys.argv[1:])
package, *path = posix.read(sock, 1 << 20).decode("utf-8", "surrogateescape").split("\\0")
if path: sys.path[:] = path
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location(
    "shmpar", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["shmpar"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
sys.argv = ["-c"]
from shmpar.worker.parent_watch import end_with_parent
end_with_parent(life)
from shmpar.worker.main import main
main(sock, bell, number)
"""
"""The first lines of a worker. It runs the parent's own copy of this package, whatever another
interpreter has installed, so both ends always speak the same protocol."""


@dataclass(eq=False, slots=True)
class Launched:
    """A process that was started.

    Attributes
    ----------
    process : Popen
        The process.
    wire : Wire
        The parent's end of its socket.
    life : int
        Write end of its life pipe; it is killed when this closes.
    bell : int
        An event counter on which it waits for messages; -1 where the system has none, and it
        waits on the socket. A message through a socket makes the kernel run its reader at once
        on the sender's processor, as if the sender were about to wait; this does not.
    pidfd : int
        Readable when the process is gone; -1 where the system has none.
    """

    process: subprocess.Popen[bytes]
    wire: Wire
    life: int
    bell: int
    pidfd: int

    def close(self) -> None:
        """Close the parent's descriptors; a worker that lives is killed by it."""
        self.wire.close()
        for fd in (self.life, self.bell, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.life = self.bell = self.pidfd = -1

    def ring(self, messages: int) -> None:
        """Tell it that so many messages have been sent."""
        if self.bell >= 0:
            os.eventfd_write(self.bell, messages)


class Launcher:
    """Starts workers of one kind.

    Parameters
    ----------
    python : str or None
        The interpreter; None: this one.
    env : mapping
        Added to the environment.
    threads : int
        Cap on the threads of BLAS and OpenMP in each worker.
    """

    def __init__(self, python: str | None, env: Mapping[str, str], threads: int) -> None:
        self._foreign = python is not None
        self._python = python or _this_python()
        self._env = {**dict.fromkeys(CAPS, str(threads)), **env}

    def start(self, number: int) -> Launched:
        """Start the worker with this number; costs a millisecond and does not wait for it.

        Raises
        ------
        OSError
            If the interpreter cannot be executed, or there are too few descriptors.
        """
        launched = limits.open_with_retry(lambda: self._start(number))
        limits.reserve_descriptors(launched.pidfd)
        return launched

    def _start(self, number: int) -> Launched:
        """Do it, or leave nothing open and nobody running."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def own(fd: int, end: contextlib.ExitStack) -> int:
                fd = _above_standard(fd)
                end.callback(os.close, fd)
                return fd

            near, far = Wire.pair()
            ours.callback(near.close)
            sock = own(far.detach(), theirs)
            life_read, life = os.pipe()
            life_read, life = own(life_read, theirs), own(life, ours)
            bell = own(os.eventfd(0), ours) if hasattr(os, "eventfd") else -1
            self._introduce(near)
            process = self._execute(sock, life_read, bell, number)
            ours.callback(process.wait)
            ours.callback(process.kill)
            pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
            ours.pop_all()
            return Launched(process, Wire(near, process.kill), life, bell, pidfd)

    def _introduce(self, sock: _socket.socket) -> None:
        path = [] if self._foreign else sys.path
        sock.send("\0".join([_PACKAGE, *path]).encode("utf-8", "surrogateescape"))

    def _execute(self, sock: int, life: int, bell: int, number: int) -> subprocess.Popen[bytes]:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
        command = [self._python, *([] if self._foreign else flags), "-P", "-c", BOOT]
        return subprocess.Popen(
            [*command, *map(str, (sock, life, bell, number))],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self._env},
            pass_fds=[fd for fd in (sock, life, bell) if fd >= 0],
            process_group=0,  # Ctrl-C of the terminal is the parent's to handle
        )


def _this_python() -> str:
    """The interpreter that multiprocessing was told to use, if it was."""
    spawn = sys.modules.get("multiprocessing.spawn")
    chosen = spawn.get_executable() if spawn is not None else sys.executable
    return os.fsdecode(chosen or sys.executable)


def _above_standard(fd: int) -> int:
    """The descriptor, or a duplicate above 2 where the parent runs without standard streams."""
    if fd > 2:  # noqa: PLR2004 - stdin, stdout, stderr
        return fd
    with contextlib.closing(os.fdopen(fd, "rb", 0)):
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)

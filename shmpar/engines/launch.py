"""Start a worker: an interpreter that is executed, not forked, with an inherited socket.

Guarantees
----------
- The new process has three descriptors above 2, its socket and two for the read end of its life
  pipe, and none of the user's.
- It imports nothing before its `sys.path` is the parent's, and numpy only after the caps on its
  threads are in its environment.
- It never imports the parent's `__main__`.
- It leads a process group, which ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shmpar.engines.packing import search_path
from shmpar.ipc.wire import Wire
from shmpar.memory import limits
from shmpar.worker.environment import MARK

THREAD_CAPS = (
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
_signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # the parent handles interrupts
sock, number, *life = map(int, sys.argv[1:])
names = posix.read(sock, 1 << 20).decode(sys.getfilesystemencoding(), "surrogateescape")
package, *path = names.split("\\0")
if path: sys.path[:] = path
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location(
    "shmpar", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["shmpar"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
sys.argv = ["-c"]
from shmpar.worker.parent_watch import exit_with_parent
exit_with_parent(*life)
from shmpar.worker.main import main
main(sock, life[0], number)
"""
"""First lines of a worker. It runs the parent's own copy of this package, so that both ends speak
the same protocol, whatever another interpreter has installed."""


@dataclass(eq=False, slots=True)
class Launched:
    """A process that was started.

    Attributes
    ----------
    process : Popen
        The process.
    wire : Wire
        The parent's end of its socket.
    life : tuple of int
        The ends of its life pipe, the write end last; the process is killed when that one closes.
    pidfd : int
        Readable when the process is gone; -1 where the system has none.
    """

    process: subprocess.Popen[bytes]
    wire: Wire
    life: tuple[int, ...]
    pidfd: int

    def close(self) -> None:
        """Close the parent's descriptors; a process that lives is killed by it."""
        self.wire.close()
        for fd in (*reversed(self.life), self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.life, self.pidfd = (), -1

    def kill(self) -> None:
        """Kill the process and its group: the processes that the user's function has started."""
        if self._is_child():
            self._signal(os.killpg)
            self._signal(os.kill)  # Why: the function may have left the group.

    def wait(self, deadline: float | None = None) -> int | None:
        """Reap the process and end its group; kill both at `deadline`, of the monotonic clock.

        Returns
        -------
        int or None
            As in :class:`subprocess.Popen`; None if it is not known, since this process ignores
            SIGCHLD, or waits for all of its children elsewhere.
        """
        if deadline is not None:
            if self.pidfd >= 0:
                poll = select.poll()
                poll.register(self.pidfd, select.POLLIN)
                poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
            self.kill()
        known = self._is_child(wait=True)
        if known:
            self._signal(os.killpg)  # Why now: the number of the group is the process's own.
        code = self.process.wait()
        return code if known else None

    def _is_child(self, *, wait: bool = False) -> bool:
        """Return whether the process, or its exit status, is there: its number is not reused."""
        if self.process.returncode is not None or not hasattr(os, "waitid"):
            return self.process.returncode is None
        try:
            how = os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)
            os.waitid(os.P_PID, self.process.pid, how)
        except ChildProcessError:
            return False
        return True

    def _signal(self, kill: Callable[[int, int], None]) -> None:
        with contextlib.suppress(ProcessLookupError):
            kill(self.process.pid, signal.SIGKILL)


class Launcher:
    """Start workers of one kind.

    Parameters
    ----------
    python : str or None
        The interpreter; None is this one.
    env : mapping
        Added to the environment.
    threads : int
        Cap on the threads of BLAS and OpenMP in each worker.
    """

    def __init__(self, python: str | None, env: Mapping[str, str], threads: int) -> None:
        self._foreign = python is not None
        self._python = python or _this_python()
        self._env = {**dict.fromkeys(THREAD_CAPS, str(threads)), **env}

    def start(self, number: int) -> Launched:
        """Start the worker with this number; do not wait for it.

        Raises
        ------
        OSError
            If the interpreter cannot be executed, or there are too few descriptors.
        """
        launched = limits.open_with_retry(lambda: self._start(number))
        limits.reserve_descriptors(launched.pidfd)
        return launched

    def _start(self, number: int) -> Launched:
        """Start a process, or leave nothing open and no process running."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def own(fd: int, end: contextlib.ExitStack) -> int:
                fd = _above_standard(fd)
                end.callback(os.close, fd)
                return fd

            near, far = Wire.pair()
            ours.callback(near.close)
            sock = own(far.detach(), theirs)
            # Invariant: this process keeps the read ends, under lower numbers. The worker's ends
            # are the same open files, which therefore ask for the signal even after the user's
            # function has closed them. At the exit of this process the kernel closes the files of
            # higher numbers first, and sends the signal while the lower ones are open.
            read, write = os.pipe()
            reads, write = [own(read, ours)], own(write, theirs)
            with contextlib.suppress(FileNotFoundError):  # /proc is not mounted
                # Why: an open file has one owner, and the worker and its group are two.
                group = os.open(f"/proc/self/fd/{reads[0]}", os.O_RDONLY | os.O_CLOEXEC)
                reads.append(own(group, ours))
            write = own(_duplicate_above(max(reads), write), ours)
            path = [] if self._foreign else search_path()
            near.send(b"\0".join(map(os.fsencode, [_PACKAGE, *path])))
            process = self._execute(sock, number, reads)
            ours.callback(process.wait)
            ours.callback(process.kill)
            pidfd = _pidfd(process.pid)
            ours.pop_all()
            launched = Launched(process, Wire(near), (*reads, write), pidfd)
            launched.wire = Wire(near, launched.kill)
            return launched

    def _execute(self, sock: int, number: int, life: list[int]) -> subprocess.Popen[bytes]:
        flags = [] if self._foreign else _interpreter_flags()
        return subprocess.Popen(
            [self._python, *flags, "-P", "-c", BOOT, *map(str, (sock, number, *life))],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self._env, MARK: "1"},
            pass_fds=(sock, *life),
            process_group=0,  # Why: Ctrl-C of the terminal is the parent's to handle.
        )


def _this_python() -> str:
    """Return the interpreter that multiprocessing was told to use, else this one."""
    spawn = sys.modules.get("multiprocessing.spawn")
    chosen = spawn.get_executable() if spawn is not None else sys.executable
    return os.fsdecode(chosen or sys.executable)


def _interpreter_flags() -> list[str]:
    """Return the flags that this interpreter was started with."""
    # Why private: multiprocessing passes flags on by this function; there is no public one.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return flags


def _pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when the process is gone; -1 without one."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        return -1  # Why: an old kernel, or a filter of system calls, has no pidfd.


def _duplicate_above(lower: int, fd: int) -> int:
    """Return a duplicate of a descriptor, with a number higher than `lower`."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lower + 1)
    except OSError as error:
        if error.errno == errno.EINVAL:  # Why: the kernel says so if the limit is lower.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        raise


def _above_standard(fd: int) -> int:
    """Return the descriptor, or a duplicate above 2 if the parent lacks standard streams."""
    if fd > 2:  # noqa: PLR2004 - stdin, stdout, stderr
        return fd
    with contextlib.closing(os.fdopen(fd, "rb", 0)):
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)

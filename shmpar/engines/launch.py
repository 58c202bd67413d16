"""Start a worker: an interpreter that is executed, not forked, with an inherited socket.

Guarantees
----------
- The new process has three descriptors above 2, its socket and two for the read end of its life
  pipe, and none of the user's.
- It imports nothing before its `sys.path` is the parent's, and numpy only after the caps on its
  threads are in its environment. It has the parent's `sys.argv` and limit on recursion too.
- It never imports the parent's `__main__`.
- All workers have the same hash of a string: the parent's if its seed is known.
- It leads a process group, which ends with it.
"""

from __future__ import annotations

import _socket
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

from shmpar.engines.engine import Exit
from shmpar.engines.packing import search_path
from shmpar.errors import PlanError
from shmpar.ipc.wire import Wire
from shmpar.memory import limits, system
from shmpar.pickling.pack import Interpreter
from shmpar.worker.environment import MARK

THREAD_CAPS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "BLOSC_NTHREADS",
    "ZARR_THREADING__MAX_WORKERS",
)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_SEED = "PYTHONHASHSEED"
# Why: Python does not tell the seed that it has drawn, so that workers cannot have the parent's.
_DRAWN_SEED = str(int.from_bytes(os.urandom(4), "little") or 1)

BOOT = """
import sys, posix, gc, _signal
_signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # the parent handles interrupts
collects = gc.isenabled()
gc.disable()  # the imports leave no garbage, and each look for it delays the start
sock, number, depth, *life = map(int, sys.argv[1].split(","))
sys.argv = sys.argv[2:] or [""]
# Python 3.13 would show these lines in tracebacks as those of the parent's own command.
if "linecache" in sys.modules: sys.modules["linecache"].cache.clear()
sys.setrecursionlimit(max(depth, sys.getrecursionlimit()))
names = posix.read(sock, 1 << 20).decode(sys.getfilesystemencoding(), "surrogateescape")
package, *path = names.split("\\0")
if path: sys.path[:] = path
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location(
    "shmpar", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["shmpar"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from shmpar.worker.parent_watch import exit_with_parent
exit_with_parent(*life)
from shmpar.worker.main import main
if collects: gc.enable()
main(sock, life[0], number)
"""
"""First lines of a worker. It runs the parent's own copy of this package, so that both ends speak
the same protocol, whatever another interpreter has installed."""


PROBE = """
import sys
if sys.path[:1] == [""]: del sys.path[0]
found = [sys.implementation.name, "%d.%d.%d" % sys.version_info[:3]]
if sys.version_info >= (3, 11):
    import importlib.util
    found.append(importlib.util.MAGIC_NUMBER.hex())
    for name in ("numpy", "cloudpickle"):
        try: found.append(__import__(name).__version__)
        except ImportError as error: found.append("!%s: %s" % (name, error))
sys.stdout.write("\\nshmpar:" + "\\0".join(found))
"""
"""Program that tells the versions of an interpreter; any version of Python 3 runs it."""

_PROBE_SECONDS = 60.0
_LOOK_SECONDS = 0.01


class Launched:
    """A process that was started.

    Attributes
    ----------
    process : Popen
        The process.
    life : tuple of int
        The ends of its life pipe, the write end last; the process is killed when that one closes.
    pidfd : int
        Readable when the process is gone; -1 where the system has none.
    wire : Wire
        The parent's end of its socket.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        near: _socket.socket,
        life: tuple[int, ...],
        pidfd: int,
    ) -> None:
        self.process, self.life, self.pidfd = process, life, pidfd
        self.wire = Wire(near, self.kill)

    def close(self) -> None:
        """Close the parent's descriptors; a process that lives is killed by it."""
        self.wire.close()
        for fd in (*reversed(self.life), self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.life, self.pidfd = (), -1

    def kill(self) -> None:
        """Kill the process and its group: the processes that the user's function has started.

        That also works if this process may not signal it since a setuid.
        """
        if self._exited() is None:
            return
        try:
            self._signal(os.killpg)
            self._signal(os.kill)  # Why: the function may have left the group.
        except PermissionError:
            if self.life:
                # Why: the kernel kills the process at the end of its life pipe.
                *reads, write = self.life
                self.life = tuple(reads)
                os.close(write)

    def has_exited(self) -> bool:
        """Return True if the process is gone."""
        return self._exited() is not False

    def wait(self, deadline: float | None = None) -> int | None:
        """Reap the process and end its group; kill both at `deadline`, of the monotonic clock.

        Returns
        -------
        int or None
            As in :class:`subprocess.Popen`; None if it is not known, since this process ignores
            SIGCHLD, or waits for all of its children elsewhere.
        """
        if deadline is not None:
            self._await_exit(deadline)
            self.kill()
        exited = self._exited(wait=True)
        if exited:
            # Why now: the number of the group is the process's own. After a setuid it may refuse.
            with contextlib.suppress(PermissionError):
                self._signal(os.killpg)
        known = exited or self.process.returncode is not None
        code = self.process.wait()
        return code if known else None

    def _await_exit(self, deadline: float) -> None:
        if self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
            return
        while time.monotonic() < deadline and not self.has_exited():
            time.sleep(_LOOK_SECONDS)  # Why: this system tells of no exit unless it is asked.

    def _exited(self, *, wait: bool = False) -> bool | None:
        """Return whether the process has exited; None if its number may be another's by now."""
        if self.process.returncode is not None:
            return None

        def look() -> bool:
            how = os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)
            return os.waitid(os.P_PID, self.process.pid, how) is not None

        def reap() -> bool | None:
            code = self.process.wait() if wait else self.process.poll()
            return False if code is None else None

        with contextlib.suppress(ChildProcessError):
            return system.attempt("waitid", look, reap)
        return None

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

    Attributes
    ----------
    own_path : bool
        The workers have a ``sys.path`` of their own.
    behind : list of str
        Folders that come behind this process' ``sys.path`` in theirs: those of ``PYTHONPATH``.
    env : dict of str to str
        The environment variables that they do not have from this process.
    interpreter : Interpreter or None
        Their Python, if it has other bytecode.

    Raises
    ------
    PlanError
        If the interpreter cannot run workers.
    OSError
        If it cannot be executed.
    """

    def __init__(self, python: str | None, env: Mapping[str, str], threads: int) -> None:
        self._python = _this_python() if python is None else python
        if os.sep in self._python:  # Why: this process may change its directory.
            self._python = os.path.abspath(self._python)
        self.env = {**dict.fromkeys(THREAD_CAPS, str(threads)), **env, _SEED: _hash_seed(env)}
        folders = env.get("PYTHONPATH", "")
        self.behind = [os.path.abspath(one) for one in folders.split(os.pathsep) if folders]
        is_other = os.path.abspath(self._python) != os.path.abspath(sys.executable or "")
        self.own_path = python is not None and is_other
        self.interpreter = None
        if is_other:
            self.interpreter = _probe(self._python, {**os.environ, **self.env})

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
        limits.keep_standard_streams()  # Why: the worker inherits them.
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            near, far = Wire.pair()
            ours.callback(near.close)
            theirs.callback(far.close)
            # Invariant: this process keeps the read ends, under lower numbers. The worker's ends
            # are the same open files, which therefore ask for the signal even after the user's
            # function has closed them. At the exit of this process the kernel closes the files of
            # higher numbers first, and sends the signal while the lower ones are open.
            read, low = os.pipe()
            reads = [read]
            ours.callback(os.close, read)
            theirs.callback(os.close, low)
            with contextlib.suppress(FileNotFoundError):  # /proc is not mounted
                # Why: an open file has one owner, and the worker and its group are two.
                reads.append(os.open(f"/proc/self/fd/{read}", os.O_RDONLY | os.O_CLOEXEC))
                ours.callback(os.close, reads[-1])
            write = _duplicate_above(max(reads), low)
            ours.callback(os.close, write)
            path = [] if self.own_path else search_path(self.behind)
            near.send(b"\0".join([os.fsencode(_PACKAGE), *path]))
            process = self._execute(far.fileno(), number, reads, _arguments())
            ours.callback(process.wait)
            ours.callback(process.kill)
            pidfd = _pidfd(process.pid)
            ours.pop_all()
            return Launched(process, near, (*reads, write), pidfd)

    def _execute(
        self, sock: int, number: int, life: list[int], arguments: list[bytes]
    ) -> subprocess.Popen[bytes]:
        flags = [] if self.own_path else _interpreter_flags()
        numbers = ",".join(map(str, (sock, number, sys.getrecursionlimit(), *life)))

        def execute(group: int | None) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [self._python, *flags, "-P", "-c", BOOT, numbers, *arguments],
                stdin=subprocess.DEVNULL,
                env={**self._inherited(), **self.env, MARK: "1"},
                pass_fds=(sock, *life),
                process_group=group,
            )

        # Why a group of its own: Ctrl-C of the terminal is the parent's to handle.
        try:
            return system.attempt("setpgid", lambda: execute(0), lambda: execute(None))
        except OSError as error:
            if error.errno == errno.E2BIG and arguments:  # Why: this program has made them so.
                return self._execute(sock, number, life, [])
            if error.errno not in system.NO_PROCESSES:
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}: no worker can be started; use fewer workers, end other "
                "processes, or raise the limit on processes (ulimit -u, pids.max) or on memory",
            ) from None

    def _inherited(self) -> dict[str, str]:
        """Return this process' environment, without the variables that this Python ignores."""
        ignored = sys.flags.ignore_environment and not self.own_path
        kept = os.environ.items()
        return {name: one for name, one in kept if not (ignored and name.startswith("PYTHON"))}


def hand_on(part: str, fd: int) -> None:
    """Answer a worker that asks for a part of multiprocessing; `fd` is closed."""
    wire = Wire(_socket.socket(fileno=fd))
    # Why any exception: a worker without an answer has a key and a tracker of its own.
    with contextlib.closing(wire), contextlib.suppress(Exception):
        if part == "key":
            from multiprocessing.process import current_process

            wire.send(bytes(current_process().authkey))
        else:
            from multiprocessing import resource_tracker

            if (descriptor := resource_tracker.getfd()) is not None:
                wire.send(b"", [descriptor])


def _hash_seed(env: Mapping[str, str]) -> str:
    """Return the seed of the hashes of strings in workers, as a number."""
    given = env.get(_SEED, "")
    if given.isdecimal():
        return given
    if not sys.flags.hash_randomization:
        return "0"
    own = "" if sys.flags.ignore_environment else os.environ.get(_SEED, "")
    return own if own.isdecimal() else _DRAWN_SEED


def _this_python() -> str:
    """Return the interpreter that multiprocessing was told to use, else this one."""
    spawn = sys.modules.get("multiprocessing.spawn")
    chosen = (spawn.get_executable() if spawn is not None else None) or sys.executable
    if not chosen:
        raise PlanError(
            "no workers can be started, since this program does not know its interpreter "
            '(sys.executable is empty); pass python=, or engine="threads"'
        )
    return os.fsdecode(chosen)


def _probe(python: str, env: Mapping[str, str]) -> Interpreter | None:
    """Ask an interpreter for its versions; return None if it runs the bytecode of this one."""
    from importlib.util import MAGIC_NUMBER  # Why here: most workers have this interpreter.

    subject = f"the workers' interpreter, {python},"
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=env,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PlanError(f"{subject} gives no answer within {_PROBE_SECONDS:.0f} s") from None
    _, mark, answer = done.stdout.partition(b"\nshmpar:")
    if not mark:
        last = done.stderr.decode(errors="replace").rstrip().rpartition("\n")[2]
        end = Exit(done.returncode).describe() + (f": {last}" if last else "")
        raise PlanError(f"{subject} is no Python that starts: it {end}; see python= and env=")
    kind, version, *rest = answer.decode().split("\0")
    if kind != "cpython" or not rest:
        raise PlanError(f"{subject} is {kind} {version}; workers need CPython 3.11 or later")
    for one in rest:
        if one.startswith("!"):
            package, _, error = one[1:].partition(": ")
            raise PlanError(
                f"{subject} has no {package} that it can import ({error}); install it there with "
                f"{python} -m pip install numpy cloudpickle, or pass the folder that has it in "
                'env={"PYTHONPATH": folder}'
            )
    magic, numpy, _ = rest
    if tuple(map(int, numpy.split(".")[:2])) < (1, 26):
        raise PlanError(f"{subject} has NumPy {numpy}; workers need NumPy 1.26 or later")
    return None if magic == MAGIC_NUMBER.hex() else Interpreter(version)


def _interpreter_flags() -> list[str]:
    """Return the flags that this interpreter was started with, but those against variables."""
    # Why private: multiprocessing passes flags on by this function; there is no public one.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    options = sys._xoptions.items()  # noqa: SLF001 - documented; the function leaves out some
    flags += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in options]
    # Why: -E and -I would ignore the seed of hashes; a worker gets none of the other variables.
    return [{"-I": "-s"}.get(flag, flag) for flag in flags if flag != "-E"]


def _arguments() -> list[bytes]:
    """Return ``sys.argv``, which modules and functions may read.

    Why on the command line: it takes as many file names as that of this process.
    """
    found = []
    for one in getattr(sys, "argv", ()):  # Why getattr: an embedded Python may have none.
        with contextlib.suppress(TypeError, UnicodeEncodeError):  # Why: a program may change it.
            found.append(os.fsencode(one))
    return [one for one in found if b"\0" not in one]


def _pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when the process is gone; -1 without one."""
    return system.attempt("pidfd_open", lambda: os.pidfd_open(pid), lambda: -1)


def _duplicate_above(lower: int, fd: int) -> int:
    """Return a duplicate of a descriptor, with a number higher than `lower`."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lower + 1)
    except OSError as error:
        if error.errno == errno.EINVAL:  # Why: the kernel says so if the limit is lower.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        raise

"""Context of the user's function in a worker: nested calls, forked children, the parent's state.

Guarantees
----------
- Calls from inside a worker run serially there: workers that wait for workers could wait for each
  other. A worker process is inside for its whole life, from the start of its interpreter.
- A warning of a worker process reaches the parent, which issues it at the same file and line.
- A worker process has the parent's key and resource tracker of multiprocessing.
- A child that the user's function forks writes no output, marks no chunk, claims none and sends
  nothing. It inherits the memory, socket and counters of the worker, so it must not go on as a
  second worker. It exits when it leaves the function, as if the function were its program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType
from typing import Any, Protocol

import numpy as np

from shmpar.ipc.protocol import Environment, Warned
from shmpar.memory.layout import address_of, byte_bounds
from shmpar.pickling.unpack import unpack
from shmpar.tracebacks import is_raised_here, keep_frames
from shmpar.worker import logs

MARK = "SHMPAR_WORKER"
"""Set in the environment of a worker process while its interpreter starts."""

# Why removed: a program that the user's function starts is a process of its own.
_in_process = os.environ.pop(MARK, None) is not None  # True in a worker process


class _Thread(threading.local):
    """The functions of runs that a thread is in: their number, here and where it was forked."""

    depth = 0
    forked_at = -1


_thread = _Thread()


def in_worker() -> bool:
    """Return whether this is a worker process, or this thread runs the function of a run."""
    return _in_process or _thread.depth > 0


class Work(Protocol):
    """Work that a forked child of the user's function must not continue."""

    def abandon(self) -> None:
        """Make it fail before it writes, marks or sends anything."""


class inside_worker:  # noqa: N801 - as contextlib.suppress
    """Mark that this thread runs the function of a run, for the block.

    Why a class: a generator's context manager sets an attribute of the exception.

    Parameters
    ----------
    work : Work, optional
        A child that the function forks abandons it.
    """

    def __init__(self, work: Work | None = None) -> None:
        self._work = work

    def __enter__(self) -> None:
        _thread.depth += 1
        if self._work is not None:
            _works.append(self._work)

    def __exit__(self, *_: object) -> None:
        _thread.depth -= 1
        if self._work is not None:
            _works.remove(self._work)


_works: list[Work] = []  # in progress, in any thread
_forked = False  # True in a child that the user's function has forked


def _before_fork() -> None:
    if in_worker():
        flush_streams()  # Why: else the child would write the text that waits a second time.


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 - a process has one
    if in_worker():
        _forked = True
        keep_frames()
        # Why: the child may call verbs itself, deeper in the function and in other threads.
        _thread.forked_at = _thread.depth
        for work in _works:
            work.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def revoke(array: np.ndarray[Any, Any]) -> None:
    """Make an array read-only in this process, and its pages if other processes map them."""
    array.flags.writeable = False
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    if isinstance(owner, mmap.mmap) and array.size:
        import ctypes  # Why here: only a forked child needs it; numpy has imported it.

        low, high = byte_bounds(array.shape, array.strides, array.itemsize)
        start = address_of(array) + low
        start, stop = start - start % mmap.PAGESIZE, start - low + high
        protect = ctypes.CDLL(None).mprotect
        protect(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.PROT_READ)


def exit_if_forked(error: BaseException | None = None) -> None:
    """Exit if this process was forked by the function that returned; else do nothing.

    Parameters
    ----------
    error : BaseException, optional
        The exception of the function.
    """
    if not _forked or _thread.depth > _thread.forked_at:
        return
    status = 0
    match error:
        case SystemExit(code=int() | None as code):
            status = code or 0
        case SystemExit(code=text):
            status = 1
            with contextlib.suppress(Exception):  # Why: the stream may be closed.
                sys.stderr.write(f"{text}\n")
        # Why not errors of this package: the child has abandoned the work that raises them.
        case BaseException() if not is_raised_here(error):
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
    flush_streams()
    os._exit(status & 0xFF)


def flush_streams() -> None:
    """Flush standard output and standard error, as far as they can be."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


_path: list[str] = []  # the path that was applied last
_own_folders: list[str] = []  # those that the initializer has added to it
_packed: list[bytes] = []  # the warning filters that were applied last, and their pickles
_filters: list[Any] = []
_error_call: list[Any] = [None]  # the callback of np.seterrcall() that was applied last


def keep_folders(before: Sequence[str]) -> None:
    """Keep the folders that `sys.path` has beside these, behind those of the parent."""
    new = [one for one in sys.path if type(one) is str and one not in before]
    _own_folders[:] = map(os.path.abspath, new)  # Why: calls have another working directory


def apply_environment(environment: Environment) -> None:
    """Apply the parent's state; leave out the warning filters that do not load here."""
    with contextlib.suppress(OSError):  # Why: a directory that is gone is no reason to fail
        if environment.directory is not None:
            os.chdir(environment.directory)
    if environment.path is not None:
        _path[:] = sys.path[:] = [*map(os.fsdecode, environment.path), *_own_folders]
    np.seterr(**environment.errors)
    call = None if environment.error_call is None else unpack(environment.error_call)[0]
    np.seterrcall(call)
    _error_call[:] = [call]
    for name, value in environment.variables.items():
        if value is None:
            os.environb.pop(name, None)
        elif os.environb.get(name) != value:
            os.environb[name] = value
    logs.apply_levels(environment.log_levels)
    if environment.filters != _packed:
        _packed[:], _filters[:] = environment.filters, _loaded(environment.filters)
    # Why: resetwarnings also forgets which warnings were shown, as new filters require.
    warnings.resetwarnings()
    warnings.filters.extend(_filters)  # type: ignore[attr-defined]


def _loaded(pickles: list[bytes]) -> Iterator[Any]:
    for one in pickles:
        # Why: a category that is missing here is that of no warning that is raised here.
        with contextlib.suppress(Exception):
            yield unpack(one)[0]


def has_changed(environment: Environment) -> bool:
    """Return whether a function has changed the applied environment in this process."""
    if environment.path is not None and sys.path != _path:
        return True
    if warnings.filters != _filters:
        return True
    try:
        moved = environment.directory is not None and os.getcwdb() != environment.directory
    except OSError:  # Why: the directory was removed, so it may be one that a function changed to
        return True
    if np.geterrcall() is not _error_call[0]:
        return True
    return moved or np.geterr() != environment.errors


MOST_WARNINGS = 100
"""Different warnings of a call that a worker sends, and that its caller sees."""


class WarningReporter:
    """Sends the warnings of a worker process to the parent; each one once for a run or call.

    Parameters
    ----------
    send : callable
        Sends a message; any thread may call it.
    """

    def __init__(self, send: Callable[[Warned], object]) -> None:
        self._send = send
        self._shown: set[tuple[Any, ...]] = set()
        self._for: tuple[int | None, int | None] | None = None
        self._otherwise = warnings.showwarning
        warnings.showwarning = self._show

    def begin(self, run: int | None = None, call: int | None = None) -> None:
        """Send warnings from now on, as those of a run, of a call, or of the initializer."""
        if self._shown:
            self._shown.clear()
            # Why: it makes the registries of all modules forget the warnings that were shown.
            with warnings.catch_warnings():
                pass
        self._for = run, call

    def end(self) -> None:
        """Send no warnings from now on."""
        self._for = None

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Take the place of :func:`warnings.showwarning`."""
        addressee = self._for
        if addressee is None or _forked or file is not None:
            self._otherwise(message, category, filename, lineno, file, line)
            return
        text = str(message)
        key = category, text, filename, lineno
        if key in self._shown or len(self._shown) >= MOST_WARNINGS:
            return
        self._shown.add(key)
        builtin = next(one.__name__ for one in category.__mro__ if one.__module__ == "builtins")
        body, module = _pickled(message), _module_of(filename, lineno)
        self._send(Warned(*addressee, body, builtin, text, filename, lineno, module))


def _pickled(message: Warning | str) -> bytes | None:
    from shmpar.pickling.exceptions import pack_error  # Why here: most workers meet no warning.

    try:
        return pack_error(message)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - whatever pickling raises, the text has to do
        return None


def _module_of(filename: str, lineno: int) -> str | None:
    """Return the name of the module whose function has this line and is being called."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the documented way to frames
    while frame is not None:
        if frame.f_lineno == lineno and frame.f_code.co_filename == filename:
            return frame.f_globals.get("__name__")
        frame = frame.f_back
    return None


class SharesMultiprocessing:
    """Gives multiprocessing a name for this process, and the parent's key and resource tracker.

    It is a finder of :data:`sys.meta_path`, so that nothing is done before a function imports
    multiprocessing, which would delay the start of each worker. A tracker of the worker's own would
    remove the segments of other processes when the worker exits.

    Parameters
    ----------
    ask : callable
        Takes ``"key"`` or ``"tracker"``; returns the parent's key or descriptor, None without one.
    number : int
        Number of the worker.
    life : int
        Descriptor that becomes readable at the end of the parent.
    """

    def __init__(self, ask: Callable[[str], Any], number: int, life: int) -> None:
        self._ask, self._number, self._life = ask, number, life
        self._after: dict[str, Callable[[Any], object]] = {
            "multiprocessing.process": self._prepare_process,
            "multiprocessing.resource_tracker": self._share_tracker,
            "logging": self._prepare_logging,
        }
        for name in self._after.keys() & sys.modules.keys():
            self._after[name](sys.modules[name])
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find one of these modules; return None for others."""
        then = self._after.get(name)
        spec = None if then is None or _forked else PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and then is not None:
            spec.loader = _Loader(spec.loader, then)  # type: ignore[assignment]
        return spec

    def _prepare_process(self, module: Any) -> None:
        own = module.current_process()
        if (key := self._ask("key")) is not None:
            own.authkey = key
        own.name = f"ShmparWorker-{self._number}"
        # Why private: there is no public way, and a child of this process is named after it.
        own._identity = (self._number + 1,)  # noqa: SLF001
        parent = module._ParentProcess("MainProcess", os.getppid(), self._life)  # noqa: SLF001
        module._parent_process = parent  # noqa: SLF001

    def _share_tracker(self, module: Any) -> None:
        """Have the tracker ask for the parent's descriptor when it needs one.

        Why then: many packages import multiprocessing, and few functions need the parent's tracker,
        which is a process.
        """
        ask, tracker = self._ask, module._resource_tracker  # noqa: SLF001

        class Shared(type(tracker)):  # type: ignore[misc]  # a class that is found at run time
            # Why private: multiprocessing sets this attribute in the processes that it spawns.
            _fd = functools.cached_property(lambda _: ask("tracker"))

        held = vars(tracker)
        del held["_fd"]
        tracker.__class__ = Shared
        # Why: a forked child must not ask, so it takes the descriptor of this process.
        os.register_at_fork(before=lambda: tracker._fd)  # noqa: SLF001
        # Why: the finalizer of a tracker looks for a descriptor to close.
        atexit.register(held.setdefault, "_fd", None)

    def _prepare_logging(self, logging: Any) -> None:
        """Import multiprocessing at the first record: only then logging asks it for the name."""

        def first(*args: Any, **kwargs: Any) -> Any:
            importlib.import_module("multiprocessing.process")
            if logging.getLogRecordFactory() is first:
                logging.setLogRecordFactory(logging.LogRecord)
            return logging.LogRecord(*args, **kwargs)

        logging.setLogRecordFactory(first)
        logs.prepare(logging)


class _Loader:
    """A loader that calls a function with each module that it has executed."""

    def __init__(self, loader: Any, after: Callable[[Any], object]) -> None:
        self._loader, self._after = loader, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        self._after(module)

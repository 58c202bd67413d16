"""Context of the user's function in a worker: nested calls, forked children, the parent's state.

Guarantees
----------
- Calls from inside a worker run serially there: workers that wait for workers could wait for each
  other.
- A warning of a worker process reaches the parent, which issues it at the same file and line.
- A worker process has the parent's key and resource tracker of multiprocessing.
- A child that the user's function forks marks no chunk, claims none and sends nothing. It inherits
  the worker's socket, counters and slot of the ledger, so it must not go on as a second worker. It
  exits when it leaves the function, as if the function were its program.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType
from typing import Any

import numpy as np

from shmpar.ipc.protocol import Environment, Warned
from shmpar.pickling.unpack import unpack

_thread = threading.local()  # Its `depth` counts the functions of runs that the thread is in.


def in_worker() -> bool:
    """Return whether this thread runs the function of a run."""
    return getattr(_thread, "depth", 0) > 0


class _Inside:
    """Why a class: a generator's context manager sets an attribute of the exception."""

    def __enter__(self) -> None:
        _thread.depth = getattr(_thread, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _thread.depth -= 1


def inside_worker() -> _Inside:
    """Mark that this thread runs the function of a run, for the block."""
    return _Inside()


_slot: memoryview | None = None  # the worker's slot of the ledger
_forked = False  # True in a child that the user's function has forked


def guard_forks(slot: memoryview) -> None:
    """Prepare a worker process for functions that fork, before it calls one with this slot."""
    global _slot  # noqa: PLW0603 - a process has one
    if _slot is None:
        os.register_at_fork(after_in_child=_after_fork)
    _slot = slot


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 - a process has one
    _forked = True
    if _slot is not None:
        _slot.release()  # Why: a child that goes on computing must fail before it marks a chunk


def exit_if_forked(error: BaseException | None = None) -> None:
    """Exit if this process was forked by the user's function; do nothing in a worker.

    Parameters
    ----------
    error : BaseException, optional
        The exception of the function.
    """
    if not _forked:
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    # Why: a child that returned from the function fails at the released slot, not by its own fault.
    elif error is not None and "released memoryview" not in str(error):
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status & 0xFF)


_path: list[str] = []  # the path that was applied last
_packed: list[bytes] = []  # the warning filters that were applied last, and their pickles
_filters: list[Any] = []
_error_call: list[Any] = [None]  # the callback of np.seterrcall() that was applied last


def apply_environment(environment: Environment) -> None:
    """Apply the parent's state; leave out the warning filters that do not load here."""
    with contextlib.suppress(OSError):  # Why: a directory that is gone is no reason to fail
        if environment.directory is not None:
            os.chdir(environment.directory)
    if environment.path is not None:
        _path[:] = sys.path[:] = [os.fsdecode(one) for one in environment.path]
    np.seterr(**environment.errors)
    call = None if environment.error_call is None else unpack(environment.error_call)[0]
    np.seterrcall(call)
    _error_call[:] = [call]
    for name, value in environment.variables.items():
        if value is None:
            os.environb.pop(name, None)
        elif os.environb.get(name) != value:
            os.environb[name] = value
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
    from shmpar.pickling.pack import pack_error  # Why here: most workers meet no warning.

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
    """Gives multiprocessing the parent's authentication key and resource tracker.

    It is a finder of :data:`sys.meta_path`, so that nothing is done before a function imports
    multiprocessing. A tracker of the worker's own would remove the segments of other processes
    when the worker exits.

    Parameters
    ----------
    ask : callable
        Takes ``"key"`` or ``"tracker"``; returns the parent's key or descriptor, None without one.
    """

    def __init__(self, ask: Callable[[str], Any]) -> None:
        self._ask = ask

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find the modules that hold the two."""
        take = {_KEY: self._take_key, _TRACKER: self._take_tracker}.get(name)
        spec = None if take is None or _forked else PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and take is not None:
            spec.loader = _Loader(spec.loader, take)  # type: ignore[assignment]
        return spec

    def _take_key(self, module: Any) -> None:
        key = self._ask("key")
        if key is not None:
            module.current_process().authkey = key

    def _take_tracker(self, module: Any) -> None:
        # Why private: multiprocessing sets the same attribute in the processes that it spawns.
        module._resource_tracker._fd = self._ask("tracker")  # noqa: SLF001


_KEY, _TRACKER = "multiprocessing.process", "multiprocessing.resource_tracker"


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

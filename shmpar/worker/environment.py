"""Context of the user's function in a worker: nested calls, forked children, the parent's state.

Guarantees
----------
- Calls from inside a worker run serially there: workers that wait for workers could wait for each
  other. A worker process is inside for its whole life, from the start of its interpreter.
- A child that the user's function forks writes no output, marks no chunk, claims none and sends
  nothing. It inherits the memory, socket and counters of the worker, so it must not go on as a
  second worker. It exits when it leaves the function, as if the function were its program.
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any, Protocol

import numpy as np

from shmpar.ipc.protocol import Environment
from shmpar.memory.segment import address_of, byte_bounds
from shmpar.pickling.unpack import unpack

MARK = "SHMPAR_WORKER"
"""Set in the environment of a worker process while its interpreter starts."""

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")

# Why removed: a program that the user's function starts is a process of its own.
_in_process = os.environ.pop(MARK, None) is not None  # True in a worker process
_thread = threading.local()  # Its `depth` counts the functions of runs that the thread is in.


def in_worker() -> bool:
    """Return whether this is a worker process, or this thread runs the function of a run."""
    return _in_process or getattr(_thread, "depth", 0) > 0


class Work(Protocol):
    """Work that a forked child of the user's function must not continue."""

    def abandon(self) -> None:
        """Make it fail before it writes, marks or sends anything."""


@contextlib.contextmanager
def inside_worker(work: Work | None = None) -> Iterator[None]:
    """Mark that this thread runs the function of a run, for the block.

    Parameters
    ----------
    work : Work, optional
        A child that the function forks abandons it.
    """
    before = getattr(_thread, "depth", 0)
    _thread.depth = before + 1
    if work is not None:
        _works.append(work)
    try:
        yield
    finally:
        _thread.depth = before
        if work is not None:
            _works.remove(work)


_works: list[Work] = []  # in progress, in any thread
_forked = False  # True in a child that the user's function has forked


def _before_fork() -> None:
    if in_worker():
        flush_streams()  # Why: else the child would write the text that waits a second time.


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 - a process has one
    if in_worker():
        _forked = True
        # Why: the child may call verbs itself, deeper in the function and in other threads.
        _thread.forked_at = getattr(_thread, "depth", 0)
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
    if not _forked or getattr(_thread, "depth", 0) > getattr(_thread, "forked_at", -1):
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None and not _is_ours(error):
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    flush_streams()
    os._exit(status & 0xFF)


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised the error, at work that the child has abandoned."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def flush_streams() -> None:
    """Flush standard output and standard error, as far as they can be."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


class ProcessNamer:
    """Names this process in :mod:`multiprocessing`, once the user's code imports that module.

    Why not import it here: that would delay the start of each worker.

    Parameters
    ----------
    number : int
        Number of the worker.
    life : int
        Descriptor that becomes readable at the end of the parent.
    """

    def __init__(self, number: int, life: int) -> None:
        self._number, self._life = number, life
        self._after = {"multiprocessing.process": self._set_name, "logging": self._prepare_logging}
        for name in self._after.keys() & sys.modules.keys():
            self._after.pop(name)(sys.modules[name])
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find one of these modules; return None for others."""
        then = self._after.pop(name, None)
        spec = None if then is None else importlib.util.find_spec(name)
        if then is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and(module: Any) -> None:
            load(module)
            then(module)

        spec.loader.exec_module = load_and  # type: ignore[method-assign]
        return spec

    def _prepare_logging(self, logging: Any) -> None:
        """Import multiprocessing at the first record: only then logging asks it for the name."""

        def first(*args: Any, **kwargs: Any) -> Any:
            importlib.import_module("multiprocessing.process")
            if logging.getLogRecordFactory() is first:
                logging.setLogRecordFactory(logging.LogRecord)
            return logging.LogRecord(*args, **kwargs)

        logging.setLogRecordFactory(first)

    def _set_name(self, module: Any) -> None:
        own = module.current_process()
        own.name = f"ShmparWorker-{self._number}"
        # Why private: there is no public way, and a child of this process is named after it.
        own._identity = (self._number + 1,)  # noqa: SLF001
        parent = module._ParentProcess("MainProcess", os.getppid(), self._life)  # noqa: SLF001
        module._parent_process = parent  # noqa: SLF001


_filters: list[Any] = []  # the warning filters that were applied last


def apply_environment(environment: Environment) -> None:
    """Apply the parent's working directory, sys.path, NumPy error state and warning filters."""
    with contextlib.suppress(OSError):  # Why: a directory that is gone is no reason to fail
        if environment.directory is not None:
            os.chdir(environment.directory)
    if environment.path is not None:
        sys.path[:] = environment.path
    np.seterr(**environment.errors)
    if environment.filters is not None:
        _filters[:] = unpack(environment.filters)[0]
        # Why: resetwarnings also forgets which warnings were shown, as new filters require.
        warnings.resetwarnings()
        warnings.filters.extend(_filters)  # type: ignore[attr-defined]


def has_changed(environment: Environment) -> bool:
    """Return whether a function has changed the applied environment in this process."""
    if environment.path is not None and sys.path != environment.path:
        return True
    if environment.filters is not None and warnings.filters != _filters:
        return True
    try:
        moved = environment.directory is not None and os.getcwd() != environment.directory
    except OSError:  # Why: the directory was removed, so it may be one that a function changed to
        return True
    return moved or np.geterr() != environment.errors

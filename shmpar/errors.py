"""Every error that shmpar raises on purpose.

Imports nothing of the package.  The tree, with the builtin that each one also is::

    ShmparError (Exception)
    ├── ChunkError                      the user's function failed on one chunk
    ├── WorkerDied                      a worker process ended in the middle of a chunk
    ├── TaskTimeout (TimeoutError)      a chunk took longer than ``task_timeout``
    ├── PlanError                       the function, or what it holds, cannot travel to a worker
    └── SegmentError                    shared memory
        ├── SegmentGone (FileNotFoundError)   it was closed or removed
        └── SegmentFull (MemoryError)         there is not enough of it

Guarantees
----------
Each message says what happened, where (chunk number, slices, worker), and what to do.
Each error pickles, with its attributes, and without the run that it belongs to.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ChunkError",
    "PlanError",
    "SegmentError",
    "SegmentFull",
    "SegmentGone",
    "ShmparError",
    "TaskTimeout",
    "WorkerDied",
]

Region = tuple[slice, ...]


class ShmparError(Exception):
    """Base of every error of this library."""


def _rebuild(cls: type[_AtChunk], message: str, state: dict[str, Any]) -> _AtChunk:
    error = cls(message)
    error.__dict__.update(state)
    return error


class _AtChunk(ShmparError):
    """An error that belongs to one chunk of a run.

    Attributes
    ----------
    chunk : int or None
        The chunk's number in C order; None where the failure belongs to no chunk.
    region : tuple of slice or None
        The chunk's window in array coordinates.
    run : Run or None
        The run it ended or was collected by; dropped by pickling.
    """

    def __init__(
        self,
        message: str,
        *,
        chunk: int | None = None,
        region: Region | None = None,
        run: Any = None,
    ) -> None:
        super().__init__(message)
        self.chunk = chunk
        self.region = region
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the run, which holds processes and memory of this one."""
        return _rebuild, (type(self), str(self.args[0]), {**self.__dict__, "run": None})


class ChunkError(_AtChunk):
    """The user's function raised, or returned what does not fit, on one chunk.

    The exception of the function is ``__cause__``, with the worker's traceback as a note.

    Attributes
    ----------
    shape : tuple of int or None
        Shape of the block that the function got.
    """

    def __init__(
        self,
        message: str,
        *,
        chunk: int | None = None,
        region: Region | None = None,
        shape: tuple[int, ...] | None = None,
        run: Any = None,
    ) -> None:
        super().__init__(message, chunk=chunk, region=region, run=run)
        self.shape = shape


class WorkerDied(_AtChunk):
    """A worker process ended while it computed a chunk, more often than ``retries`` allows.

    Attributes
    ----------
    exitcode : int or None
        As in :class:`subprocess.Popen`: the exit status, or minus the signal's number.
    """

    def __init__(
        self,
        message: str,
        *,
        chunk: int | None = None,
        region: Region | None = None,
        exitcode: int | None = None,
        run: Any = None,
    ) -> None:
        super().__init__(message, chunk=chunk, region=region, run=run)
        self.exitcode = exitcode


class TaskTimeout(_AtChunk, TimeoutError):
    """A chunk took longer than ``task_timeout`` seconds; its worker was replaced."""


class PlanError(ShmparError):
    """The function, or something that it holds, cannot be sent to a worker."""


class SegmentError(ShmparError):
    """Shared memory could not be used as asked."""


class SegmentGone(SegmentError, FileNotFoundError):
    """The segment was closed, or removed by its owner."""


class SegmentFull(SegmentError, MemoryError):
    """There is not enough shared memory; nothing was allocated."""

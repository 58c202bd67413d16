"""Build the errors and warnings of a run; each message gives place, reason and advice."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from shmpar.engines.engine import Exit
from shmpar.errors import ChunkError, ShmparError, TaskTimeout, WorkerDied
from shmpar.ipc.protocol import ChunkFailed
from shmpar.plan import Function, Plan, ResultError, describe_region

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def chunk_error(plan: Plan, failure: ChunkFailed, run: Any) -> ChunkError:
    """Return the error for a chunk whose function raised, or whose result does not fit."""
    block = "" if failure.shape is None else f", block of shape {failure.shape}"
    error = ChunkError(
        f"{_location(plan, failure.chunk)}{block}: {_reason(failure.error)}",
        chunk=failure.chunk,
        region=plan.region(failure.chunk),
        shape=failure.shape,
        run=run,
    )
    error.__cause__ = failure.error
    return error


def task_timeout(plan: Plan, chunk: int, seconds: float | None, run: Any) -> TaskTimeout:
    """Return the error for a chunk that took longer than ``task_timeout=``."""
    return TaskTimeout(
        f"{_location(plan, chunk)}: took longer than task_timeout={seconds} s; its worker was "
        "killed and replaced",
        chunk=chunk,
        region=plan.region(chunk),
        run=run,
    )


def worker_died(plan: Plan, chunk: int, end: Exit, run: Any, *, in_place: bool) -> WorkerDied:
    """Return the error for a chunk whose worker died."""
    in_part = "; the chunk was computed in place and may be overwritten in part" if in_place else ""
    return WorkerDied(
        f"{_location(plan, chunk)}: the worker {end.describe()}{in_part}",
        chunk=chunk,
        region=plan.region(chunk),
        exitcode=end.code,
        run=run,
    )


def call_died(name: str, end: Exit) -> WorkerDied:
    """Return the error for a submitted call whose worker died."""
    return WorkerDied(f"submit, {name}: the worker {end.describe()}", exitcode=end.code)


def startup_failure(plan: Plan, end: Exit, run: Any) -> WorkerDied:
    """Return the error for a run whose workers exit before they take a chunk."""
    return WorkerDied(
        f"{plan.verb}: workers exit before they take a chunk; the last worker {end.describe()}: "
        "see its standard error, and try the function with engine='serial'",
        exitcode=end.code,
        run=run,
    )


def warn_filled(errors: Sequence[ShmparError]) -> None:
    """Warn once, at the line where the user called the verb, of chunks that were filled."""
    count = "1 chunk" if len(errors) == 1 else f"{len(errors)} chunks"
    were = "was" if len(errors) == 1 else "were"
    warnings.warn(
        f"{count} failed and {were} filled; the first error: {errors[0]}",
        RuntimeWarning,
        stacklevel=levels_to_user(),
    )


def levels_to_user() -> int:
    """Return the ``stacklevel`` with which the caller's warning names the user's line.

    Count the frames from the caller of this function up to the first frame outside of this
    package. In a thread without such a frame, the outermost frame counts as the user's.
    """
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - the documented way to count frames
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def function_name(function: Function) -> str:
    """Return the name of a submitted function for messages."""
    name = getattr(function.call, "__qualname__", None)
    return type(function.call).__qualname__ if name is None else str(name)


def _location(plan: Plan, chunk: int) -> str:
    return f"{plan.verb}, chunk {chunk} at {describe_region(plan.region(chunk))}"


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as failure:  # noqa: BLE001 - Why: __str__ is the user's code
        text = f"(its message raised {type(failure).__name__})"
    if isinstance(error, ResultError):
        return text
    if isinstance(error, ValueError) and "read-only" in text:
        text += (
            ". Blocks are read-only views of the shared input: write to a copy (block.copy()), "
            "or return the new values"
        )
    # Why: the stand-in for an exception that does not pickle has the type in its message.
    name = "" if type(error) is ShmparError else f"{type(error).__name__}: "
    return f"the function raised {name}{text}"

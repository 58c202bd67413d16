"""What went wrong in a run, made into the errors that users see.

Imports errors, engines.exits and plan.  Each message says what happened, where, and what to do.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from shmpar.engines.engine import Exit
from shmpar.errors import ChunkError, ShmparError, TaskTimeout, WorkerDied
from shmpar.plan import Failure, Function, Plan, ResultError, describe_region

__all__ = [
    "call_died",
    "chunk_error",
    "function_name",
    "levels_to_user",
    "startup_failure",
    "task_timeout",
    "warn_filled",
    "worker_died",
]

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def chunk_error(plan: Plan, failure: Failure, run: Any) -> ChunkError:
    """The error of a chunk on which the function raised, or whose result does not fit."""
    block = "" if failure.shape is None else f", block of shape {failure.shape}"
    error = ChunkError(
        f"{_where(plan, failure.chunk)}{block}: {_what(failure.error)}{_hint(failure.error)}",
        chunk=failure.chunk,
        region=plan.region(failure.chunk),
        shape=failure.shape,
        run=run,
    )
    error.__cause__ = failure.error
    return error


def task_timeout(plan: Plan, chunk: int, seconds: float | None, run: Any) -> TaskTimeout:
    """The error of a chunk that took longer than it may."""
    return TaskTimeout(
        f"{_where(plan, chunk)}: took longer than task_timeout={seconds} s; its worker was ended "
        "and replaced",
        chunk=chunk,
        region=plan.region(chunk),
        run=run,
    )


def worker_died(plan: Plan, chunk: int, end: Exit, run: Any, *, in_place: bool) -> WorkerDied:
    """The error of a chunk whose worker died."""
    begun = (
        "; the chunk was being computed in place, so part of it may hold new values"
        if in_place
        else ""
    )
    return WorkerDied(
        f"{_where(plan, chunk)}: the worker {end.describe()}{begun}",
        chunk=chunk,
        region=plan.region(chunk),
        exitcode=end.code,
        run=run,
    )


def function_name(call: Function) -> str:
    """What messages call a task's function."""
    name = getattr(call.call, "__qualname__", None)
    return type(call.call).__qualname__ if name is None else str(name)


def call_died(name: str, end: Exit) -> WorkerDied:
    """The error of a task whose worker died."""
    return WorkerDied(f"submit, {name}: the worker {end.describe()}", exitcode=end.code)


def startup_failure(plan: Plan, end: Exit, run: Any) -> WorkerDied:
    """The error of a run whose workers die before they take a chunk."""
    return WorkerDied(
        f"{plan.verb}: workers end before they take a chunk; the last one "
        f"{end.describe()}: see its standard error, and try the function with "
        "engine='serial'",
        exitcode=end.code,
        run=run,
    )


def warn_filled(errors: Sequence[ShmparError]) -> None:
    """Warn once, where the user called the verb, of the chunks that were filled."""
    warnings.warn(
        f"{_count(errors)} failed and were filled; the first error: {errors[0]}",
        RuntimeWarning,
        stacklevel=levels_to_user(),
    )


def _count(errors: Sequence[ShmparError]) -> str:
    return "1 chunk" if len(errors) == 1 else f"{len(errors)} chunks"


def _where(plan: Plan, chunk: int) -> str:
    return f"{plan.verb}, chunk {chunk} at {describe_region(plan.region(chunk))}"


def _what(error: BaseException) -> str:
    text = _text(error)
    if isinstance(error, ResultError):
        return text
    # The stand-in for an exception that does not pickle has its type in its message.
    named = text if type(error) is ShmparError else f"{type(error).__name__}: {text}"
    return f"the function raised {named}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as again:  # noqa: BLE001 - the user's code, and the run must end
        return f"(its text cannot be had: {type(again).__name__})"


def _hint(error: BaseException) -> str:
    if isinstance(error, ValueError) and "read-only" in _text(error):
        return (
            ". Blocks are read-only views of the shared input: write to a copy (block.copy()), "
            "or return the new values"
        )
    return ""


def levels_to_user() -> int:
    """Frames between the caller of this function and the code that called the library."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - the documented way to count frames
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level

"""Build the errors and warnings of a run; each message gives place, reason and advice."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shmpar import tracebacks
from shmpar.engines.engine import Exit
from shmpar.errors import (
    MOST_OF_EXCEPTION,
    ChunkError,
    FailedChunks,
    ShmparError,
    StoreError,
    TaskTimeout,
    WorkerDied,
    format_count,
    shortened,
)
from shmpar.ipc.protocol import ChunkFailed
from shmpar.plan import CAST_RESULTS, Along, Blocks, Plan, ResultError, Rows, describe_region
from shmpar.runtime.items import RunItems

Error = TypeVar("Error")
_READ_ONLY = "(?i)read.?only|read-write|writ(e|)able"
_BY_NAME = "IndexError: only integers, slices|'numpy.ndarray' object has no attribute"


def chunk_error(
    plan: Plan, failure: ChunkFailed, run: Any, items: RunItems | None = None
) -> ChunkError:
    """Return the error for a chunk whose function raised, or whose result does not fit."""
    given = failure.shape is None or items is not None
    block = "" if given else f", block of shape {failure.shape}"
    text = f"{block}: {_reason(failure.error)}"
    if isinstance(plan.placement, Along):  # Why: all keywords of this verb are the function's.
        text = text.replace(CAST_RESULTS, "return values of one dtype for all lines")
    # Why: the words of a message alone may speak of another array.
    if any(isinstance(one, Blocks | Rows) for one in plan.arguments):
        if re.search(_READ_ONLY, text):
            text += (
                ". Blocks are read-only views of the shared input: pass or write to a copy "
                "(block.copy()), or return the new values"
            )
        elif re.search(_BY_NAME, text):
            text += (
                ". Blocks and rows are NumPy arrays, without the names of a DataFrame: take a "
                "column by its number, as in row[0], or for names write "
                'parallel_map(f, frame.to_dict("records"))'
            )
    error = _about_chunk(ChunkError, plan, failure.chunk, text, run, items, shape=failure.shape)
    tracebacks.shorten(failure.error, delivered=True)
    # Why: the message has all of an internal error, and the caller's function did not raise it.
    internal = issubclass(type(failure.error), ResultError)
    error.__cause__ = failure.error.__cause__ if internal else failure.error
    return error


def task_timeout(
    plan: Plan, chunk: int, seconds: float | None, run: Any, items: RunItems | None = None
) -> TaskTimeout:
    """Return the error for a chunk that took longer than ``task_timeout=``."""
    text = f": took longer than task_timeout={seconds:g} s; its worker was killed and replaced"
    return _about_chunk(TaskTimeout, plan, chunk, text, run, items)


def worker_died(
    plan: Plan, chunk: int, end: Exit, run: Any, items: RunItems | None = None, *, in_place: bool
) -> WorkerDied:
    """Return the error for a chunk whose worker died."""
    in_part = "; the chunk was computed in place and may be overwritten in part" if in_place else ""
    text = f": the worker {end.describe()}{in_part}{end.frames()}"
    return _about_chunk(WorkerDied, plan, chunk, text, run, items, exitcode=end.code)


def _about_chunk(
    kind: Callable[..., Error],
    plan: Plan,
    chunk: int,
    text: str,
    run: Any,
    items: RunItems | None,
    **more: Any,
) -> Error:
    region = plan.region(chunk)
    if items is None:
        place = f"chunk {chunk} at {describe_region(region)}"
    else:
        place, more["item"] = items.describe(chunk), items[chunk]
    return kind(f"{plan.verb}, {place}{text}", chunk=chunk, region=region, run=run, **more)


def call_died(name: str, end: Exit) -> WorkerDied:
    """Return the error for a submitted call whose worker died."""
    text = f"submit, {name}: the worker {end.describe()}{end.frames()}"
    return WorkerDied(text, exitcode=end.code)


def startup_failure(plan: Plan, end: Exit, run: Any) -> WorkerDied:
    """Return the error for a run whose workers exit before they take a chunk."""
    return WorkerDied(
        f"{plan.verb}: workers exit before they take a chunk; the last worker {end.describe()}: "
        f"see its standard error, and try the function with engine='serial'{end.frames()}",
        exitcode=end.code,
        run=run,
    )


def collected(
    plan: Plan, errors: Sequence[ShmparError], run: Any, items: RunItems | None
) -> FailedChunks:
    """Return the group of the errors that a run has collected."""
    count = format_count(len(errors), "chunk" if items is None else "item")
    group = FailedChunks(f"{count} of {plan.verb} failed", errors)
    group.run = run
    if items is not None:
        group.hint = ", and error.run.table() has a record of each item"
    tracebacks.show_in_ipython(FailedChunks)
    return group


def unexplained(plan: Plan, unfinished: Sequence[int]) -> ShmparError:
    """Return the error for chunks that are not done although no chunk has failed."""
    done, region = plan.chunks - len(unfinished), plan.region(unfinished[0])
    return ShmparError(
        f"{plan.verb}: {done:,} of {plan.chunks:,} chunks were computed, not the one at "
        f"{describe_region(region)}, and no error tells why. This is a defect of shmpar: report it "
        "with the output of python -m shmpar doctor; run.resume() computes the others"
    )


def warn_filled(errors: Sequence[ShmparError], noun: str = "chunk") -> None:
    """Warn once, at the line where the user called the verb, of chunks that were filled."""
    count = len(errors)
    were = "was" if count == 1 else "were"
    text = f"{format_count(count, noun)} failed and {were} filled; the first error: {errors[0]}"
    warnings.warn(text, RuntimeWarning, stacklevel=levels_to_user())


def levels_to_user() -> int:
    """Return the ``stacklevel`` with which the caller's warning names the user's line.

    Count the frames from the caller of this function up to the first frame outside of this
    package. In a thread without such a frame, the outermost frame counts as the user's.
    """
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - the documented way to count frames
    while frame.f_back is not None and frame.f_code.co_filename.startswith(tracebacks.PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a submitted function for messages."""
    name = getattr(function, "__qualname__", None)
    return type(function).__qualname__ if name is None else str(name)


def _reason(error: BaseException) -> str:
    try:
        text = shortened(str(error), MOST_OF_EXCEPTION)
    except BaseException as failure:  # noqa: BLE001 - Why: __str__ is the user's code
        text = f"(its message raised {type(failure).__name__})"
    kind = type(error)  # Why not isinstance: the class may raise for any attribute.
    if issubclass(kind, ResultError | StoreError):
        return text
    # Why: the stand-in for an exception that does not pickle has the type in its message.
    name = "" if kind is ShmparError else f"{kind.__name__}: "
    return f"the function raised {name}{text}"

"""Build the errors and warnings of a run; each message gives place, reason and advice."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
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
    summarize,
)
from shmpar.ipc.protocol import ChunkFailed
from shmpar.plan import CAST_RESULTS, Along, Blocks, Plan, ResultError, Rows, describe_region
from shmpar.runtime.items import RunItems
from shmpar.worker.items import BATCHES

Error = TypeVar("Error")
_READ_ONLY = "(?i)read.?only(?! (database|file|mode|store))|read-write|writ(e|)able"
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
        in_memory = not issubclass(type(failure.error), OSError)
        if in_memory and re.search(_READ_ONLY, text):
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
    plan: Plan,
    chunk: int,
    seconds: float | None,
    run: Any,
    items: RunItems | None = None,
    *,
    stores: Sequence[str] = (),
) -> TaskTimeout:
    """Return the error for a chunk that took longer than ``task_timeout=``."""
    access = f", which includes the access to {', '.join(stores)}" if stores else ""
    text = f": took longer than task_timeout={seconds:g} s{access}; its worker was killed and "
    text += "replaced"
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
    if items is not None:
        more["item"] = items[chunk]
    place, region = _place(plan, chunk, items), plan.region(chunk)
    return kind(f"{plan.verb}, {place}{text}", chunk=chunk, region=region, run=run, **more)


def _place(plan: Plan, chunk: int, items: RunItems | None) -> str:
    if items is not None:
        return items.describe(chunk)
    return f"chunk {chunk} at {describe_region(plan.region(chunk))}"


def complete(error: ShmparError, plan: Plan, chunk: int, run: Any, items: RunItems | None) -> None:
    """Give the error of a host its run, and its item, of which the host knows the number alone."""
    changed: Any = error
    changed.run = run
    if items is not None:
        text = str(error).replace(_place(plan, chunk, None), _place(plan, chunk, items), 1)
        changed.args, changed.item = (text,), items[chunk]


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
    warn_user(text)


def warn_user(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the line of the user: that of the first frame outside of this package.

    In a thread without such a frame, the outermost frame counts as the user's.
    """
    level, frame = 1, sys._getframe()  # noqa: SLF001 - the documented way to count frames
    while frame.f_back is not None and frame.f_code.co_filename.startswith(tracebacks.PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def function_name(call: Any) -> str:
    """Return the name of a function, of that in a partial too; empty if it has none."""
    try:
        while isinstance(call, partial):
            call = call.func
        return str(getattr(call, "__qualname__", None) or getattr(call, "__name__", ""))
    except Exception:  # noqa: BLE001 - the user's object may raise anything; this is for show
        return ""


def call_name(call: Any) -> str:
    """Return the name of a submitted function, or that of its type."""
    if isinstance(call, partial) and call.func in BATCHES:
        call = call.args[0]
    return function_name(call) or type(call).__qualname__


def _reason(error: BaseException) -> str:
    kind = type(error)  # Why not isinstance: the class may raise for any attribute.
    if issubclass(kind, ResultError | StoreError):
        return shortened(str(error), MOST_OF_EXCEPTION)
    # Why: the stand-in for an exception that does not pickle has the type in its message.
    text = shortened(str(error), MOST_OF_EXCEPTION) if kind is ShmparError else summarize(error)
    return f"the function raised {text}"

"""What a worker process says, made into exceptions and events.

Imports the protocol, errors, plan, segment, travel and worker.messages.

Guarantees
----------
- Whatever unpickling raises here, ``SystemExit`` too, is the outcome of that chunk or call alone.
  An interrupt is none of it: it is held back while messages are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from shmpar.engines.protocol import Event, Failed, Returned, Values
from shmpar.errors import PlanError, ShmparError
from shmpar.plan import Failure
from shmpar.segment import Segment
from shmpar.travel.unpacking import unpack
from shmpar.worker.messages import SegmentRecord

__all__ = ["error", "initializer_failed", "outcome", "refusal", "values"]


def error(body: bytes | None, text: str) -> BaseException:
    """The exception that a worker sent; if it does not unpickle, one that says the same."""
    if body is not None:
        with contextlib.suppress(BaseException):
            found = unpack(body)[0]
            if isinstance(found, BaseException):
                found.add_note(f"In the worker:\n{text}")
                return found
    last = text.rstrip().rpartition("\n")[2]
    stand_in = ShmparError(f"{last} (an exception that does not survive pickling)")
    stand_in.add_note(f"In the worker:\n{text}")
    return stand_in


def result(body: bytes, records: Sequence[SegmentRecord], descriptors: list[int]) -> Any:
    """What a function returned; takes its segments' descriptors off the list."""
    segments = [
        Segment.adopt(descriptors.pop(0), record.size, kind=record.kind, writable=record.writable)
        for record in records
    ]
    return unpack(body, segments)[0]


def outcome(message: Any, descriptors: list[int], broken: BaseException | None) -> Returned:
    """The event of a task's end; a result that does not unpickle here is the task's error."""
    kind, task, body, rest = message
    if kind == "uncalled":
        return Returned(task, None, broken)
    if kind == "raised":
        return Returned(task, None, error(body, rest))
    try:
        return Returned(task, result(body, rest, descriptors))
    except BaseException as failure:  # noqa: BLE001 - whatever it raises
        return Returned(task, None, failure)


def values(
    run: int, packed: list[tuple[int, bytes, list[SegmentRecord]]], descriptors: list[int]
) -> Iterable[Event]:
    """One event a result; one that does not unpickle here is a failure of its chunk."""
    for chunk, body, records in packed:
        try:
            yield Values(run, [(chunk, result(body, records, descriptors))])
        except BaseException as error:  # noqa: BLE001 - whatever it raises, it is the chunk's
            yield Failed(run, Failure(chunk, error, None))


def refusal(cause: BaseException) -> PlanError:
    """The error for a function that was sent but did not load; a worker may say it itself."""
    if isinstance(cause, PlanError):
        return cause
    refused = PlanError(
        f"the function was sent, but does not load in a worker ({type(cause).__name__}: {cause}); "
        "what it refers to by name must be importable there: define it in a module, or wrap it "
        "in a plain function"
    )
    refused.__cause__ = cause
    return refused


class InitializerFailed(ShmparError, BrokenExecutor):
    """The error of every run and call of a pool whose initializer raised, which is its cause."""


def initializer_failed(cause: BaseException) -> InitializerFailed:
    """The error for a pool whose initializer raised."""
    failed = InitializerFailed(f"the pool's initializer failed: {cause!r}")
    failed.__cause__ = cause
    return failed

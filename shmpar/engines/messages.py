"""What of the parent's state a function may depend on, taken at the start of each run.

Imports worker.messages and travel.

What a worker process says, made into exceptions and events.

Imports the protocol, errors, plan, segment, travel and worker.messages.

Guarantees
----------
- Whatever unpickling raises here, ``SystemExit`` too, is the outcome of that chunk or call alone.
  An interrupt is none of it: it is held back while messages are read.

What a worker process is sent of a run.

Imports environment, the protocol, plan, segment, travel and worker.messages.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from shmpar.engines.engine import Event, Execution, Failed, Generation, Returned, Values
from shmpar.errors import PlanError, ShmparError
from shmpar.ipc.protocol import Environment, PlanMessage, Reference, SegmentRecord, Standing
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import Location, Segment
from shmpar.pickling.pack import Parcel, known, pack
from shmpar.pickling.unpack import unpack
from shmpar.plan import Failure, Function, Plan, spell
from shmpar.runtime.interrupts import allowed

__all__ = [
    "Packed",
    "current_environment",
    "error",
    "initializer_failed",
    "outcome",
    "pack_call",
    "pack_execution",
    "refusal",
    "values",
]


class _Filters:
    """The warning filters, pickled again only when they have changed."""

    taken: list[Any] | None = None
    packed: bytes | None = None

    @classmethod
    def current(cls) -> bytes | None:
        if cls.taken != warnings.filters:
            cls.taken = list(warnings.filters)
            try:
                cls.packed = pack(cls.taken).body
            except PlanError:  # a category that cannot travel: the workers keep what they have
                cls.packed = None
        return cls.packed


class _Latest:
    """What was found last: most calls find the same."""

    environment: Environment | None = None


def current_environment(*, foreign: bool) -> Environment:
    """The working directory, ``sys.path``, NumPy's error handling and the warning filters.

    Parameters
    ----------
    foreign : bool
        The workers are another version of Python, which has a path of its own.

    Returns
    -------
    Environment
        The same object as before while nothing changes.
    """
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = None
    errors: dict[str, Any] = np.geterr()  # type: ignore[assignment]
    path, filters = (None, None) if foreign else (sys.path, _Filters.current())
    found = Environment(directory, path, errors, filters)
    if found != _Latest.environment:
        _Latest.environment = found if path is None else found._replace(path=list(path))
    return _Latest.environment


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


Array = np.ndarray[Any, Any]


@dataclass(eq=False, slots=True)
class Packed:
    """What is the same for all workers of a run; keeps its segments alive.

    Attributes
    ----------
    plan : bytes
        Pickled.
    parcel : Parcel
        The function with what it holds.
    arrays : list of ndarray
        The inputs, in shared memory.
    references : tuple of Reference
        Where they lie.
    ledger : int
        Key of the ledger's segment.
    sums : Reference or None
        Where the checksums go.
    segments : dict of int to Segment
        All that every worker maps, by key.
    environment : Environment
        As it was when the verb was called.
    call : int
        Equal for calls of the same function on chunks of the same kind.
    standing : tuple of (Standing, bytes) or None
        What the latest message had of it: most often the next worker's is the same.
    last : tuple of (PlanMessage, bytes) or None
        The latest message that lends no segments, likewise.
    """

    plan: bytes
    parcel: Parcel
    arrays: list[Array]
    references: tuple[Reference, ...]
    ledger: int
    sums: Reference | None
    segments: dict[int, Segment]
    environment: Environment
    call: int
    standing: tuple[Standing, bytes] | None = None
    last: tuple[PlanMessage, bytes] | None = None

    def outputs(
        self, execution: Execution
    ) -> tuple[tuple[Reference, ...] | None, dict[int, Segment]]:
        """Where the outputs lie, if they are known, and all segments that a worker needs."""
        if execution.outputs is None or execution.plan.collects:
            return None, self.segments
        segments = dict(self.segments)
        references = tuple(_reference(out, segments) for out in execution.outputs)
        return references, segments

    def message(  # noqa: PLR0913 - all that the message says
        self,
        execution: Execution,
        generation: Generation,
        counter: int,
        outputs: tuple[Reference, ...] | None,
        held: tuple[int, ...],
        records: list[SegmentRecord],
        *,
        changed: bool,
    ) -> bytes:
        """The message that has a worker work on a generation, pickled.

        Parameters
        ----------
        counter : int
            Number under which the worker keeps the counter; -1: not.
        records : list of SegmentRecord
            Of the segments whose descriptors go with it.
        changed : bool
            The worker does not know the environment.
        """
        message = PlanMessage(
            run=execution.number,
            generation=generation.number,
            todo=generation.todo,
            counter=counter,
            tickets=generation.tickets.kind,
            origin=execution.origin,
            environment=self.environment if changed else None,
            function=None if self.parcel.plain else self.parcel.body,
            standing=self._standing(execution, outputs, held),
        )
        if records:
            return pickle.dumps(("plan", tuple(message), records), 5)
        if self.last is None or self.last[0] != message:
            # As a plain tuple, which pickles in half the time.
            self.last = message, pickle.dumps(("plan", tuple(message), records), 5)
        return self.last[1]

    def _standing(
        self,
        execution: Execution,
        outputs: tuple[Reference, ...] | None,
        held: tuple[int, ...],
    ) -> bytes:
        standing = Standing(
            workers=execution.ledger.workers,
            chunks=execution.plan.chunks,
            ledger=self.ledger,
            arrays=self.references,
            outputs=outputs,
            several=execution.several,
            scratch=execution.scratch,
            reports=execution.reports,
            sums=self.sums,
            plan=self.plan,
            function=self.parcel.body if self.parcel.plain else None,
            held=held,
        )
        if self.standing is None or self.standing[0] != standing:
            self.standing = standing, pickle.dumps(tuple(standing), 5)
        return self.standing[1]


def pack_call(call: Function, *, foreign: bool) -> Parcel:
    """Pickle a function with what it is called with, which may be interrupted.

    The user's objects pickle themselves, and may be large. Nothing else may be: who is interrupted
    between the start of a worker and the note of it would lose its descriptors.

    Raises
    ------
    PlanError
        If it does not pickle.
    """
    body = None if foreign else known(call)
    if body is not None:
        return Parcel(body, plain=True)
    with allowed():
        return pack(call, importable_only=foreign)


def pack_execution(execution: Execution, ledger: Segment, *, foreign: bool) -> Packed:
    """Pickle what travels, and share the inputs that are not shared yet.

    Parameters
    ----------
    ledger : Segment
        Where the run's ledger lies.
    foreign : bool
        The workers are another version of Python.

    Raises
    ------
    PlanError
        If the function does not pickle.
    SegmentFull
        If there is no room for a copy of an input.
    """
    parcel = pack_call(execution.function, foreign=foreign)
    shared = zip(parcel.segments, parcel.private, strict=True)
    segments = {one.key: one for one, private in shared if not private}
    segments[ledger.key] = ledger
    references, arrays = [], []
    for array in execution.arrays:
        place, held = locate(array), array
        if place is None:
            with allowed():
                segment, held = share(array)
            place = Location(segment, 0)
        arrays.append(held)
        references.append(_refer(place, held, segments))
    plan = _pickled(execution.plan)
    return Packed(
        plan=plan,
        parcel=parcel,
        arrays=arrays,
        references=tuple(references),
        ledger=ledger.key,
        sums=None if execution.sums is None else _reference(execution.sums, segments),
        segments=segments,
        environment=current_environment(foreign=foreign),
        call=hash((plan, parcel.body)),
    )


def _reference(array: Array, segments: dict[int, Segment]) -> Reference:
    """Where an array lies; its segment is added to `segments`."""
    place = locate(array)
    if place is None:
        raise TypeError(f"an array of shape {array.shape} is not in shared memory")
    return _refer(place, array, segments)


def _refer(place: Location, array: Array, segments: dict[int, Segment]) -> Reference:
    segments[place.segment.key] = place.segment
    return place.segment.key, place.offset, array.shape, array.strides, spell(array.dtype)


def _pickled(plan: Plan) -> bytes:
    try:
        return _pickled_before(plan)
    except TypeError:  # a seed that is a list cannot be looked up
        return pickle.dumps(plan, 5)


@functools.lru_cache(maxsize=32)
def _pickled_before(plan: Plan) -> bytes:
    """Keep the pickles of calls that are made again and again."""
    return pickle.dumps(plan, 5)

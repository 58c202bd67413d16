"""Messages of the processes engine: pack the work of a run, unpack the results of workers.

Guarantees
----------
- :func:`pack_run` and :func:`pack_call` run the user's pickling code, so they run in the thread
  that made the call, never in the pool thread.
- Any exception of unpickling in the pool thread, ``SystemExit`` too, is the outcome of that chunk
  or call alone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from shmpar.engines.engine import ActivePlan, Generation
from shmpar.errors import PlanError, ShmparError
from shmpar.ipc import protocol
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import Location, Segment
from shmpar.pickling.pack import Payload, cached, pack
from shmpar.pickling.unpack import unpack
from shmpar.plan import Function, Plan, spell

Array = np.ndarray[Any, Any]


# The parent's state


class _Filters:
    """The warning filters, pickled again only when they have changed."""

    taken: list[Any] | None = None
    packed: bytes | None = None

    @classmethod
    def current(cls) -> bytes | None:
        if cls.taken != warnings.filters:
            taken = list(warnings.filters)
            try:
                cls.packed = pack(taken).body
            except PlanError:  # Why: a category that cannot be pickled; workers keep their filters.
                cls.packed = None
            cls.taken = taken
        return cls.packed


def search_path() -> list[str]:
    """Return ``sys.path`` as text, without the entries that imports pass over."""
    entries: list[Any] = list(sys.path)
    paths = [one for one in entries if isinstance(one, (str, bytes, os.PathLike))]
    return [one if type(one) is str else os.fsdecode(one) for one in paths]


def current_environment(*, foreign: bool) -> protocol.Environment:
    """Return the working directory, ``sys.path``, NumPy's error handling and warning filters.

    Parameters
    ----------
    foreign : bool
        The workers are another version of Python, which has a path of its own.
    """
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = None
    errors: dict[str, Any] = np.geterr()  # type: ignore[assignment]
    if foreign:
        return protocol.Environment(directory, None, errors, None)
    return protocol.Environment(directory, search_path(), errors, _Filters.current())


# Outgoing


@dataclass(eq=False, slots=True)
class PreparedCall:
    """A submitted call that can be sent: its payload, and the caller's environment."""

    payload: Payload
    environment: protocol.Environment


@dataclass(eq=False, slots=True)
class PreparedRun:
    """The parts of a run that are the same for all workers; keeps their segments alive.

    Attributes
    ----------
    plan : bytes
        The pickled plan.
    payload : Payload
        The function with the objects that it holds.
    arrays : list of ndarray
        The inputs, in shared memory.
    references : tuple of Reference
        Where they lie.
    segments : dict of int to Segment
        The segments that every worker maps, by key.
    held : tuple of int
        Keys of the payload's segments, in its order; ~key for private ones.
    environment : Environment
        The caller's, when the verb was called.
    bodies : dict
        The pickled :class:`Work`, by generation and whether its outputs are known.
    checksums : Reference or None
        Where the checksums of the chunks go.
    """

    plan: bytes
    payload: Payload
    arrays: list[Array]
    references: tuple[protocol.Reference, ...]
    segments: dict[int, Segment]
    held: tuple[int, ...]
    environment: protocol.Environment
    bodies: dict[tuple[int, bool], bytes]
    checksums: protocol.Reference | None = None

    def open(self, active: ActivePlan, ledger: Segment) -> None:
        """Add the memory that the pool thread has made for the run."""
        self.segments[ledger.key] = ledger
        if active.checksums is not None:
            self.checksums = _reference(active.checksums, self.segments)

    def outputs(
        self, active: ActivePlan
    ) -> tuple[tuple[protocol.Reference, ...] | None, dict[int, Segment]]:
        """Return where the outputs lie, if they are known, and the segments of a worker."""
        if active.outputs is None or active.plan.returns_objects:
            return None, self.segments
        segments = dict(self.segments)
        return tuple(_reference(out, segments) for out in active.outputs), segments

    def work(
        self,
        active: ActivePlan,
        generation: Generation,
        outputs: tuple[protocol.Reference, ...] | None,
        ledger: int,
    ) -> bytes:
        """Return the pickled :class:`Work`; pickled once for all workers."""
        key = generation.number, outputs is not None
        if key not in self.bodies:
            self.bodies[key] = pickle.dumps(
                protocol.Work(
                    run=active.number,
                    generation=generation.number,
                    todo=generation.todo,
                    tickets=generation.tickets.kind,
                    origin=active.origin,
                    workers=active.ledger.workers,
                    chunks=active.plan.chunks,
                    ledger=ledger,
                    arrays=self.references,
                    outputs=outputs,
                    is_tuple=active.is_tuple,
                    small_outputs=active.small_outputs,
                    reports=active.reports,
                    checksums=self.checksums,
                    plan=self.plan,
                    function=self.payload.body,
                    stateless=self.payload.stateless,
                    held=self.held,
                ),
                5,
            )
        return self.bodies[key]


def held_keys(payload: Payload) -> tuple[int, ...]:
    """Return the keys of a payload's segments, in its order; ~key for private ones."""
    pairs = zip(payload.segments, payload.private, strict=True)
    return tuple([~one.key if private else one.key for one, private in pairs])


def pack_function(call: Function, *, foreign: bool) -> Payload:
    """Pickle a function with its arguments; raises `PlanError` if that is not possible."""
    body = None if foreign else cached(call)
    return pack(call, importable_only=foreign) if body is None else Payload(body, stateless=True)


def pack_call(call: Function, *, foreign: bool) -> PreparedCall:
    """Make a submitted call ready to be sent."""
    payload = pack_function(call, foreign=foreign)
    return PreparedCall(payload, current_environment(foreign=foreign))


def pack_run(
    plan: Plan, function: Function, arrays: Sequence[Array], *, foreign: bool
) -> PreparedRun:
    """Pickle the function, and copy the inputs that are not in shared memory.

    Parameters
    ----------
    foreign : bool
        The workers are another version of Python.

    Raises
    ------
    PlanError
        If the function cannot be pickled.
    SegmentFull
        If there is no room for a copy of an input.
    """
    payload = pack_function(function, foreign=foreign)
    pairs = zip(payload.segments, payload.private, strict=True)
    segments = {one.key: one for one, private in pairs if not private}
    references, shared = [], []
    for array in arrays:
        place, held = locate(array), array
        if place is None:
            segment, held = share(array)
            place = Location(segment, 0)
        shared.append(held)
        references.append(_refer(place, held, segments))
    return PreparedRun(
        plan=pickle.dumps(plan, 5),
        payload=payload,
        arrays=shared,
        references=tuple(references),
        segments=segments,
        held=held_keys(payload),
        environment=current_environment(foreign=foreign),
        bodies={},
    )


def _reference(array: Array, segments: dict[int, Segment]) -> protocol.Reference:
    """Return where an array lies; add its segment to `segments`."""
    place = locate(array)
    if place is None:
        raise TypeError(f"an array of shape {array.shape} is not in shared memory")
    return _refer(place, array, segments)


def _refer(place: Location, array: Array, segments: dict[int, Segment]) -> protocol.Reference:
    segments[place.segment.key] = place.segment
    return place.segment.key, place.offset, array.shape, array.strides, spell(array.dtype)


# Incoming


def unpack_error(packed: protocol.PackedError) -> BaseException:
    """Return the exception of a worker, or a stand-in if it cannot be unpickled."""
    if packed.body is not None:
        with contextlib.suppress(BaseException):
            found = unpack(packed.body)[0]
            if isinstance(found, BaseException):
                return _noted(found, packed.text)
    last = packed.text.rstrip().rpartition("\n")[2]
    return _noted(ShmparError(f"{last} (an exception that does not survive pickling)"), packed.text)


def _noted(error: BaseException, text: str) -> BaseException:
    """Return an exception with the text as a note, if it takes notes."""
    with contextlib.suppress(BaseException):
        # Why: the class may refuse new attributes; then only its dict takes the list.
        vars(error).setdefault("__notes__", [])
        BaseException.add_note(error, f"In the worker:\n{text}")
    return error


def _unpack_value(packed: protocol.PackedValue, descriptors: list[int]) -> Any:
    """Return a result; take its segments' descriptors off the list."""
    segments = [
        Segment.adopt(descriptors.pop(0), record.size, kind=record.kind, writable=record.writable)
        for record in packed.segments
    ]
    return unpack(packed.body, segments)[0]


def unpack_call(
    event: protocol.CallFinished, descriptors: list[int], broken: BaseException | None
) -> protocol.CallFinished:
    """Unpickle the end of a call; a result that does not unpickle here is the call's error."""
    if not event.started:
        return event._replace(error=broken)
    if event.error is not None:
        return event._replace(error=unpack_error(event.error))
    try:
        return event._replace(value=_unpack_value(event.value, descriptors))
    except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
        return event._replace(value=None, error=error)


def unpack_objects(
    event: protocol.ObjectsReturned, descriptors: list[int]
) -> Iterator[protocol.Event]:
    """Yield an event per result; one that does not unpickle here is a failure of its chunk."""
    for chunk, packed in event.values:
        try:
            value = _unpack_value(packed, descriptors)
        except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
            yield protocol.ChunkFailed(event.run, chunk, error)
        else:
            yield protocol.ObjectsReturned(event.run, [(chunk, value)])


def rejection(cause: BaseException) -> PlanError:
    """Return the error of a function that was sent but does not load in a worker."""
    if isinstance(cause, PlanError):
        return cause
    rejected = PlanError(
        f"the function was sent, but does not load in a worker ({type(cause).__name__}: {cause}); "
        "a worker must be able to import each name that it refers to: define it in a module, or "
        "wrap it in a plain function"
    )
    rejected.__cause__ = cause
    return rejected


class InitializerError(ShmparError, BrokenExecutor):
    """The error of every run and call of a pool whose initializer raised, which is its cause."""


def initializer_failed(cause: BaseException) -> InitializerError:
    """Return the error of a pool whose initializer raised."""
    failed = InitializerError(f"the pool's initializer failed: {cause!r}")
    failed.__cause__ = cause
    return failed

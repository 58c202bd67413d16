"""What a worker process is sent of a run.

Imports environment, the protocol, plan, segment, travel and worker.messages.
"""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np

from shmpar.engines.environment import current_environment
from shmpar.engines.protocol import Execution, Generation
from shmpar.interrupts import allowed
from shmpar.plan import Function, Plan, spell
from shmpar.segment import Place, Segment, locate, share
from shmpar.travel.packing import pack
from shmpar.travel.parcel import Parcel
from shmpar.travel.plain import known
from shmpar.worker.messages import Environment, PlanMessage, Reference, SegmentRecord, Standing

__all__ = ["Packed", "pack_call", "pack_execution"]

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
            place = Place(segment, 0)
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


def _refer(place: Place, array: Array, segments: dict[int, Segment]) -> Reference:
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

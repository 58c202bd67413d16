"""Runs on the hosts of a cluster: the spans that are cut of them, and the results that come back.

Only the pool thread uses it. Any exception of unpickling, ``SystemExit`` too, is a failure of its
chunk alone.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from shmpar.cluster import spans
from shmpar.cluster.messages import BoxResult, Head, Located, Span, SpanBox, SpanResult, Window
from shmpar.cluster.transport import HostUp
from shmpar.engines.engine import ActivePlan, Generation, HostTraffic
from shmpar.engines.packing import unpack_error
from shmpar.errors import ShmparError
from shmpar.ipc import protocol
from shmpar.ipc.ledger import DONE, FAILED
from shmpar.pickling.pack import Payload
from shmpar.plan import Announcement, Blocks, Output, ResultError, Rows, Shape, window_around
from shmpar.stores.store import Part
from shmpar.worker.verify import StoredChecksum

Array = np.ndarray[Any, Any]
Parts = Sequence[tuple[Array, Shape]]
"""The windows of the outputs that a host has returned, and their positions."""

LANES = 2
"""Spans that a host may hold: one is computed while the windows of the next arrive."""
_SUSPECTS = 32  # Why: more chunks of a lost host are tried in groups at first


@dataclass(eq=False, slots=True)
class Prepared:
    """A run that is ready to be sent: see :class:`Head`; inputs in memory stay here."""

    payload: Payload
    environment: protocol.Environment
    arrays: list[Any]
    inputs: tuple[Any, ...]


def bytes_of(payload: Payload) -> tuple[Array, ...]:
    """Return the segments of a payload as arrays of bytes."""
    sizes = [(segment, (segment.size,)) for segment in payload.segments]
    return tuple([segment.ndarray(0, size, None, np.dtype("u1")) for segment, size in sizes])


def as_index(chunks: Sequence[int]) -> Any:
    """Return an index of the ledger's arrays: a slice where the chunks are consecutive."""
    if isinstance(chunks, range) and chunks.step == 1:
        return slice(chunks.start, chunks.stop)
    return list(chunks)


class HostedRun:
    """A run on the hosts.

    Parameters
    ----------
    active : ActivePlan
        The run.
    outputs : tuple or None
        As of :class:`Head`.
    tell : callable
        Takes an event of the run.

    Attributes
    ----------
    positions : dict of int to int
        Tickets of each generation that the lanes have claimed.
    suspects : set of int
        Chunks that a lost host held.
    moved : StoreTraffic
        Bytes and seconds of stores that no lane has reported yet.
    """

    def __init__(
        self,
        active: ActivePlan,
        outputs: tuple[Any, ...] | None,
        tell: Callable[[protocol.Event], object],
    ) -> None:
        prepared: Prepared = active.prepared
        self.active, self._tell = active, tell
        self.positions: dict[int, int] = {}
        self.suspects: set[int] = set()
        self.moved = protocol.NO_TRAFFIC
        self.head = Head(
            run=active.number,
            plan=active.plan,
            function=prepared.payload.body,
            held=bytes_of(prepared.payload),
            environment=prepared.environment,
            retries=active.retries,
            task_timeout=active.task_timeout,
            inputs=prepared.inputs,
            outputs=outputs,
            sums=active.checksums is not None and outputs is not None,
        )
        self._told: dict[str, int] = {}  # spans with which each host was sent the head
        self._row = spans.period(active.plan)
        self._seconds: float | None = None  # of a host per chunk
        self._largest = 0  # chunks of the largest span that came back

    def traffic(self, host: str) -> HostTraffic:
        """Return the numbers of a host in this run."""
        return self.active.hosts.setdefault(host, HostTraffic(host))

    def head_for(self, host: str) -> Head | None:
        """Return the head for the next span of a host; None if an earlier span has brought it."""
        # Why several times: the first span of each lane may be the first that begins.
        told = self._told[host] = self._told.get(host, 0) + 1
        return self.head if told <= LANES else None

    # Spans

    def next_chunks(
        self, generation: Generation, host: HostUp, hosts: int
    ) -> tuple[Sequence[int], bool]:
        """Return the chunks of the next span, and whether it must be alone on its host."""
        plan, todo = self.active.plan, generation.todo
        first = self.positions.get(generation.number, 0)
        count = plan.chunks if todo is None else len(todo)
        if self.active.stopped or first >= count:
            return (), False
        size = spans.span_size(
            spans.Measured(
                seconds=self._seconds,
                latest=self._largest,
                remaining=count - first,
                hosts=hosts,
                workers=host.workers,
                nbytes=self._bytes_per_chunk(near=host.near),
                most=host.most_bytes,
            )
        )
        row = 1 if generation.number else self._row
        last = min(count, spans.align(first, size, row))
        chunks: Sequence[int] = range(first, last) if todo is None else todo[first:last]
        if not self.suspects:
            return chunks, False
        suspect = chunks[0] in self.suspects
        alike = itertools.takewhile(lambda one: (one in self.suspects) is suspect, chunks)
        size = len([*alike])
        if suspect:
            size = min(size, max(1, len(self.suspects) // _SUSPECTS))
        return chunks[:size], suspect and size == 1

    def _travels(self, number: int, *, near: bool) -> bool:
        """Return whether the values of an input are sent to a host."""
        address = self.head.inputs[number]
        return address is None or (isinstance(address, Located) and not near)

    def _bytes_per_chunk(self, *, near: bool) -> float:
        """Return the bytes that a chunk takes along, there and back."""
        active = self.active
        arrays = enumerate(active.prepared.arrays)
        nbytes: int = sum([one.nbytes for k, one in arrays if self._travels(k, near=near)])
        if self.head.outputs is None and not active.plan.returns_objects:
            nbytes += sum([one.nbytes for one in active.outputs or ()])
        return nbytes / max(1, active.plan.chunks)

    def span(self, chunks: Sequence[int], *, near: bool) -> Span:
        """Cut the windows of a span."""
        plan, arrays, made = self.active.plan, self.active.prepared.arrays, []
        for box in spans.boxes(plan.grid, chunks):
            inputs = [
                self._window(number, array, box) if self._travels(number, near=near) else None
                for number, array in enumerate(arrays)
            ]
            made.append(SpanBox(box.chunks(plan.grid), box, tuple(inputs)))
        known = None if self.active.outputs is None else self._announcement()
        return Span(self.active.number, tuple(made), plan.verb, known)

    def _window(self, number: int, array: Array, box: spans.Box) -> Window:
        plan = self.active.plan
        windows = [
            spans.input_window(plan, one, array.shape, box)
            for one in plan.arguments
            if isinstance(one, Blocks | Rows) and one.array == number
        ]
        return Window.of(array, reduce(partial(window_around, shape=array.shape), windows))

    def _announcement(self) -> Announcement:
        outputs = tuple([Output(one.shape, one.dtype) for one in self.active.outputs or ()])
        return Announcement(outputs, bool(self.active.is_tuple))

    # Results

    def take(self, span: Span, result: SpanResult, host: str, spent: float) -> None:
        """Take the results of a span, `spent` seconds after it was sent."""
        traffic = self.traffic(host)
        for box, one in zip(span.boxes, result.boxes, strict=True):
            self._take_box(box, one, traffic)
            self.suspects.difference_update(box.chunks)
        for warned in result.warned:
            self._tell(warned._replace(run=self.active.number, call=None))
        self.moved = protocol.add_traffic(self.moved, result.traffic)
        size = sum([len(box.chunks) for box in span.boxes])
        mine = result.seconds / size
        self._seconds = mine if self._seconds is None else (self._seconds + mine) / 2
        self._largest = max(self._largest, size)
        for box in span.boxes:
            self.active.ledger.times.seconds[as_index(box.chunks)] = mine
        traffic.deaths += result.deaths
        traffic.computing += result.seconds
        traffic.transport += max(0.0, spent - result.seconds)

    def _take_box(self, box: SpanBox, result: BoxResult, traffic: HostTraffic) -> None:
        """Write the results of a box into the outputs, mark its chunks, report them."""
        active = self.active
        done, failed = result.done, 0
        if result.fatal is not None and not active.stopped:
            self._tell(protocol.PlanRejected(active.number, unpack_error(result.fatal)))
        if result.announcement is not None and not self._agrees(result.announcement):
            done, failed = (), 1
        if done and result.parts is not None:
            traffic.bytes_in += sum(part.nbytes for part, _ in result.parts)
            written = self._write(box, done, result.parts)
            failed, done = failed + len(done) - len(written), written
        for chunk, body in result.values:
            traffic.bytes_in += len(body)
            if not self._take_value(chunk, body):
                failed += 1
                done = [one for one in done if one != chunk]
        if done:
            active.ledger.status[as_index(done)] = DONE
            self._note_sums(box, done, result)
        for chunk, error, shape, final in result.failed:
            failed += 1
            self._fail(chunk, unpack_error(error), shape, final=final)
        explained = active.stopped or result.fatal is not None
        if len(done) + failed < len(box.chunks) and not (failed or explained):
            lacking = ShmparError("a host has returned a span that it has not computed")
            self._tell(protocol.PlanRejected(active.number, lacking))

    def _fail(
        self, chunk: int, error: BaseException, shape: Any = None, *, final: bool = False
    ) -> None:
        self.active.ledger.status[chunk] = FAILED
        self._tell(protocol.ChunkFailed(self.active.number, chunk, error, shape, final))

    def _agrees(self, said: Announcement) -> bool:
        """Allocate the outputs, or compare the announcement of a host with them."""
        active = self.active
        if active.outputs is None:
            try:
                active.allocate(said)
            except Exception as error:  # noqa: BLE001 - the run is told
                self._tell(protocol.PlanRejected(active.number, error))
                return False
            return True
        reason = None if said.chunk < 0 else said.disagrees(self._announcement())
        if reason is not None:
            self._fail(said.chunk, ResultError(reason))
        return reason is None

    def _take_value(self, chunk: int, body: bytes) -> bool:
        """Unpickle an object; return whether it unpickles here."""
        try:
            value = pickle.loads(body)
        except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
            self._fail(chunk, error)
            return False
        self._tell(protocol.ObjectsReturned(self.active.number, [(chunk, value)]))
        return True

    def _write(self, box: SpanBox, done: Sequence[int], parts: Parts) -> Sequence[int]:
        """Write the windows of chunks that are done; return those chunks that were written.

        A store may refuse a window: then its chunk alone fails.
        """
        try:
            self._write_parts(box, done, parts)
        except Exception:  # noqa: BLE001 - it comes again below, with its chunk
            written = []
            for chunk in done:
                try:
                    self._write_parts(box, [chunk], parts)
                except Exception as error:  # noqa: BLE001 - the run is told
                    self._fail(chunk, error)
                    if self.active.plan.fail_fast:
                        break
                else:
                    written.append(chunk)
            return written
        return done

    def _write_parts(self, box: SpanBox, done: Sequence[int], parts: Parts) -> None:
        """Write the windows of chunks that are done into the outputs."""
        plan = self.active.plan
        for (part, origin), output in zip(parts, self.active.outputs or (), strict=True):
            if len(done) == len(box.chunks):
                pairs = zip(origin, part.shape, strict=True)
                place: Any = (*[slice(first, first + n) for first, n in pairs], ...)
                output[place] = part
                continue
            whole = Part(part, origin, output.shape)
            window_of = plan.placement.windows(plan.grid, output.shape)
            for chunk in done:
                where: Any = (*window_of(chunk), ...)
                output[where] = whole[where]

    def _note_sums(self, box: SpanBox, done: Sequence[int], result: BoxResult) -> None:
        """Note the checksums of chunks: those of the hosts, or of the windows that were written."""
        active = self.active
        if active.checksums is None:
            return
        if result.sums is not None:
            base = box.chunks[0]
            active.checksums[as_index(done)] = result.sums[[chunk - base for chunk in done]]
            return
        checksum_of = StoredChecksum(active.plan, list(active.outputs or ()))
        for chunk in done:
            active.checksums[chunk] = checksum_of(chunk)

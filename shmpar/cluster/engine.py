"""The engine of many machines: its workers are the lanes of hosts.

::

      client                                               host (a process of another engine)
    ┌───────────────────────────┐                        ┌──────────────────────────────────┐
    │ pool thread:              │ ── Head, once ───────▶ │ serve(): a local pool            │
    │ loop, scheduler, engine   │ ── Span (lane 0) ────▶ │ computes one span while          │
    │ lanes claim tickets here  │ ── Span (lane 1) ────▶ │ the windows of the next arrive   │
    │                           │ ◀─ SpanResult ──────── │                                  │
    └───────────────────────────┘      transport         └──────────────────────────────────┘

A lane claims tickets from the counters of the run, as a worker of any engine does. Its slot of the
ledger tells the chunks that it holds. So the scheduler decides on retries, blame and the end.

Guarantees
----------
- The pool thread alone changes the state here. A transport reports by a queue.
- A chunk or a call is blamed for the loss of a host only if it was alone there. Otherwise all that
  the host had are suspects: each is computed again alone on a host.
- A span that was given up writes nothing here: only the answer to a lane's present span is taken.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import queue
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from shmpar.cluster import spans
from shmpar.cluster.host import CLOSED, STOPS
from shmpar.cluster.lanes import Host, Lane, Prepared, RunState, Sent
from shmpar.cluster.messages import (
    CallResult,
    File,
    Head,
    Located,
    Missing,
    Refused,
    Settings,
    Span,
    SpanBox,
    SpanResult,
    Submitted,
    Window,
)
from shmpar.cluster.results import as_index, take_box
from shmpar.cluster.transport import (
    LANES,
    Answer,
    Broken,
    HostDown,
    HostUp,
    Report,
    Transport,
    file_address,
    memory_address,
    memory_of,
)
from shmpar.engines.engine import ActivePlan, Engine, Exit, Generation, take_back
from shmpar.engines.packing import State, pack_function, unpack_error
from shmpar.errors import HostsLost, ShmparError, summarize
from shmpar.ipc import protocol
from shmpar.ipc.ledger import CURSOR, FIRST, GENERATION, LAST, SINCE
from shmpar.ipc.tickets import Tickets, new_tickets
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import new_output
from shmpar.pickling.pack import Payload
from shmpar.plan import Announcement, Blocks, Function, Output, Plan, Rows
from shmpar.runtime.error_texts import call_name
from shmpar.stores.store import Store
from shmpar.worker.items import call_each

Array = np.ndarray[Any, Any]

_INNOCENT = -1  # no run has this number: a lane that was lost for no fault of its chunks
_SUSPECTS = 32  # Why: more chunks of a lost host are tried in groups at first


class ClusterEngine(Engine):
    """Lanes of hosts.

    Parameters
    ----------
    transport : Transport
        The other engine.
    settings : Settings
        Settings of the hosts' pools.
    host_timeout : float
        Seconds without any host after which runs and calls fail.
    shared_files : bool or None
        All hosts see the files of this process under the same paths.
    retries : int
        How often a submitted call whose local worker died is made again.
    """

    remote = True

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        *,
        host_timeout: float = 60.0,
        shared_files: bool | None = None,
        retries: int = 1,
    ) -> None:
        self.name = transport.name
        self.workers = transport.hosts * LANES
        self._transport, self._timeout, self._files = transport, host_timeout, shared_files
        self._retries = retries
        self._lanes = [Lane(number) for number in range(self.workers)]
        self._hosts: dict[str, Host] = {}
        self._runs: dict[int, RunState] = {}
        self._calls: dict[int, tuple[int, Host, Submitted]] = {}  # by token: the number of the call
        self._suspects: set[int] = set()  # numbers of calls that a lost host had
        self._ending: set[int] = set()  # tokens of calls over items that are told to end
        self._tokens = itertools.count(1)
        self._inbox = queue.SimpleQueue[Report | None]()
        self._events: list[protocol.Event] = []
        self._state = State(own_path=True)
        self._reasons: deque[str] = deque(maxlen=5)
        self._broken = ""
        self._without: float | None = time.monotonic()  # since when there is no host
        self._near = False
        self._control = new_output((1 + 2 * STOPS,), np.dtype("i8"))
        self._stops = itertools.cycle(range(STOPS))
        self.lost: list[tuple[str, str]] = []
        transport.start(settings._replace(control=memory_address(self._control)), self._inbox.put)

    # Any thread

    def prepare(
        self, plan: Plan, function: Function, arrays: list[Any], *, frozen: bool
    ) -> Prepared:
        """Pickle the function; copy the inputs that the caller may change, or that hosts map."""
        payload = self._pack(function)
        inputs, kept = [], []
        for array in arrays:
            address = self._address(array)
            if address is None and (frozen or self._near) and not isinstance(array, Store):
                _, array = share(array)  # noqa: PLW2901 - the copy replaces it
                address = self._address(array)
            inputs.append(address)
            kept.append(array)
        environment = self._state.current(None)
        return Prepared(payload, environment, kept, tuple(inputs))

    def _address(self, array: Any) -> Any:
        """Return the address of an input that hosts may open; None if it lies in plain memory."""
        if isinstance(array, Store):
            return array
        place = locate(array)
        if place is None:
            return None
        if self._files and place.segment.kind == "file":
            return file_address(array)
        where = array.shape, array.strides, array.dtype
        return Located(memory_of(place.segment), place.offset, *where)

    def _pack(self, function: Function) -> Payload:
        payload = pack_function(function, None, frozen=True)
        if not all(payload.private):
            raise TypeError(
                "the function holds a SharedArray, or an array in a mapped file, which lies in the "
                "memory of this machine: pass it to the verb as an input, or give the function a "
                "copy (numpy.array(x))"
            )
        return payload

    def prepare_call(self, call: Function) -> Submitted:
        """Pickle a call."""
        payload, environment = self._pack(call), self._state.current(None)
        name = call_name(call.values[0] if call.call is call_each else call.call)
        return Submitted(payload.body, _bytes_of(payload), environment, self._retries, name)

    def wake(self) -> None:
        """End the owner's :meth:`wait`."""
        self._inbox.put(None)

    def tickets(self) -> Tickets:
        """Return a new counter."""
        return new_tickets("thread")

    def order(self, plan: Plan, todo: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the chunks of a run in the order in which they are handed out."""
        return spans.order(plan) if todo is None else todo

    # Runs

    def end_idle(self) -> None:
        """Count the time without hosts from now: an idle pool needs none."""
        if self._without is not None:
            self._without = time.monotonic()

    def open(self, active: ActivePlan) -> list[int]:
        """Make the head of a run; return the lanes that have a host."""
        prepared, plan = active.prepared, active.plan
        outputs = None
        if active.outputs is not None and not plan.returns_objects:
            shared = [self._shared_output(one) for one in active.outputs]
            outputs = None if None in shared else tuple(shared)
        head = Head(
            run=active.number,
            plan=plan,
            function=prepared.payload.body,
            held=_bytes_of(prepared.payload),
            environment=prepared.environment,
            retries=active.retries,
            task_timeout=active.task_timeout,
            inputs=prepared.inputs,
            outputs=outputs,
            sums=active.checksums is not None and outputs is not None,
        )
        used = [one for one in plan.arguments if isinstance(one, Blocks | Rows)]
        count = len(prepared.arrays)
        arguments = [[one for one in used if one.array == number] for number in range(count)]
        self._runs[active.number] = RunState(active, head, arguments, spans.period(plan))
        return [lane.number for lane in self._used()]

    def _used(self) -> list[Lane]:
        """Return the lanes of hosts: the others, of which there are many, hold nothing."""
        return [lane for host in self._hosts.values() for lane in host.lanes]

    def _shared_output(self, array: Any) -> Any:
        if isinstance(array, Store):
            return array
        return file_address(array) if self._files else None

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Give a generation to a lane."""
        lane = self._lanes[worker]
        if lane.host is not None:  # else its loss is about to be told
            lane.queue.append((active, generation))
            lane.claimed[active.number, generation.number] = 0
            self._feed(lane)

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Take back the generations of the lanes that compute nothing of them; tell the hosts."""
        active.stopped = True
        exhausted, hosts = [], set()
        for lane in self._used():
            busy = lane.busy
            mine = busy is not None and busy.state.active is active
            if mine and lane.host is not None:
                hosts.add(lane.host.key)
                self._transport.withdraw(busy.token)  # type: ignore[union-attr]
            for generation in self._withdraw(lane, active):
                if mine and busy is not None and busy.generation is generation:
                    continue  # Why: its answer ends it
                exhausted.append(self._exhausted(lane, active, generation))
        self._tell_stop(active.number, sorted(hosts), kill=False)
        return exhausted

    def _tell_stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        if hosts:
            at = 1 + 2 * next(self._stops)
            self._control[at : at + 2] = run + 1, kill
            self._transport.stop(run, hosts, kill=kill)

    def _withdraw(self, lane: Lane, active: ActivePlan) -> list[Generation]:
        lane.waits = False
        return take_back(lane.queue, active)

    def _exhausted(
        self, lane: Lane, active: ActivePlan, generation: Generation
    ) -> protocol.CounterExhausted:
        key = active.number, generation.number
        had = lane.claimed.pop(key, 0)
        moved = lane.traffic.pop(active.number, protocol.NO_TRAFFIC)
        return protocol.CounterExhausted(lane.number, *key, had, traffic=moved)

    def close(self, active: ActivePlan) -> None:
        """Drop the objects that are kept for a run."""
        self._runs.pop(active.number, None)
        self._transport.forget(active.number)
        for lane in self._used():
            self._withdraw(lane, active)
        for generation in active.generations:
            generation.tickets.close()

    def kill(self, worker: int, run: int) -> None:
        """Have the workers of a lane's span killed; the lane is lost to this run at once.

        Why at once: a host that cannot be told works on until its span ends. Its answer is dropped.
        Why to this run alone: the host goes on with its calls, and with the spans of other runs.
        """
        lane = self._lanes[worker]
        busy = lane.busy
        if busy is None or busy.state.active.number != run or lane.host is None:
            return
        if not busy.killed:
            busy.killed = True
            self._tell_stop(run, [lane.host.key], kill=True)
            self._events.append(protocol.WorkerLost(worker, Exit(None), run=run))
            lane.claimed.pop((run, busy.generation.number), None)

    # Spans

    def _feed(self, lane: Lane) -> None:
        """Send the next span of a lane, or report that its counters are exhausted."""
        lane.waits = False
        while lane.queue and lane.busy is None and lane.host is not None:
            active, generation = lane.queue[0]
            state = self._runs[active.number]
            count = active.plan.chunks if generation.todo is None else len(generation.todo)
            first = state.positions.get(generation.number, 0)
            last, alone = self._end(state, generation, first, count, lane.host)
            others = [one.busy for one in lane.host.lanes if one is not lane and one.busy]
            if not active.stopped and first < count:
                lane.waits = alone
                busy = others or lane.host.calls
                if lane.host.alone or (alone and busy) or any(one.alone for one in others):
                    return  # Why: the lane is fed again when the other work is done.
                lane.waits = False
                first = generation.tickets.claim(last - first)
            if active.stopped or first >= count:
                lane.queue.popleft()
                self._events.append(self._exhausted(lane, active, generation))
                continue
            state.positions[generation.number] = last
            self._send(lane, state, generation, first, last, alone)

    def _end(
        self, state: RunState, generation: Generation, first: int, count: int, host: Host
    ) -> tuple[int, bool]:
        """Return the end of the next span, and whether it must be alone on its host."""
        if first >= count:
            return count, False
        now = spans.Measured(
            seconds=state.seconds,
            latest=state.latest,
            remaining=count - first,
            hosts=len(self._hosts),
            workers=host.workers,
            nbytes=state.bytes_per_chunk(),
            most=host.most_bytes,
        )
        size = spans.span_size(now)
        if state.suspects:
            chunks = [generation.chunk(t) for t in range(first, min(first + size, count))]
            suspect = [chunk in state.suspects for chunk in chunks]
            size = suspect.index(not suspect[0]) if (not suspect[0]) in suspect else len(chunks)
            if suspect[0]:
                last = first + min(size, max(1, len(state.suspects) // _SUSPECTS))
                return last, last == first + 1
            return first + size, False
        row = 1 if generation.number else state.row
        return min(count, spans.align(first, size, row)), False

    def _send(
        self,
        lane: Lane,
        state: RunState,
        generation: Generation,
        first: int,
        last: int,
        alone: bool,
    ) -> None:
        active, host = state.active, lane.host
        assert host is not None
        lane.claimed[active.number, generation.number] += last - first
        slot = active.ledger.slot(lane.number)
        slot[LAST] = 0
        slot[GENERATION], slot[FIRST], slot[CURSOR] = generation.number, first, first
        slot[SINCE] = 0  # Why: hosts watch the time of a chunk.
        slot[LAST] = last
        chunks: Sequence[int] = range(first, last)
        if generation.todo is not None:
            chunks = generation.todo[first:last]
        began = time.perf_counter()
        active.ledger.note_claim(as_index(chunks), lane.number, began - active.origin)
        span = self._span(state, chunks, near=host.near is not False)
        token = next(self._tokens)
        lane.busy = Sent(token, state, generation, first, last, chunks, alone, span, began)
        traffic = state.traffic(host)
        traffic.spans += 1
        traffic.bytes_out += _window_bytes(span)
        self._transport.send(token, host.key, span, state.head)

    def _span(self, state: RunState, chunks: Sequence[int], *, near: bool) -> Span:
        """Cut the windows of a span."""
        active = state.active
        plan, arrays, addresses = active.plan, active.prepared.arrays, active.prepared.inputs
        made = []
        for box in spans.boxes(plan.grid, chunks):
            inputs: list[Any] = []
            for number, (array, address) in enumerate(zip(arrays, addresses, strict=True)):
                if isinstance(array, Store) or isinstance(address, File) or (near and address):
                    inputs.append(None)
                    continue
                windows = [
                    spans.input_window(plan, argument, array.shape, box)
                    for argument in state.arguments[number]
                ]
                inputs.append(Window.of(array, spans.union(windows)))
            made.append(SpanBox(box.chunks(plan.grid), box.low, box.high, tuple(inputs)))
        announcement = None
        if active.outputs is not None:
            outputs = tuple(Output(one.shape, one.dtype) for one in active.outputs)
            announcement = Announcement(outputs, bool(active.is_tuple)).pack()
        return Span(active.number, tuple(made), announcement)

    # Reports

    def wait(self, timeout: float | None) -> list[protocol.Event]:
        """Wait for reports; return the events that follow from them."""
        if self._events or (self._broken and self._runs):
            timeout = 0.0
        elif self._without is not None:
            left = self._without + self._timeout - time.monotonic()
            if left > 0:  # Why once: the pool thread looks at the calls that wait for a host.
                timeout = left if timeout is None else min(left, timeout)
        with contextlib.suppress(queue.Empty):
            report = self._inbox.get(timeout=timeout)
            while True:
                if report is not None:
                    self._take(report)
                report = self._inbox.get_nowait()
        self._check_hosts()
        events, self._events = self._events, []
        return events

    def _take(self, report: Report) -> None:
        match report:
            case HostUp():
                self._host_up(report)
            case HostDown(host, reason):
                self._host_down(host, reason)
            case Broken(reason):
                self._broken = reason
                self._reasons.append(reason)
                for host in list(self._hosts):
                    self._host_down(host, reason)
            case Answer():
                self._answer(report)

    def _host_up(self, report: HostUp) -> None:
        free = [lane for lane in self._lanes if lane.host is None][:LANES]
        if report.host in self._hosts or len(free) < LANES:
            return
        most = min(spans.SPAN_BYTES, report.memory // 10) if report.memory else spans.SPAN_BYTES
        calls = min(report.workers, report.calls)
        host = Host(report.host, report.workers, report.near, report.name, most, calls, free)
        self._hosts[report.host], self._without = host, None
        self._near = self._near or bool(report.near)
        for lane in free:
            lane.host, lane.waits = host, False
            self._events.append(protocol.WorkerReady(lane.number))

    def _host_down(self, key: str, reason: str) -> None:
        host = self._hosts.pop(key, None)
        if not any(reason in one for one in self._reasons):
            self._reasons.append(f"{key}: {reason}")
        if host is None:
            return
        if not self._hosts:
            self._without = time.monotonic()
        self.lost.append((host.name, reason))
        busy = [lane for lane in host.lanes if lane.busy is not None and not lane.busy.killed]
        text = f"was on host {host.name}, which was lost: {reason}"
        at_fault = len(host.calls) == 1 and not busy
        for token in host.calls:
            number = self._calls.pop(token)[0]
            self._ending.discard(token)
            if not at_fault:
                self._suspects.add(number)
        for lane in host.lanes:
            sent, lane.busy, lane.host = lane.busy, None, None
            lane.queue.clear()
            lane.claimed.clear()
            lane.traffic.clear()
            if sent is None or sent.killed:
                innocent = not (at_fault and lane is host.lanes[0])
                lost = protocol.WorkerLost(lane.number, Exit(None, text=text), innocent)
                self._events.append(lost)
                continue
            self._transport.withdraw(sent.token)
            sent.state.traffic(host).lost = reason
            blamed = len(busy) == 1 and len(sent.chunks) == 1
            sent.state.suspects.update(sent.chunks)
            lost_for = None if blamed and not host.calls else _INNOCENT
            self._events.append(
                protocol.WorkerLost(lane.number, Exit(None, text=text), killed_for=lost_for)
            )

    def _check_hosts(self) -> None:
        """Fail everything if there has been no host for too long."""
        if self._without is None or not (self._runs or self._calls):
            return
        if not self._broken and time.monotonic() < self._without + self._timeout:
            return
        for number, state in self._runs.items():
            if not state.active.stopped:
                self._events.append(protocol.PlanRejected(number, self._hosts_lost()))

    def _hosts_lost(self) -> HostsLost:
        reasons = "; ".join(self._reasons) or "none has ever joined"
        if self._broken:
            return HostsLost(f"the hosts are lost ({reasons}); run.resume(pool) goes on elsewhere")
        return HostsLost(
            f"there has been no host for host_timeout={self._timeout:g} s ({reasons}); "
            "run.resume() goes on when there are hosts again"
        )

    # Answers

    def _answer(self, answer: Answer) -> None:
        if answer.token in self._calls:
            self._call_answered(answer)
            return
        lane = next(
            (one for one in self._used() if one.busy and one.busy.token == answer.token), None
        )
        if lane is None or lane.busy is None:
            return  # Why: its host was lost meanwhile.
        sent, host = lane.busy, lane.host
        assert host is not None
        if sent.killed:
            lane.busy = None
            self._feed_host(host)
            return
        if isinstance(answer.value, Missing) and not sent.state.active.stopped:
            self._send_again(lane, sent, host, answer.value)
            return
        self._finished(lane, sent, host, answer)
        self._release(lane, sent)
        self._feed_host(host)

    def _send_again(self, lane: Lane, sent: Sent, host: Host, missing: Missing) -> None:
        """Send a span with the head, or the windows, that the host lacks."""
        if missing.part == "memory":
            host.near = False
            sent.span = self._span(sent.state, sent.chunks, near=False)
            sent.state.traffic(host).bytes_out += _window_bytes(sent.span)
        sent.token = next(self._tokens)
        self._transport.send(sent.token, host.key, sent.span, sent.state.head)

    def _feed_host(self, host: Host) -> None:
        if host.alone and len(host.calls) == 1 and not any(lane.busy for lane in host.lanes):
            self._transport.send(host.alone, host.key, self._calls[host.alone][2], None)
        for lane in host.lanes:
            self._feed(lane)

    def _release(self, lane: Lane, sent: Sent) -> None:
        lane.busy = None
        active, generation = sent.state.active, sent.generation
        slot = active.ledger.slot(lane.number)
        slot[CURSOR], slot[LAST] = sent.last, 0
        waits = any(item[0] is active and item[1] is generation for item in lane.queue)
        if not waits and (active.number, generation.number) in lane.claimed:
            self._events.append(self._exhausted(lane, active, generation))

    def _finished(self, lane: Lane, sent: Sent, host: Host, answer: Answer) -> None:
        """Take the results of a span."""
        state, result = sent.state, answer.value
        number = state.active.number
        if number not in self._runs:
            return
        if isinstance(result, Refused):
            error: Any = ShmparError(f"host {host.name} does not serve this pool: {result.reason}")
            self._events.append(protocol.PlanRejected(number, error))
            return
        if not isinstance(result, SpanResult):
            if not state.active.stopped:  # else it was withdrawn
                self._events.append(protocol.PlanRejected(number, _foreign(answer.error, host)))
            return
        for box, one in zip(sent.span.boxes, result.boxes, strict=True):
            take_box(state.active, box, one, state.traffic(host), self._events.append)
        for warned in result.warned:
            self._events.append(warned._replace(run=number, call=None))
        state.suspects.difference_update(sent.chunks)
        self._measure(state, sent, host, result)
        before = lane.traffic.get(number, protocol.NO_TRAFFIC)
        lane.traffic[number] = protocol.add_traffic(before, result.traffic)
        if state.active.reports:
            finished = protocol.ClaimFinished(number, sent.generation.number, sent.first, sent.last)
            self._events.append(finished)

    def _measure(self, state: RunState, sent: Sent, host: Host, result: SpanResult) -> None:
        size, spent = len(sent.chunks), time.perf_counter() - sent.began
        mine = result.seconds / size
        state.seconds = mine if state.seconds is None else (state.seconds + mine) / 2
        state.latest = max(state.latest, size)
        state.active.ledger.times.seconds[as_index(sent.chunks)] = mine
        traffic = state.traffic(host)
        traffic.deaths += result.deaths
        traffic.computing += result.seconds
        traffic.transport += max(0.0, spent - result.seconds)

    # Calls

    def free_worker(self) -> int | None:
        """Return a lane of the host that has the fewest calls for those that it makes at a time."""
        if not self._hosts:
            expired = self._without is not None and (
                time.monotonic() >= self._without + self._timeout
            )
            return 0 if self._broken or expired else None
        free = [host for host in self._hosts.values() if host.takes_calls()]
        least = min(free, key=lambda host: len(host.calls) / host.most_calls, default=None)
        return None if least is None else least.lanes[0].number

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Return none: a host keeps no call for later. End its calls over items.

        Why all of them: the items that a wanted one leaves are sent again.
        """
        host = self._lanes[worker].host
        if stop and host is not None:
            over_items = {token for token in host.calls if self._calls[token][2].more}
            for token in over_items - self._ending:
                self._tell_stop(-1 - token, [host.key], kill=False)
            self._ending |= over_items
        return []

    def places(self) -> int:
        """Return the number of calls that all hosts make at a time; any thread may ask."""
        here = sum([host.most_calls for host in list(self._hosts.values())])
        return here or self._transport.places

    def call(self, worker: int, number: int, prepared: Submitted, more: Any = ()) -> None:
        """Send a call to the host of a lane."""
        host = self._lanes[worker].host
        if host is None:
            raise self._hosts_lost()
        token = next(self._tokens)
        host.calls[token] = worker
        prepared = prepared._replace(more=more, number=-1 - token)
        self._calls[token] = number, host, prepared
        if number in self._suspects:
            host.alone = token
            self._feed_host(host)
        else:
            self._transport.send(token, host.key, prepared, None)

    def _call_answered(self, answer: Answer) -> None:
        number, host, _ = self._calls.pop(answer.token)
        self._ending.discard(answer.token)
        host.calls.pop(answer.token, None)
        if host.alone == answer.token:
            host.alone = 0
            self._suspects.discard(number)
        self._feed_host(host)
        result = answer.value
        if not isinstance(result, CallResult):
            reason = result.reason if isinstance(result, Refused) else None
            error: Any = ShmparError(f"host {host.name} does not serve this pool: {reason}")
            if reason is None:
                error = _foreign(answer.error, host)
            self._events.append(protocol.CallFinished(number, error=error))
            return
        for warned in result.warned:
            self._events.append(warned._replace(run=None, call=number))
        if result.error is not None:
            error = unpack_error(result.error)
            self._events.append(protocol.CallFinished(number, error=error))
            return
        try:
            value = pickle.loads(result.value or b"")
            if type(value) is protocol.Slice:
                value = value._replace(error=unpack_error(value.error))
        except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
            self._events.append(protocol.CallFinished(number, error=error, unreadable=True))
        else:
            self._events.append(protocol.CallFinished(number, value))

    def shutdown(self) -> None:
        """End the hosts' pools."""
        self._control[CLOSED] = 1
        self._transport.close()


def _bytes_of(payload: Payload) -> tuple[Array, ...]:
    sizes = [(segment, (segment.size,)) for segment in payload.segments]
    return tuple([segment.ndarray(0, size, None, np.dtype("u1")) for segment, size in sizes])


def _window_bytes(span: Span) -> int:
    inputs = [one for box in span.boxes for one in box.inputs]
    return sum([one.values.nbytes for one in inputs if one is not None])


def _foreign(error: BaseException | None, host: Host) -> ShmparError:
    """Return the error for work that the other engine has failed."""
    failed = ShmparError(f"host {host.name} could not be asked: {summarize(error)}")
    failed.__cause__ = error
    return failed

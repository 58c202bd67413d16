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
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shmpar.cluster import spans
from shmpar.cluster.host import CLOSED, STOPS
from shmpar.cluster.messages import (
    CallResult,
    File,
    Head,
    Located,
    Memory,
    Missing,
    Refused,
    Settings,
    Span,
    SpanResult,
    Submitted,
)
from shmpar.cluster.runs import LANES, HostedRun, Prepared, as_index, bytes_of
from shmpar.cluster.transport import Answer, Broken, HostDown, HostUp, Report, Transport
from shmpar.engines.engine import ActivePlan, Engine, Exit, Generation
from shmpar.engines.packing import State, pack_function, unpack_error
from shmpar.errors import HostsLost, ShmparError, summarize
from shmpar.ipc import protocol
from shmpar.ipc.ledger import CURSOR, FIRST, GENERATION, LAST, SINCE
from shmpar.ipc.tickets import Tickets, new_tickets
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import new_output
from shmpar.pickling.pack import Payload
from shmpar.plan import Function, Plan
from shmpar.runtime.error_texts import call_name
from shmpar.stores.store import Store
from shmpar.worker.items import call_each

_INNOCENT = -1  # no run has this number: a lane that was lost for no fault of its chunks


@dataclass(eq=False, slots=True)
class Share:
    """A generation of a run, of which a lane takes chunks; `claimed` counts its tickets."""

    run: HostedRun
    generation: Generation
    claimed: int = 0


@dataclass(eq=False, slots=True)
class SentSpan:
    """A span that a lane has sent; `first` is the ticket of its first chunk."""

    lane: Lane
    share: Share
    first: int
    chunks: Sequence[int]
    alone: bool
    span: Span
    began: float
    token: int = 0
    killed: bool = False


@dataclass(eq=False, slots=True)
class SentCall:
    """A call that a host has; `ending` tells that it was told to end before its next items."""

    number: int
    host: Host
    work: Submitted
    ending: bool = False


@dataclass(eq=False, slots=True)
class Lane:
    """A place for a span at a host; a worker, to the scheduler.

    Attributes
    ----------
    queue : deque of Share
        The generations that it takes chunks of.
    busy : SentSpan or None
        The span that its host has.
    waits : bool
        It has a span that must be alone on its host, which has other work.
    """

    number: int
    host: Host | None = None
    queue: deque[Share] = field(default_factory=deque)
    busy: SentSpan | None = None
    waits: bool = False

    def take_back(self, active: ActivePlan) -> list[Share]:
        """Take the generations of a run off the queue; return them."""
        self.waits = False
        mine = [one for one in self.queue if one.run.active is active]
        for one in mine:
            self.queue.remove(one)
        return mine

    def exhausted(self, share: Share) -> protocol.CounterExhausted:
        """Return the report on a generation of which the lane takes no more chunks."""
        run, key = share.run, (share.run.active.number, share.generation.number)
        moved, run.moved = run.moved, protocol.NO_TRAFFIC
        return protocol.CounterExhausted(self.number, *key, share.claimed, traffic=moved)


@dataclass(eq=False, slots=True)
class Host:
    """A host with its lanes.

    Attributes
    ----------
    facts : HostUp
        The report of it.
    calls : set of int
        Tokens of the calls that it has.
    alone : int
        Token of the call that is alone there, or waits until it is; 0 if there is none.
    """

    facts: HostUp
    lanes: list[Lane]
    calls: set[int] = field(default_factory=set)
    alone: int = 0

    @property
    def name(self) -> str:
        """Its name in the transport."""
        return self.facts.host

    def takes_calls(self) -> bool:
        """Return whether it makes a further call now, and nothing must be alone there."""
        single = any(lane.waits or (lane.busy and lane.busy.alone) for lane in self.lanes)
        return len(self.calls) < self.facts.most_calls and not self.alone and not single


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
        host_timeout: float,
        shared_files: bool | None,
        retries: int,
    ) -> None:
        self.name = transport.name
        self.workers = transport.hosts * LANES
        self._transport, self._timeout, self._files = transport, host_timeout, shared_files
        self._retries = retries
        self._lanes = [Lane(number) for number in range(self.workers)]
        self._hosts: dict[str, Host] = {}
        self._runs: dict[int, HostedRun] = {}
        self._sent: dict[int, SentSpan | SentCall] = {}  # by token
        self._suspects: set[int] = set()  # numbers of calls that a lost host had
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
        place = locate(self._control)
        assert place is not None, "it lies in a segment"
        control = Memory.of(place.segment)
        transport.start(settings._replace(control=control), self._inbox.put)

    # Any thread

    def prepare(
        self, plan: Plan, function: Function, arrays: list[Any], *, frozen: bool
    ) -> Prepared:
        """Pickle the function; copy the inputs that the caller may change, or that hosts map."""
        payload = self._pack(function)
        inputs, kept = [], []
        for array in arrays:
            address = self._address(array)
            if address is None and (frozen or self._near):
                _, array = share(array)  # noqa: PLW2901 - the copy replaces it
                address = self._address(array)
            inputs.append(address)
            kept.append(array)
        environment = self._state.current(None)
        return Prepared(payload, environment, kept, tuple(inputs))

    def _address(self, array: Any) -> Any:
        """Return the address of an input that hosts may open; None if it lies in plain memory."""
        address = self._address_for_all(array)
        return Located.of(array) if address is None else address

    def _address_for_all(self, array: Any) -> Any:
        """Return the address of an array that hosts on all machines open; None if there is none."""
        if isinstance(array, Store):
            return array
        return File.of(array) if self._files else None

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
        return Submitted(payload.body, bytes_of(payload), environment, self._retries, name)

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
        outputs = None
        if active.outputs is not None and not active.plan.returns_objects:
            shared = [self._address_for_all(one) for one in active.outputs]
            outputs = None if None in shared else tuple(shared)
        self._runs[active.number] = HostedRun(active, outputs, self._tell)
        return [lane.number for lane in self._used()]

    def _tell(self, event: protocol.Event) -> None:
        self._events.append(event)

    def _used(self) -> list[Lane]:
        """Return the lanes of hosts: the others, of which there are many, hold nothing."""
        return [lane for host in self._hosts.values() for lane in host.lanes]

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Give a generation to a lane."""
        lane = self._lanes[worker]
        if lane.host is not None:  # else its loss is about to be told
            lane.queue.append(Share(self._runs[active.number], generation))
            self._feed(lane)

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Take back the generations of the lanes that compute nothing of them; tell the hosts."""
        active.stopped = True
        exhausted, hosts = [], set()
        for lane in self._used():
            shares, busy = lane.take_back(active), lane.busy
            if busy is not None and busy.share.run.active is active and lane.host is not None:
                hosts.add(lane.host.name)
                self._transport.withdraw(busy.token)
                shares = [one for one in shares if one is not busy.share]  # its answer ends it
            exhausted += [lane.exhausted(one) for one in shares]
        self._tell_stop(active.number, sorted(hosts), kill=False)
        return exhausted

    def _tell_stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        if hosts:
            at = 1 + 2 * next(self._stops)
            self._control[at : at + 2] = run + 1, kill
            self._transport.stop(run, hosts, kill=kill)

    def close(self, active: ActivePlan) -> None:
        """Drop the objects that are kept for a run."""
        self._runs.pop(active.number, None)
        self._transport.forget(active.number)
        for lane in self._used():
            lane.take_back(active)
        for generation in active.generations:
            generation.tickets.close()

    def kill(self, worker: int, run: int) -> None:
        """Have the workers of a lane's span killed; the lane is lost to this run at once.

        Why at once: a host that cannot be told works on until its span ends. Its answer is dropped.
        Why to this run alone: the host goes on with its calls, and with the spans of other runs.
        """
        lane = self._lanes[worker]
        busy = lane.busy
        if busy is None or busy.share.run.active.number != run or lane.host is None:
            return
        if not busy.killed:
            busy.killed = True
            self._tell_stop(run, [lane.host.name], kill=True)
            self._tell(protocol.WorkerLost(worker, Exit(None), run=run))

    # Spans

    def _feed(self, lane: Lane) -> None:
        """Send the next span of a lane, or report that its counters are exhausted."""
        lane.waits = False
        while lane.queue and lane.busy is None and lane.host is not None:
            share, host = lane.queue[0], lane.host
            chunks, alone = share.run.next_chunks(share.generation, host.facts, len(self._hosts))
            if not chunks:
                lane.queue.popleft()
                self._tell(lane.exhausted(share))
                continue
            others = [one.busy for one in host.lanes if one.busy]
            busy = others or host.calls
            if host.alone or (alone and busy) or any(one.alone for one in others):
                lane.waits = alone
                return  # Why: the lane is fed again when the other work is done.
            self._send(lane, share, chunks, host, alone=alone)

    def _send(
        self, lane: Lane, share: Share, chunks: Sequence[int], host: Host, *, alone: bool
    ) -> None:
        run, generation = share.run, share.generation
        active, size = run.active, len(chunks)
        # Invariant: only this thread claims, so the first ticket is the one at the position.
        first = generation.tickets.claim(size)
        run.positions[generation.number] = first + size
        share.claimed += size
        slot = active.ledger.slot(lane.number)
        slot[LAST] = 0
        slot[GENERATION], slot[FIRST], slot[CURSOR] = generation.number, first, first
        slot[SINCE] = 0  # Why: hosts watch the time of a chunk.
        slot[LAST] = first + size
        began = time.perf_counter()
        active.ledger.note_claim(as_index(chunks), lane.number, began - active.origin)
        span = run.span(chunks, near=host.facts.near)
        lane.busy = SentSpan(lane, share, first, chunks, alone, span, began)
        run.traffic(host.name).spans += 1
        self._send_span(lane.busy, host, run.head_for(host.name))

    def _send_span(self, sent: SentSpan, host: Host, head: Head | None) -> None:
        sent.token = next(self._tokens)
        self._sent[sent.token] = sent
        sent.share.run.traffic(host.name).bytes_out += sent.span.nbytes
        self._transport.send(sent.token, host.name, sent.span, head)

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
        if self._expired:
            for number, run in self._runs.items():
                if not run.active.stopped:
                    self._tell(protocol.PlanRejected(number, self._hosts_lost()))
        events, self._events = self._events, []
        return events

    @property
    def _expired(self) -> bool:
        """True if there will be no host, or has been none for too long."""
        late = self._without is not None and time.monotonic() >= self._without + self._timeout
        return late or bool(self._broken)

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
        host = Host(report, free)
        self._hosts[report.host], self._without = host, None
        self._near = self._near or report.near
        for lane in free:
            lane.host, lane.waits = host, False
            self._tell(protocol.WorkerReady(lane.number))

    def _host_down(self, key: str, reason: str) -> None:
        host = self._hosts.pop(key, None)
        if not any(reason in one for one in self._reasons):
            self._reasons.append(f"{key}: {reason}")
        if host is None:
            return
        if not self._hosts:
            self._without = time.monotonic()
        busy = [lane for lane in host.lanes if lane.busy is not None and not lane.busy.killed]
        exit_ = Exit(None, text=f"was on host {key}, which was lost: {reason}")
        at_fault = len(host.calls) == 1 and not busy
        for token in host.calls:
            call = self._sent.pop(token)
            if isinstance(call, SentCall) and not at_fault:
                self._suspects.add(call.number)
        for lane in host.lanes:
            sent, lane.busy, lane.host = lane.busy, None, None
            lane.queue.clear()
            if sent is not None:
                del self._sent[sent.token]
            if sent is None or sent.killed:
                innocent = not (at_fault and lane is host.lanes[0])
                self._tell(protocol.WorkerLost(lane.number, exit_, innocent))
                continue
            self._transport.withdraw(sent.token)
            sent.share.run.traffic(key).lost = reason
            sent.share.run.suspects.update(sent.chunks)
            blamed = len(busy) == 1 and len(sent.chunks) == 1 and not host.calls
            lost_for = None if blamed else _INNOCENT
            self._tell(protocol.WorkerLost(lane.number, exit_, killed_for=lost_for))

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
        match self._sent.pop(answer.token, None):
            case SentCall() as call:
                self._call_answered(call, answer)
            case SentSpan(lane=lane) as sent if (host := lane.host) is not None:
                stopped = sent.killed or sent.share.run.active.stopped
                if isinstance(answer.value, Missing) and not stopped:
                    self._send_again(sent, host, answer.value)
                    return
                lane.busy = None
                if not sent.killed:
                    self._finished(sent, host, answer)
                self._feed_host(host)
            case _:
                pass  # Why: its host was lost meanwhile.

    def _send_again(self, sent: SentSpan, host: Host, missing: Missing) -> None:
        """Send a span with the head, or the windows, that the host lacks."""
        run = sent.share.run
        if missing.part == "memory":
            host.facts = host.facts._replace(near=False)
            sent.span = run.span(sent.chunks, near=False)
        self._send_span(sent, host, run.head)

    def _feed_host(self, host: Host) -> None:
        if host.alone and len(host.calls) == 1 and not any(lane.busy for lane in host.lanes):
            call = self._sent[host.alone]
            assert isinstance(call, SentCall)
            self._transport.send(host.alone, host.name, call.work, None)
        for lane in host.lanes:
            self._feed(lane)

    def _finished(self, sent: SentSpan, host: Host, answer: Answer) -> None:
        """Take the results of a span; report its generation if the lane takes no more of it."""
        lane, share, run = sent.lane, sent.share, sent.share.run
        active = run.active
        if active.number in self._runs:
            if isinstance(answer.value, SpanResult):
                run.take(sent.span, answer.value, host.name, time.perf_counter() - sent.began)
                if active.reports:
                    last = sent.first + len(sent.chunks)
                    key = active.number, share.generation.number
                    self._tell(protocol.ClaimFinished(*key, sent.first, last))
            elif not active.stopped:  # else it was withdrawn
                self._tell(protocol.PlanRejected(active.number, _failure(answer, host)))
        slot = active.ledger.slot(lane.number)
        slot[CURSOR], slot[LAST] = sent.first + len(sent.chunks), 0
        if share not in lane.queue:
            self._tell(lane.exhausted(share))

    # Calls

    def free_worker(self) -> int | None:
        """Return a lane of the host that has the fewest calls for those that it makes at a time."""
        if not self._hosts:
            return 0 if self._expired else None
        free = [host for host in self._hosts.values() if host.takes_calls()]
        least = min(free, key=lambda host: len(host.calls) / host.facts.most_calls, default=None)
        return None if least is None else least.lanes[0].number

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Return none: a host keeps no call for later. End its calls over items.

        Why all of them: the items that a wanted one leaves are sent again.
        """
        host = self._lanes[worker].host
        for token in host.calls if stop and host is not None else ():
            call = self._sent[token]
            if isinstance(call, SentCall) and call.work.more and not call.ending:
                call.ending = True
                self._tell_stop(call.work.number, [call.host.name], kill=False)
        return []

    def places(self) -> int:
        """Return the number of calls that all hosts make at a time; any thread may ask."""
        here = sum([host.facts.most_calls for host in list(self._hosts.values())])
        return here or self._transport.places

    def call(self, worker: int, number: int, prepared: Submitted, more: Any = ()) -> None:
        """Send a call to the host of a lane."""
        host = self._lanes[worker].host
        if host is None:
            raise self._hosts_lost()
        token = next(self._tokens)
        host.calls.add(token)
        work = prepared._replace(more=more, number=-1 - token)
        self._sent[token] = SentCall(number, host, work)
        if number in self._suspects:
            host.alone = token
            self._feed_host(host)
        else:
            self._transport.send(token, host.name, work, None)

    def _call_answered(self, call: SentCall, answer: Answer) -> None:
        number, host, result = call.number, call.host, answer.value
        host.calls.discard(answer.token)
        if host.alone == answer.token:
            host.alone = 0
            self._suspects.discard(number)
        self._feed_host(host)
        if not isinstance(result, CallResult):
            self._tell(protocol.CallFinished(number, error=_failure(answer, host)))
            return
        for warned in result.warned:
            self._tell(warned._replace(run=None, call=number))
        if result.error is not None:
            self._tell(protocol.CallFinished(number, error=unpack_error(result.error)))
            return
        try:
            value = pickle.loads(result.value or b"")
            if type(value) is protocol.Slice:
                value = value._replace(error=unpack_error(value.error))
        except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
            self._tell(protocol.CallFinished(number, error=error, unreadable=True))
        else:
            self._tell(protocol.CallFinished(number, value))

    def shutdown(self) -> None:
        """End the hosts' pools."""
        self._control[CLOSED] = 1
        self._transport.close()


def _failure(answer: Answer, host: Host) -> ShmparError:
    """Return the error for work that a host has refused, or the other engine has failed."""
    if isinstance(answer.value, Refused):
        return ShmparError(f"host {host.name} does not serve this pool: {answer.value.reason}")
    failed = ShmparError(f"host {host.name} could not be asked: {summarize(answer.error)}")
    failed.__cause__ = answer.error
    return failed

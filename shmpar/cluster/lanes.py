"""The state of hosts, lanes and runs on a cluster; only the pool thread changes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shmpar.cluster.messages import Head, Span
from shmpar.engines.engine import ActivePlan, Generation, HostTraffic
from shmpar.ipc import protocol
from shmpar.pickling.pack import Payload
from shmpar.plan import Blocks, Rows


@dataclass(eq=False, slots=True)
class Prepared:
    """A run that is ready to be sent: see :class:`Head`; inputs in memory stay here."""

    payload: Payload
    environment: protocol.Environment
    arrays: list[Any]
    inputs: tuple[Any, ...]


@dataclass(eq=False, slots=True)
class Lane:
    """A place for a span at a host; a worker, to the scheduler.

    Attributes
    ----------
    queue : deque
        The generations that it takes chunks of.
    busy : Sent or None
        The span that its host has.
    claimed : dict
        Tickets that it has claimed, by the numbers of run and generation.
    traffic : dict
        Bytes and seconds of stores that are not reported yet, by the number of the run.
    waits : bool
        It has a span that must be alone on its host, which has other work.
    """

    number: int
    host: Host | None = None
    queue: deque[tuple[ActivePlan, Generation]] = field(default_factory=deque)
    busy: Sent | None = None
    claimed: dict[tuple[int, int], int] = field(default_factory=dict)
    traffic: dict[int, protocol.StoreTraffic] = field(default_factory=dict)
    waits: bool = False


@dataclass(eq=False, slots=True)
class Host:
    """A host with its lanes.

    Attributes
    ----------
    workers : int
        Its local workers.
    near : bool or None
        It maps memory of this process; None: that is not known yet.
    most_bytes : int
        Bytes that a span may take along: a tenth of its memory at most.
    most_calls : int
        Calls that it makes at a time.
    calls : dict of int to int
        Tokens of the calls that it has, and the lane that each counts for.
    alone : int
        Token of the call that is alone there, or waits until it is; 0 if there is none.
    """

    key: str
    workers: int
    near: bool | None
    name: str
    most_bytes: int
    most_calls: int
    lanes: list[Lane] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    alone: int = 0

    def takes_calls(self) -> bool:
        """Return whether it makes a further call now, and nothing must be alone there."""
        single = any(lane.waits or (lane.busy and lane.busy.alone) for lane in self.lanes)
        return len(self.calls) < self.most_calls and not self.alone and not single


@dataclass(eq=False, slots=True)
class Sent:
    """A span that a lane has sent."""

    token: int
    state: RunState
    generation: Generation
    first: int
    last: int
    chunks: Sequence[int]
    alone: bool
    span: Span
    began: float
    killed: bool = False


@dataclass(eq=False, slots=True)
class RunState:
    """A run on the hosts.

    Attributes
    ----------
    seconds : float or None
        Time of a host per chunk.
    latest : int
        Chunks of the largest span that came back.
    suspects : set of int
        Chunks that a lost host held.
    positions : dict of int to int
        Tickets of each generation that the lanes have claimed.
    row : int
        See :func:`spans.period`.
    """

    active: ActivePlan
    head: Head
    arguments: list[list[Blocks | Rows]]
    row: int
    seconds: float | None = None
    latest: int = 0
    suspects: set[int] = field(default_factory=set)
    positions: dict[int, int] = field(default_factory=dict)

    def traffic(self, host: Host) -> HostTraffic:
        """Return the numbers of a host in this run."""
        return self.active.hosts.setdefault(host.name, HostTraffic(host.name))

    def bytes_per_chunk(self) -> float:
        """Return the bytes that a chunk takes along, there and back."""
        active, head = self.active, self.head
        arrays = zip(active.prepared.arrays, head.inputs, strict=True)
        nbytes: int = sum([one.nbytes for one, address in arrays if address is None])
        if head.outputs is None and not active.plan.returns_objects:
            nbytes += sum([one.nbytes for one in active.outputs or ()])
        return nbytes / max(1, active.plan.chunks)

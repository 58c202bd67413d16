"""The processes engine: workers are executed interpreters that take numbers and share memory.

Imports the neighbours in this package, travel, segment and worker.messages.

::

      parent                                          worker (one of n)
    ┌──────────────┐   plan, outputs, forget, exit   ┌───────────────┐
    │ run, engine  │ ───────────── socket ─────────▶ │ process, loop │
    │              │ ◀──────────────────────────────  │               │
    └──────┬───────┘   hello, announce, failed,      └──────┬────────┘
           │           values, drained                      │
           │                                                │
           │     segments: inputs, outputs, ledger          │
           └──────────────▶ (mapped by all) ◀───────────────┘
                 counter of tickets: a file offset

Guarantees
----------
- At most two generations are outstanding at a worker, and no send blocks.
- A segment's descriptor is sent to a worker once; the worker is told to forget it as soon as the
  last array in it is dropped here.
- A worker's death is known from its pidfd, and told after all that it had said.
- Nothing of it outlives :meth:`ProcessesEngine.shutdown`: no process, descriptor or segment.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from importlib.util import MAGIC_NUMBER
from typing import Any

import numpy as np

from shmpar.engines import incoming
from shmpar.engines.ears import Ears
from shmpar.engines.environment import current_environment
from shmpar.engines.exits import await_exit
from shmpar.engines.launch import Launcher
from shmpar.engines.leftovers import Counters, Ledgers
from shmpar.engines.link import OUTSTANDING, Link, Loan
from shmpar.engines.outgoing import Packed, pack_call, pack_execution
from shmpar.engines.protocol import (
    Emptied,
    Event,
    Execution,
    Failed,
    Finished,
    Generation,
    Ready,
    Rejected,
)
from shmpar.engines.trial import PATIENCE, Trial
from shmpar.engines.watch import Watch
from shmpar.ledger import Ledger
from shmpar.plan import Announcement, Failure, Function
from shmpar.segment import Slab, locate
from shmpar.tickets import LockTickets, OffsetTickets
from shmpar.travel.packing import pack
from shmpar.travel.parcel import Parcel

__all__ = ["ProcessesEngine"]

_EXIT_SECONDS = 2.0  # how long an idle worker may take to end by itself
_LAST = {"drained", "returned", "raised"}  # what a worker says last before it is idle
_CONGESTED = 0.01  # seconds until a full socket is tried again


class ProcessesEngine:
    """Worker processes.

    Parameters
    ----------
    workers : int
        How many; they are started at once, and are not waited for.
    launcher : Launcher
        Starts them.
    initializer : tuple of (callable, tuple), optional
        Called with its arguments in each worker before anything else.
    tasks : int, optional
        Chunks and tasks after which a worker ends and is replaced.
    """

    name = "processes"
    holds_results = True

    def __init__(
        self,
        workers: int,
        launcher: Launcher,
        initializer: tuple[Callable[..., object], tuple[Any, ...]] | None = None,
        tasks: int | None = None,
    ) -> None:
        self.workers = workers
        self._launcher = launcher
        self._initializer = None if initializer is None else pack(initializer)
        self._tasks = tasks
        self._links: dict[int, Link] = {}
        self._runs: dict[int, Execution] = {}
        self._packed: dict[int, Packed] = {}
        self._events: list[Event] = []
        self._ledgers = Ledgers(workers)
        self.slab: Slab | None = Slab()
        self._counters = Counters()
        self._trial = Trial()
        self._watch = Watch(self._links)
        self._foreign = False
        self._broken: BaseException | None = None
        self._ears = Ears()
        _engines.add(self)
        try:
            for number in range(workers):
                self.replace(number)
        except BaseException:
            self.shutdown()
            raise

    # Workers

    def replace(self, worker: int) -> None:
        """Start a worker with this number, unless there is one."""
        if worker in self._links:
            return
        launched = self._launcher.start(worker)
        link = self._links[worker] = Link(worker, launched)
        self._ears.add(link)
        if self._tasks is not None:
            link.post(("limit", self._tasks))
        if self._initializer is not None:
            held = link.lend_parcel(self._initializer, loan := Loan())
            message = ("initialize", self._initializer.body, held, loan.records)
            link.post(message, loan.descriptors)

    def kill(self, worker: int, run: int) -> None:
        """End a worker with SIGKILL."""
        if worker in self._links:
            self._links[worker].kill(run)

    def pids(self) -> list[int]:
        """Process ids of the workers, in the order of their numbers."""
        return [link.launched.process.pid for _, link in sorted(self._links.items())]

    def _reap(self, link: Link) -> None:
        """Take what a dead worker had said, then tell of its death."""
        self._read(link)
        self._unlink(link)
        self._counters.settle(self._outstanding)
        self._events.append(link.lost())
        link.close()

    def _unlink(self, link: Link) -> None:
        del self._links[link.number]
        self._ears.drop(link)

    # Runs

    def copied(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[int]:
        """Those that lie in no segment and no mapped file."""
        return [array.nbytes for array in arrays if locate(array) is None]

    def ledger(self, chunks: int) -> Ledger:
        """A zeroed ledger in shared memory."""
        return self._ledgers.take(chunks)

    def tickets(self) -> OffsetTickets | LockTickets:
        """A counter at 0."""
        return self._counters.take()

    def open(self, execution: Execution) -> list[int]:
        """Pack what travels, and start workers where one is missing."""
        if self._broken is not None:
            raise self._broken
        ledger = self._ledgers.segment(execution.ledger)
        packed = pack_execution(execution, ledger, foreign=self._foreign)
        self._send_held()
        self._packed[execution.number] = packed
        self._runs[execution.number] = execution
        for number in range(self.workers):
            self.replace(number)
        if len(self._runs) == 1:
            self._trial.begin(execution.number, packed.call)
        return [number for number, link in self._links.items() if link.ready]

    def assign(self, worker: int, execution: Execution, generation: Generation) -> None:
        """Send a generation to a worker, or queue it behind what the worker has."""
        link = self._links.get(worker)
        if link is None:
            return  # its death is about to be told
        held = execution.number == self._trial.run and self._outstanding(execution.number)
        link.queue.append((execution, generation))
        if not held:
            self._feed(link)
        if self._trial.run is not None:  # one alone, which works while this thread goes on
            link.ring()

    def _send_held(self) -> None:
        """Send the plan that one worker was tried with to the others too."""
        if self._trial.run is not None:
            self._trial.run = None
            for link in self._links.values():
                self._feed(link)

    def stop(self, execution: Execution) -> list[Emptied]:
        """Take back what was not sent; whoever waits for outputs waits in vain."""
        execution.stopped = True
        taken: list[Emptied] = []
        for link in self._links.values():
            taken += [
                Emptied(link.number, execution.number, generation.number)
                for generation in link.withdraw(execution)
            ]
            if execution.outputs is None and link.has(execution.number):
                link.post(("abandon", execution.number))
        return taken

    def close(self, execution: Execution) -> None:
        """Drop what was made for the run; keep its ledger for the next."""
        self._runs.pop(execution.number, None)
        packed = self._packed.pop(execution.number, None)
        if packed is not None:
            self._trial.end(execution.number, packed.call)
        for link in self._links.values():
            link.withdraw(execution)
        counters = [generation.tickets for generation in execution.generations]
        self._counters.leave(execution.number, counters)
        self._counters.settle(self._outstanding)
        self._ledgers.leave(execution.ledger)

    def _outstanding(self, run: int) -> bool:
        """Whether a worker has something of a run, which may be over."""
        return any([link.has(run) for link in self._links.values() if link.sent])  # noqa: C419

    # Tasks

    def prepare(self, call: Function) -> Parcel:
        """Pickle it; large arrays are put into segments."""
        if self._broken is not None:
            raise self._broken
        for number in range(self.workers):
            self.replace(number)
        return pack_call(call, foreign=self._foreign)

    def free(self) -> int | None:
        """The worker that has least to do, if it has no task."""
        links = [link for link in self._links.values() if link.ready and not link.tasks]
        least = min(links, key=lambda link: len(link.sent), default=None)
        return None if least is None or len(least.sent) >= OUTSTANDING else least.number

    def call(self, worker: int, number: int, prepared: Parcel) -> None:
        """Send it."""
        for one, private in zip(prepared.segments, prepared.private, strict=True):
            if not private:
                self._watch.add(one)
        self._links[worker].post_task(number, prepared, current_environment(foreign=self._foreign))

    # Events

    def wait(self, timeout: float | None) -> None:
        """Block until a worker has something to say or is gone."""
        if self._trial.waited:
            self._send_held()
        self._flush()
        if self._events or self._ends_soon():
            return
        if any(link.outbox for link in self._links.values()):
            timeout = _CONGESTED if timeout is None else min(timeout, _CONGESTED)
        self._ears.wait(timeout)

    def _ends_soon(self) -> bool:
        """Give the one worker of a small call its time; send to the others after that."""
        if self._trial.run is None:
            return False
        self._trial.waited = True
        if self._ears.wait_briefly(PATIENCE):
            return True
        self._send_held()
        self._flush()
        return False

    def wake(self) -> None:
        """End another thread's `wait`."""
        self._flush()
        self._ears.wake()

    def _flush(self) -> None:
        for link in list(self._links.values()):
            if link.untold or link.outbox:
                link.flush()

    def events(self) -> list[Event]:
        """Read what the workers have said."""
        gone: dict[int, Link] = {}
        for link, dead in self._ears.heard():
            if dead or not self._read(link):
                gone[link.number] = link
        for link in gone.values():
            self._reap(link)
        self._flush()
        events, self._events = self._events, []
        return events

    def _read(self, link: Link) -> bool:
        """Take all messages of a worker; False if its end of file is the only sign of its death."""
        while True:
            try:
                message, descriptors = link.launched.wire.receive(wait=False)
            except BlockingIOError:
                return True
            except (EOFError, OSError):
                self._ears.drop_wire(link)  # the pidfd decides
                return link.launched.pidfd >= 0
            self._said(link, message, descriptors)
            if message[0] in _LAST and not link.sent and not link.tasks:
                return True  # an idle worker says nothing more

    def _said(self, link: Link, message: Any, descriptors: list[int]) -> None:  # noqa: C901, PLR0912
        match message:
            case ("drained", run, generation, claimed, handed, spent, said, leaves):
                if leaves:
                    link.leave()
                else:
                    link.drained(run, generation)
                if run in self._runs:
                    self._trial.spent(run, spent)
                    announcement = Announcement.unpack(said) if said else None
                    had = claimed, handed, announcement, leaves
                    self._events.append(Emptied(link.number, run, generation, *had))
                else:
                    self._counters.settle(self._outstanding)
                self._feed(link)
            case ("hello", magic):
                link.ready = True
                self._foreign = magic != MAGIC_NUMBER
                self._events.append(Ready(link.number))
            case ("announce", run, announcement):
                self._announced(link, run, Announcement.unpack(announcement))
            case ("failed", run, chunk, shape, body, text):
                failure = Failure(chunk, incoming.error(body, text), shape)
                self._events.append(Failed(run, failure))
            case ("finished", run, generation, first, last):
                self._events.append(Finished(run, generation, first, last))
            case ("values", run, values):
                self._events.extend(incoming.values(run, values, descriptors))
            case ("leaving",):
                link.leave()
            case ("returned" | "raised" | "uncalled", number, *_):
                link.tasks.discard(number)
                self._events.append(incoming.outcome(message, descriptors, self._broken))
            case ("refused", run, body, text):
                self._events.append(Rejected(run, incoming.refusal(incoming.error(body, text))))
            case ("broken", body, text):
                self._broken = incoming.initializer_failed(incoming.error(body, text))
                self._events.extend([Rejected(run, self._broken) for run in self._runs])

    def _announced(self, link: Link, run: int, announcement: Announcement) -> None:
        execution = self._runs.get(run)
        if execution is None or execution.stopped:
            link.post(("abandon", run))
        elif execution.outputs is not None:
            # It may have got them for another generation; it waits for them all the same.
            self._send_outputs(link, execution)
        else:
            try:
                execution.allocate(announcement)
            except Exception as error:  # noqa: BLE001 - told to the run, which stops
                self._events.append(Rejected(run, error))
                return
            for one in self._links.values():
                if one.has(execution.number):
                    self._send_outputs(one, execution)

    # Sending

    def _feed(self, link: Link) -> None:
        while (item := link.next_to_send()) is not None:
            execution, generation = item
            try:
                self._send_plan(link, execution, generation)
            except Exception as error:  # noqa: BLE001 - a segment was closed: that run's fault alone
                link.drained(execution.number, generation.number)
                self._events.append(Rejected(execution.number, error))
                self._events.append(Emptied(link.number, execution.number, generation.number))

    def _send_plan(self, link: Link, execution: Execution, generation: Generation) -> None:
        packed, loan = self._packed[execution.number], Loan()
        outputs, segments = packed.outputs(execution)
        self._watch.over(link.lend(segments, loan))
        held = link.lend_parcel(packed.parcel, loan)
        link.send_ahead(loan)
        counter = self._counters.number(generation.tickets)
        descriptors = [] if counter in link.counters else [generation.tickets.fileno()]
        if counter >= 0:
            link.counters.add(counter)
        changed = link.environment != packed.environment
        link.environment = packed.environment
        body = packed.message(
            execution, generation, counter, outputs, held, loan.records, changed=changed
        )
        # The bell is rung when all workers have been sent theirs, and this thread is about to wait.
        link.post_silently(body, [*descriptors, *loan.descriptors])

    def _send_outputs(self, link: Link, execution: Execution) -> None:
        loan = Loan()
        references, segments = self._packed[execution.number].outputs(execution)
        self._watch.over(link.lend(segments, loan))
        message = ("outputs", execution.number, references or (), execution.several, loan.records)
        link.post(message, loan.descriptors)

    # The end

    def shutdown(self) -> None:
        """End the workers: idle ones by asking, others with SIGKILL."""
        for link in self._links.values():
            busy = link.tasks or any(run in self._runs for run, _ in link.sent)
            if link.ready and not busy:
                link.post(("exit",))
            elif not link.leaving:
                link.launched.process.kill()
        deadline = time.monotonic() + _EXIT_SECONDS
        for link in list(self._links.values()):
            await_exit(link.launched.process, link.launched.pidfd, deadline)
            self._unlink(link)
            link.close()
        self._ears.close()
        self._ledgers.clear()
        self.slab = None
        self._counters.close()
        self._events.clear()

    def abandon_in_child(self) -> None:
        """In a forked child of the user: let go of the workers, which are the parent's."""
        for link in self._links.values():
            link.launched.process.returncode = 0  # not a child of this process
            link.close()


_engines: weakref.WeakSet[ProcessesEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.abandon_in_child()
    _engines.clear()


# A child that kept the write end of a life pipe would keep the workers from ending.
os.register_at_fork(after_in_child=_after_fork)

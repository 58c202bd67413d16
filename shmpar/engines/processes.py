"""Waiting for worker processes: their sockets, their deaths, and a wake-up from another thread.

Imports link, segment and cpus.

What the runs of a processes engine leave to later ones: ledgers and counters.

Imports ledger, segment and tickets.

Guarantees
----------
- A counter is used again only when no worker can look at it any more for the run before.
- A ledger may be used again earlier: a worker that comes late finds no tickets, and writes nothing
  but its own slot.

One worker first: small calls that are made again and again do not wake all workers.

Imports nothing of the package.

To wake a worker costs the parent some 50 us, and a second one that finds nothing left to do takes
the parent's processor away when it is wanted most. So the second and later workers are sent a plan
of which all chunks together took less than that last time only if the first worker has not been
through with it in :data:`PATIENCE`.

Guarantees
----------
- What is held back is sent after :data:`PATIENCE` at the latest, and at once when anything else
  happens: a call whose function has become slow loses no more than that.

Tells workers when a segment that they map is gone.

Imports link and segment.

The processes engine: workers are executed interpreters that take numbers and share memory.

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

import contextlib
import os
import selectors
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import MAGIC_NUMBER
from typing import Any

import numpy as np

from shmpar.engines import messages
from shmpar.engines.engine import (
    Emptied,
    Event,
    Execution,
    Failed,
    Finished,
    Generation,
    Ready,
    Rejected,
    await_exit,
)
from shmpar.engines.launch import Launcher
from shmpar.engines.messages import Packed, current_environment, pack_call, pack_execution
from shmpar.engines.worker_handle import OUTSTANDING, Link, Loan
from shmpar.ipc.ledger import Ledger
from shmpar.ipc.tickets import LockTickets, OffsetTickets, new_tickets
from shmpar.memory import limits
from shmpar.memory.limits import affinity_cpus
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment, Slab, create
from shmpar.pickling.pack import Parcel, pack
from shmpar.plan import Announcement, Failure, Function
from shmpar.runtime.interrupts import allowed

__all__ = ["PATIENCE", "Counters", "Ears", "Ledgers", "ProcessesEngine", "Trial", "Watch"]


class Ears:
    """Listens to links."""

    def __init__(self) -> None:
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        self._alone = affinity_cpus() == 1
        limits.keep_standard_streams()
        self._selector = limits.open_with_retry(selectors.DefaultSelector)
        self._wake_read, self._wake_write = limits.open_with_retry(os.pipe)
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    def add(self, link: Link) -> None:
        """Listen to a worker, and for its death."""
        launched = link.launched
        self._selector.register(launched.wire.fileno(), selectors.EVENT_READ, link)
        if launched.pidfd >= 0:
            self._selector.register(launched.pidfd, selectors.EVENT_READ, link)

    def drop(self, link: Link) -> None:
        """Listen to it no more."""
        self.drop_wire(link)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.launched.pidfd)

    def drop_wire(self, link: Link) -> None:
        """Wait for its death alone: the end of its file would be reported for ever."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.launched.wire.fileno())

    def wait(self, timeout: float | None) -> None:
        """Block until there is something, or for `timeout` seconds, up to whole milliseconds."""
        with allowed():
            self._ready = self._selector.select(timeout)

    def wait_briefly(self, seconds: float) -> bool:
        """Wait for less than a millisecond; return whether there is something.

        This thread looks again and again, and lets others of its process run meanwhile: to be put
        to sleep and woken again would cost it, and its processor, more than that. With a single
        processor it would only keep the worker from it, and it sleeps. An interrupt waits until
        it is over.
        """
        if self._alone:
            self.wait(seconds)
            return bool(self._ready)
        until = time.perf_counter() + seconds
        while not (ready := self._selector.select(0)) and time.perf_counter() < until:
            pass
        self._ready = ready
        return bool(ready)

    def heard(self) -> list[tuple[Link, bool]]:
        """Workers that have something to say, and whether it is that they are dead."""
        ready, self._ready = self._ready, []
        found = []
        for key, _ in ready or self._selector.select(0):
            link: Link | None = key.data
            if link is None:
                os.read(self._wake_read, 1024)
            else:
                found.append((link, key.fd == link.launched.pidfd))
        return found

    def wake(self) -> None:
        """End another thread's :meth:`wait`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Close the descriptors."""
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


Counter = OffsetTickets | LockTickets

_SCRATCH_BYTES = 16 * 1024  # behind each ledger, for outputs that are not larger
_LEDGERS = 2  # kept for later runs
_LARGE_BYTES = 1 << 20  # of a ledger that is not kept: the run's account has a copy already
_COUNTERS = 4  # kept for later runs; the workers keep their descriptors too


class Ledgers:
    """Ledgers in shared memory, for a number of workers."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._free: list[Ledger] = []
        self._segments: dict[Ledger, Segment] = {}

    def take(self, chunks: int) -> Ledger:
        """A zeroed ledger."""
        for position, free in enumerate(self._free):
            if free.chunks == chunks:
                free.clear()
                return self._free.pop(position)
        size = Ledger.nbytes(workers=self._workers, chunks=chunks)
        segment = create(size + _SCRATCH_BYTES, purpose="ledger")
        ledger = Ledger(segment.mapping, workers=self._workers, chunks=chunks)
        self._segments[ledger] = segment
        return ledger

    def segment(self, ledger: Ledger) -> Segment:
        """Where it lies."""
        return self._segments[ledger]

    def leave(self, ledger: Ledger) -> None:
        """Keep the ledger of a run that is over, unless it is large."""
        if self._segments[ledger].size > _LARGE_BYTES:
            del self._segments[ledger]
            return
        self._free.append(ledger)
        for old in self._free[:-_LEDGERS]:
            del self._segments[old]
        del self._free[:-_LEDGERS]

    def clear(self) -> None:
        """Drop all."""
        self._free.clear()
        self._segments.clear()


class Counters:
    """Counters, of which a few are numbered and kept, here and in the workers."""

    def __init__(self) -> None:
        self._free: list[Counter] = []
        self._kept: dict[Counter, int] = {}
        self._late: list[tuple[int, Sequence[Counter]]] = []

    def take(self) -> Counter:
        """A counter at 0."""
        if self._free:
            return self._free.pop()
        made = new_tickets()
        if len(self._kept) < _COUNTERS:
            self._kept[made] = len(self._kept)
        return made

    def number(self, counter: Counter) -> int:
        """The number under which workers keep it; -1: they do not."""
        return self._kept.get(counter, -1)

    def leave(self, run: int, counters: Sequence[Counter]) -> None:
        """Take the counters of a run that is over; :meth:`settle` says when they are free."""
        self._late.append((run, counters))

    def settle(self, outstanding: Callable[[int], bool]) -> None:
        """Free the counters of the runs of which no worker has anything any more."""
        late, self._late = self._late, []
        for run, counters in late:
            if outstanding(run):
                self._late.append((run, counters))
            else:
                self._release(counters)

    def _release(self, counters: Sequence[Counter]) -> None:
        for counter in counters:
            if counter in self._kept:
                counter.rewind()
                self._free.append(counter)
            else:
                counter.close()

    def close(self) -> None:
        """Close all; no worker is left."""
        for _, counters in self._late:
            for counter in counters:
                counter.close()
        for counter in self._kept:
            counter.close()


PATIENCE = 0.5e-3
"""Seconds that one worker gets for a small call."""

_SMALL = 0.2e-3  # seconds in all chunks
_REMEMBERED = 64  # calls


class Trial:
    """Which call is tried with one worker now, and which were small.

    Attributes
    ----------
    run : int or None
        The run whose plan one worker was sent, and others were not.
    waited : bool
        Whether its worker has had its time.
    """

    def __init__(self) -> None:
        self.run: int | None = None
        self.waited = False
        self._small: OrderedDict[int, None] = OrderedDict()
        self._seconds: dict[int, float] = {}

    def begin(self, run: int, call: int) -> None:
        """Hold the run back, if its call was small the last time."""
        if call in self._small:
            self.run, self.waited = run, False

    def spent(self, run: int, seconds: float) -> None:
        """A worker has spent that long in the chunks of a run."""
        self._seconds[run] = self._seconds.get(run, 0.0) + seconds

    def end(self, run: int, call: int) -> None:
        """The run is over; remember whether it was small."""
        if self.run == run:
            self.run = None
        # Nothing is known of a run that no worker has reported on.
        if self._seconds.pop(run, 1.0) < _SMALL:
            self._small[call] = None
            self._small.move_to_end(call)
            if len(self._small) > _REMEMBERED:
                self._small.popitem(last=False)
        else:
            self._small.pop(call, None)


class Watch:
    """Watches the segments that were sent to workers.

    Parameters
    ----------
    links : mapping of int to Link
        The workers, as they come and go.
    """

    def __init__(self, links: Mapping[int, Link]) -> None:
        self._links = links
        self._subscribed: set[int] = set()

    def over(self, segments: Iterable[Segment]) -> None:
        """Have workers told when any of these is gone."""
        for segment in segments:
            self.add(segment)

    def add(self, segment: Segment) -> None:
        """Have workers told when this one is gone."""
        if segment.key not in self._subscribed:
            self._subscribed.add(segment.key)
            segment.subscribe(_Forgetter(self))

    def forget(self, key: int) -> None:
        """Tell the workers to drop a segment; takes no lock, so a finalizer may call it."""
        self._subscribed.discard(key)
        for link in list(self._links.values()):
            link.forget(key)


class _Forgetter:
    """Tells a watch, as long as there is one, that a segment is gone."""

    def __init__(self, watch: Watch) -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, key: int) -> None:
        watch = self._watch()
        if watch is not None:
            watch.forget(key)


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
                failure = Failure(chunk, messages.error(body, text), shape)
                self._events.append(Failed(run, failure))
            case ("finished", run, generation, first, last):
                self._events.append(Finished(run, generation, first, last))
            case ("values", run, values):
                self._events.extend(messages.values(run, values, descriptors))
            case ("leaving",):
                link.leave()
            case ("returned" | "raised" | "uncalled", number, *_):
                link.tasks.discard(number)
                self._events.append(messages.outcome(message, descriptors, self._broken))
            case ("refused", run, body, text):
                self._events.append(Rejected(run, messages.refusal(messages.error(body, text))))
            case ("broken", body, text):
                self._broken = messages.initializer_failed(messages.error(body, text))
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

"""Engines in this process: ``serial``, with the owner's thread as its worker, and ``threads``.

Plans take the same way as on worker processes, so that a debugger can follow it.

Guarantees
----------
- Inputs are not copied, and the function is not pickled.
- A thread cannot be killed: `kill` does nothing, and ``task_timeout`` is not enforced.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.arrays import SharedArray
from shmpar.engines.engine import ActivePlan, Generation, WithoutProcesses
from shmpar.errors import ShmparError
from shmpar.ipc import protocol
from shmpar.ipc.tickets import Tickets, new_tickets
from shmpar.memory.layout import protected
from shmpar.memory.limits import open_with_retry
from shmpar.memory.locate import locate
from shmpar.plan import Announcement, Function, Plan
from shmpar.stores.store import OpenStores, Part, Store, traffic
from shmpar.tracebacks import shorten
from shmpar.worker.compute import Abandoned, Assignment, bind_inputs
from shmpar.worker.environment import exit_if_forked, inside_worker
from shmpar.worker.loop import work

Array = np.ndarray[Any, Any]
Initialization = tuple[Callable[..., object], tuple[Any, ...]]

TURN_SECONDS = 0.1  # the serial engine works for so long before it reports


class CallersErrors:
    """NumPy's error handling of the thread that made a call, for the thread that runs it."""

    def __init__(self) -> None:
        self._kinds = np.geterr()
        self._call: Any = np.geterrcall()

    def applied(self) -> np.errstate:
        """Return a context manager that applies it."""
        return np.errstate(call=self._call, **self._kinds)


class Initializer:
    """A pool's initializer for one worker: called once, and its failure is kept.

    Parameters
    ----------
    call : tuple of (callable, tuple) or None
        The initializer with its arguments.

    Attributes
    ----------
    broken : BaseException or None
        The error of every later run and call, once it has failed.
    """

    def __init__(self, call: Initialization | None = None) -> None:
        self._call = call
        self.broken: BaseException | None = None
        self._once = threading.RLock()

    def run(self) -> None:
        """Call it, unless it was called before; raise the error of every later run."""
        if self._call is not None:
            # Lock: a caller's thread and the pool thread of a serial pool may come at once. The
            # initializer does not wait for the pool: its own calls run in its thread.
            with self._once, inside_worker():
                self._run_once()
        check(self.broken)

    def _run_once(self) -> None:
        if self._call is not None:
            initializer, arguments = self._call
            try:
                initializer(*arguments)
                exit_if_forked()
            except BaseException as error:
                exit_if_forked(error)
                from shmpar.engines.packing import initializer_failed

                main = threading.current_thread() is threading.main_thread()
                if main and issubclass(type(error), KeyboardInterrupt):
                    raise  # Why: the user has interrupted it; the next run calls it again.
                self.broken = initializer_failed(error)
            self._call = None


def as_if_pickled(value: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy of a result; shared arrays, and objects without a copy, stay themselves.

    Parameters
    ----------
    memo : dict
        The copies by the ids of their originals, as in :func:`copy.deepcopy`.

    Examples
    --------
    >>> buffer = np.zeros(2)
    >>> found = as_if_pickled([buffer, {"again": buffer}], {})
    >>> found[0] is buffer, found[1]["again"] is found[0]
    (False, True)
    """
    made: Any
    kind = type(value)
    if kind in protocol.UNCHANGING or isinstance(value, SharedArray):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is list:
        made = memo[id(value)] = []
        made += [as_if_pickled(one, memo) for one in value]
    elif kind is dict:
        made = memo[id(value)] = {}
        made.update({key: as_if_pickled(one, memo) for key, one in value.items()})
    elif kind is tuple:
        made = tuple([as_if_pickled(one, memo) for one in value])
    else:
        try:
            made = copy.deepcopy(value, memo)
        except Exception:  # noqa: BLE001 - the user's object may raise anything
            made = value
    return made


def _protected(array: Any) -> Any:
    if isinstance(array, Part):
        return Part(protected(array.array), array.origin, array.shape)
    return protected(array)


def check(broken: BaseException | None) -> None:
    """Raise the error of a failed initializer, if there is one."""
    if broken is not None:
        raise broken.with_traceback(None)


def bind_outputs(outputs: Sequence[Any] | None, stores: OpenStores) -> Sequence[Any] | None:
    """Return the outputs of a run for the worker that has these stores."""
    if outputs is None:
        return None
    return [stores.bind(one) if isinstance(one, Store) else one for one in outputs]


class LocalChannel:
    """A channel to a run in the same process.

    Parameters
    ----------
    active : ActivePlan
        The run.
    tell : callable
        Takes an event; may be called by any thread.
    stores : OpenStores
        Those of the worker.
    allocating : Lock
        Lock: held by the worker that allocates the outputs; two may have their first result at
        once.
    is_due : callable
        Whether the worker is to return, between two claims.
    interruptible : bool
        Whether the worker is the user's thread.
    """

    def __init__(
        self,
        active: ActivePlan,
        tell: Callable[[protocol.Event], object],
        stores: OpenStores,
        allocating: threading.Lock,
        *,
        is_due: Callable[[], bool] = lambda: False,
        interruptible: bool = False,
    ) -> None:
        self._active = active
        self._tell = tell
        self._stores = stores
        self._allocating = allocating
        self.enough = is_due
        self.interruptible = interruptible

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Allocate the outputs, unless another worker has."""
        active = self._active
        if active.stopped:
            raise Abandoned
        with self._allocating:
            if active.outputs is None:
                try:
                    active.allocate(announcement)
                except BaseException as error:
                    self.reject(error)
                    raise Abandoned from error
        return bind_outputs(active.outputs, self._stores) or (), bool(active.is_tuple)

    def reject(self, error: BaseException) -> None:
        """Report that the run cannot go on."""
        if isinstance(error, ShmparError):
            # Why: the frames hold the memory of the run; the cause tells the place.
            error.with_traceback(None)
        self._tell(protocol.PlanRejected(self._active.number, error))

    def failed(self, chunk: int, error: BaseException, shape: tuple[int, ...] | None) -> None:
        """Report a chunk that failed."""
        self._tell(protocol.ChunkFailed(self._active.number, chunk, error, shape))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Hand over results that are objects, as copies: the function may change them later."""
        copies = [(chunk, as_if_pickled(value, {})) for chunk, value in values]
        self._tell(protocol.ObjectsReturned(self._active.number, copies))

    def finished(self, generation: int, first: int, last: int) -> None:
        """Report that the tickets ``first <= t < last`` are done, or have failed."""
        self._tell(protocol.ClaimFinished(self._active.number, generation, first, last))

    def flush(self) -> None:
        """Do nothing: no result is held back."""


class LocalEngine(WithoutProcesses):
    """The common parts of both engines."""

    remote = False
    _broken: BaseException | None = None  # the error of a failed initializer

    def prepare(
        self, plan: Plan, function: Function, arrays: list[Array], *, frozen: bool
    ) -> CallersErrors:
        """Take the caller's error handling; nothing is pickled or copied."""
        for array in arrays:
            if isinstance(array, np.ndarray):
                locate(array)  # Why: it raises an error for a file that was truncated
        check(self._broken)
        return CallersErrors()

    def prepare_call(self, call: Function) -> tuple[Function, CallersErrors]:
        """Take the caller's error handling too."""
        check(self._broken)
        return call, CallersErrors()

    def tickets(self) -> Tickets:
        """Return a new counter."""
        return new_tickets()

    def order(self, plan: Plan, todo: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the order as it is: all chunks are equally near."""
        return todo

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Return none: no call is given ahead."""
        return []

    def kill(self, worker: int, run: int) -> None:
        """Do nothing: a thread cannot be killed."""

    def _assignment(
        self, active: ActivePlan, generation: Generation, worker: int, stores: OpenStores
    ) -> Assignment:
        """Bind a run to the memory of this process; inputs become read-only views."""
        return Assignment(
            plan=active.plan,
            function=active.function,
            arrays=bind_inputs(active.plan, active.arrays, _protected, stores),
            outputs=bind_outputs(active.outputs, stores),
            is_tuple=active.is_tuple,
            tickets=generation.tickets,
            todo=generation.todo,
            generation=generation.number,
            ledger=active.ledger,
            worker=worker,
            slot=active.ledger.slot(worker),
            workers=self.workers,
            reports=active.reports,
            sums=active.checksums,
            origin=active.origin,
        )


_Prepared = tuple[Function, CallersErrors]


def _finished(number: int, prepared: _Prepared, more: tuple[Any, ...]) -> protocol.CallFinished:
    """Make a call; return its end."""
    call, errors = prepared
    with inside_worker(), errors.applied():
        try:
            value = call.call(*call.values, *more, **call.keywords)
            exit_if_forked()
        except BaseException as error:  # noqa: BLE001 - it is the call's outcome
            exit_if_forked(error)
            shorten(error, delivered=True)
            return protocol.CallFinished(number, error=error)
    return protocol.CallFinished(number, value)


class SerialEngine(LocalEngine):
    """An engine with a single worker, the thread that owns it.

    Parameters
    ----------
    initializer : Initializer
        Called before the first run or call.
    interruptible : bool
        Whether the owner is the user's thread, where a KeyboardInterrupt ends the run.
    """

    name = "serial"

    def __init__(self, initializer: Initializer, *, interruptible: bool = False) -> None:
        self._initializer = initializer
        self._interruptible = interruptible
        self._queue: deque[tuple[ActivePlan, Generation]] = deque()
        self._moved: dict[int, protocol.StoreTraffic] = {}  # from and to stores, in turns of runs
        self._call: tuple[int, _Prepared, tuple[Any, ...]] | None = None
        self._events: deque[protocol.Event] = deque()
        self._stores = OpenStores()
        # Why a SimpleQueue: its put is reentrant, so that any thread may wake the owner.
        self._awake = queue.SimpleQueue[None]()

    @property
    def _broken(self) -> BaseException | None:  # type: ignore[override]
        return self._initializer.broken

    def open(self, active: ActivePlan) -> list[int]:
        """Call the initializer before the first run."""
        self._initializer.run()
        return [0]

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Queue a generation for the next :meth:`wait`."""
        self._queue.append((active, generation))

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Take back the generations that are queued."""
        active.stopped = True
        self._moved.pop(active.number, None)
        mine = [item for item in self._queue if item[0] is active]
        for item in mine:
            self._queue.remove(item)
        return [
            protocol.CounterExhausted(0, active.number, generation.number) for _, generation in mine
        ]

    def close(self, active: ActivePlan) -> None:
        """Close the run's counters and stores."""
        for generation in active.generations:
            generation.tickets.close()
        self._stores.drop()

    def free_worker(self) -> int | None:
        """Return the worker if it has no call."""
        return 0 if self._call is None else None

    def call(
        self, worker: int, number: int, prepared: _Prepared, more: tuple[Any, ...] = ()
    ) -> None:
        """Keep a call for the next :meth:`wait`."""
        self._call = number, prepared, more

    def wait(self, timeout: float | None) -> list[protocol.Event]:
        """Make the call, or work on the first generation of the queue for a turn."""
        if not self._events:
            if self._call is not None:
                self._make_call()
            elif self._queue:
                self._work()
            else:
                self._sleep(timeout)
            while not self._awake.empty():
                self._awake.get()
        events = list(self._events)
        self._events.clear()
        return events

    def _sleep(self, timeout: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._awake.get(timeout=timeout)

    def wake(self) -> None:
        """End the owner's sleep."""
        self._awake.put(None)

    def _make_call(self) -> None:
        call, self._call = self._call, None
        assert call is not None
        number = call[0]
        try:
            self._initializer.run()
        except BaseException as error:  # noqa: BLE001 - the call is told
            self._events.append(protocol.CallFinished(number, error=error))
        else:
            self._events.append(_finished(*call))

    def _work(self) -> None:
        active, generation = item = self._queue.popleft()
        until, tell = time.monotonic() + TURN_SECONDS, self._events.append

        def is_due() -> bool:
            return time.monotonic() >= until or not self._awake.empty()

        channel = LocalChannel(
            active,
            tell,
            self._stores,
            threading.Lock(),
            is_due=is_due,
            interruptible=self._interruptible,
        )
        assignment = self._assignment(active, generation, 0, self._stores)
        with active.prepared.applied():
            exhausted, moved = traffic.counted(work, assignment, channel)
        before = self._moved.pop(active.number, protocol.NO_TRAFFIC)
        total = protocol.add_traffic(before, moved)
        if exhausted:
            tell(protocol.CounterExhausted(0, active.number, generation.number, traffic=total))
        else:
            self._moved[active.number] = total
            self._queue.appendleft(item)

    def shutdown(self) -> None:
        """Drop the queue, and the stores of a run that was cut off."""
        self._queue.clear()
        self._stores.drop()


_Plans = list[tuple[ActivePlan, Generation]]  # of one plan; emptied when its run is over
_Sent = deque[tuple[int, _Prepared, tuple[Any, ...]]]  # of one call; emptied when it begins
_Inbox = queue.SimpleQueue[_Plans | _Sent | None]
_NO_RUN = -1  # no run has this number


class ThreadsEngine(LocalEngine):
    """Workers that are threads.

    Parameters
    ----------
    workers : int
        How many.
    initializer : tuple of (callable, tuple), optional
        Called with its arguments in each thread before its first chunk.
    """

    name = "threads"

    def __init__(self, workers: int, initializer: Initialization | None = None) -> None:
        self.workers = workers
        self._initializer = initializer
        self._events = queue.SimpleQueue[protocol.Event | None]()
        self._ready: set[int] = set()
        self._given = [0] * workers  # plans and calls that have not been reported on
        self._calling: dict[int, int] = {}  # worker of each call
        self._sent: dict[int, _Sent] = {}
        self._plans: dict[int, list[_Plans]] = {}
        self._allocating = threading.Lock()
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(workers)]
        self._threads: list[threading.Thread] = []
        try:
            for worker in range(workers):
                thread = threading.Thread(
                    target=self._run, args=(worker,), name=f"shmpar-{worker}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except BaseException:  # Why: the system may have no more threads for this user
            self.shutdown()
            raise

    def open(self, active: ActivePlan) -> list[int]:
        """Return the threads that are up."""
        self._plans[active.number] = []
        return sorted(self._ready)

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Queue a generation for the worker's thread."""
        self._given[worker] += 1
        plans = [(active, generation)]
        self._plans[active.number].append(plans)
        self._inboxes[worker].put(plans)

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Do no more: a queued plan has no tickets left when a thread comes to it."""
        active.stopped = True
        return []

    def close(self, active: ActivePlan) -> None:
        """Empty the inboxes of the run; its counters go with the last thread that has them."""
        for plans in self._plans.pop(active.number, ()):
            plans.clear()

    def free_worker(self) -> int | None:
        """Return the thread that has least to do, if it has no call."""
        busy = set(self._calling.values())
        free = [worker for worker in range(self.workers) if worker not in busy]
        return min(free, key=self._given.__getitem__, default=None)

    def has_plan(self, worker: int) -> bool:
        """Return whether a thread has a plan, behind which a call may wait."""
        return self._given[worker] > [*self._calling.values()].count(worker)

    def call(
        self, worker: int, number: int, prepared: _Prepared, more: tuple[Any, ...] = ()
    ) -> None:
        """Queue a call for the worker's thread."""
        self._given[worker] += 1
        self._calling[number] = worker
        sent = self._sent[number] = deque([(number, prepared, more)])
        self._inboxes[worker].put(sent)

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Take back the calls that a thread has not begun; return their numbers."""
        taken = []
        for number in [number for number, one in self._calling.items() if one == worker]:
            # Invariant: either this thread takes the call, in one step, or that of the worker.
            with contextlib.suppress(IndexError):
                self._sent[number].pop()
                taken.append(number)
        for number in taken:
            self._forget(number)
        return taken

    def _forget(self, call: int) -> None:
        """Note that a thread has a call no more."""
        del self._sent[call]
        self._given[self._calling.pop(call)] -= 1

    def wait(self, timeout: float | None) -> list[protocol.Event]:
        """Wait until a thread has reported; return the events."""
        events: list[protocol.Event] = []
        try:
            event = self._events.get(timeout=timeout)
            while True:
                if event is not None:
                    self._note(event)
                    events.append(event)
                event = self._events.get_nowait()
        except queue.Empty:
            return events

    def _note(self, event: protocol.Event) -> None:
        match event:
            case protocol.WorkerReady():
                self._ready.add(event.worker)
            case protocol.CounterExhausted():
                self._given[event.worker] -= 1
            case protocol.CallFinished():
                self._forget(event.call)

    def wake(self) -> None:
        """End the owner's wait."""
        self._events.put(None)

    def shutdown(self) -> None:
        """End the threads, each after the chunks that it has claimed."""
        for plans in self._plans.values():
            for active, generation in (item for plan in plans for item in plan):
                generation.tickets.stop(active.plan.chunks)
        for sent in self._sent.values():
            sent.clear()
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, worker: int) -> None:
        """Serve the inbox, in the worker's thread."""
        tell, inbox = self._events.put, self._inboxes[worker]
        broken: BaseException | None = None
        try:
            Initializer(self._initializer).run()
        except BaseException as error:  # noqa: BLE001 - each run is told
            self._broken = broken = error
        tell(protocol.WorkerReady(worker))
        while (item := inbox.get()) is not None:
            if isinstance(item, deque):
                self._take_call(item, broken)
            else:
                self._take_plan(worker, item, broken)
            # Why: while this thread waits, its frame keeps no object of the user alive.
            del item

    def _take_call(self, sent: _Sent, broken: BaseException | None) -> None:
        try:
            number, prepared, more = sent.pop()
        except IndexError:  # it was withdrawn
            return
        if broken is None:
            self._events.put(_finished(number, prepared, more))
        else:
            self._events.put(protocol.CallFinished(number, error=broken))

    def _take_plan(self, worker: int, plans: _Plans, broken: BaseException | None) -> None:
        tell, found = self._events.put, plans[:1]
        if not found:  # its run is over
            tell(protocol.CounterExhausted(worker, _NO_RUN, 0))
        for active, generation in found:
            try:
                check(broken)
                self._work(worker, active, generation)
            except BaseException as error:  # noqa: BLE001 - the run is told
                tell(protocol.PlanRejected(active.number, error))
                tell(protocol.CounterExhausted(worker, active.number, generation.number))

    def _work(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        stores = OpenStores()
        assignment = self._assignment(active, generation, worker, stores)
        channel = LocalChannel(active, self._events.put, stores, self._allocating)
        try:
            with active.prepared.applied():
                _, moved = traffic.counted(work, assignment, channel)
        finally:
            stores.drop()
        # Why: a run that is alone waits for all threads, which are about to drop its memory. Not so
        # beside a call, which may take long, or wait for this run.
        alone = len(self._plans) == 1 and not self._calling
        had = (0, None) if alone else (assignment.claimed, assignment.handed_out)
        del assignment
        key = active.number, generation.number
        self._events.put(protocol.CounterExhausted(worker, *key, *had, traffic=moved))


def cap_threads(threads: int) -> Callable[[], object]:
    """Cap the thread pools of libraries, if threadpoolctl is there; return how to undo it."""
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return lambda: None
    try:
        capped = open_with_retry(threadpoolctl.threadpool_limits, threads)
    except FileNotFoundError:  # Why: it looks for the libraries in /proc, which is not mounted
        return lambda: None
    undo: Callable[[], object] = capped.restore_original_limits
    return undo

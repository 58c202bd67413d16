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
from functools import partial
from typing import Any

import numpy as np

from shmpar.arrays import SharedArray
from shmpar.engines.engine import ActivePlan, Engine, Generation, take_back
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
CallersErrors = Callable[[], np.errstate]

TURN_SECONDS = 0.1  # the serial engine works for so long before it reports


def callers_errors() -> CallersErrors:
    """Return a function that makes a context manager with this thread's error handling of NumPy."""
    call: Any = np.geterrcall()
    return partial(np.errstate, call=call, **np.geterr())


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
                if self._call is not None:
                    self._run_once(*self._call)
                    self._call = None
        check(self.broken)

    def _run_once(self, initializer: Callable[..., object], arguments: tuple[Any, ...]) -> None:
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


def check(broken: BaseException | None) -> None:
    """Raise the error of a failed initializer, if there is one."""
    if broken is not None:
        raise broken.with_traceback(None)


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
    try:
        if kind is list:
            made = memo[id(value)] = []
            made += [as_if_pickled(one, memo) for one in value]
        elif kind is dict:
            made = memo[id(value)] = {}
            made.update({key: as_if_pickled(one, memo) for key, one in value.items()})
        elif kind is tuple:
            made = tuple([as_if_pickled(one, memo) for one in value])
        else:
            made = copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - the user's object may raise anything, or lie too deep
        made = memo[id(value)] = value
    return made


def _protected(array: Any) -> Any:
    if isinstance(array, Part):
        return Part(protected(array.array), array.origin, array.shape)
    return protected(array)


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


class LocalEngine(Engine):
    """The common parts of both engines.

    Parameters
    ----------
    initializers : sequence of Initializer
        That of each worker.
    """

    def __init__(self, initializers: Sequence[Initializer]) -> None:
        self._initializers = initializers
        self.workers = len(initializers)

    def prepare(
        self, plan: Plan, function: Function, arrays: list[Array], *, frozen: bool
    ) -> CallersErrors:
        """Take the caller's error handling; nothing is pickled or copied."""
        for array in arrays:
            if isinstance(array, np.ndarray):
                locate(array)  # Why: it raises an error for a file that was truncated
        check(self._broken)
        return callers_errors()

    def prepare_call(self, call: Function) -> tuple[Function, CallersErrors]:
        """Take the caller's error handling too."""
        check(self._broken)
        return call, callers_errors()

    @property
    def _broken(self) -> BaseException | None:
        """The error of an initializer that has failed."""
        return next((one.broken for one in self._initializers if one.broken is not None), None)

    def tickets(self) -> Tickets:
        """Return a new counter."""
        return new_tickets()

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


def _finished(
    initializer: Initializer, number: int, prepared: _Prepared, more: tuple[Any, ...]
) -> protocol.CallFinished:
    """Make a call, in a worker that is initialized; return its end."""
    call, errors = prepared
    try:
        initializer.run()
    except BaseException as error:  # noqa: BLE001 - the call is told
        return protocol.CallFinished(number, error=error)
    with inside_worker(), errors():
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
        super().__init__([initializer])
        self._interruptible = interruptible
        self._queue: deque[tuple[ActivePlan, Generation]] = deque()
        self._moved: dict[int, protocol.StoreTraffic] = {}  # from and to stores, in turns of runs
        self._call: tuple[int, _Prepared, tuple[Any, ...]] | None = None
        self._events: deque[protocol.Event] = deque()
        self._stores = OpenStores()
        # Why a SimpleQueue: its put is reentrant, so that any thread may wake the owner.
        self._awake = queue.SimpleQueue[None]()

    def open(self, active: ActivePlan) -> list[int]:
        """Call the initializer before the first run."""
        self._initializers[0].run()
        return [0]

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Queue a generation for the next :meth:`wait`."""
        self._queue.append((active, generation))

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Take back the generations that are queued."""
        active.stopped = True
        self._moved.pop(active.number, None)
        return [
            protocol.CounterExhausted(0, active.number, generation.number)
            for generation in take_back(self._queue, active)
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
                call, self._call = self._call, None
                self._events.append(_finished(self._initializers[0], *call))
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
        with active.prepared():
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


_Job = deque[Callable[[], object]]  # the work on one plan or call; empty when begun or taken back
_Inbox = queue.SimpleQueue[_Job | None]


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
        super().__init__([Initializer(initializer) for _ in range(workers)])
        self._events = queue.SimpleQueue[protocol.Event | None]()
        self._ready: set[int] = set()
        self._given = [0] * workers  # plans and calls that have not been reported on
        self._calls: dict[int, tuple[int, _Job]] = {}  # worker and job of each call
        self._plans: dict[ActivePlan, list[tuple[int, _Job]]] = {}
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
        self._plans[active] = []
        return sorted(self._ready)

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Queue a generation for the worker's thread."""
        job = self._send(worker, partial(self._take_plan, worker, active, generation))
        self._plans[active].append((worker, job))

    def _send(self, worker: int, work: Callable[[], object]) -> _Job:
        self._given[worker] += 1
        job = deque([work])
        self._inboxes[worker].put(job)
        return job

    def _take_back(self, worker: int, job: _Job) -> bool:
        """Take back the work of a job; return False if its thread has begun it."""
        # Invariant: either this thread takes the work, in one step, or that of the worker.
        try:
            job.pop()
        except IndexError:
            return False
        self._given[worker] -= 1
        return True

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Do no more: a queued plan has no tickets left when a thread comes to it."""
        active.stopped = True
        return []

    def close(self, active: ActivePlan) -> None:
        """Take back the plans of the run; its counters go with the last thread that has them."""
        for worker, job in self._plans.pop(active, ()):
            self._take_back(worker, job)

    def free_worker(self) -> int | None:
        """Return the thread that has least to do, if it has no call."""
        busy = {worker for worker, _ in self._calls.values()}
        free = [worker for worker in range(self.workers) if worker not in busy]
        return min(free, key=self._given.__getitem__, default=None)

    def has_plan(self, worker: int) -> bool:
        """Return whether a thread has a plan, behind which a call may wait."""
        return self._given[worker] > sum(one == worker for one, _ in self._calls.values())

    def call(
        self, worker: int, number: int, prepared: _Prepared, more: tuple[Any, ...] = ()
    ) -> None:
        """Queue a call for the worker's thread."""
        job = self._send(worker, partial(self._make_call, worker, number, prepared, more))
        self._calls[number] = worker, job

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Take back the calls that a thread has not begun; return their numbers."""
        taken = [
            number
            for number, (one, job) in self._calls.items()
            if one == worker and self._take_back(worker, job)
        ]
        for number in taken:
            del self._calls[number]
        return taken

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
                worker, _ = self._calls.pop(event.call)
                self._given[worker] -= 1

    def wake(self) -> None:
        """End the owner's wait."""
        self._events.put(None)

    def shutdown(self) -> None:
        """End the threads, each after the chunks that it has claimed."""
        for active in self._plans:
            for generation in active.generations:
                generation.tickets.stop(active.plan.chunks)
        for _, job in self._calls.values():
            job.clear()
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, worker: int) -> None:
        """Serve the inbox, in the worker's thread."""
        inbox = self._inboxes[worker]
        with contextlib.suppress(BaseException):  # Why: each run and call is told.
            self._initializers[worker].run()
        self._events.put(protocol.WorkerReady(worker))
        while (job := inbox.get()) is not None:
            try:
                work = job.pop()
            except IndexError:  # it was taken back
                continue
            work()
            # Why: while this thread waits, its frame keeps no object of the user alive.
            del work

    def _make_call(
        self, worker: int, number: int, prepared: _Prepared, more: tuple[Any, ...]
    ) -> None:
        self._events.put(_finished(self._initializers[worker], number, prepared, more))

    def _take_plan(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        try:
            self._initializers[worker].run()
            self._work(worker, active, generation)
        except BaseException as error:  # noqa: BLE001 - the run is told
            self._events.put(protocol.PlanRejected(active.number, error))
            ended = protocol.CounterExhausted(worker, active.number, generation.number)
            self._events.put(ended)

    def _work(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        stores = OpenStores()
        assignment = self._assignment(active, generation, worker, stores)
        channel = LocalChannel(active, self._events.put, stores, self._allocating)
        try:
            with active.prepared():
                _, moved = traffic.counted(work, assignment, channel)
        finally:
            stores.drop()
        # Why: a run that is alone waits for all threads, which are about to drop its memory. Not so
        # beside a call, which may take long, or wait for this run.
        alone = len(self._plans) == 1 and not self._calls
        had = (0, None) if alone else (assignment.claimed, assignment.handed_out)
        left = assignment.left
        del assignment
        key = active.number, generation.number
        self._events.put(protocol.CounterExhausted(worker, *key, *had, left=left, traffic=moved))


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

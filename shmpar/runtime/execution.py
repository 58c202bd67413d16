"""State and control of one run.

Threads
-------
:meth:`Execution.prepare` runs in the thread that made the call. After it the pool thread alone
changes the state; other threads read progress for display. The serial engine runs both in the
caller's thread.

Guarantees
----------
- A run is over only when no worker writes to its outputs any more, and then at once.
- Its outcome follows from the ledger and the recorded errors alone, not from the order in which
  workers finished.
- A complete run keeps, for its report, a copy of its ledger and a few numbers per array: no input,
  no function, no segment.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.engines.engine import ActivePlan, Engine, Exit, Generation, HostTraffic
from shmpar.errors import HostsLost, ShmparError
from shmpar.ipc import protocol
from shmpar.ipc.ledger import DONE, FAILED, FINGERPRINT, PENDING, Ledger, LostClaim
from shmpar.memory.allocate import SMALL, preflight
from shmpar.memory.locate import describe
from shmpar.plan import Announcement, Function, Plan
from shmpar.runtime import error_texts, scheduler
from shmpar.runtime.futures import CompletionStream
from shmpar.runtime.items import RunItems
from shmpar.runtime.outputs import Outputs, Scratch
from shmpar.stores.store import Store
from shmpar.worker.compute import ApplyAlongAxis
from shmpar.worker.verify import Verification

Described = list[tuple[str, int, int]]  # see shmpar.memory.locate.describe
_numbers = itertools.count()


def max_startup_failures(workers: int) -> int:
    """Return how many workers in a row may die before they have work.

    That is each of them and a successor, and two more: beyond, the cause is not chance.
    """
    return 2 * workers + 2


class Policy(NamedTuple):
    """The user's choices for the failures of a run.

    Attributes
    ----------
    on_error : {"raise", "collect", "fill"}
        Stop at the first failure; compute the rest and raise all; or fill their windows.
    fill_value : object
        For ``"fill"``; None is NaN or NaT.
    retries : int
        How often a chunk whose worker died is computed again.
    task_timeout : float or None
        Seconds that a chunk may take.
    in_place : bool
        The output is the input: a chunk that was begun cannot be computed again.
    check : bool
        Verify at the end that every window was written once, and nothing else.
    """

    on_error: str = "raise"
    fill_value: Any = None
    retries: int = 1
    task_timeout: float | None = None
    in_place: bool = False
    check: bool = False


def _copier(ledger: Ledger) -> Callable[[], Ledger]:
    """Copy the bytes of a ledger; return a function that makes a ledger of them."""
    return functools.partial(Ledger, ledger.copy(), workers=ledger.workers, chunks=ledger.chunks)


class Execution:
    """State and control of one run.

    Parameters
    ----------
    todo : tuple of int, optional
        Chunks to compute, if an earlier run has done the others.
    items : RunItems, optional
        The items, if the function gets any.

    Attributes
    ----------
    number : int
        Unique in this interpreter.
    plan, policy, outputs
        The work, the choices for failures, and the results.
    run : object or None
        The run that errors name; None once it has been told of the outcome.
    items : RunItems or None
        The items that the function gets.
    stream : CompletionStream
        Chunks that are done or failed.
    errors : dict of int to ShmparError
        Failures, by chunk.
    fatal : BaseException or None
        The error that ended the run as a whole.
    deaths : int
        Workers that died while they had a chunk.
    cancelled : bool
        The user cancelled it.
    over : bool
        No worker writes any more; `outcome` is there.
    outcome : object
        The result, or the exception that is raised for it.
    was_filled : bool
        The windows of failed chunks were filled.
    to_warn : list of ShmparError
        Their failures, until the caller has been warned of them.
    deadline : float or None
        When the workers of a cancelled run are killed, by the monotonic clock.
    name : str
        Name of the user's function; empty if it has none.
    began : float
        When the run was made, by :func:`time.perf_counter`.
    opened : float or None
        When its workers could begin.
    cold : bool
        No worker was up then.
    seconds : float or None
        How long it took, once it is over.
    hosts : dict of str to HostTraffic or None
        The numbers of each host, on a cluster.
    attempts : list of LostClaim
        Claims that ended with their worker.
    unfinished : sequence of int
        Chunks that are not done, once it is over.
    units : sequence of (tuple of int or None)
        The unit of each input; None for an array in memory.
    traffic : StoreTraffic
        That of all workers.
    """

    run: Any = None
    fatal: BaseException | None = None
    deaths = 0
    cancelled = False
    over = False
    outcome: Any = None
    was_filled = False
    deadline: float | None = None
    opened: float | None = None
    cold = False
    seconds: float | None = None
    hosts: dict[str, HostTraffic] | None = None
    unfinished: Sequence[int] = ()
    traffic = protocol.NO_TRAFFIC
    engine: Engine | None = None
    _prepared: Any = None
    _attended = False
    _active: ActivePlan | None = None
    _make_ledger: Callable[[], Ledger] | None = None
    _described: tuple[Described, Described] | None = None
    _verification: Verification | None = None

    def __init__(  # noqa: PLR0913 - the parts of a run
        self,
        plan: Plan,
        function: Function,
        arrays: list[Any],
        outputs: Outputs,
        policy: Policy,
        todo: tuple[int, ...] | None = None,
        *,
        items: RunItems | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.plan = plan
        self.policy = policy
        self.outputs = outputs
        self.items = items
        self.stream = CompletionStream()
        self.errors: dict[int, ShmparError] = {}
        self.to_warn: list[ShmparError] = []
        call = function.call
        name = call.func1d if type(call) is ApplyAlongAxis else call
        self.name = error_texts.function_name(name)
        self.began = time.perf_counter()
        self.attempts: list[LostClaim] = []
        self.units = [one.unit if isinstance(one, Store) and one.size else None for one in arrays]
        self._todo = todo
        self._arrived: set[int] = set()  # chunks whose result is an object that has arrived
        if items is not None and todo is not None:
            missing = set(todo)
            self.stream.add(one for one in range(plan.chunks) if one not in missing)
        self._function: Function | None = function
        self._arrays = arrays
        self._scheduler = scheduler.Scheduler(
            retries=policy.retries,
            fail_fast=policy.on_error == "raise",
            chunks=plan.chunks,
            in_place=policy.in_place,
        )
        self._events: deque[scheduler.SchedulerEvent] = deque()
        self._scratch = Scratch()
        self._exit = Exit(None)

    @property
    def running(self) -> bool:
        """True from its begin until it is over."""
        return self._active is not None

    @property
    def initial(self) -> int:
        """Number of the chunks that an earlier run has computed."""
        return 0 if self._todo is None else self.plan.chunks - len(self._todo)

    @property
    def settled(self) -> int:
        """Chunks that are done or failed."""
        active = self._active
        ledger = self.ledger if active is None else active.ledger
        return 0 if ledger is None else ledger.settled

    @property
    def failed(self) -> list[ShmparError]:
        """The failures, in chunk order."""
        return [error for _, error in sorted(self.errors.items())]

    @property
    def ledger(self) -> Ledger | None:
        """A copy of the ledger; None before the run has begun."""
        active = self._active
        make = self._make_ledger if active is None else _copier(active.ledger)
        return None if make is None else make()

    def arrays(self) -> tuple[Described, Described]:
        """Describe the memory of each input and output."""
        inputs, outputs = self._arrays, self.outputs.arrays or ()
        return self._described or ([*map(describe, inputs)], [*map(describe, outputs)])

    # The caller's thread

    def prepare(self, engine: Engine, *, attended: bool) -> None:
        """Allocate the outputs that are known, and make the run ready to be sent.

        Parameters
        ----------
        attended : bool
            The caller waits for the end, and does not look at the output before.

        Raises
        ------
        PlanError, SegmentFull
            If the function cannot be pickled, or there is no room.
        """
        assert self._function is not None, "a run is executed once"
        self.engine, self._attended = engine, attended
        # Why: workers reserve such outputs, so nobody may look at them before the end.
        self.outputs.lazy = attended and not self.plan.check and not engine.remote
        # Why pass_out: a function may add to its window.
        self.outputs.blank = not self.outputs.lazy or self.plan.pass_out
        self._allocate_known(engine)
        if self.plan.check:
            verification = Verification(self.plan, self._arrays, self._todo, self.outputs.checksums)
            verification.fill_outputs(self.outputs.arrays or ())
            self._verification, self.outputs.checksums = verification, verification.sums
        written = any(isinstance(one, np.ndarray) for one in self.outputs.given or ())
        self._prepared = engine.prepare(
            self.plan, self._function, self._arrays, frozen=written or not attended
        )

    def _allocate_known(self, engine: Engine) -> None:
        outputs = self.outputs
        made = outputs.shared_nbytes()
        if sum([array.nbytes for array in self._arrays]) + sum(made) > SMALL:
            needs = [("an output", size) for size in made]
            needs += [("a copy of an input", size) for size in engine.bytes_to_copy(self._arrays)]
            if sum([size for _, size in needs]) > SMALL:
                preflight(self.plan.verb, needs)
        if outputs.expected is not None and outputs.arrays is None:
            outputs.allocate(outputs.expected)

    # The pool thread

    def start(self, engine: Engine) -> None:
        """Begin on an engine."""
        self.engine, plan = engine, self.plan
        # Why here: only the pool thread takes pieces of a slab.
        self.outputs.slab = engine.slab
        function = self._function
        assert function is not None, "a run is executed once"
        active = ActivePlan(
            number=self.number,
            plan=plan,
            function=function,
            arrays=self._arrays,
            prepared=self._prepared,
            ledger=engine.ledger(plan.chunks),
            origin=self.began,
            allocate=self._allocate,
            outputs=self.outputs.arrays,
            is_tuple=self.outputs.is_tuple,
            checksums=self.outputs.checksums,
            reports=not self._attended and not plan.returns_objects,
            retries=self.policy.retries,
            task_timeout=self.policy.task_timeout,
            in_place=self.policy.in_place,
        )
        self._active, self._prepared, self.hosts = active, None, active.hosts
        if self._todo is not None:
            active.ledger.status[:] = DONE
            active.ledger.status[list(self._todo)] = PENDING
        # Why: while the outputs are in spare memory, no other thread can look at them.
        waits = self._attended and plan.fail_fast and active.checksums is None
        active.small_outputs = waits and engine.slab is not None and active.outputs is None
        self._scheduler.max_startup_failures = max_startup_failures(engine.workers)
        try:
            ready = engine.open(active)
            self.opened, self.cold = time.perf_counter(), not ready
            # Invariant: no command after the first, which makes the counter, raises.
            todo = engine.order(plan, self._todo)
            for command in self._scheduler.start(ready, todo):
                self._do(command)
        except BaseException:
            self._active = None
            engine.close(active)
            raise
        self._settle()

    def _allocate(self, announcement: Announcement) -> None:
        active = self._alive
        outputs = self.outputs.allocate(announcement)
        if self._verification is not None:
            self._verification.fill_outputs(outputs)
        active.is_tuple = announcement.is_tuple
        active.outputs = outputs

    @property
    def _alive(self) -> ActivePlan:
        assert self._active is not None, "this run is not being executed"
        return self._active

    def handle(self, event: protocol.Event) -> None:
        """Take an event of this run, or of a worker."""
        match event:
            case protocol.CounterExhausted():
                if event.announcement is not None:
                    self._announced(Announcement.unpack(event.announcement))
                self.traffic = protocol.add_traffic(self.traffic, event.traffic)
                self._feed(event)
            case protocol.ClaimFinished():
                self._claim_finished(event)
            case protocol.ChunkFailed():
                self._chunk_failed(event)
            case protocol.PlanRejected():
                self._rejected(event)
            case protocol.WorkerReady():
                self._feed(event)
            case protocol.WorkerLost():
                self.worker_lost(event)
            case protocol.Warned():
                self.run.add_warning(event)
            case protocol.ObjectsReturned():
                self._objects_returned(event)

    def _feed(self, event: scheduler.SchedulerEvent) -> None:
        """Give an event to the scheduler, and do as it says."""
        self._events.append(event)
        self._settle()

    def _settle(self) -> None:
        while self._events and not self.over:
            for command in self._scheduler.handle(self._events.popleft()):
                self._do(command)

    def _rejected(self, event: protocol.PlanRejected) -> None:
        self.fatal = self.fatal or event.error
        if isinstance(event.error, HostsLost):
            event.error.run = self.run
        self._feed(event)

    def _announced(self, announcement: Announcement) -> None:
        error = self._scratch.announce(announcement)
        if error is not None:
            self._chunk_failed(protocol.ChunkFailed(self.number, announcement.chunk, error))

    def _objects_returned(self, event: protocol.ObjectsReturned) -> None:
        self.outputs.put(event.values, self.plan)
        new = [chunk for chunk, _ in event.values if chunk not in self._arrived]
        self._arrived.update(new)
        self.stream.add(new)

    def _chunk_failed(self, event: protocol.ChunkFailed) -> None:
        if event.chunk not in self.errors:
            if event.final:  # Why: a host has made it the error of this run.
                error = event.error
                error_texts.complete(error, self.plan, event.chunk, self.run, self.items)
            else:
                error = error_texts.chunk_error(self.plan, event, self.run, self.items)
            self._add_error(event.chunk, error)
            self._feed(event)

    def _add_error(self, chunk: int, error: ShmparError) -> None:
        self.errors[chunk] = error
        self.stream.add([~chunk])

    def _claim_finished(self, event: protocol.ClaimFinished) -> None:
        active = self._alive
        chunk, status = active.generations[event.generation].chunk, active.ledger.status
        chunks = map(chunk, range(event.first, event.last))
        self.stream.add([number for number in chunks if status[number] == DONE])

    def worker_lost(self, event: protocol.WorkerLost) -> None:
        """Take the loss of a worker, which has been reaped: its slot does not change any more."""
        active, worker = self._alive, event.worker
        self._exit = event.exit or self._exit
        for_another = event.killed_for not in {None, self.number}
        blamed, unfinished = active.settle_lost(
            worker,
            self.errors,
            self._arrived,
            innocent=for_another and not self.policy.in_place,
            cut_off=self._lost_results(event),
        )
        self.deaths += blamed is not None
        if (held := active.ledger.held(worker)) is not None:
            begin, end = held.since * 1e-9 - self.began, time.monotonic() - self.began
            self.attempts.append(LostClaim(worker, blamed, max(0.0, begin), end))
        self._scratch.worker_lost(active.ledger.slot(worker)[FINGERPRINT])
        active.ledger.reset_slot(worker)
        if self._verification is not None:
            self._verification.refill(unfinished if blamed is None else (blamed,))
        at_startup = event.at_startup and event.loading in {None, self.number}
        self._feed(event._replace(blamed=blamed, unfinished=unfinished, at_startup=at_startup))

    def holds(self, event: protocol.WorkerLost) -> bool:
        """Return True if the lost worker had a chunk of this run, or results it could not tell."""
        return self._alive.ledger.held(event.worker) is not None or self._lost_results(event)

    def _lost_results(self, event: protocol.WorkerLost) -> bool:
        """Return True if the worker could not tell its results: the function closed its socket."""
        active = self._alive
        cut_off = event.exit is not None and event.exit.code == protocol.SOCKET_LOST
        computed = cut_off and active.ledger.slot(event.worker)[FINGERPRINT] != 0
        return computed and active.small_outputs and active.outputs is None

    def check_deadlines(self, now: float) -> bool:
        """Kill the workers of chunks that take too long; return whether the grace is over."""
        limit = self.policy.task_timeout
        if limit is not None:
            for worker, chunk in self._alive.begun_before(int((now - limit) * 1e9)):
                self._feed(scheduler.ChunkTimedOut(worker, chunk))
        return self.deadline is not None and now >= self.deadline and not self.over

    def end_grace(self, elsewhere: Iterable[int]) -> None:
        """Kill the workers that may have a chunk, except those that are `elsewhere`."""
        self.deadline = None
        self._feed(scheduler.GraceExpired(frozenset(elsewhere)))

    def busy(self) -> list[int]:
        """Return the workers that hold tickets.

        Invariant: they hold no ticket of a run whose counters were stopped before this look.
        """
        ledger = self._alive.ledger
        return [one for one in range(ledger.workers) if ledger.held(one) is not None]

    def cancel(self, deadline: float | None = None) -> None:
        """Hand out no more tickets; kill the workers of chunks in progress at a deadline."""
        if self.over:
            return
        self.cancelled = True
        if self._active is None:
            self._end_unbegun()
            return
        if deadline is not None:
            self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)
            self._active.interrupted = True
        self._feed(scheduler.RunCancelled())

    def fail(self, error: BaseException) -> None:
        """End the run with an error, for instance of the user's progress callback."""
        if not self.over:
            self.fatal = self.fatal or error
            self._feed(scheduler.RunCancelled())

    def _do(self, command: scheduler.Command) -> None:
        active, engine = self._active, self.engine
        assert active is not None, "this run is not being executed"
        assert engine is not None
        match command:
            case scheduler.Assign(worker, number):
                engine.assign(worker, active, active.generations[number])
            case scheduler.Open(number, todo):
                active.generations.append(Generation(number, todo, engine.tickets()))
            case scheduler.Finish():
                self._finish(engine, active)
            case scheduler.Stop():
                handed_out = [one.tickets.stop(self.plan.chunks) for one in active.generations]
                self._events.append(scheduler.CountersStopped(handed_out))
                self._events.extend(engine.stop(active))
            case scheduler.Kill(worker):
                engine.kill(worker, self.number)
            case scheduler.Replace(worker):
                engine.replace(worker)
            case scheduler.Fail(chunk, timed_out):
                active.ledger.status[chunk] = FAILED
                self._add_error(chunk, self._death(chunk, timed_out=timed_out))
            case scheduler.GiveUp():
                error = error_texts.startup_failure(self.plan, self._exit, self.run)
                self.fatal = self.fatal or error
            case scheduler.Reconcile():
                self._void_scratch(active)
                self._events.append(scheduler.Reconciled(active.ledger.pending()))

    def _void_scratch(self, active: ActivePlan) -> None:
        if active.small_outputs and active.outputs is None:
            self._scratch.invalidate(active.ledger)

    def _death(self, chunk: int, *, timed_out: bool) -> ShmparError:
        plan, run, items = self.plan, self.run, self.items
        if timed_out:
            arrays = (*self._arrays, *(self.outputs.arrays or ()))
            stores = [one.where for one in arrays if isinstance(one, Store)]
            seconds = self.policy.task_timeout
            return error_texts.task_timeout(plan, chunk, seconds, run, items, stores=stores)
        in_place = self.policy.in_place
        return error_texts.worker_died(plan, chunk, self._exit, run, items, in_place=in_place)

    def _finish(self, engine: Engine, active: ActivePlan) -> None:
        self.over = True
        self._void_scratch(active)
        try:
            if self._verification is not None:
                self.fatal = self.fatal or self._verification.find_error(active.ledger, self.run)
        except BaseException as error:  # noqa: BLE001 - an output that cannot be read again
            self.fatal = error
        self._verification = None
        lost = self._copy_scratch(active)
        done = self._detach(active)
        try:
            self.outcome = lost or self._finalize(done)
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            self.outcome = error
        engine.close(active)
        self.unlock()
        self.seconds = time.perf_counter() - self.began

    def _copy_scratch(self, active: ActivePlan) -> BaseException | None:
        """Copy small outputs into their arrays; after an error, which is returned, none is done."""
        try:
            self._scratch.copy_out(active.ledger, self.outputs)
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            active.ledger.status[active.ledger.status == DONE] = PENDING
            return error
        return None

    def _detach(self, active: ActivePlan) -> list[int] | None:
        """Copy the ledger; return the chunks that are done, None for all of them."""
        ledger, done = active.ledger, None
        if self.errors:
            # Why: its worker has marked a chunk as done whose result does not load, or fit, here.
            ledger.status[list(self.errors)] = FAILED
        # Why a function: few programs ask for the ledger of a finished run.
        self._make_ledger, self._active = _copier(ledger), None
        if ledger.done < self.plan.chunks:
            # Why: a worker that was stopped may have sent a result, and not marked it.
            ledger.mark_done(sorted(self._arrived))
            self.unfinished = tuple(np.flatnonzero(ledger.status != DONE).tolist())
        if self.unfinished:
            self._erase_unfinished()
            done = np.flatnonzero(ledger.status == DONE).tolist()
        else:
            self.outputs.reserve_rest(complete=True)
        self.stream.add((), last=True)
        return done

    def _finalize(self, done: list[int] | None) -> Any:
        """Deliver the outputs; return the result, or the exception that is raised for it."""
        outputs, plan = self.outputs, self.plan
        outputs.deliver(None if done is None else [plan.window(chunk) for chunk in done])
        fills = self.policy.on_error == "fill" and self.fatal is None and not self.cancelled
        if fills and self.errors and outputs.arrays is not None:
            outputs.fill([plan.window(chunk) for chunk in self.errors])
            outputs.deliver(None)
            self.was_filled, self.to_warn = True, self.failed
            return outputs.result()
        if self.fatal is not None:
            return self.fatal
        if self.errors:
            if self.policy.on_error == "raise":
                return self.failed[0]
            return error_texts.collected(plan, self.failed, self.run, self.items)
        if self.unfinished and not self.cancelled:  # Invariant: no result lacks a chunk.
            return error_texts.unexplained(plan, self.unfinished)
        # Why: nobody gets the result of a cancelled run, and its files are not whole.
        return None if self.cancelled else outputs.result()

    def abort(self, error: BaseException) -> None:
        """End at once: the engine is gone with all its workers, or the run never began."""
        if self.over:
            return
        self.over = True
        if isinstance(error, KeyboardInterrupt):
            self.cancelled = True
        else:
            self.fatal = self.outcome = error
        if (active := self._active) is None:
            self._end_unbegun()
            return
        done = self._detach(active)
        with contextlib.suppress(Exception):  # Why: the error is the outcome, not a later one.
            self._finalize(done)
        for generation in active.generations:
            generation.tickets.close()
        self.unlock()

    def _end_unbegun(self) -> None:
        self.over = True
        # Why a range: a run that has no room may have more chunks than memory has.
        self.unfinished = range(self.plan.chunks) if self._todo is None else self._todo
        self._erase_unfinished()
        self.stream.add((), last=True)
        self.unlock()

    def _erase_unfinished(self) -> None:
        """Have the windows of unfinished chunks read as zeros, as in new memory."""
        whole = len(self.unfinished) == self.plan.chunks
        self.outputs.erase(lambda: [...] if whole else map(self.plan.window, self.unfinished))

    def unlock(self) -> None:
        """Let another run have the ledger on disk: the last writer is idle."""
        if self.outputs.ledger_file is not None:
            self.outputs.ledger_file.unlock()

    def release(self) -> None:
        """Drop the inputs and the function, unless the run can be resumed.

        Why a cancelled run can be, even if every chunk is done: nobody has its result.
        """
        self._described = self.arrays()
        self.run = self._prepared = self.outputs.slab = None
        if self.over and not self.unfinished and not self.cancelled:
            self._arrays, self._function, self.outputs.checksums = [], None, None

    # Any thread

    @property
    def noun(self) -> str:
        """The word for a chunk in messages."""
        return "chunk" if self.items is None else "item"

    def finished_chunks(self, *, ordered: bool) -> Iterator[int]:
        """Yield the chunks of this run as they are done; end when it is over.

        A run over items yields the items that were known at its begin too.

        Parameters
        ----------
        ordered : bool
            In ascending order; a chunk waits for all before it, as long as they can be done.
        """
        if not ordered:
            yield from itertools.chain.from_iterable(self.finished_batches())
            return
        done, waiting = set[int](), deque(self._chunks)
        for chunks in self.finished_batches():
            done.update(chunks)
            while waiting and (waiting[0] in done or waiting[0] in self.errors):
                if (chunk := waiting.popleft()) in done:
                    yield chunk
        yield from [chunk for chunk in waiting if chunk in done]

    def finished_batches(self, seconds: float | None = None) -> Iterator[list[int]]:
        """Yield lists of chunks as they are done; an empty one after `seconds` without a chunk."""
        heard: set[int] = set()
        for chunks in self.stream.batches(seconds):
            heard.update(chunks)
            yield [chunk for chunk in chunks if chunk >= 0]
        # Why: a run whose caller waits reports nothing before its end.
        yield sorted(set(self._chunks).difference(heard, self.unfinished))

    @property
    def _chunks(self) -> Sequence[int]:
        """Chunks that the run yields: those to compute, and all items."""
        whole = self._todo is None or self.items is not None
        return range(self.plan.chunks) if whole else self._todo or ()

    def done_before(self) -> list[int]:
        """Return the chunks that an earlier run has computed."""
        every = range(self.plan.chunks)
        return sorted(set(every).difference(every if self._todo is None else self._todo))

    def rest(self) -> Execution:
        """Return an execution of the chunks that this one has not computed.

        Raises
        ------
        RuntimeError
            If there is none.
        """
        if self._function is None:
            raise RuntimeError("this run has computed every chunk: there is nothing to resume")
        outputs, todo, items = self.outputs, tuple(self.unfinished), self.items
        if outputs.ledger_file is not None:
            outputs.ledger_file.lock()
        return Execution(
            self.plan, self._function, self._arrays, outputs, self.policy, todo, items=items
        )

"""What the user wants of a run besides its result.

Imports nothing of the package.

What a run's report is made of, kept from its begin to its end and after.

Imports ledger, plan, segment and worker.

Guarantees
----------
What is kept after the end is a copy of the ledger, 11 bytes a chunk, and a few numbers an array;
no array, no function, no segment.

Which chunks of a run are done, as it becomes known, for whoever follows it.

Imports nothing of the package.

What a run comes to: its outputs delivered, and its result or its error.

Imports errors, failures, outputs, plan and policy.

Guarantees
----------
It follows from the ledger and the recorded errors alone, not from the order in which workers
finished.

The conductor of one run: takes an engine's events to the scheduler, and does what it says.

Imports the scheduler, the engine's protocol, failures, outcome, outputs, policy and scratch.

Guarantees
----------
- A run is over only when no worker writes to its outputs any more, and then at once.
- Its outcome follows from the ledger and the recorded errors alone, not from the order in which
  workers finished.
- Everything here is called under the driver's lock.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmpar.engines.engine import TICK_SECONDS, Engine, Execution, Exit, Generation, patience
from shmpar.errors import ShmparError
from shmpar.ipc.ledger import DONE, FAILED, PENDING, SAID, Held, Ledger
from shmpar.memory.allocate import SMALL, preflight
from shmpar.memory.locate import kind_of
from shmpar.plan import Announcement, Failure, Function, Plan
from shmpar.runtime import failures, scheduler
from shmpar.runtime.interrupts import allowed
from shmpar.runtime.outputs import Outputs, Scratch
from shmpar.runtime.scheduler import Scheduler
from shmpar.worker.compute import ApplyAlongAxis
from shmpar.worker.verify import Verification

__all__ = ["Account", "Attempt", "Conductor", "News", "Observer", "Policy", "conclude"]


class Policy(NamedTuple):
    """What becomes of a run when something goes wrong.

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


class Observer(Protocol):
    """Is told how far a run is."""

    def update(self, done: int, total: int) -> None:
        """Take the chunks that are settled, and all of them."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


Array = np.ndarray[Any, Any]


class Attempt(NamedTuple):
    """An attempt that ended with its worker, or one that has not ended yet.

    Attributes
    ----------
    worker : int
        Whose.
    chunk : int or None
        The chunk that it ended in; None if none is to blame.
    begin, end : float
        From when the worker had its claim, or in a run with ``task_timeout`` its chunk, until its
        end was noticed: seconds after the run's begin.
    died : bool
        Whether it has ended.
    """

    worker: int
    chunk: int | None
    begin: float
    end: float
    died: bool = True


class Account:
    """The numbers of one run.

    Attributes
    ----------
    name : str
        What the user's function is called; empty if it has no name.
    began : float
        When the run was made, by :func:`time.perf_counter`.
    opened : float or None
        When all that its workers need was ready.
    cold : bool
        Whether no worker was up then.
    seconds : float or None
        How long it took, once it is over.
    attempts : list of Attempt
        Those that ended with their worker.
    """

    def __init__(self, function: Function) -> None:
        self.name = _name(function.call)
        self.began = time.perf_counter()
        self.opened: float | None = None
        self.cold = False
        self.seconds: float | None = None
        self.attempts: list[Attempt] = []
        self._kept: tuple[bytes, int, int] | None = None
        self._arrays: tuple[list[tuple[str, int]], list[tuple[str, int]]] | None = None

    def begin(self, ready: int) -> None:
        """All is ready, and so many workers are."""
        self.opened = time.perf_counter()
        self.cold = not ready

    def lose(self, worker: int, chunk: int | None, held: Held | None) -> None:
        """A worker is gone that held this."""
        if held is not None:
            begin, end = held.since * 1e-9 - self.began, time.monotonic() - self.began
            self.attempts.append(Attempt(worker, chunk, max(0.0, begin), end))

    def end(self) -> None:
        """The run is over."""
        self.seconds = time.perf_counter() - self.began

    def keep(self, ledger: Ledger) -> None:
        """Keep what a ledger says that is about to be another run's."""
        self._kept = ledger.copy(), ledger.workers, ledger.chunks

    def keep_arrays(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Keep where the arrays are and how large, but not them."""
        self._arrays = _described(inputs), _described(outputs)

    def ledger(self, current: Ledger | None) -> Ledger | None:
        """A copy of the ledger: that of the end, or of now."""
        if current is not None:
            return Ledger(current.copy(), workers=current.workers, chunks=current.chunks)
        if self._kept is None:
            return None
        copy, workers, chunks = self._kept
        return Ledger(copy, workers=workers, chunks=chunks)

    def arrays(
        self, inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Where each input and output is, and its bytes: at the end, or of these now."""
        if self._arrays is not None:
            return self._arrays
        return _described(inputs), _described(outputs)


def _described(arrays: Sequence[Array]) -> list[tuple[str, int]]:
    return [(kind_of(array), array.nbytes) for array in arrays]


def _name(call: Any) -> str:
    """The name of a function, as text whatever it is."""
    try:
        if type(call) is ApplyAlongAxis:
            call = call.func1d
        return str(getattr(call, "__qualname__", None) or getattr(call, "__name__", ""))
    except Exception:  # noqa: BLE001 - the user's object may raise anything; this is for show
        return ""


class News:
    """Which chunks of a run are done.

    Attributes
    ----------
    chunks : list of int
        Their numbers, in the order in which they were heard of.
    complete : bool
        Whether no more will come.
    """

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self.complete = False
        self._changed = threading.Condition()

    def add(self, chunks: Iterable[int], *, last: bool = False) -> None:
        """Tell of chunks."""
        with self._changed:
            self.chunks.extend(chunks)
            self.complete = self.complete or last
            self._changed.notify_all()

    def __iter__(self) -> Iterator[int]:
        """The chunks, each as soon as it is heard of; ends when no more will come."""
        given = 0
        while fresh := self._after(given):
            given += len(fresh)
            yield from fresh

    def _after(self, position: int) -> list[int]:
        """The chunks from a place on; waits until there is one, or there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.chunks) > position or self.complete)
            return self.chunks[position:]


class Ended(Protocol):
    """A run whose last writer is idle; the attributes are the conductor's."""

    plan: Plan
    policy: Policy
    outputs: Outputs
    errors: dict[int, ShmparError]
    fatal: BaseException | None
    cancelled: bool

    @property
    def failed(self) -> list[ShmparError]:
        """What went wrong, in the order of the chunks."""
        ...


def conclude(run: Ended, done: list[int] | None) -> Any:
    """Deliver the outputs; give the result, or the exception that is raised for it.

    Parameters
    ----------
    done : list of int or None
        The chunks that are done; None: all of them.
    """
    errors, outputs, plan = run.failed, run.outputs, run.plan
    filled = run.policy.on_error == "fill" and run.fatal is None and not run.cancelled
    if filled and errors and outputs.arrays is not None:
        outputs.fill([plan.window(chunk) for chunk in run.errors])
        outputs.deliver(None)
        failures.warn_filled(errors)
        return outputs.result()
    outputs.deliver(None if done is None else [plan.window(chunk) for chunk in done])
    if run.fatal is not None:
        return run.fatal
    if errors:
        if run.policy.on_error == "raise":
            return errors[0]
        return ExceptionGroup(f"{len(errors)} chunks of {plan.verb} failed", errors)
    return outputs.result()


_numbers = itertools.count()


class Conductor:
    """What is known and done about one run, from its first event to its outcome.

    Parameters
    ----------
    todo : tuple of int, optional
        Chunks that are to be computed, if an earlier run has done the others.

    Attributes
    ----------
    news : News
        Which chunks are done.
    number : int
        Unique in this interpreter.
    plan, policy, outputs
        What to do, how, and into what.
    run : object or None
        What errors name as their run; None once it has been told of the outcome.
    observer : Observer or None
        Is told of progress.
    errors : dict of int to ShmparError
        What went wrong, by chunk.
    deaths : int
        Workers that ended while they had a chunk.
    cancelled : bool
        The user wants no more of it.
    over : bool
        No worker writes any more; `outcome` is there.
    outcome : object
        The result, or the exception that is raised for it.
    account : Account
        What its report is made of.
    unfinished : tuple of int
        Chunks that are not done, once it is over.
    """

    deaths = 0
    cancelled = False
    over = False
    outcome: Any = None

    def __init__(
        self,
        plan: Plan,
        function: Function,
        arrays: list[Array],
        outputs: Outputs,
        policy: Policy,
        todo: tuple[int, ...] | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.plan = plan
        self.news = News()
        self._todo = todo
        self.policy = policy
        self.outputs = outputs
        self.run: Any = None
        self.observer: Observer | None = None
        self.errors: dict[int, ShmparError] = {}
        self.fatal: BaseException | None = None
        self.account = Account(function)
        self.unfinished: tuple[int, ...] = ()
        self.engine: Engine | None = None
        self._function: Function | None = function
        self._arrays = arrays
        self._execution: Execution | None = None
        self._scheduler = Scheduler(
            retries=policy.retries,
            fail_fast=policy.on_error == "raise",
            chunks=plan.chunks,
            in_place=policy.in_place,
        )
        self._pending: deque[scheduler.Event] = deque()
        self._scratch = Scratch()
        self._verification: Verification | None = None
        self._allocating = threading.Lock()
        self._end = Exit(None)
        self._told, self._settled = 0.0, 0

    @property
    def running(self) -> bool:
        """Whether it has begun and is not over."""
        return self._execution is not None

    @property
    def settled(self) -> int:
        """Chunks that are done or failed."""
        execution = self._execution
        return self._settled if execution is None else execution.ledger.settled

    @property
    def failed(self) -> list[ShmparError]:
        """What went wrong, in the order of the chunks."""
        return [error for _, error in sorted(self.errors.items())]

    @property
    def ledger(self) -> Ledger | None:
        """A copy of what is known of each chunk; None before it has begun."""
        return self.account.ledger(None if self._execution is None else self._execution.ledger)

    def arrays(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Where each input and output lies, and its bytes."""
        return self.account.arrays(self._arrays, self.outputs.arrays or ())

    def begin(self, engine: Engine, *, attended: bool) -> None:
        """Start on an engine.

        Parameters
        ----------
        attended : bool
            Somebody waits for its end; nobody looks at its output before.

        Raises
        ------
        PlanError
            If the function does not travel; nothing was started.
        """
        if self._function is None:
            raise RuntimeError("this run is over")
        self.engine = engine
        self._allocate_known(engine)
        sums = None if self.outputs.ledger is None else self.outputs.ledger.sums
        if self.plan.check:
            verification = Verification(self.plan, self._arrays, self._todo, sums)
            self._verification, sums = verification, verification.sums
            verification.watch(self.outputs.arrays or ())
        self._execution = execution = Execution(
            number=self.number,
            plan=self.plan,
            function=self._function,
            arrays=self._arrays,
            ledger=engine.ledger(self.plan.chunks),
            origin=self.account.began,
            allocate=self._allocate,
            outputs=self.outputs.arrays,
            several=self.outputs.several,
            sums=sums,
        )
        if self._todo is not None:
            execution.ledger.status[:] = DONE
            execution.ledger.status[list(self._todo)] = PENDING
        execution.reports = not attended and not self.plan.collects
        may_wait = attended and self.plan.fail_fast and execution.sums is None
        execution.scratch = may_wait and engine.slab is not None and execution.outputs is None
        try:
            ready = engine.open(execution)
        except BaseException:
            self._execution = None
            engine.close(execution)
            raise
        self.account.begin(len(ready))
        self._scheduler.patience = patience(engine.workers)
        for command in self._scheduler.start(ready, self._todo):
            self._do(command)
        self._settle()

    def _allocate_known(self, engine: Engine) -> None:
        """Make the outputs that are known, if there is room for them and copies of the inputs."""
        outputs = self.outputs
        made = outputs.needs()
        if sum([array.nbytes for array in self._arrays]) + sum(made) > SMALL:
            needs = [("an output", size) for size in made]
            needs += [("a copy of an input", size) for size in engine.copied(self._arrays)]
            if sum([size for _, size in needs]) > SMALL:
                preflight(self.plan.verb, needs)
        if outputs.known is not None and outputs.arrays is None:
            outputs.allocate(outputs.known)

    def _allocate(self, announcement: Announcement) -> None:
        with self._allocating:  # two threads may have their first result at once
            execution = self._alive
            if execution.outputs is None:
                outputs = self.outputs.allocate(announcement)
                if self._verification is not None:
                    self._verification.watch(outputs)
                execution.several = announcement.several
                execution.outputs = outputs

    @property
    def _alive(self) -> Execution:
        if self._execution is None:
            raise RuntimeError("this run is not being executed")
        return self._execution

    def feed(self, event: scheduler.Event) -> None:
        """Take an event to the scheduler and do what it says."""
        self._pending.append(event)
        self._settle()

    def _settle(self) -> None:
        while self._pending and not self.over:
            for command in self._scheduler.handle(self._pending.popleft()):
                self._do(command)

    def chunk_failed(self, failure: Failure) -> None:
        """The function failed on a chunk."""
        if failure.chunk not in self.errors:
            self.errors[failure.chunk] = failures.chunk_error(self.plan, failure, self.run)
            self.feed(scheduler.ChunkFailed(failure.chunk))

    def finished(self, generation: int, first: int, last: int) -> None:
        """A worker is through with these tickets."""
        execution = self._alive
        chunk, status = execution.generations[generation].chunk, execution.ledger.status
        chunks = map(chunk, range(first, last))
        self.news.add([number for number in chunks if status[number] == DONE])

    def said(self, announcement: Announcement) -> None:
        """A worker has put outputs that are such into the scratch."""
        failure = self._scratch.hear(announcement)
        if failure is not None:
            self.chunk_failed(failure)

    def rejected(self, error: BaseException) -> None:
        """A worker cannot go on with this run."""
        self.fatal = self.fatal or error
        self.feed(scheduler.Refused())

    def collected(self, values: Sequence[tuple[int, Any]]) -> None:
        """Results that are objects have arrived."""
        for chunk, value in values:
            (self.outputs.arrays or [])[0][self.plan.window(chunk)] = value

    def worker_lost(self, worker: int, end: Exit, *, barren: bool, innocent: bool) -> None:
        """A worker is gone, and has been reaped: its slot will not change any more.

        It is `barren` if it had nothing, `innocent` if it was killed for another run's sake.
        """
        execution = self._alive
        self._end = end
        blamed, unfinished = execution.taken_by(
            worker, self.errors, innocent=innocent and not self.policy.in_place
        )
        self.deaths += blamed is not None
        self.account.lose(worker, blamed, execution.ledger.held(worker))
        self._scratch.lost(execution.ledger.slot(worker)[SAID])
        execution.ledger.empty(worker)
        if self._verification is not None:
            self._verification.again(unfinished if blamed is None else (blamed,))
        self.feed(scheduler.Died(worker, blamed, unfinished, barren))

    def holds(self, worker: int) -> bool:
        """Whether the worker has a chunk of this run."""
        return self._alive.ledger.held(worker) is not None

    def tick(self, now: float) -> None:
        """Tell the observer, ten times a second, and look for chunks that take too long."""
        if now - self._told >= TICK_SECONDS:
            self._told = now
            self._tell_observer()
        if self.policy.task_timeout is not None:
            self._check_overdue(self.policy.task_timeout)

    def _tell_observer(self) -> None:
        if self.observer is None:
            return
        try:
            with allowed():  # the user's code may take long
                self.observer.update(self.settled, self.plan.chunks)
        except Exception as error:  # noqa: BLE001 - the user's code; the run ends with its error
            self.observer = None
            self.fatal = self.fatal or error
            self._pending.append(scheduler.Cancelled())
            self._settle()

    def close_observer(self) -> None:
        """Close the bar, if there is one."""
        observer, self.observer = self.observer, None
        if observer is not None:
            observer.close()

    def _check_overdue(self, limit: float) -> None:
        for worker, chunk in self._alive.begun_before(time.monotonic_ns() - int(limit * 1e9)):
            self.feed(scheduler.TimedOut(worker, chunk))

    # What the scheduler wants done

    def _do(self, command: scheduler.Command) -> None:  # noqa: C901 - one case a command
        execution, engine = self._alive, self.engine
        if engine is None:
            raise RuntimeError("this run has no engine")
        match command:  # what there is in every run comes first
            case scheduler.Assign(worker, number):
                engine.assign(worker, execution, execution.generations[number])
            case scheduler.Open(number, todo):
                execution.generations.append(Generation(number, todo, engine.tickets()))
            case scheduler.Finish():
                self._finish(engine, execution)
            case scheduler.Stop():
                self._stop(engine, execution)
            case scheduler.Kill(worker):
                engine.kill(worker, self.number)
            case scheduler.Replace(worker):
                engine.replace(worker)
            case scheduler.Fail(chunk, timed_out):
                execution.ledger.status[chunk] = FAILED
                self.errors[chunk] = self._death(chunk, timed_out=timed_out)
            case scheduler.GiveUp():
                self.fatal = self.fatal or failures.barren(self.plan, self._end, self.run)
            case scheduler.Audit():
                self._pending.append(scheduler.Audited(self._audit(execution)))

    def _audit(self, execution: Execution) -> list[int]:
        """Numbers of the chunks that are still to be computed; nobody computes any now."""
        self._void_scratch(execution)
        return execution.ledger.pending()

    def _void_scratch(self, execution: Execution) -> None:
        if execution.scratch and execution.outputs is None:
            self._scratch.void(execution.ledger)

    def _death(self, chunk: int, *, timed_out: bool) -> ShmparError:
        if timed_out:
            return failures.timeout(self.plan, chunk, self.policy.task_timeout, self.run)
        in_place = self.policy.in_place
        return failures.death(self.plan, chunk, self._end, self.run, in_place=in_place)

    def _stop(self, engine: Engine, execution: Execution) -> None:
        handed = [one.tickets.stop(self.plan.chunks) for one in execution.generations]
        self._pending.append(scheduler.Stopped(handed))
        for taken in engine.stop(execution):
            self._pending.append(scheduler.Drained(taken.worker, taken.generation))

    def _finish(self, engine: Engine, execution: Execution) -> None:
        self._tell_observer()
        self.over = True
        self._void_scratch(execution)
        if self._verification is not None:
            self.fatal = self.fatal or self._verification.verdict(execution.ledger, self.run)
            self._verification = None
        done = self._detach(execution)
        try:
            self.outputs.slab = engine.slab
            self._scratch.take(execution.ledger, self.outputs)
            self.outcome = conclude(self, done)
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            self.outcome = error
        engine.close(execution)
        self.unlock()
        self.account.end()

    def _detach(self, execution: Execution) -> list[int] | None:
        """Take the last from the ledger; give the chunks that are done, None for all of them."""
        ledger, done = execution.ledger, None
        self._execution = None
        self._settled = ledger.settled
        self.account.keep(ledger)
        if ledger.done < self.plan.chunks:
            done = np.flatnonzero(ledger.status == DONE).tolist()
            self.unfinished = tuple(np.flatnonzero(ledger.status != DONE).tolist())
        self.news.add((), last=True)
        return done

    def stop(self) -> None:
        """Cancel, under the driver's lock."""
        self.cancelled = True
        self.feed(scheduler.Cancelled())

    def expire(self) -> None:
        """End the workers that still compute chunks of it."""
        self.feed(scheduler.Expired())

    def abort(self, error: BaseException) -> None:
        """The engine is gone, and all its workers; so is the run."""
        if self.over:
            return
        self.over = True
        execution = self._execution
        self.fatal = self.outcome = error
        if execution is not None:
            conclude(self, self._detach(execution))
            for generation in execution.generations:
                generation.tickets.close()
        self.unlock()

    def unlock(self) -> None:
        """The last writer is idle: another run may have the ledger on disk."""
        if self.outputs.ledger is not None:
            self.outputs.ledger.unlock()

    def release(self) -> None:
        """Keep what a run that goes on needs; what is done needs neither inputs nor function."""
        self.account.keep_arrays(self._arrays, self.outputs.arrays or ())
        self.run = None
        if not self.unfinished:
            self._arrays, self._function = [], None

    def finished_chunks(self) -> Iterator[int]:
        """Chunks of this run as they are done, in whatever order; ends when it is over."""
        heard: set[int] = set()
        for chunk in self.news:
            heard.add(chunk)
            yield chunk
        heard.update(self.unfinished)
        every = range(self.plan.chunks) if self._todo is None else self._todo
        yield from (chunk for chunk in every if chunk not in heard)

    def rest(self) -> tuple[Plan, Function, list[Array], Outputs, Policy, tuple[int, ...]]:
        """What another run takes to compute what this one has not."""
        if self._function is None:
            raise RuntimeError("this run has computed every chunk: there is nothing to resume")
        outputs, plan = self.outputs, self.plan
        if outputs.ledger is not None:
            outputs.ledger.lock()
        return plan, self._function, self._arrays, outputs, self.policy, self.unfinished

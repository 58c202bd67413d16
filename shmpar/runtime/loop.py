"""The pool thread: the one thread that owns an engine, its runs and its calls.

Threads
-------
================================  ===============================================================
thread                            may do
================================  ===============================================================
that calls a verb or `submit`     check and pickle its arguments, copy inputs, allocate outputs that
                                  are known; post the run to the pool thread; wait for its latch;
                                  show its progress
pool thread                       everything with the engine, the scheduler, runs and calls;
                                  resolve futures
callback threads                  callbacks of the user, progress of runs that nobody waits for,
                                  logging handlers
worker threads (engine "threads") compute chunks; put events into the engine's queue
finalizers, in any thread         append to a deque and wake the pool thread
================================  ===============================================================

Locks, in the order in which they are acquired; no code of the user runs under any of them:

1. `Loop._starting`: start and end of the pool thread and of its engine.
2. `Loop._making`: an engine is made or taken away; no thread of the user acquires it.
3. the lock of a `Future`, as in the standard library.
4. `ThreadsEngine._allocating`: a worker thread allocates the outputs of a run.
5. `processes._starting`: a worker process is started, or the user forks.

`Initializer._once` is the exception: a pool's initializer runs under it. Other threads post
requests to a deque and wake the pool thread; both take no lock.

Guarantees
----------
- An interrupt (Ctrl-C) reaches the waiting thread alone. It cancels that thread's run in order:
  tickets stop, chunks in progress get a short grace, then their workers are killed.
- The pool thread is a daemon. It starts with the first request, or with a pool that has an
  initializer, and ends with the pool.
- After an unexpected error all runs and calls fail with it, and the next request gets a new engine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from shmpar.engines.engine import Engine, Exit
from shmpar.engines.local import Initializer
from shmpar.ipc.protocol import CallFinished, Event, Logged, Warned, WorkerLost, WorkerReady
from shmpar.memory import reuse
from shmpar.plan import Function
from shmpar.runtime.calls import Call, Calls
from shmpar.runtime.execution import max_startup_failures
from shmpar.runtime.futures import (
    CallbackThreads,
    Latch,
    LogRelay,
    PoolFuture,
    run_apart,
    start_thread,
    surely,
)
from shmpar.runtime.progress import TICK_SECONDS, Observer, show_progress
from shmpar.runtime.run import Run, execute_here
from shmpar.worker.environment import MOST_WARNINGS, in_worker, inside_worker

GRACE_SECONDS = 0.3
"""Time that chunks in progress get after an interrupt."""


class Close(NamedTuple):
    """Options for the end of a loop.

    Attributes
    ----------
    cancel_runs : bool
        Cancel the runs in flight; else wait for them.
    cancel_calls : bool
        Cancel the calls that no worker has; else wait for them.
    kill : bool
        Runs and calls in progress get no more than the grace.
    """

    cancel_runs: bool
    cancel_calls: bool
    kill: bool = False


AT_ONCE = Close(cancel_runs=True, cancel_calls=True, kill=True)


class Loop:
    """Executes runs and calls on one engine, in a thread of its own.

    Parameters
    ----------
    make_engine : callable
        Makes the engine, at :meth:`begin` and after an unexpected error.
    at_end : callable
        Called when the engine has ended.

    Attributes
    ----------
    pid : int
        The process that made it; a forked child cannot use it.
    """

    def __init__(
        self, make_engine: Callable[[], Engine], at_end: Callable[[], object] = lambda: None
    ) -> None:
        self._make_engine = make_engine
        self._at_end = at_end
        self._inbox: deque[Callable[[], None]] = deque()
        self._signalled = False  # set while the pool thread is awake, or a wake-up on its way
        self._calls_wait = False  # set while calls wait for a worker, and new ones behind them
        self._runs: dict[int, Run] = {}
        self._here: dict[Run, int] = {}  # runs in threads of their callers, of the engine "serial"
        self._shown: set[int] = set()  # runs whose progress a callback thread shows
        self._callbacks = CallbackThreads()
        self._calls = Calls(self._callbacks, self._withdraw)
        self._new_calls: list[Call] = []  # added since the last step
        self._logs = LogRelay(self._callbacks, self._post)
        self._unclaimed: list[Warned] = []  # of initializers, before there is a run or a call
        # Why reentrant: a signal handler may call the pool while its thread starts the pool thread.
        self._starting = threading.RLock()
        self._making = threading.Lock()
        self._over = False  # Lock: _making. No engine is made any more.
        self._close_wanted = False
        self._thread: threading.Thread | None = None
        self._closing: Close | None = None
        self._deadline: float | None = None
        self._ended = Latch()
        self.engine: Engine | None = None
        self.pid = os.getpid()

    # Any thread

    def begin(self, *, watch: bool = False) -> None:
        """Make the engine. After an error, or an interrupt, the loop must be closed.

        Parameters
        ----------
        watch : bool
            Start the pool thread too, so that it hears of an initializer that fails.
        """
        self._ready_engine()
        if watch:
            self._post(lambda: None)

    def run(self, run: Run) -> Any:
        """Execute a run; return its result or raise its error."""
        try:
            self._prepare(run, attended=True)
            self._post(partial(self._start, run))
            if run.observer is not None:
                show_progress(run, run.observer, self.fail)
            run.resolved.wait()
        except BaseException as error:
            # Invariant: no lock is held here, since an interrupt comes between any instructions.
            if not run.resolved.is_set:
                surely(partial(self._abandon, run, error))
                run.resolved.wait()
            raise
        return run.hand_over()

    def run_here(self, run: Run, initializer: Initializer) -> Any:
        """Execute a run in the calling thread; the end of this loop waits for it."""
        self._here[run] = threading.get_ident()
        try:
            return execute_here(run, initializer)
        finally:
            self._here.pop(run, None)

    def launch(self, run: Run) -> None:
        """Execute a run for which the caller does not wait."""
        self._prepare(run, attended=False)
        try:
            if run.observer is not None:
                # Why suppressed: the first update fails too, and the run has its error then.
                with contextlib.suppress(Exception):
                    run.observer.begin(run.progress[1])
            self._post(partial(self._start, run, observer=run.observer))
        except BaseException as error:
            # Why: the caller gets no run that could be waited for.
            surely(partial(self._abandon, run, error))
            raise

    def _abandon(self, run: Run, error: BaseException) -> None:
        """Cancel a run whose caller gets an exception instead of its result."""
        if not self._posted(partial(self._cancel, run, GRACE_SECONDS)):
            # Why: no worker has it. Its request, if a later thread comes to it, is for a run that
            # is over.
            run.execution.abort(error)
            run.finish(self._callbacks)

    def prepare_call(
        self, function: Function, check: Callable[[Function], object] = lambda _: None
    ) -> Any:
        """Pickle a call; let `check` look at its function, unless that is known to be stateless.

        Raises
        ------
        PlanError
            If the function or an argument cannot be pickled.
        """
        prepared = (self.engine or self._ready_engine()).prepare_call(function)
        # Why: a stateless function holds nothing that could be wrong, and looking takes time.
        if not getattr(prepared, "function", None):
            check(function)
        return prepared

    def add_call(
        self,
        name: str,
        prepared: Any,
        retries: int,
        more: tuple[int, int] | tuple[()] = (),
        *,
        unwanted: bool = False,
    ) -> Call:
        """Have a prepared call made; `more` are its further arguments.

        The items that it leaves are made as well, unless they are `unwanted`.
        """
        call = Call(name, prepared, retries)
        call.unwanted = unwanted
        if more:
            call.more, call.stop = more, self._withdraw
        try:
            self._post(partial(self._add_call, call), is_call=True)
        except BaseException:
            call.cancel()  # Why: the caller gets no future of it.
            raise
        return call

    def _withdraw(self, call: Call) -> None:
        """Cancel a call that waits at a worker, or end one over items; return when that is done."""
        with contextlib.suppress(RuntimeError):  # Why: the calls of a closed pool are over.
            self._ask(lambda engine: self._calls.withdraw(engine, call))

    def _ask(self, request: Callable[[Engine], object]) -> None:
        """Have the pool thread do something; return when it is done, or the loop is over."""
        done = Latch()

        def do() -> None:
            try:
                if self.engine is not None:
                    request(self.engine)
            finally:
                done.set()

        self._post(do)
        # Why not at once in the pool thread itself: a finalizer, such as that of an iterator that
        # was dropped, may come there between any two steps.
        if threading.current_thread() is self._thread:
            return
        # Why a look at the end: the request is dropped if the loop ends first.
        while not (self._ended.is_set or done.wait(TICK_SECONDS)):
            pass

    def cancel(self, run: Run, grace: float | None = None) -> None:
        """Cancel a run; it is done when its last writer is idle.

        Workers of chunks in progress are killed after `grace` seconds, if it is not None.
        """
        self._post(partial(self._cancel, run, grace))

    def restart(self) -> None:
        """Have the workers replaced when they have done the work that they have."""
        if self.engine is not None:
            self._ask(lambda engine: engine.restart())

    def fail(self, run: Run, error: BaseException) -> None:
        """End a run with an error that a thread of the user raised for it."""
        self._post(partial(run.execution.fail, error))

    def close(self, how: Close, *, wait: bool = True) -> None:
        """End the runs and calls, then the engine and the pool thread.

        Does not wait in a thread for whose end the loop may wait: the pool thread, a callback
        thread, or a worker.
        """
        wait = wait and threading.current_thread() not in self._callbacks and not in_worker()
        self._close_wanted = True
        try:
            for run, caller in list(self._here.items()):
                if how.cancel_runs:
                    run.cancel()
                if wait and caller != threading.get_ident():
                    run.resolved.wait(GRACE_SECONDS if how.cancel_runs else None)
            if not self._posted(partial(self._close, how)):
                self._end()  # Why: this thread owns the engine.
            thread = self._thread
            if wait:
                self._ended.wait()
        except BaseException:
            surely(partial(self._post, partial(self._close, AT_ONCE)))
            if wait:
                self._ended.wait()
            raise
        if wait:
            if thread is not None:
                thread.join()
            self._callbacks.close()

    def settle(self) -> None:
        """Return when the pool thread has carried out the requests so far.

        Does not wait in the threads in which :meth:`close` does not.
        """
        if threading.current_thread() not in self._callbacks and not in_worker():
            self._ask(lambda _: None)

    def _ready_engine(self) -> Engine:
        """Return the engine; make one if there is none."""
        while (engine := self.engine) is None:
            with self._starting:
                if self.engine is None:
                    run_apart(self._set_engine)
        return engine

    def _set_engine(self) -> None:
        # Why a lock: interrupts may have ended the wait of the thread that asked for the engine,
        # and its `_starting` is free then. The thread that ends the loop waits here for the engine.
        with self._making:
            # Invariant: no engine is made after the end, when nobody would end it.
            if self._over:
                raise _closed()
            if self.engine is None:
                self.engine = self._make_engine()

    def _prepare(self, run: Run, *, attended: bool) -> None:
        run.cancel_by = self.cancel
        try:
            run.execution.prepare(self._ready_engine(), attended=attended)
        except BaseException as error:
            run.execution.abort(error)
            run.finish(self._callbacks)
            raise

    def _post(self, request: Callable[[], None], *, is_call: bool = False) -> None:
        """Give a request to the pool thread; start that thread if there is none.

        A new call need not wake that thread while others wait for a worker.
        """
        if self.pid != os.getpid():
            raise RuntimeError("this pool belongs to the parent process; make one after the fork")
        self._inbox.append(request)
        if self._ended.is_set:
            self._refuse()
            return
        # Why not is_alive(): an interrupt inside of it marks a thread that runs as stopped.
        if self._thread is None:
            self._start_thread()
        # Invariant: the flags are read after the append.
        if not self._signalled and not (is_call and self._calls_wait):
            try:
                self._signalled = True
                self._wake()
            except BaseException:
                self._signalled = False  # Why: an interrupt came first, so the next request wakes.
                raise

    def _posted(self, request: Callable[[], None]) -> bool:
        """Give a request to the pool thread; return False if no thread can be started."""
        try:
            self._post(request)
        except RuntimeError:
            if self._thread is not None or self.pid != os.getpid():
                raise
            return False
        return True

    def _start_thread(self) -> None:
        # Lock: held while the pool thread starts or ends, never while it works.
        with self._starting:
            if self._thread is None and not self._ended.is_set:
                thread = threading.Thread(target=self._main, name="shmpar-pool", daemon=True)
                self._thread = thread
                try:
                    start_thread(thread)
                except BaseException:
                    # Why: an interrupted start may have made a thread, or one that dies at once.
                    self._thread = None
                    raise

    def _wake(self) -> None:
        engine = self.engine
        if engine is not None:
            engine.wake()

    # The pool thread

    def _main(self) -> None:
        here = threading.current_thread()
        with self._starting:
            if self._thread is not here:
                return  # Why: an interrupt has cut its start short; another thread may be started.
        # Why: code of the user that runs here (unpickling, finalizers) cannot wait for this thread.
        with inside_worker(), reuse.attended(self._wake):
            while True:
                try:
                    self._serve()
                except BaseException as error:  # noqa: BLE001 - runs and calls are told
                    # Why suppressed: runs and calls have the first error, and this thread goes on.
                    with contextlib.suppress(BaseException):
                        self._recover(error)
                with self._starting:
                    # Invariant: a request that comes after the look at the inbox finds no thread.
                    self._thread = None
                    if self._ended.is_set or not self._inbox:
                        return
                    self._thread = here

    def _serve(self) -> None:
        if self.engine is not None or not self._close_wanted:
            engine = self._ready_engine()
            while not self._is_over():
                self._step(engine)
        self._end()

    def _step(self, engine: Engine) -> None:
        # Invariant: the flag is cleared before the look at the inbox. A request that was appended
        # before this look is seen by it, and any later one wakes this thread.
        self._signalled = False
        # Invariant: the wait of a call for a worker ends at an event. So does that of any later
        # call, which need not wake this thread.
        self._calls_wait = self._calls.wait
        timeout = self._timeout()
        events = engine.wait(0.0 if self._inbox else timeout)
        # Why here: a grace that begins in this step ends after the next wait.
        now = time.monotonic()
        self._signalled, self._calls_wait = True, False
        # Invariant: a run that begins now is told of no worker that came or went before. A worker
        # may have a successor already, which the run would be told to have lost.
        begun = self._running()
        # Why first: a function may have cancelled its run before it returned, which an event tells.
        while self._inbox:
            self._inbox.popleft()()
        self._start_workers(engine)
        # Why popped: this frame, which the exception of a call made here has, holds no event then.
        events.reverse()
        while events:
            self._handle(engine, events.pop(), begun)
        # Why the timeout: it is None if no chunk can be overdue, and no grace over, by now.
        for run in self._running() if timeout is not None else ():
            if run.execution.check_deadlines(now):
                run.execution.end_grace(self._elsewhere(engine, run))
        if not self._inbox:  # Why: it may hold a close that cancels the calls which wait.
            self._calls.assign(engine)
        self._finish_runs()
        self._logs.flush()

    def _timeout(self) -> float | None:
        """Return the seconds until a chunk may be overdue, a grace is over, or callbacks wait."""
        waits = [TICK_SECONDS] if self._callbacks.attend() else []
        if (left := reuse.tend()) is not None:
            waits.append(left)
        for run in self._runs.values():
            if run.execution.policy.task_timeout is not None:
                waits.append(min(TICK_SECONDS, run.execution.policy.task_timeout))
            if run.execution.deadline is not None:
                waits.append(run.execution.deadline - time.monotonic())
        if self._deadline is not None:
            waits.append(self._deadline - time.monotonic())
        return max(0.0, min(waits)) if waits else None

    def _handle(self, engine: Engine, event: Event, begun: list[Run]) -> None:
        match event:
            case WorkerReady():
                for run in self._running(begun):
                    run.execution.handle(event)
            case WorkerLost(run=None):
                self._worker_lost(engine, event, self._running(begun))
            case CallFinished():
                if (call := self._calls.running(event.call)) is not None:
                    call.logged = self._logs.pending()
                self._calls.finished(event)
            case Logged():
                self._logs.add(event)
            case Warned(run=None):
                self._warned(event)
            case _:
                found = self._runs.get(event.run)  # type: ignore[union-attr, arg-type]
                if found is not None and not found.execution.over:
                    found.execution.handle(event)

    def _warned(self, event: Warned) -> None:
        """Keep a warning of a call, or of the initializer, for the future that has its result."""
        future: PoolFuture | None
        if event.call is not None:
            future = self._calls.running(event.call)
        else:
            future = next(iter([*self._runs.values(), *self._calls.all()]), None)
            if future is None:
                self._unclaimed = [*self._unclaimed, event][:MOST_WARNINGS]
        if future is not None:
            future.add_warning(event)

    def _claim_warnings(self, future: PoolFuture) -> None:
        """Give a future the warnings of initializers that came before it."""
        if not self._unclaimed:
            return
        unclaimed, self._unclaimed = self._unclaimed, []
        for event in unclaimed:
            future.add_warning(event)

    def _worker_lost(self, engine: Engine, event: WorkerLost, runs: list[Run]) -> None:
        holds = any(run.execution.holds(event) for run in runs)
        explained = holds or event.announced or event.killed_for is not None
        had_call = self._calls.worker_lost(event, innocent=explained)
        event = event._replace(at_startup=not (explained or had_call or event.idle))
        for run in runs:
            run.execution.worker_lost(event)
        limit = max_startup_failures(engine.workers)
        self._calls.give_up(limit, event.exit or Exit(None))
        if self._calls:
            engine.replace(event.worker)

    def _elsewhere(self, engine: Engine, run: Run) -> list[int]:
        """Return the workers that are in a chunk of another run, or in a call.

        Invariant: the counters of `run` were stopped before. So a worker that is elsewhere holds
        no ticket of `run`, and gets none.
        """
        others = [one.execution.busy() for one in self._running() if one is not run]
        # Why the look: the end of a call may not have been read, and its worker has gone on.
        in_run = run.execution.busy()
        in_calls = [worker for worker in engine.in_calls() if worker not in in_run]
        return [*in_calls, *itertools.chain.from_iterable(others)]

    def _running(self, runs: Iterable[Run] | None = None) -> list[Run]:
        """Return those of the runs, of all by default, that have begun and are not over."""
        found = self._runs.values() if runs is None else runs
        return [run for run in found if run.execution.running]

    def _start(self, run: Run, observer: Observer | None = None) -> None:
        engine, execution = self.engine, run.execution
        if execution.over:
            return
        self._end_idle()
        self._runs[execution.number] = run
        self._claim_warnings(run)
        if self._closing is not None:
            execution.abort(_closed())
            return
        assert engine is not None
        try:
            execution.start(engine)
        except Exception as error:  # noqa: BLE001 - the run is told
            execution.abort(error)
        if observer is not None:
            self._shown.add(execution.number)
            self._callbacks.run(partial(self._show, run, observer))

    def _show(self, run: Run, observer: Observer) -> None:
        """Show the progress of a run that nobody waits for, in a callback thread."""
        run.shown_by = threading.get_ident()
        try:
            show_progress(run, observer, self.fail)
        finally:
            run.shown_by = None
            self._post(partial(self._shown.discard, run.execution.number))

    def _add_call(self, call: Call) -> None:
        self._claim_warnings(call)
        if self._closing is not None:
            call.resolve(self._callbacks, None, _closed())
            return
        self._end_idle()
        self._calls.add(call)
        self._new_calls.append(call)

    def _end_idle(self) -> None:
        """Tell the engine of the first work after a time without any."""
        if self.engine is not None and not self._runs and not self._calls:
            self.engine.end_idle()

    def _start_workers(self, engine: Engine) -> None:
        """Start the workers that are missing, for the calls that were added."""
        calls, self._new_calls = self._new_calls, []
        if not calls:
            return
        try:
            for worker in range(engine.workers):
                engine.replace(worker)
        except Exception as error:  # noqa: BLE001 - the calls are told
            self._calls.refuse(calls, error)

    def _cancel(self, run: Run, grace: float | None = None) -> None:
        if not run.resolved.is_set:
            # Why the addition: an interrupt may come before the run was posted.
            self._runs[run.execution.number] = run
            run.execution.cancel(None if grace is None else time.monotonic() + grace)

    def _finish_runs(self) -> None:
        for number, run in [item for item in self._runs.items() if item[1].execution.over]:
            run.over.set()
            # Why: its progress is shown up to the end before its result is there, if a thread can.
            if number not in self._shown or not self._callbacks.has_threads:
                del self._runs[number]
                run.logged = self._logs.pending()
                run.finish(self._callbacks)

    # The end

    def _close(self, how: Close) -> None:
        before = self._closing or Close(cancel_runs=False, cancel_calls=False)
        self._closing = Close(*[one or other for one, other in zip(before, how, strict=True)])
        deadline = time.monotonic() + GRACE_SECONDS
        if how.cancel_runs:
            for run in self._running():
                run.execution.cancel(deadline)
        if how.cancel_calls:
            assert self.engine is not None
            # Why first: a call that came before the close begins if there is a worker for it.
            self._start_workers(self.engine)
            self._calls.assign(self.engine)
            self._calls.cancel_waiting(self.engine)
        if how.kill and self._deadline is None:
            self._deadline = deadline

    def _is_over(self) -> bool:
        """Return True if the loop was closed and has no more to do."""
        if self._closing is None or self._runs or self._inbox:
            return False
        expired = self._deadline is not None and time.monotonic() >= self._deadline
        # Why callbacks: those in progress may wait for those that have not begun.
        waits = self._callbacks.attend() and self._callbacks.has_threads
        return expired or not (self._calls or waits)

    def _end(self) -> None:
        with self._starting, self._making:
            self._over = True
            engine, self.engine = self.engine, None
        try:
            if engine is not None:
                engine.shutdown()
        finally:
            self._logs.flush(last=True)
            self._calls.abort(_closed())
            self._set_ended()

    def _set_ended(self) -> None:
        try:
            self._at_end()
        finally:
            self._ended.set()
            self._refuse()

    def _refuse(self, error: BaseException | None = None) -> None:
        """Fail the requests that came after the end, or for which there is no engine."""
        error = error or _closed()
        while self._inbox:
            try:
                request = self._inbox.popleft()
            except IndexError:  # another thread has taken it
                return
            item = request.args[0] if isinstance(request, partial) and request.args else None
            if isinstance(item, Run) and not item.execution.over:
                item.execution.abort(error)
                item.finish(self._callbacks)
            elif isinstance(item, Call):
                item.resolve(self._callbacks, None, error)
            elif not isinstance(request, partial):
                request()  # Why: a thread waits for it; without an engine it does nothing else.

    def _recover(self, error: BaseException) -> None:
        """Fail all runs and calls with an error; the engine is in an unknown state."""
        with self._starting, self._making:
            engine, self.engine = self.engine, None
            self._over = over = self._closing is not None or (engine is None and self._close_wanted)
        self._signalled = False
        try:
            if engine is not None:
                engine.shutdown()
        finally:
            for run in self._runs.values():
                run.execution.abort(error)
            self._calls.abort(error)
            self._shown.clear()
            self._finish_runs()
            if over:
                self._set_ended()
            elif engine is None:  # none could be made
                self._refuse(error)
                if self._close_wanted:  # Why again: the request may have been refused just now.
                    self._end()


def _closed() -> RuntimeError:
    return RuntimeError("the pool was closed before this call was done")

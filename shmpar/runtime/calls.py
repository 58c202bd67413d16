"""Calls that were submitted, their futures and tasks, and calls over the items of `Pool.map`.

Guarantees
----------
- A worker that has a call may get its next one ahead. That is withdrawn as soon as another worker
  is free, so no call waits behind another that may be waiting for it.
- A worker that has a plan of a run may get a call behind it. That is withdrawn as soon as
  another worker has nothing to do.
- A call whose worker died is made again, as often as it may be. A call that the worker had not
  begun is innocent. A call over items whose worker died, or whose results do not unpickle, becomes
  a call of each item. Any other outcome is final.
- A call that waits at a worker can be cancelled: the pool thread withdraws it.
- A call over items ends after its slice of time; the items that are left are calls of their own.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from shmpar.engines.engine import Engine, Exit
from shmpar.engines.local import Initializer, SerialEngine
from shmpar.ipc.protocol import CallFinished, Slice, WorkerLost
from shmpar.pickling.plain import pack_plain
from shmpar.plan import Function
from shmpar.runtime import error_texts
from shmpar.runtime.futures import CallbackThreads, PoolFuture
from shmpar.tracebacks import delivering, hiding
from shmpar.worker.task import NBYTES, Progress, Task

_TASK = "task"  # the name of the parameter
_DEEPEST = 20  # decorators and partials that are looked through
_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_numbers = itertools.count()


class Call(PoolFuture):
    """A call that was submitted; a :class:`concurrent.futures.Future`.

    Attributes
    ----------
    number : int
        Its number.
    name : str
        Name of its function, for errors.
    prepared : object
        Result of :meth:`Engine.prepare_call`.
    retries : int
        How often it may be made again after the death of its worker.
    worker : int or None
        The worker that has it, or had it last.
    more : tuple
        Further arguments: the items ``first <= i < last`` of a call over items.
    rest : sequence of Call
        The calls of the items that this call over items has left.
    unwanted : bool
        Nobody wants the items that this call leaves.
    stop : callable or None
        Has the pool thread end it, if it is a call over items, before its next items.
    withdraw : callable or None
        Has the pool thread withdraw it, while it waits at a worker.
    task : Task or None
        The argument ``task`` of its function, if that gets one.
    """

    more: tuple[int, int] | tuple[()] = ()
    rest: Sequence[Call] = ()
    unwanted = False
    stop: Callable[[Call], object] | None = None
    withdraw: Callable[[Call], object] | None = None
    task: Task | None = None

    def __init__(self, name: str, prepared: Any, retries: int) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.name = name
        self.prepared = prepared
        self.retries = retries
        self.worker: int | None = None

    @property
    def progress(self) -> Progress:
        """The latest report of the function: a tuple ``(current, total, message)``.

        It is ``(0, None, "")`` before the first report, and if the function has no task.
        """
        return Progress() if self.task is None else self.task.read()

    def cancel(self) -> bool:
        """Cancel the call unless a worker has begun it; then ask its function to stop.

        Returns
        -------
        bool
            Whether the call is cancelled. It is not if it has begun: its function sees
            ``task.cancelled``, and decides on the outcome.
        """
        # Lock: the pool thread sets `withdraw` under it, so that no call is cancelled that is given
        # to a worker at the same time.
        with self._condition:
            withdraw = self.withdraw
            cancelled = withdraw is None and super().cancel()
        if withdraw is not None:
            withdraw(self)
            # Why the look: in the pool thread it may be withdrawn, and cancelled, a little later.
            cancelled = self.withdraw is None and super().cancel()
        if not cancelled:
            self.ask_to_stop()
            return False
        self.prepared = None  # Why: it may be queued for long, and needs its arguments no more.
        self.resolved.set()
        self.run_callbacks()
        return True

    def ask_to_stop(self) -> None:
        """Tell the function that it should stop, if it has a task."""
        if self.task is not None:
            self.task.cancel()

    def over(self, first: int, last: int) -> Call:
        """Return the call over other ones of the items."""
        made = Call(self.name, self.prepared, self.retries)
        made.more, made.stop = (first, last), self.stop
        return made

    def begin_to_wait(self, withdraw: Callable[[Call], object]) -> bool:
        """Note that the call waits at a worker; return False if it was cancelled."""
        with self._condition:
            if self.cancelled():
                return self.set_running_or_notify_cancel()
            self.withdraw = withdraw
            return True

    def take_back(self) -> None:
        """Note that the call waits at no worker."""
        with self._condition:
            self.withdraw = None
        self.worker = None

    def begin(self) -> None:
        """Note that the call, which waited at a worker, runs."""
        if self.withdraw is not None:  # Why: a call that is made again is running already.
            with self._condition:
                self.withdraw = None
                self.set_running_or_notify_cancel()


class Calls:
    """The calls of one pool; only the pool thread uses it.

    Parameters
    ----------
    callbacks : CallbackThreads
        Run the callbacks of the calls.
    withdraw : callable
        Has the pool thread withdraw a call, and waits until it has; any thread may call it.
    """

    def __init__(
        self, callbacks: CallbackThreads, withdraw: Callable[[Call], object] = lambda _: None
    ) -> None:
        self._callbacks = callbacks
        self._ask_to_withdraw = withdraw
        self._queue: deque[Call] = deque()
        self._running: dict[int, Call] = {}
        self._ahead: dict[int, Call] = {}  # the next call of a worker, which is in _running too
        self._behind: dict[int, Call] = {}  # the call of a worker that had a plan then
        self._startup_failures = 0  # workers that died in a row without work

    def __bool__(self) -> bool:
        return bool(self._queue or self._running)

    @property
    def wait(self) -> bool:
        """True if calls wait for a worker."""
        return bool(self._queue)

    def add(self, call: Call) -> None:
        """Queue a call."""
        self._queue.append(call)

    def assign(self, engine: Engine) -> None:
        """Give calls to workers, while there are both."""
        if self._behind:
            self._look_behind(engine)
        while self._queue or self._ahead:
            worker = engine.free_worker()
            if worker is not None and not self._queue:
                self._withdraw(engine, next(iter(self._ahead)))
                continue
            if ahead := worker is None:
                # Why not behind a call over items: the items that it leaves come next.
                cut = {one.worker for one in self._running.values() if one.more}
                worker = engine.worker_ahead(self._queue[0].prepared, cut) if self._queue else None
                if worker is None:
                    return
            self._give(engine, worker, ahead=ahead)

    def _look_behind(self, engine: Engine) -> None:
        """Queue the calls again that wait behind a plan while another worker is idle."""
        for worker in [one for one in self._behind if not engine.has_plan(one)]:
            self._behind.pop(worker).begin()
        free = engine.free_worker()
        if free is not None and not engine.has_plan(free):
            for worker in list(self._behind):
                self._withdraw(engine, worker)

    def _give(self, engine: Engine, worker: int, *, ahead: bool) -> None:
        """Give the first call of the queue to a worker, or drop it if it was cancelled."""
        call = self._queue.popleft()
        behind = not ahead and engine.has_plan(worker)
        # Why not for a call that is made again: it is running already.
        if call.worker is None:
            wanted = (
                call.begin_to_wait(self._ask_to_withdraw)
                if ahead or behind
                else call.set_running_or_notify_cancel()
            )
            if not wanted:
                call.prepared = None
                call.notify(self._callbacks)  # Why again: `cancel` may have been interrupted.
                return
        call.worker = worker
        self._running[call.number] = call
        if ahead:
            self._ahead[worker] = call
        elif behind:
            self._behind[worker] = call
        try:
            engine.call(worker, call.number, call.prepared, call.more)
        except Exception as error:  # noqa: BLE001 - a segment was closed: that call's fault
            self.finished(CallFinished(call.number, error=error))

    def _withdraw(self, engine: Engine, worker: int, *, stop: bool = False) -> None:
        """Queue the calls again that a worker has not begun."""
        waiting = [self._behind.pop(worker, None), self._ahead.pop(worker, None)]
        for number in reversed(engine.withdraw(worker, stop=stop)):
            call = self._running.pop(number, None)
            if call is None:  # Why: it failed as it was sent, and its worker was killed.
                continue
            if call.withdraw is not None:
                call.take_back()
            self._queue.appendleft(call)
        for one in waiting:
            if one is not None and one.number in self._running:
                one.begin()

    def withdraw(self, engine: Engine, call: Call) -> None:
        """Cancel a call unless its worker has begun it; end a call over items that runs."""
        if call.worker is not None and call.number in self._running:
            self._withdraw(engine, call.worker, stop=bool(call.more))
        Future.cancel(call)

    def running(self, number: int) -> Call | None:
        """Return the call that a worker has under this number."""
        return self._running.get(number)

    def all(self) -> list[Call]:
        """Return the calls that are not over."""
        return [*self._running.values(), *self._queue]

    def finished(self, event: CallFinished) -> None:
        """Resolve a call."""
        self._startup_failures = 0
        call = self._running.pop(event.call, None)
        if call is None:
            return
        if call.worker is not None:
            call.begin()  # Why: its worker may have the plan of a later run.
            if self._behind.get(call.worker) is call:
                del self._behind[call.worker]
            if (ahead := self._ahead.pop(call.worker, None)) is not None:
                ahead.begin()
        if event.unreadable and call.more and len(range(*call.more)) > 1:
            self._call_each(call, *call.more)
            return
        if call.more and type(event.value) is list:
            first, last = call.more
            self._split(call, first + len(event.value), last, len(event.value))
        self._resolve(call, event.value, event.error)

    def _call_each(self, call: Call, first: int, last: int) -> None:
        """Make a call of each item of a call: one of them is to blame, the others have results."""
        self._split(call, first, last, 1)
        self._resolve(call, [], None)

    def _split(self, call: Call, first: int, last: int, size: int) -> None:
        """Make calls of the items of a call that are left: ``first <= i < last``."""
        if first < last and call.unwanted:
            call.rest = [call.over(first, last)]
            self._cancel(call.rest[0])
            return
        size = max(size, 1)  # Why: a worker that was stopped, or has died, returns no result.
        begins = range(first, last, size)
        call.rest = [call.over(begin, min(begin + size, last)) for begin in begins]
        self._queue.extendleft(reversed(call.rest))

    def _resolve(self, call: Call, value: Any, error: BaseException | None) -> None:
        call.prepared = None  # Why: a call that is over keeps no arguments.
        call.resolve(self._callbacks, value, error)

    def worker_lost(self, event: WorkerLost, *, innocent: bool) -> bool:
        """Queue the calls of a lost worker again; return whether it had begun one.

        It is `innocent` if it died for the sake or the fault of a run.
        """
        exit_, had = event.exit or Exit(None), False
        self._ahead.pop(event.worker, None)
        self._behind.pop(event.worker, None)
        lost = [n for n, call in self._running.items() if call.worker == event.worker]
        for number in reversed(lost):
            call = self._running.pop(number)
            had = had or number not in event.waiting
            if call.withdraw is not None:
                call.take_back()
            spared = innocent or number in event.waiting
            if not spared and call.more and len(range(*call.more)) > 1:
                self._call_each(call, *call.more)
            elif spared or call.retries > 0:
                call.retries -= not spared
                self._queue.appendleft(call)
            else:
                self._resolve(call, None, error_texts.call_died(call.name, exit_))
        if had or innocent:
            self._startup_failures = 0
        elif event.loading is None and not event.idle:
            # Why not for a plan that kills the workers that load it: its run gives up.
            self._startup_failures += 1
        return had

    def give_up(self, max_startup_failures: int, exit_: Exit) -> None:
        """Fail all calls if too many workers in a row have died without work."""
        if self._startup_failures > max_startup_failures:
            while self._queue:
                call = self._queue.popleft()
                self._resolve(call, None, error_texts.call_died(call.name, exit_))

    def cancel_waiting(self, engine: Engine) -> None:
        """Cancel the calls that no worker has begun; ask the tasks of the others to stop."""
        for worker in [*self._ahead, *self._behind]:
            self._withdraw(engine, worker)
        for call in self._running.values():
            call.unwanted = True
            call.ask_to_stop()
        for call in [call for call in self._queue if call.worker is None]:
            self._queue.remove(call)
            self._cancel(call)

    def _cancel(self, call: Call) -> None:
        call.prepared = None
        Future.cancel(call)
        call.set_running_or_notify_cancel()
        call.notify(self._callbacks)

    def refuse(self, calls: list[Call], error: BaseException) -> None:
        """Fail those of the calls that no worker has."""
        for call in calls:
            with contextlib.suppress(ValueError):  # a worker has it, or it was cancelled
                self._queue.remove(call)
                self._resolve(call, None, error)

    def abort(self, error: BaseException) -> None:
        """Fail all calls: the engine is gone."""
        calls = self.all()
        self._queue.clear()
        self._running.clear()
        self._ahead.clear()
        self._behind.clear()
        for call in calls:
            call.withdraw = None
            self._resolve(call, None, error)


def call_here(name: str, function: Function, more: tuple[int, int] | tuple[()] = ()) -> Call:
    """Make a call in the calling thread; return its future, which is done."""
    engine, callbacks = SerialEngine(Initializer()), CallbackThreads()
    calls = Calls(callbacks)
    call = Call(name, engine.prepare_call(function), 0)
    call.more = more
    calls.add(call)
    while calls:  # Why again: a call over items may leave some of them.
        calls.assign(engine)
        for event in engine.wait(0.0):
            if isinstance(event, CallFinished):
                calls.finished(event)
    return call


def task_for(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    zeros: Callable[..., Any],
) -> Task | None:
    """Return the task of a call; None if its function has no parameter for it.

    A function has if its arguments leave a parameter named ``task`` free.

    Parameters
    ----------
    zeros : callable
        Makes the memory of the task, as :func:`numpy.zeros`.

    Examples
    --------
    >>> def segment(image, task): ...
    >>> [task_for(segment, args, {}, np.zeros) is None for args in [(1,), (1, 2)]]
    [False, True]
    """
    if _TASK in keywords or not _names_task(call):
        return None
    try:
        signature = inspect.signature(call)
        bound = signature.bind_partial(*args, **keywords).arguments
    except (TypeError, ValueError):
        return None  # Why: the call itself raises the error, with the names of its function.
    parameter = signature.parameters.get(_TASK)
    if parameter is None or parameter.kind not in _BY_KEYWORD or _TASK in bound:
        return None
    return Task(zeros(NBYTES, np.uint8))


def _names_task(call: Any) -> bool:
    """Return whether a function may have the parameter; much quicker than its signature."""
    for _ in range(_DEEPEST):
        if isinstance(call, partial):
            if _TASK in call.keywords:
                return False
            call = call.func
            continue
        code = getattr(call, "__code__", None)
        if code is None:
            if (signature := getattr(call, "__signature__", None)) is not None:
                return _TASK in getattr(signature, "parameters", ())
            kind, name = (call, "__init__") if isinstance(call, type) else (type(call), "__call__")
            code = getattr(getattr(kind, name, None), "__code__", None)
        if code is not None:
            named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if _TASK in named:
                return True
        call = getattr(call, "__wrapped__", None)
        if call is None:
            return False
    return False


# The items of `Pool.map`

SLICE_SECONDS = 5e-3
"""Time after which a call over items ends, unless its chunksize was given."""
HOST_SLICE_SECONDS = 0.1
"""The same on a cluster. Why longer: each slice goes to a host and back."""

_PAUSE_SECONDS = 1e-3  # between two pauses for the pool thread
_FEW = 16  # items for each worker that are sent one by one
_FIRST = 16  # items of the first piece, whose pickle tells how large an item is
_MOST = 1024  # items of a piece where their number is not known
_MOST_BYTES = 256 * 1024  # of a piece: it is sent again with each slice
_MOST_OF_RANGE = 64 * 1024  # Why a bound: slow items become calls of their own.


class Pieces(Iterator[Sequence[Any]]):
    """Cuts items into pieces.

    The size of a piece is a compromise. A call costs as much as many quick items, so pieces are
    large: a worker's share. Slow items must be balanced, cancelled and yielded one by one, so a
    call over a piece ends after a slice of time, and the items that are left become calls of that
    length.

    Parameters
    ----------
    items : iterable
        The items.
    total : int or None
        The largest number of items that there may be, if it is known.
    workers : int
        Number of workers.
    """

    def __init__(self, items: Iterable[Any], total: int | None, workers: int) -> None:
        self._items = iter(items)
        self._range = items if type(items) is range else None
        self._most = _MOST if total is None else math.ceil(total / workers)
        if total is not None and total <= _FEW * workers:
            # Why: each result is there as soon as it can be, and few calls cost little.
            self._most = 1
        elif self._range is not None:
            self._most = min(self._most, _MOST_OF_RANGE)
        self._grows = total is None
        self._size = 1 if self._grows else max(1, min(_FIRST, self._most))
        self._weighed = False
        self._idle, self._paused = workers, time.perf_counter()

    def _pause(self) -> None:
        """Let the pool thread send the pieces that were cut, while there are idle workers.

        Later, pause once in a while: a pause takes as long as the pickle of a piece.
        """
        if self._idle == 0 or time.perf_counter() - self._paused > _PAUSE_SECONDS:
            time.sleep(0)
            self._paused = time.perf_counter()
        self._idle -= 1

    def __next__(self) -> Sequence[Any]:
        if self._most > 1:
            self._pause()
        piece = self._take()
        if not piece:
            raise StopIteration
        return piece

    def _take(self) -> Sequence[Any]:
        if self._range is not None:
            # Why: a range of any length is a few bytes, which take no time to make or to send.
            ahead, self._range = self._range[: self._most], self._range[self._most :]
            return ahead
        if not self._grows:
            piece = list(itertools.islice(self._items, self._size))
            if not self._weighed and self._most > 1 and (body := pack_plain(piece)):
                self._weigh(len(piece), len(body))
                piece += itertools.islice(self._items, max(0, self._size - len(piece)))
            return piece
        piece, until = [], time.perf_counter() + SLICE_SECONDS
        for item in itertools.islice(self._items, self._size):
            piece.append(item)
            # Why: items that take long to make are computed while the next ones are made.
            if time.perf_counter() >= until:
                break
        return piece

    def weigh(self, count: int, prepared: Any) -> None:
        """Choose the size of the next piece, given a prepared call over so many items."""
        # Why: other engines pickle nothing.
        self._weigh(count, getattr(prepared, "nbytes", 0))

    def _weigh(self, count: int, nbytes: float) -> None:
        self._weighed = True
        limit = min(self._most, max(1, int(_MOST_BYTES * count // max(nbytes, 1))))
        self._size = max(1, min(limit, 2 * self._size) if self._grows else limit)


def length_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return the largest number of items that there may be; None if it is not known."""
    found = []
    for one in iterables:
        with contextlib.suppress(Exception):  # Why: the user's object may raise anything.
            found.append(len(one))  # type: ignore[arg-type]
    return min(found, default=None)


class Results(Iterator[Any]):
    """The results of calls over items, in order.

    Parameters
    ----------
    calls : deque of Call
        The calls that were submitted.
    more : iterator of Call
        Submits a further call at each step.
    timeout : float or None
        Seconds from now within which each result must be there.
    """

    def __init__(self, calls: deque[Call], more: Iterator[Call], timeout: float | None) -> None:
        self._calls = calls
        end = None if timeout is None else time.monotonic() + timeout
        self._sources: list[list[Any]] = []  # of the results of the current slice, one for each
        self._slices = _take_slices(calls, more, end, self._sources)
        self._results = itertools.chain.from_iterable(self._slices)

    def __iter__(self) -> Iterator[Any]:  # noqa: PYI034 - the chain alone is quicker
        return self._results

    @delivering
    def __next__(self) -> Any:
        return next(self._results)

    def close(self) -> None:
        """Cancel the calls that no worker has begun; yield no further result."""
        self._slices.close()
        self._sources.clear()
        _cancel(self._calls)  # Why here too: a generator that has not begun does nothing.


def _take_slices(
    calls: deque[Call], more: Iterator[Call], end: float | None, sources: list[list[Any]]
) -> Generator[Iterator[Any]]:
    """Yield the results of each call, which are taken from `sources`."""
    left = 0  # calls at the begin of the deque that stand for items of an earlier one
    try:
        while calls:
            if left == 0:
                calls.extend(itertools.islice(more, 1))
            with hiding():
                found = calls[0].result(None if end is None else end - time.monotonic())
            done = calls.popleft()
            single = not done.more
            calls.extendleft(reversed(done.rest))
            left = max(left - 1, 0) + len(done.rest)
            del done
            values, error = [found] if single else found, None
            if type(found) is Slice:
                values, error = found
            del found
            values.reverse()
            # Why popped: the slice does not keep a result that was given out.
            sources[:] = [values] * len(values)
            del values
            yield map(list.pop, sources)
            if error is not None:
                try:
                    with hiding():
                        raise error
                finally:
                    del error  # Why: its traceback has this frame, which would hold it.
    finally:
        _cancel(calls)


def _cancel(calls: deque[Call]) -> None:
    # Why from the end: a call that waits at a worker is cancelled last, when no other takes its
    # place.
    while calls:
        call = calls.pop()
        call.unwanted = True
        if call.cancel():
            continue
        if not call.done() and call.stop is not None:
            call.stop(call)  # Why: no further item of it may begin.
        calls.extend(call.rest)  # of a call that is over, and whose results nobody has taken

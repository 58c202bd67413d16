"""A run: one execution of a plan, as a Future; and a run in the thread that calls the verb."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from shmpar.display import format_call
from shmpar.engines.local import Initializer, SerialEngine
from shmpar.errors import ShmparError, format_count
from shmpar.runtime import error_texts
from shmpar.runtime.execution import Execution
from shmpar.runtime.futures import OTHER_NAMES, CallbackThreads, Latch, PoolFuture
from shmpar.runtime.items import Table, make_table
from shmpar.runtime.outputs import Outputs, WeakResult, as_user
from shmpar.runtime.progress import TICK_SECONDS, Observer, show_once, update
from shmpar.tracebacks import delivering, hide_frames, hiding

if TYPE_CHECKING:
    from shmpar.report import Report

Array = np.ndarray[Any, Any]


_OUT = "pass out=target to the verb"
_PLOT = "write report.plot()"
_REPORT = "write report, which has the times"
_EACH = "write completed(), which yields results as they come"
_OTHER_NAMES = {
    **dict.fromkeys(("save", "store", "to_hdf5", "to_npy", "to_zarr"), _OUT),
    **dict.fromkeys(("plot", "profile", "visualize"), _PLOT),
    **dict.fromkeys(("seconds", "stats", "summary", "time", "timings", "workers"), _REPORT),
    **dict.fromkeys(("as_completed", "items", "iter", "next"), _EACH),
    **dict.fromkeys(("df", "to_dataframe", "to_frame"), "write table().to_frame()"),
    "chunks": "write progress[1], or report.chunks",
    "error": "write exception(), or failed for the list of all errors",
    "errors": "write failed, the list of the errors",
    "exceptions": "write failed, the list of the errors",
    "records": "write table()",
    "restart": "write resume()",
    "retry": "write resume(), which computes the chunks that are not done",
}


class Run(PoolFuture):
    """An execution of a plan.

    It is a :class:`concurrent.futures.Future`; the verbs make it.
    """

    _other_names: ClassVar[Mapping[str, str]] = {**OTHER_NAMES, **_OTHER_NAMES}

    def __init__(self, execution: Execution) -> None:
        super().__init__()
        self.execution = execution
        execution.run = self
        self.observer: Observer | None = None
        self.label: Callable[[Any], Any] | None = None  # gives the result its labels
        self.over = Latch()  # no worker writes any more
        self.shown_by: int | None = None  # thread that shows its progress, up to its result
        # Set by the pool, while the run is being executed, and to resume it.
        self.cancel_by: Callable[[Run], None] | None = None
        self.resume_by: Callable[[], Callable[[Run], Run] | None] | None = None

    @property
    def progress(self) -> tuple[int, int]:
        """Chunks that are settled (done or failed), and all of them."""
        return self.execution.settled, self.execution.plan.chunks

    @property
    def out(self) -> Any:
        """The output's shared buffer (a tuple of them), or None while its shape is unknown.

        It may be None while a call computes whose caller waits for the result.
        It is the list of results, if the run gives one; an item that is not done is None there.
        For a zarr array it is that array.
        """
        outputs = self.execution.outputs
        if outputs.values is not None:
            return outputs.values
        if not outputs.arrays or outputs.is_stale:
            return None
        outputs.reserve_rest()
        found = tuple(map(as_user, outputs.arrays))
        return found if outputs.is_tuple else found[0]

    @property
    def failed(self) -> list[ShmparError]:
        """The failures, in chunk order."""
        return self.execution.failed

    @property
    def report(self) -> Report:
        """The run's numbers, and where its time went; so far, if it is in flight."""
        from shmpar.report import Report  # Why here: most programs never ask for a report.
        from shmpar.report.report import private_bytes, units_read

        execution, now = self.execution, time.perf_counter()
        done, began = execution.over, execution.began
        engine, errors = execution.engine, len(execution.errors)
        inputs, outputs = execution.arrays()
        unit_reads, units = units_read(execution.plan, execution.units)
        return Report(
            verb=execution.plan.verb,
            function=self._name,
            engine=engine.name if engine else "",
            workers=engine.workers if engine else 0,
            chunks=execution.plan.chunks,
            done=execution.settled - errors,
            failed=errors,
            filled=execution.was_filled,
            deaths=execution.deaths,
            seconds=now - began if execution.seconds is None else execution.seconds,
            huge_bytes=sum(huge for _, _, huge in (*inputs, *outputs)),
            worker_bytes=tuple(map(private_bytes, engine.pids())) if engine else (),
            seed=execution.plan.seed,
            preparing=(execution.opened or now) - began,
            cold=execution.cold,
            attempts=tuple(execution.attempts),
            plan=execution.plan,
            inputs=tuple((kind, nbytes) for kind, nbytes, _ in inputs),
            outputs=tuple((kind, nbytes) for kind, nbytes, _ in outputs),
            origin=began,
            complete=done,
            ledger=execution.ledger,
            hosts=tuple((execution.hosts or {}).values()),
            store_read=execution.traffic[0],
            store_written=execution.traffic[1],
            store_seconds=execution.traffic[2],
            unit_reads=unit_reads,
            units=units,
        )

    @property
    def _name(self) -> str:
        """The name of the function, without the functions around it."""
        return self.execution.name.rpartition("<locals>.")[2]

    @property
    def _status(self) -> str:
        """The state in plain words."""
        execution = self.execution
        failed = format_count(len(execution.errors), execution.noun)
        if not self.done():
            return "being cancelled" if execution.cancelled else "running"
        if self.cancelled():
            return "cancelled"
        if execution.was_filled:
            were = "was" if len(execution.errors) == 1 else "were"
            return f"done, {failed} failed and {were} filled"
        # Why not its own method: that issues the warnings, for the thread that wants the result.
        if Future.exception(self, 0) is None:
            return "done"
        return f"failed in {failed}" if execution.errors else "failed"

    def __repr__(self) -> str:
        settled, chunks = self.progress
        call = format_call(self.execution.plan.verb, self._name)
        count = f"{settled:,} of {format_count(chunks, self.execution.noun)}"
        return f"<shmpar.Run: {call}, {self._status}, {count}>"

    def _repr_html_(self) -> str:
        from shmpar.report.views import render_run

        return render_run(self, self._status)

    @delivering
    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end; return the result of the verb.

        Raises
        ------
        TimeoutError, CancelledError
            As of any Future.
        RuntimeError
            If its progress function asks, without a timeout: the result comes after it.
        ShmparError
            If the run failed. Also if the caller of the verb waited for the result and has dropped
            it: the run does not keep it, so that its memory goes with the last array.
        """
        self._check_wait(timeout)
        result = super().result(timeout)
        return self._labelled(result.get() if isinstance(result, WeakResult) else result)

    def _labelled(self, values: Any) -> Any:
        return values if self.label is None else self.label(values)

    def issue_warnings(self) -> None:
        """Issue the warnings of workers, and the warning of chunks that were filled."""
        super().issue_warnings()
        self.execution.outputs.refresh()  # Why: not in the pool thread, HDF5 has a lock
        # Why here: warn once, in the thread and at the line that asks for the result.
        errors, self.execution.to_warn = self.execution.to_warn, []
        if errors:
            error_texts.warn_filled(errors, self.execution.noun)

    @hide_frames
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; return the exception, None if there is none."""
        self._check_wait(timeout)
        return super().exception(timeout)

    def _check_wait(self, timeout: float | None) -> None:
        if timeout is None and self.shown_by == threading.get_ident() and not self.done():
            raise RuntimeError(
                "a progress function cannot wait for its own run, whose result comes after it; use "
                "add_done_callback()"
            )

    def cancel(self) -> bool:
        """Stop handing out chunks; return True unless the run was done already.

        When the chunks in progress have been finished, the run is done, and :meth:`result` raises
        ``CancelledError``.
        """
        if self.done():
            return self.cancelled()
        if (cancel := self.cancel_by) is not None:
            cancel(self)
        return True

    def completed(self, *, ordered: bool = False) -> Iterator[Any]:
        """Yield results as they come: regions of :attr:`out`, or items with their values.

        Parameters
        ----------
        ordered : bool
            Yield in the order of the input; a result waits for those before it. Otherwise the
            order is that in which the workers finish.

        Yields
        ------
        tuple of slice
            The chunk's window in the output, or in each of several outputs; an axis that it does
            not name is whole. With `apply_along_axis` an ellipsis stands for the axes of the result
            of a line. Failed chunks have none.
        tuple of (item, value)
            For a run over items: the item (a tuple of them for several iterables) and the value
            that the function returned. Failed items have none. Items that an earlier run or a
            ledger has done come first.

        Raises
        ------
        ShmparError, CancelledError
            At the end, as :meth:`result`.

        Notes
        -----
        Use it with ``wait=False``: then workers report after each claim, up to 8 ms of
        work. A run whose caller waits reports its chunks when it is over. It keeps large arrays
        among items and values only as long as the caller does; they are None afterwards.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     run = pool.map_blocks(np.negative, np.arange(6.0), chunks=2, wait=False)
        ...     done = [run.out[region].sum() for region in run.completed()]
        >>> float(sum(done))
        -15.0
        >>> with shmpar.Pool(2) as pool:
        ...     run = pool.parallel_map(len, ["a", "bcd"], wait=False)
        ...     list(run.completed(ordered=True))
        [('a', 1), ('bcd', 3)]
        """
        items = self.execution.items
        with hiding(delivers=False):
            for chunk in self.execution.finished_chunks(ordered=ordered):
                if items is not None:
                    yield items[chunk], self._value(chunk)
                    continue
                window: tuple[Any, ...] = self.execution.plan.window(chunk)
                yield tuple(
                    part if isinstance(part, slice) or part is ... else slice(part, part + 1)
                    for part in window
                )
        with hiding():
            self.result()

    @hide_frames
    def live(self, ax: Any = None, *, output: int = 0, **options: Any) -> Any:
        """Fill a picture while the run computes; return when it is over, as :meth:`result` would.

        A notebook shows the picture below the cell, and a window is redrawn, some times per second.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            The axes to draw in. By default they belong to a new figure, which has a colour bar.
            The title is the progress, unless the axes have a title.
        output : int
            Number of the output, if the function returns a tuple.
        **options
            Options of matplotlib: of ``imshow``, such as ``cmap``, ``vmin`` and ``norm``; or of
            ``plot`` for an output with one axis.

        Returns
        -------
        matplotlib.image.AxesImage or matplotlib.lines.Line2D
            The picture: an image of two axes, or a line. Chunks that are not done are grey. Of an
            output with more axes it shows the plane of the latest chunk. An unsigned last axis of
            3 or 4 is a colour; of other short last axes it shows the first element. Complex numbers
            are shown by their magnitude. None if there is no element to draw.

        Raises
        ------
        ShmparError, CancelledError
            At the end, as :meth:`result`; the picture stays.
        TypeError
            If the output does not consist of numbers.
        IndexError
            If there is no such output.
        ImportError
            If matplotlib is not installed, which the extra ``plot`` installs.

        Notes
        -----
        Use it with ``wait=False``. A run whose caller waits shows its chunks when it is over. An
        interrupt ends the picture, and not the run.

        Cost: drawing takes at most a fifth of this thread's time. The picture has at most 1,000
        elements along an axis; of longer axes it shows every second element, every third, ...

        Examples
        --------
        >>> import matplotlib.figure, numpy as np, shmpar
        >>> axes = matplotlib.figure.Figure().subplots()
        >>> with shmpar.Pool(2) as pool:
        ...     run = pool.map_blocks(np.sqrt, np.ones((60, 40)), chunks=20, wait=False)
        ...     picture = run.live(axes, vmin=0)
        >>> picture.get_array().shape, axes.get_title()
        ((60, 40), 'map_blocks(sqrt): 6 of 6 chunks')
        """
        from shmpar.runtime.live import follow  # Why here: few programs draw.

        picture = follow(self, ax, output, options)
        self.result()
        return picture

    def _value(self, chunk: int) -> Any:
        result = self._result
        held = result if isinstance(result, WeakResult) else self.execution.outputs
        return held.value(chunk)

    @hide_frames
    def table(self) -> Table:
        """Return a record of each item: its status, result or error, seconds and worker.

        Returns
        -------
        list of dict
            In input order, also while the run is in progress; ``.to_frame()`` makes a
            :class:`pandas.DataFrame` of it. Each record has the entries ``item``, ``status``
            ("done", "failed" or "pending"), ``result``, ``error``, ``seconds`` and ``worker``.
            `result` is None unless the item is done, and `error` unless it failed. `seconds` and
            `worker` are None if they are not known, as for a result from a ledger.

        Raises
        ------
        TypeError
            If the run is not over items: its chunks are in :attr:`report`.

        Notes
        -----
        Cost: a few microseconds per item. After a call that waited, `item` and `result` are None
        for large arrays that the caller has dropped.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     run = pool.parallel_map(int, ["1", "x"], on_error="collect", wait=False)
        ...     _ = run.exception()
        >>> for record in run.table():
        ...     print(record["item"], record["status"], record["result"], record["error"])
        1 done 1 None
        x failed None parallel_map, item 1 ('x'): the function raised ValueError: invalid ...
        """
        execution = self.execution
        if execution.items is None:
            raise TypeError(
                f"table() has the items of a parallel_map over an iterable; this run of "
                f"{execution.plan.verb} has chunks of arrays: see run.report"
            )
        chunks, ledger = execution.plan.chunks, execution.ledger
        pairs = execution.items, chunks, self._value
        return make_table(*pairs, dict(execution.errors), ledger, tuple(execution.attempts))

    @hide_frames
    def resume(self, pool: Any = None) -> Run:
        """Compute the remaining chunks, in a new run into the same outputs.

        Parameters
        ----------
        pool : Pool, optional
            Another pool that computes them; by default that of this run.

        Returns
        -------
        Run
            A run in flight, as with ``wait=False``. Its result is the whole output. After a cancel
            that came when every chunk was done, it is complete at once.

        Raises
        ------
        RuntimeError
            If this run is not over, or has given its whole result; if the pool is closed; or if it
            works in place, since the chunks that it had begun have overwritten their input.
        TypeError
            If `pool` is not a pool.

        Notes
        -----
        An incomplete or cancelled run keeps its inputs, its function and its outputs for this.

        Examples
        --------
        >>> import numpy as np, pathlib, shmpar, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> ready = pathlib.Path(folder.name) / "ready"
        >>> def work(row):
        ...     if row[0] == 2 and not ready.exists():
        ...         raise OSError("not ready")
        ...     return row.sum()
        >>> with shmpar.Pool(2) as pool:
        ...     try:
        ...         pool.parallel_map(work, np.arange(4)[:, None])
        ...     except shmpar.ChunkError as error:
        ...         ready.touch()
        ...         error.run.resume().result()
        array([0, 1, 2, 3])
        >>> folder.cleanup()
        """
        if not self.done():
            raise RuntimeError("this run is in progress; cancel it first")
        if self.execution.policy.in_place:
            raise RuntimeError(
                "a run that works in place cannot be resumed: the chunks that it had begun may "
                "already hold new values"
            )
        if pool is None:
            launch = None if self.resume_by is None else self.resume_by()
        elif (launch := getattr(pool, "_launch", None)) is None:
            raise TypeError(f"resume() takes a Pool, not {type(pool).__name__}")
        if launch is None:
            raise RuntimeError("the pool of this run is gone; make the call again in a new one")
        run = Run(self.execution.rest())
        run.label = self.label
        try:
            launch(run)
        except BaseException:
            # Why the look: a run that the pool has is being cancelled, and unlocks it at its end.
            if run.cancel_by is None and not run.execution.over:
                run.execution.unlock()
            raise
        return run

    def running(self) -> bool:
        """Return True from its begin until it is done."""
        return self.execution.running and not self.done()

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in a coroutine, without blocking its loop."""
        import asyncio

        return asyncio.wrap_future(self).__await__()

    # For the pool thread

    def finish(self, callbacks: CallbackThreads) -> None:
        """Set the outcome of a run that is over, and let its waiters go on."""
        # Lock: reentrant. A run that cannot be prepared may be cancelled by another thread.
        with self._condition:
            if self.resolved.is_set:
                return
            execution = self.execution
            outcome, execution.outcome = execution.outcome, None
            execution.release()
            self.cancel_by = None
            try:
                if execution.cancelled and execution.fatal is None:
                    Future.cancel(self)
                    self.set_running_or_notify_cancel()
                    self.notify(callbacks)
                elif isinstance(outcome, BaseException):
                    self.resolve(callbacks, None, outcome)
                else:
                    self.resolve(callbacks, outcome, None)
            finally:
                self.over.set()
                self.resolved.set()

    # For the thread that called the verb

    @delivering
    def hand_over(self) -> Any:
        """Return the result to the caller, and keep it only as long as the caller does."""
        self.issue_warnings()
        result = Future.result(self, 0)
        self.execution.outputs = Outputs(None)
        if self.execution.items is not None:
            self.execution.items.release()
        # Why the values: the memory of the result goes with them.
        self._result = WeakResult(result)
        return self._labelled(result)


def execute_here(run: Run, initializer: Initializer, *, wait: bool = True) -> Any:
    """Execute a run in the calling thread, on a serial engine of its own.

    Invariant: all state but the run's own is local to the call, so an interrupt between any two
    instructions breaks nothing that a later call uses.

    Parameters
    ----------
    wait : bool
        Return the result, or raise the error; else return the run, which is done.
    """
    engine, execution = SerialEngine(initializer, interruptible=True), run.execution
    callbacks, cancels = CallbackThreads(), deque[Run]()
    observer, shown = run.observer, time.monotonic()

    def cancel(run: Run) -> None:
        cancels.append(run)
        engine.wake()

    run.cancel_by, run.shown_by = cancel, threading.get_ident()
    try:
        execution.prepare(engine, attended=wait)
        execution.start(engine)
        while not execution.over:
            if cancels:
                execution.cancel()
            for event in engine.wait(0.0):
                execution.handle(event)
            if observer is not None and time.monotonic() - shown >= TICK_SECONDS:
                shown = time.monotonic()
                show_once(run, observer, lambda run, error: run.execution.fail(error))
        if observer is not None:
            update(run, observer)
    except BaseException as error:
        execution.abort(error)
        engine.shutdown()
        raise
    finally:
        try:
            if observer is not None:
                observer.close()
        finally:
            run.finish(callbacks)
            callbacks.close()
    return run.hand_over() if wait else run

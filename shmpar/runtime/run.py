"""A run: one execution of a plan, as a Future."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ShmparError
from shmpar.runtime import error_texts
from shmpar.runtime.execution import Execution
from shmpar.runtime.futures import CallbackThreads, Latch, PoolFuture
from shmpar.runtime.outputs import Outputs, WeakResult
from shmpar.runtime.progress import Observer

if TYPE_CHECKING:
    from shmpar.report import Report

Array = np.ndarray[Any, Any]


class Run(PoolFuture):
    """An execution of a plan.

    It is a :class:`concurrent.futures.Future`; the verbs make it.
    """

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
        """The output's shared buffer (a tuple of them), or None while its shape is unknown."""
        outputs = self.execution.outputs
        if not outputs.arrays:
            return None
        outputs.reserve_rest()
        return tuple(outputs.arrays) if outputs.is_tuple else outputs.arrays[0]

    @property
    def failed(self) -> list[ShmparError]:
        """The failures, in chunk order."""
        return self.execution.failed

    @property
    def report(self) -> Report:
        """The run's numbers, and where its time went; so far, if it is in flight."""
        from shmpar.report import Report  # Why here: most programs never ask for a report.
        from shmpar.report.report import private_bytes

        execution, now = self.execution, time.perf_counter()
        done, began = execution.over, execution.began
        engine, errors = execution.engine, len(execution.errors)
        inputs, outputs = execution.arrays()
        return Report(
            verb=execution.plan.verb,
            function=execution.name.rpartition("<locals>.")[2],
            engine=engine.name if engine else "",
            workers=engine.workers if engine else 0,
            chunks=execution.plan.chunks,
            done=execution.settled - errors,
            failed=errors,
            filled=execution.was_filled,
            deaths=execution.deaths,
            seconds=now - began if execution.seconds is None else execution.seconds,
            memory=tuple(kind for kind, _, _ in (*inputs, *outputs)),
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
            store_read=int(execution.traffic[0]),
            store_written=int(execution.traffic[1]),
            store_seconds=execution.traffic[2],
        )

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
        return self._labelled(self._values(timeout))

    def _values(self, timeout: float | None = None) -> Any:
        self._check_wait(timeout)
        result = super().result(timeout)
        return result.get() if isinstance(result, WeakResult) else result

    def _labelled(self, values: Any) -> Any:
        return values if self.label is None else self.label(values)

    def issue_warnings(self) -> None:
        """Issue the warnings of workers, and the warning of chunks that were filled."""
        super().issue_warnings()
        # Why here: warn once, in the thread and at the line that asks for the result.
        errors, self.execution.to_warn = self.execution.to_warn, []
        if errors:
            error_texts.warn_filled(errors)

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

    def completed(self) -> Iterator[tuple[slice, ...]]:
        """Yield the region of each chunk as soon as it is in :attr:`out`; end as `result` would.

        Yields
        ------
        tuple of slice
            The chunk's window in the output, or in each of several outputs; an axis that it does
            not name is whole. Failed chunks have none.

        Raises
        ------
        ShmparError, CancelledError
            At the end, as :meth:`result`.

        Notes
        -----
        Use it with ``wait=False``: then workers report after each claim, about a millisecond's
        work. A run whose caller waits reports its chunks when it is over.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     run = pool.map_blocks(np.negative, np.arange(6.0), chunks=2, wait=False)
        ...     done = [run.out[region].sum() for region in run.completed()]
        >>> float(sum(done))
        -15.0
        """
        for chunk in self.execution.finished_chunks():
            window = self.execution.plan.window(chunk)
            yield tuple(
                part if isinstance(part, slice) else slice(part, part + 1) for part in window
            )
        self.result()

    def resume(self) -> Run:
        """Compute the remaining chunks, in a new run into the same outputs.

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
        launch = None if self.resume_by is None else self.resume_by()
        if launch is None:
            raise RuntimeError("the pool of this run is gone; make the call again in a new one")
        run = Run(self.execution.rest())
        run.label = self.label
        try:
            launch(run)
        except BaseException:
            if not run.execution.over:  # it never began
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

    def hand_over(self) -> Any:
        """Return the result to the caller, and keep it only as long as the caller does."""
        result = self._values()
        self.execution.outputs = Outputs(None)
        # Why the values: the memory of the result goes with them.
        self._result = WeakResult(result)
        return self._labelled(result)

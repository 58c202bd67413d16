"""A run: one execution of a plan, as a Future.

Imports conductor, outputs, plan, policy and report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ShmparError
from shmpar.plan import Function, Plan
from shmpar.runtime.execution import Conductor, Policy
from shmpar.runtime.outputs import HandedOver, Outputs

if TYPE_CHECKING:
    from shmpar.report import Report

__all__ = ["Run"]

Array = np.ndarray[Any, Any]


class Run(Future[Any]):
    """One execution of a plan.

    A :class:`concurrent.futures.Future`; the verbs make it.
    """

    def __init__(
        self,
        plan: Plan,
        function: Function,
        arrays: list[Array],
        outputs: Outputs,
        policy: Policy,
        todo: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.conductor = Conductor(plan, function, arrays, outputs, policy, todo)
        self.conductor.run = self
        self._cancel: Callable[[], None] | None = None
        self._launch: Callable[[], Callable[[Run], Run] | None] = lambda: None

    @property
    def progress(self) -> tuple[int, int]:
        """Chunks that are settled (done or failed), and all of them."""
        return self.conductor.settled, self.conductor.plan.chunks

    @property
    def out(self) -> Any:
        """The output's shared buffer (a tuple of them), or None while its shape is unknown."""
        outputs = self.conductor.outputs
        if not outputs.arrays:
            return None
        return tuple(outputs.arrays) if outputs.is_tuple else outputs.arrays[0]

    @property
    def failed(self) -> list[ShmparError]:
        """What went wrong, in the order of the chunks."""
        return self.conductor.failed

    @property
    def report(self) -> Report:
        """The run's numbers, and where its time went; so far, if it is in flight."""
        from shmpar.report import Report  # a program that never asks does not load it
        from shmpar.report.report import private

        conductor, account = self.conductor, self.conductor.account
        now, done = time.perf_counter(), conductor.over
        engine, errors = conductor.engine, len(conductor.errors)
        inputs, outputs = conductor.arrays()
        return Report(
            verb=conductor.plan.verb,
            function=account.name.rpartition("<locals>.")[2],
            engine=engine.name if engine else "",
            workers=engine.workers if engine else 0,
            chunks=conductor.plan.chunks,
            done=conductor.settled - errors,
            failed=errors,
            deaths=conductor.deaths,
            seconds=now - account.began if account.seconds is None else account.seconds,
            memory=tuple(kind for kind, _ in (*inputs, *outputs)),
            worker_bytes=tuple(map(private, engine.pids())) if engine else (),
            seed=conductor.plan.seed,
            preparing=(account.opened or now) - account.began,
            cold=account.cold,
            attempts=tuple(account.attempts),
            plan=conductor.plan,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            origin=account.began,
            complete=done,
            ledger=conductor.ledger,
        )

    def result(self, timeout: float | None = None) -> Any:
        """What the verb returns, when it is there.

        Raises
        ------
        TimeoutError, CancelledError
            As of any Future.
        ShmparError
            If the run failed, or if the verb was waited for and its result has been dropped: such
            a run does not keep it, so that the memory goes with the last array.
        """
        result = super().result(timeout)
        if isinstance(result, HandedOver):
            return result.again()
        return result

    def cancel(self) -> bool:
        """Stop handing out chunks; True unless the run was done already.

        The run is done, and :meth:`result` raises ``CancelledError``, when the chunks in progress
        have been finished.
        """
        if self.done():
            return self.cancelled()
        if self._cancel is not None:
            self._cancel()
        return True

    def completed(self) -> Iterator[tuple[slice, ...]]:
        """Give the region of each chunk as soon as it is in :attr:`out`; end as `result` would.

        Yields
        ------
        tuple of slice
            The chunk's window in the output, or in each of several; axes that are not in it are
            whole. Chunks that failed have none.

        Raises
        ------
        ShmparError, CancelledError
            At the end, what :meth:`result` would raise.

        Notes
        -----
        A run of a call that is waited for tells of its chunks when it is over; so ask a run with
        ``wait=False``, which has its workers tell after each claim (about a millisecond's work).

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     run = pool.map_blocks(np.negative, np.arange(6.0), chunks=2, wait=False)
        ...     done = [run.out[region].sum() for region in run.completed()]
        >>> float(sum(done))
        -15.0
        """
        for chunk in self.conductor.finished_chunks():
            window = self.conductor.plan.window(chunk)
            yield tuple(
                part if isinstance(part, slice) else slice(part, part + 1) for part in window
            )
        self.result()

    def resume(self) -> Run:
        """Compute what this run has not, in a new run into the same outputs.

        Returns
        -------
        Run
            In flight, as with ``wait=False``. Its result is that of the whole.

        Raises
        ------
        RuntimeError
            If this run is not over, or has nothing left to compute; if it works in place, since
            what it had begun has overwritten its input; if the pool is closed.

        Notes
        -----
        A run that is not complete keeps its inputs, its function and its outputs for this.

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
        if self.conductor.policy.in_place:
            raise RuntimeError(
                "a run that works in place cannot be resumed: chunks that it had begun may hold "
                "new values already"
            )
        launch = self._launch()
        if launch is None:
            raise RuntimeError("the pool of this run is gone; make the call again in a new one")
        run = Run(*self.conductor.rest())
        try:
            launch(run)
        except BaseException:
            if not run.conductor.over:  # it never began
                run.conductor.unlock()
            raise
        return run

    def running(self) -> bool:
        """Whether it has begun and is not done."""
        return self.conductor.running and not self.done()

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in a coroutine, without blocking its loop."""
        import asyncio

        return asyncio.wrap_future(self).__await__()

    # For the driver

    def cancel_by(self, cancel: Callable[[], None]) -> None:
        """Say what :meth:`cancel` does while the run is being executed."""
        self._cancel = cancel

    def resume_by(self, launch: Callable[[], Callable[[Run], Run] | None]) -> None:
        """Say what starts the run that :meth:`resume` makes; a weak reference."""
        self._launch = launch

    def resolve(self) -> None:
        """Tell whoever waits; not under the driver's lock, since callbacks are the user's."""
        conductor = self.conductor
        conductor.close_observer()
        outcome, conductor.outcome = conductor.outcome, None
        conductor.release()
        self._cancel = None
        if conductor.cancelled and conductor.fatal is None:
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        self.set_running_or_notify_cancel()
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def hand_over(self) -> Any:
        """Give the result to the caller who has waited for it, and keep it only while he does."""
        result = self.result()
        self.conductor.outputs = Outputs(None)
        self._result = HandedOver(result)
        return result

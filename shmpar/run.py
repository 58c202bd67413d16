"""A run: one execution of a plan, as a Future.

Imports conductor, outputs, plan, policy and report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import numpy as np

from shmpar.conductor import Conductor
from shmpar.errors import ShmparError
from shmpar.outputs import HandedOver, Outputs
from shmpar.plan import Function, Plan
from shmpar.policy import Policy
from shmpar.report import Report

__all__ = ["Run"]

Array = np.ndarray[Any, Any]


class Run(Future[Any]):
    """One execution of a plan.

    A :class:`concurrent.futures.Future`; the verbs make it.

    Attributes
    ----------
    conductor : Conductor
        What drives it; not for users.
    """

    def __init__(
        self,
        plan: Plan,
        function: Function,
        arrays: list[Array],
        outputs: Outputs,
        policy: Policy,
    ) -> None:
        super().__init__()
        self.conductor = Conductor(plan, function, arrays, outputs, policy)
        self.conductor.run = self
        self._cancel: Callable[[], None] | None = None

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
        return tuple(outputs.arrays) if outputs.several else outputs.arrays[0]

    @property
    def failed(self) -> list[ShmparError]:
        """What went wrong, in the order of the chunks."""
        return self.conductor.failed

    @property
    def report(self) -> Report:
        """The run's numbers, so far."""
        conductor = self.conductor
        engine, seconds = conductor.engine, conductor.seconds
        errors = len(conductor.errors)
        return Report(
            verb=conductor.plan.verb,
            engine=engine.name if engine else "",
            workers=engine.workers if engine else 0,
            chunks=conductor.plan.chunks,
            done=conductor.settled - errors,
            failed=errors,
            deaths=conductor.deaths,
            seconds=time.perf_counter() - conductor.began if seconds is None else seconds,
            memory=conductor.where(),
            seed=conductor.plan.seed,
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

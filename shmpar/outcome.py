"""What a run comes to: its outputs delivered, and its result or its error.

Imports errors, failures, outputs, plan and policy.

Guarantees
----------
It follows from the ledger and the recorded errors alone, not from the order in which workers
finished.
"""

from __future__ import annotations

from typing import Any, Protocol

from shmpar import failures
from shmpar.errors import ShmparError
from shmpar.outputs import Outputs
from shmpar.plan import Plan
from shmpar.policy import Policy

__all__ = ["conclude"]


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

"""What a worker is given to work on, and how it talks to whoever gave it.

Imports plan, tickets and ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shmpar.ledger import Ledger
from shmpar.plan import Announcement, Failure, Function, Plan
from shmpar.tickets import Tickets

__all__ = ["Abandoned", "Assignment", "Channel"]

Array = np.ndarray[Any, Any]


class Abandoned(Exception):
    """The run ended while this worker waited for its outputs."""


class Channel(Protocol):
    """How a worker talks to the run.

    Attributes
    ----------
    interruptible : bool
        Whether a KeyboardInterrupt is the user's, and ends the work; else it is the function's.
    """

    interruptible: bool

    def enough(self) -> bool:
        """Whether to return between two claims."""
        ...

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Say what the outputs must be; wait for them, and for whether they are several.

        They are what the first announcement said. Raises `Abandoned` if the run is over.
        """
        ...

    def failed(self, failure: Failure) -> None:
        """Report a chunk that failed."""
        ...

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Hand over the results of a run that collects objects, as (chunk, result)."""
        ...

    def finished(self, generation: int, first: int, last: int) -> None:
        """Say that the tickets ``first <= t < last`` are done, or have failed."""
        ...

    def flush(self) -> None:
        """Return once nothing that was handed over could be lost with this worker."""
        ...


@dataclass(eq=False, slots=True)
class Assignment:
    """A plan bound to the memory of one process, with the tickets of one generation.

    Attributes
    ----------
    plan, function
        What to do.
    arrays : sequence of ndarray
        The inputs, read-only.
    outputs : sequence of ndarray or None
        Writable; None until the first result has said what they must be.
    several : bool or None
        Whether the function returns a tuple; None while the outputs are unknown.
    tickets : Tickets
        Indices into `todo`.
    todo : sequence of int or None
        Numbers of the chunks of this generation; None: all of the grid.
    generation : int
        Which one it is.
    ledger : Ledger
        Where it says what it holds and has done.
    worker : int
        Its number.
    slot : memoryview
        Its slot in the ledger.
    workers : int
        How many share the tickets.
    claimed : int
        Tickets that this worker has had.
    handed : int or None
        Tickets that all had had when this worker stopped the counter; None while it has not.
    spent : float
        Seconds in its chunks.
    reports : bool
        Whether the run wants to hear of each claim that is finished.
    sums : ndarray of uint32 or None
        Where the checksum of each chunk's output goes.
    most : int or None
        Tickets that this worker may have; None: as many as there are.
    origin : float
        When the run began, by :func:`time.perf_counter`, which is one clock for all processes.
    joined : float
        When this worker was given the plan, likewise; 0: with its first claim.
    waited : float
        Seconds that it has waited for outputs.
    """

    plan: Plan
    function: Function
    arrays: Sequence[Array]
    outputs: Sequence[Array] | None
    several: bool | None
    tickets: Tickets
    todo: Sequence[int] | None
    generation: int
    ledger: Ledger
    worker: int
    slot: memoryview
    workers: int
    claimed: int = 0
    handed: int | None = None
    spent: float = 0.0
    reports: bool = False
    sums: Array | None = None
    most: int | None = None
    origin: float = 0.0
    joined: float = 0.0
    waited: float = 0.0

    def again(self, tickets: Tickets, generation: int, origin: float, most: int | None) -> None:
        """Be that of another run, which computes the same on the same memory."""
        self.tickets, self.generation, self.origin, self.most = tickets, generation, origin, most
        self.claimed, self.handed, self.spent, self.waited = 0, None, 0.0, 0.0

    @property
    def count(self) -> int:
        """Tickets of this generation."""
        return self.plan.chunks if self.todo is None else len(self.todo)

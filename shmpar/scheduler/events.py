"""What a scheduler is told.

Imports nothing of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "Audited",
    "Cancelled",
    "ChunkFailed",
    "Died",
    "Drained",
    "Event",
    "Expired",
    "Joined",
    "Refused",
    "Stopped",
    "TimedOut",
]


class Joined(NamedTuple):
    """A worker is ready."""

    worker: int


class Drained(NamedTuple):
    """A worker found no tickets left in a generation, or ends and takes no more; it holds none.

    Attributes
    ----------
    claimed : int
        Tickets that it has had; 0 if it does not say.
    handed : int or None
        Tickets that all workers had had when this one stopped the counter; None if it did not.
    leaves : bool
        There may be tickets left: the worker is about to end.
    """

    worker: int
    generation: int
    claimed: int = 0
    handed: int | None = None
    leaves: bool = False


class ChunkFailed(NamedTuple):
    """The function raised, or returned what does not fit; the worker goes on."""

    chunk: int


class Died(NamedTuple):
    """A worker is gone.

    Attributes
    ----------
    worker : int
        Which one; its successor has the same number.
    blamed : int or None
        The chunk that it was computing.
    unfinished : tuple of int
        Chunks that it held and had not begun.
    barren : bool
        It died without a chunk in any run, and had not said that it would: while it started, or
        while it loaded the plan.
    """

    worker: int
    blamed: int | None = None
    unfinished: tuple[int, ...] = ()
    barren: bool = False


class Refused(NamedTuple):
    """A worker could not load the plan, or there is no memory for its outputs."""


class TimedOut(NamedTuple):
    """A worker has been computing this chunk for longer than it may."""

    worker: int
    chunk: int


class Audited(NamedTuple):
    """The ledger's answer: chunks that are neither done nor failed."""

    pending: Sequence[int]


class Cancelled(NamedTuple):
    """The user wants no more of it."""


class Stopped(NamedTuple):
    """No more tickets are handed out.

    Attributes
    ----------
    handed : sequence of int
        Tickets that were, of each generation.
    """

    handed: Sequence[int]


class Expired(NamedTuple):
    """The grace for chunks in progress is over."""


Event = (
    Joined
    | Drained
    | ChunkFailed
    | Died
    | Refused
    | TimedOut
    | Audited
    | Cancelled
    | Stopped
    | Expired
)

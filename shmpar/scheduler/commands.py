"""What a scheduler wants done.

Imports nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Assign",
    "Audit",
    "Command",
    "Fail",
    "Finish",
    "GiveUp",
    "Kill",
    "Open",
    "Replace",
    "Stop",
]


@dataclass(frozen=True, slots=True)
class Open:
    """Make the counter of a generation; `todo` None is the whole grid."""

    generation: int
    todo: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a generation to a worker."""

    worker: int
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Hand out no more tickets; take back what was not sent; answer with :class:`Stopped`."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker; its death is reported as any other."""

    worker: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a successor of a worker that died."""

    worker: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Record a chunk as failed, since its workers died or took too long."""

    chunk: int
    timed_out: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record that workers die before they take a chunk."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Ask the ledger what is pending; answer with :class:`Audited`."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: no worker has a ticket of it, or will get one."""


Command = Open | Assign | Stop | Kill | Replace | Fail | GiveUp | Audit | Finish

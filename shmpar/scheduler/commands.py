"""What a scheduler wants done.

Imports nothing of the package.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Open(NamedTuple):
    """Make the counter of a generation; `todo` None is the whole grid."""

    generation: int
    todo: tuple[int, ...] | None


class Assign(NamedTuple):
    """Give a generation to a worker."""

    worker: int
    generation: int


class Stop(NamedTuple):
    """Hand out no more tickets; take back what was not sent; answer with :class:`Stopped`."""


class Kill(NamedTuple):
    """End a worker; its death is reported as any other."""

    worker: int


class Replace(NamedTuple):
    """Start a successor of a worker that died."""

    worker: int


class Fail(NamedTuple):
    """Record a chunk as failed, since its workers died or took too long."""

    chunk: int
    timed_out: bool


class GiveUp(NamedTuple):
    """Record that workers die before they take a chunk."""


class Audit(NamedTuple):
    """Ask the ledger what is pending; answer with :class:`Audited`."""


class Finish(NamedTuple):
    """The run is over: no worker has a ticket of it, or will get one."""


Command = Open | Assign | Stop | Kill | Replace | Fail | GiveUp | Audit | Finish

"""The scheduler: what to do next in one run, decided without a clock, a process or memory.

Imports nothing of the package.
"""

from __future__ import annotations

from shmpar.scheduler.commands import (
    Assign,
    Audit,
    Command,
    Fail,
    Finish,
    GiveUp,
    Kill,
    Open,
    Replace,
    Stop,
)
from shmpar.scheduler.events import (
    Audited,
    Cancelled,
    ChunkFailed,
    Died,
    Drained,
    Event,
    Expired,
    Joined,
    Refused,
    Stopped,
    TimedOut,
)
from shmpar.scheduler.machine import Phase, Scheduler

__all__ = [
    "Assign",
    "Audit",
    "Audited",
    "Cancelled",
    "ChunkFailed",
    "Command",
    "Died",
    "Drained",
    "Event",
    "Expired",
    "Fail",
    "Finish",
    "GiveUp",
    "Joined",
    "Kill",
    "Open",
    "Phase",
    "Refused",
    "Replace",
    "Scheduler",
    "Stop",
    "Stopped",
    "TimedOut",
]

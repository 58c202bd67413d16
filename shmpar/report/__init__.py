"""What a run was: its numbers, and where its time went.

Imports ledger, plan, grid, cpus and segment.  What draws and writes is imported where it is asked
for, so that a program that never looks does not pay for it.
"""

from __future__ import annotations

from shmpar.report.report import Report, SlowChunk
from shmpar.report.timings import WorkerTime

__all__ = ["Report", "SlowChunk", "WorkerTime"]

"""The report of a run: its numbers, and the time that each worker spent.

The views (text, HTML, plot) are imported on use, so that other programs do not load them.
"""

from __future__ import annotations

from shmpar.engines.engine import HostTraffic
from shmpar.ipc.ledger import LostClaim
from shmpar.report.report import Report, SlowChunk
from shmpar.report.timings import WorkerTime

__all__ = ["HostTraffic", "LostClaim", "Report", "SlowChunk", "WorkerTime"]

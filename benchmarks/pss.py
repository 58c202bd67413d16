"""Memory of several processes at once: what they share is counted once."""

from __future__ import annotations

import time
from collections.abc import Iterable

import shmpar


def pss(pids: Iterable[int]) -> int:
    """Bytes: the sum of the processes' proportional set sizes."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return 1024 * total


def peak_pss(run: shmpar.Run, pids: Iterable[int]) -> int:
    """Bytes: the largest sum seen while a run is in flight, and once more at its end."""
    processes, peak = list(pids), 0
    while not run.done():
        peak = max(peak, pss(processes))
        time.sleep(0.001)
    run.result()
    return max(peak, pss(processes))

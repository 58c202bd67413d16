"""Functions of known duration, for `tests/test_report.py`."""

from __future__ import annotations

import time


def spin(seconds: float) -> float:
    """Be busy for so many seconds; return the time that it took."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        pass
    return spent

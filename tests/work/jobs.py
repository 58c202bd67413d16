"""Functions for `tests/test_joblib.py`."""

from __future__ import annotations

import os
import time
import warnings

import joblib
import numpy as np
from joblib import Parallel, delayed


def square(value: int) -> int:
    return value * value


def fail(value: int) -> int:
    if value == 3:
        raise ZeroDivisionError(value)
    return value


def write(array: np.ndarray, value: float) -> float:
    """Write to an argument; return a sum that shows the writes of other calls."""
    assert array.flags.writeable
    total = float(array.sum())
    array[:] = value
    return total


def segment_of(array: np.ndarray) -> tuple[int, int]:
    """Return device and inode of the file in which an array lies; (0, 0) for private memory."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            span, _, _, device, inode, *_ = line.split()
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= address < last:
                return hash(device), int(inode)
    return 0, 0


def nested(value: int) -> tuple[str, list[int], int]:
    active, _ = joblib.parallel.get_active_backend()
    found = Parallel(n_jobs=2)(delayed(square)(value + i) for i in range(3))
    same = Parallel(n_jobs=2, backend="shmpar")(delayed(os.getpid)() for _ in range(3))
    return type(active).__name__, found, len(set(same))


ready: list[str] = []


def make_ready(*names: str) -> None:
    ready.extend(names)


def look_ready(_: int) -> tuple[int, list[str]]:
    return os.getpid(), list(ready)


def inner(value: int) -> tuple[list[int], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Parallel(n_jobs=2, backend="shmpar")(delayed(square)(value + i) for i in range(2))
    return found, [str(one.message) for one in caught]


def raise_interrupt(value: int) -> int:
    if value == 0:
        raise KeyboardInterrupt
    return value


def wait_for(path: str, value: int) -> int:
    while not os.path.exists(path):
        time.sleep(0.01)
    return value

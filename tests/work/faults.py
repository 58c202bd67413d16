"""Functions and objects that fail, for `tests/test_faults.py`."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

import numpy as np

X = np.arange(100.0).reshape(10, 10)
BAD = 22.0  # the first value of chunk 6, at [2:4, 2:4], of X in chunks of 2 x 2


def at_bad(block: Any) -> bool:
    return bool(block.flat[0] == BAD)


def raising(block: Any) -> Any:
    if at_bad(block):
        raise ValueError("boom")
    return block


class NotUnpicklable(Exception):
    """An error that pickles and does not unpickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


class DoesNotLoad:
    """An object that pickles and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def crash(how: str) -> None:
    match how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case _:
            os.kill(os.getpid(), getattr(signal, how))


def spin(seconds: float) -> None:
    """Compute for this many seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Poison:
    """An object that ends the process in which it is unpickled."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)

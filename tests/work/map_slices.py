"""Functions of an item, for `tests/test_map_slices.py`."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from tests.work.concurrent import wait_at_gate
from tests.work.executor import NotUnpicklable

MANY = 400  # items, so many that several go with a call


def refuse(item: int, bad: int) -> int:
    if item == bad:
        raise ValueError(item)
    return -item


def die(item: int, bad: int) -> int:
    if item == bad:
        os._exit(7)
    return -item


def mostly_plain(item: int, bad: int) -> Any:
    return threading.Lock() if item == bad else item


def mostly_readable(item: int, bad: int) -> Any:
    return NotUnpicklable() if item == bad else item


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def nap_or_wait(item: str) -> int:
    """Take no time for an empty item, 0.1 s for "nap", else wait at the gate of this folder."""
    if item == "nap":
        time.sleep(0.1)
    elif item:
        wait_at_gate(item, None)
    return os.getpid()


def log(path: str, item: int) -> int:
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{item}\n")
    return item


def hold(fifo: str, item: int) -> int:
    """Wait at the file for the item that begins the second slice of a call."""
    if item == MANY // 2:
        with open(fifo, "rb") as stream:
            stream.read()
    return item


def stop(item: int, bad: int) -> int:
    if item == bad:
        raise StopIteration(item)
    return -item

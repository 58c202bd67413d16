"""Functions that read and note, for `tests/test_calls_ahead.py`."""

from __future__ import annotations

import os


def read(fifo: str) -> int:
    with open(fifo, "rb") as stream:
        stream.read()
    return os.getpid()


def note(path: str) -> int:
    with open(path, "a", encoding="ascii") as file:
        file.write("made\n")
    return os.getpid()

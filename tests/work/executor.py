"""Functions for `tests/test_executor.py`."""

from __future__ import annotations

import os
from typing import Any


class NotUnpicklable:
    """An object that pickles and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def wait_for(path: str) -> str:
    with open(path, encoding="ascii") as file:  # blocks until the test writes
        return file.read()


def die_once(path: str, how: int) -> str:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "alive"
    os.kill(os.getpid(), how)
    return "never"

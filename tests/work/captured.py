"""Functions and objects that are captured, for `tests/test_captured_values.py`."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any, ClassVar


class Gate:
    """A pipe of which a worker reads until the test opens it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR)

    def open(self, times: int) -> None:
        """Let so many calls go on."""
        os.write(self._fd, b"x" * times)

    def close(self) -> None:
        """Close the test's end."""
        os.close(self._fd)


def wait(path: str) -> None:
    """Wait in a worker until the gate is open."""
    fd = os.open(path, os.O_RDWR)
    select.select([fd], [], [])
    os.read(fd, 1)
    os.close(fd)


kept: list[Any] = []


def keep(array: Any) -> None:
    """Keep an array in this worker."""
    kept.append(array)


def kept_sum() -> float:
    """Return the sum of the kept array."""
    return float(kept[0].sum())


class Box:
    """An object whose state only its pickle tells."""

    __slots__ = ()
    _contents: ClassVar[list[Any]] = []

    def __init__(self, array: Any) -> None:
        self._contents[:] = [array]

    def __call__(self) -> Any:
        """Return the array."""
        return self._contents[0]

    def __reduce__(self) -> Any:
        return Box, (self._contents[0],)

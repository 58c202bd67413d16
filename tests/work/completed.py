"""Functions that wait or fail until they are told, for `tests/test_completed_and_resume.py`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


class FailsUntilReady:
    """Fail on some rows until a file exists, and record each call in another file."""

    def __init__(self, folder: Path, fails: set[int]) -> None:
        self.ready, self.calls, self.fails = folder / "ready", folder / "calls", fails

    def __call__(self, row: Any) -> Any:
        number = int(row[0]) // 20
        with self.calls.open("a") as file:
            file.write(f"{number}\n")
        if number in self.fails and not self.ready.exists():
            raise OSError(f"row {number} is not ready")
        return row.sum()

    def called(self) -> list[int]:
        """Return the sorted rows of the calls since the last call of this method."""
        found = sorted(int(line) for line in self.calls.read_text().split())
        self.calls.write_text("")
        return found


class Gate:
    """Note each chunk in a folder, and wait for a byte of a FIFO."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "gate"
        os.mkfifo(self.path)

    def __call__(self, row: Any) -> Any:
        (self.folder / f"begun-{int(row.flat[0])}").touch()
        with self.path.open("rb", buffering=0) as file:
            assert file.read(1) == b"!"
        return row + 1

    def wait_for(self, chunks: int) -> None:
        """Wait until so many chunks have begun."""
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("begun-*"))) < chunks:
            assert time.monotonic() < deadline
            time.sleep(0.01)

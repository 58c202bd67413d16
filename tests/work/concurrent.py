"""A gate for calls, for `tests/test_concurrent_runs.py`."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

BOUND = 60.0  # seconds after which a wait counts as a hang


class Gate:
    """Two named pipes: `wait_at_gate` waits in a worker until the test opens the gate."""

    def __init__(self, folder: Path) -> None:
        paths = folder / "waiting", folder / "go"
        for path in paths:
            os.mkfifo(path)
        # Why: opening a pipe for reading and writing does not block.
        self._waiting, self._go = (os.open(path, os.O_RDWR) for path in paths)

    def wait_for_worker(self) -> None:
        """Wait until a worker waits at the gate."""
        assert select.select([self._waiting], [], [], BOUND)[0], "no worker came to the gate"
        os.read(self._waiting, 1)

    def open(self) -> None:
        """Let the worker go on."""
        os.write(self._go, b"!")

    def close(self) -> None:
        """Close the descriptors of the test."""
        os.close(self._waiting)
        os.close(self._go)


def wait_at_gate(folder: str, block: Any) -> Any:
    waiting, go = (os.open(f"{folder}/{name}", os.O_RDWR) for name in ("waiting", "go"))
    os.write(waiting, b"!")
    os.read(go, 1)
    os.close(waiting)
    os.close(go)
    return block

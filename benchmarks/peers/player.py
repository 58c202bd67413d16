"""A system's process, seen from who conducts it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from typing import Any

from benchmarks.peers import processes

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# One thread in each process, as shmpar's workers have: what is compared is the map around it.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Failed(Exception):
    """The system cannot go on; the message says why."""


def environment(directory: str) -> dict[str, str]:
    """What every measured process has in its environment; its files go with the directory."""
    ours = {"PYTHONPATH": ROOT, "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": directory}
    theirs = dict(os.environ)
    theirs.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile what it imports
    return {**theirs, **ONE_THREAD, **ours}


class Player:
    """Starts the process; each order is answered before the next.

    Between its orders it is stopped, with all that it has started: whose turn it is has the
    machine.
    """

    def __init__(self, name: str, workers: int, directory: str) -> None:
        self.name = name
        self.workers = workers
        command = [sys.executable, "-m", "benchmarks.peers.serve", name, str(workers), directory]
        with open(os.path.join(directory, f"{name}.log"), "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environment(directory),
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._stopped: list[processes.Process] = []

    def tell(self, do: str, **order: Any) -> None:
        """Send an order."""
        if self._process.stdin.closed:
            raise Failed("its process was ended")
        self._resume()
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed("its process has ended") from None

    def hear(self, seconds: float) -> dict[str, Any]:
        """Wait for the answer, then have it rest."""
        try:
            return self._heard(seconds)
        finally:
            self._stopped = processes.stop(self.pid)

    def _resume(self) -> None:
        stopped, self._stopped = self._stopped, []
        processes.resume(stopped)

    def _heard(self, seconds: float) -> dict[str, Any]:
        if not self._selector.select(seconds):
            raise Failed(f"no answer in {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed("its process has ended")
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def ask(self, do: str, seconds: float = 120, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the answer."""
        self.tell(do, **order)
        return self.hear(seconds)

    def peak(self, do: str, seconds: float = 120, **order: Any) -> int:
        """Bytes: the most memory that the whole family had while an order was carried out.

        All rest while it is read: a page that one of them had alone, and shares by the time that
        the next is read, would count twice.
        """
        self.tell(do, **order)
        until, peak = time.monotonic() + seconds, 0
        while True:
            began = time.monotonic()
            resting = processes.stop(self.pid)
            peak = max(peak, processes.memory(self.pid))
            processes.resume(resting)
            if self._selector.select(max(0.01, time.monotonic() - began)):  # as long as it rested
                self.hear(1)
                return max(peak, processes.memory(self.pid))
            if time.monotonic() > until:
                raise Failed(f"no answer in {seconds:.0f} s")

    def end(self, seconds: float = 20) -> None:
        """Have it end all that it started, and see to it."""
        self._resume()
        family = processes.family(self.pid)
        self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._selector.close()
        processes.end(family)

"""Measure a system in a process of its own: read requests, write replies, a line of JSON each.

``python -m benchmarks.server SYSTEM WORKERS DIRECTORY``
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks import harness, systems, workloads
from benchmarks.systems import System

PACKAGES = {"skimage": "scikit-image"}  # distributions whose name differs from their package
WARM_SECONDS = 0.05  # time for a processor to reach its speed and for caches to fill


class Server:
    """A system and its loaded workload."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.calls: dict[str, Callable[[], Any]] = {}
        self.loaded = False

    def open(self) -> dict[str, Any]:
        """Start the system; return versions."""
        self.system.open()
        names = [PACKAGES.get(name, name) for name in self.system.needs]
        return {"versions": {name: importlib.metadata.version(name) for name in names}}

    def load(self, workload: str, point: dict[str, Any]) -> dict[str, Any]:
        """Create the input; return the ways that exist, or the reason if there are none."""
        self.workload = workloads.load(workload)
        self.point = dict(point)
        if self.workload.per_chunk:
            self.point["chunks"] = max(16, point["chunks"] // self.system.fewer)
            self.point["chunks"] = min(self.point["chunks"], point["chunks"])
        job = self.workload.job(self.point)
        reason = self.system.refuses(job)
        if reason is not None:
            return {"unsuited": reason}
        self.loaded = True
        self.system.load(job, lambda array: self.workload.fill(array, self.point))
        return {"ways": self.system.ways(), "chunks": self.point["chunks"]}

    def warm(self, way: str) -> dict[str, Any]:
        """Call once and check the answer."""
        if way not in self.system.ways():
            return {"unsuited": "has no such way for this"}
        self.calls[way] = self.system.call(way)
        began = time.perf_counter()
        result = self.calls[way]()
        seconds = time.perf_counter() - began
        if result is not None and self.workload.verify is not None:
            answer = self.system.answer(result)
            self.workload.verify(answer, self.system.input, self.point)
        return {"seconds": seconds}

    def call(self, way: str, times: int = 1) -> dict[str, Any]:
        """Return the seconds of each call. Warm up before short calls: a pause slows them."""
        call, seconds = self.calls[way], []
        until = time.perf_counter() + (WARM_SECONDS if times > 1 else 0.0)
        while time.perf_counter() < until:
            call()
        for _ in range(times):
            began = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - began)
            del result
        return {"seconds": seconds}

    def drop(self) -> dict[str, Any]:
        """Release the workload."""
        self.calls.clear()
        if self.loaded:
            self.system.drop()
        self.loaded = False
        return {}


def main() -> None:
    """Answer requests until there are no more."""
    name, workers, directory = sys.argv[1:]
    warnings.simplefilter("ignore")
    system = systems.load(name)(int(workers), directory)
    harness.serve(Server(system))
    system.close()


if __name__ == "__main__":
    main()

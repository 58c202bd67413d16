"""One system in a process of its own: it reads orders, a line of JSON each, and measures itself.

``python -m benchmarks.peers.serve SYSTEM WORKERS DIRECTORY``
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.peers import processes, systems, workloads
from benchmarks.peers.systems.system import System

PACKAGES = {"skimage": "scikit-image"}  # names of distributions that differ
WARM_SECONDS = 0.05  # what a processor takes to come up to speed, and its caches to fill
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Unsuited(Exception):
    """The system has nothing for this job; the message says why."""


class Server:
    """A system, the workload that it has loaded, and what it is about to do."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.runs: dict[str, Callable[[], Any]] = {}
        self.loaded = False

    def open(self) -> dict[str, Any]:
        """Start the system; say versions."""
        self.system.open()
        names = [PACKAGES.get(name, name) for name in self.system.needs]
        return {"versions": {name: importlib.metadata.version(name) for name in names}}

    def load(self, workload: str, point: dict[str, Any]) -> dict[str, Any]:
        """Have the input in memory; say which ways there are."""
        self.workload = workloads.load(workload)
        self.point = dict(point)
        if self.workload.per_chunk:
            self.point["chunks"] = max(16, point["chunks"] // self.system.fewer)
            self.point["chunks"] = min(self.point["chunks"], point["chunks"])
        job = self.workload.job(self.point)
        reason = self.system.refuses(job)
        if reason is not None:
            raise Unsuited(reason)
        self.loaded = True
        self.system.load(job, lambda array: self.workload.fill(array, self.point))
        return {"ways": self.system.ways(), "chunks": self.point["chunks"]}

    def warm(self, way: str) -> dict[str, Any]:
        """Call once, and check the answer."""
        if way not in self.system.ways():
            raise Unsuited("has no such way for this")
        self.runs[way] = self.system.call(way)
        began = time.perf_counter()
        result = self.runs[way]()
        seconds = time.perf_counter() - began
        if result is not None and self.workload.verify is not None:
            answer = self.system.answer(result)
            self.workload.verify(answer, self.system.input, self.point)
        return {"seconds": seconds}

    def call(self, way: str, times: int = 1) -> dict[str, Any]:
        """Call, and say how long each took; short calls not after a rest, which slows them."""
        run, seconds = self.runs[way], []
        until = time.perf_counter() + (WARM_SECONDS if times > 1 else 0.0)
        while time.perf_counter() < until:
            run()
        for _ in range(times):
            began = time.perf_counter()
            result = run()
            seconds.append(time.perf_counter() - began)
            del result
        return {"seconds": seconds}

    def drop(self) -> dict[str, Any]:
        """Forget the workload."""
        self.runs.clear()
        if self.loaded:
            self.system.drop()
        self.loaded = False
        return {}


def main() -> None:
    """Answer orders until there are no more."""
    name, workers, directory = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what systems print is not an answer
    warnings.simplefilter("ignore")
    # Stopped between orders, it would not see that nobody gives any.
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGCONT)
    server = Server(systems.load(name)(int(workers), directory))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(server, order.pop("do"))(**order)
        except Unsuited as reason:
            answer = {"unsuited": str(reason)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)
    processes.resume(processes.family(os.getpid()))
    server.system.close()


if __name__ == "__main__":
    main()

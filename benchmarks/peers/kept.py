"""What a run kept, and questions that the page asks of it."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.peers import figures, systems
from benchmarks.peers.figures import Record

LIMITS = ("ceiling", "private", "numba")
ALONE = ("whole",)
PEERS = tuple(name for name in systems.NAMES if name not in {"ours", *LIMITS, *ALONE})
PROCESSES = tuple(name for name in PEERS if name not in {"threads", "dask_threads", "skimage"})


class Missing(Exception):
    """The run has no such figure."""


def title(name: str) -> str:
    """How the page calls a system."""
    return systems.load(name).title if name in systems.NAMES else name


class Kept:
    """One run's figures."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            self.all: dict[str, Any] = json.load(file)
        self.records: list[Record] = self.all["records"]
        self._of: dict[str, list[Record]] = {}
        for record in self.records:
            self._of.setdefault(record["workload"], []).append(record)

    def points(self, workload: str) -> list[dict[str, Any]]:
        """The points of a workload, in their order."""
        found: list[dict[str, Any]] = []
        for record in self._of.get(workload, ()):
            if record["point"] not in found:
                found.append(record["point"])
        return found

    def all_at(self, workload: str, **point: Any) -> list[Record]:
        """Records of a workload at a point, those too that were skipped."""
        return figures.find(self._of.get(workload, ()), **point)

    def at(self, workload: str, **point: Any) -> list[Record]:
        """Measured records of a workload at a point."""
        return [record for record in self.all_at(workload, **point) if "median" in record]

    def best(self, workload: str, system: str, **point: Any) -> Record:
        """A system's figure in the way that suits it best."""
        found = self.at(workload, system=system, **point)
        if not found:
            raise Missing(f"{system} in {workload}")
        return min(found, key=lambda record: record["median"] / record.get("chunks", 1))

    def fastest(self, workload: str, names: tuple[str, ...], **point: Any) -> Record:
        """The best figure that any of these has."""
        found = [r for r in self.at(workload, **point) if r["system"] in names]
        if not found:
            raise Missing(f"{names} in {workload}")
        return min(found, key=lambda record: record["median"] / record.get("chunks", 1))

    def ratio(self, workload: str, one: str, other: str = "ours", **point: Any) -> float:
        """How many times longer one system took than the other, each in its best way."""
        pair = (self.best(workload, name, **point) for name in (one, other))
        return figures.ratio(*pair)

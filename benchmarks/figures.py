"""Measured figures: medians, quartiles, ratios, and the file that holds those of a run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks import harness, systems

Record = dict[str, Any]

LIMITS = ("ceiling", "numba")
ALONE = ("whole",)
PEERS = tuple(name for name in systems.NAMES if name not in {"ours", *LIMITS, *ALONE})
PROCESSES = tuple(name for name in PEERS if name not in {"threads", "dask_threads", "skimage"})


def values(record: Record) -> list[float]:
    """Return the measured seconds or bytes."""
    return record.get("seconds") or record.get("bytes") or []


def median(record: Record) -> float:
    """Return the median of the measured values."""
    return statistics.median(values(record))


def ratio(one: Record, other: Record) -> float:
    """Return one record's time per chunk divided by the other's: the median over their rounds.

    Calls of a round are next to each other in time. A round counts only if both were called.
    """
    scale = other.get("chunks", 1) / one.get("chunks", 1)
    others = _by_round(other)
    pairs = [(value, others[n]) for n, value in _by_round(one).items() if n in others]
    if not pairs:  # Why: a system that fails at first has other rounds.
        return median(one) / median(other) * scale
    return statistics.median(a / b for a, b in pairs) * scale


def _by_round(record: Record) -> dict[int, float]:
    """Return the value of each round; of a round that comes twice, the later value."""
    numbers = values(record)
    return dict(zip(record.get("rounds", range(len(numbers))), numbers, strict=True))


def rounded(record: Record) -> Record:
    """Round the values to four digits, and add the median and quartiles."""
    if not values(record):
        return record
    unit = "seconds" if "seconds" in record else "bytes"
    digits = [float(f"{value:.4g}") for value in record[unit]]
    record = {**record, unit: digits}
    low, high = harness.quartiles(digits)
    return {**record, "median": median(record), "quartiles": [low, high]}


def show(value: float, unit: str = "seconds") -> str:
    """Return a number with a unit that suits its size."""
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB" if abs(value) >= 1e8 else f"{value / 1e6:.3g} MB"
    for size, name in ((1, "s"), (1e-3, "ms")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"


def table(records: Iterable[Record]) -> str:
    """Return a line for each record, for the terminal."""
    lines, point = [], None
    for record in records:
        if record["point"] != point:
            point = record["point"]
            lines.append("  " + ", ".join(f"{key} {value}" for key, value in point.items()))
        lines.append(f"    {record['system']:26} {record['way']:8}" + _row(record))
    return "\n".join(lines)


def _row(record: Record) -> str:
    if "skipped" in record:
        return record["skipped"]
    unit = "bytes" if "bytes" in record else "seconds"
    low, high = harness.quartiles(values(record))
    text = f"{show(median(record), unit):>9}   {show(low, unit)} to {show(high, unit)}"
    if record.get("chunks", 0) > 1:
        text += f"   {median(record) / record['chunks'] * 1e6:.3g} µs per chunk"
    return text


class Missing(Exception):
    """The run has no such figure."""


class Results:
    """The figures of a run, read from its file."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            self.all: dict[str, Any] = json.load(file)
        self.records: list[Record] = self.all["records"]
        self._of: dict[str, list[Record]] = {}
        for record in self.records:
            self._of.setdefault(record["workload"], []).append(record)

    def points(self, workload: str) -> list[dict[str, Any]]:
        """Return the points of a workload in the order of the run."""
        found: list[dict[str, Any]] = []
        for record in self._of.get(workload, ()):
            if record["point"] not in found:
                found.append(record["point"])
        return found

    def some_points(self, workload: str, **having: Any) -> list[dict[str, Any]]:
        """Return the points that have these values; at least one."""
        found = [p for p in self.points(workload) if having.items() <= p.items()]
        if not found:
            raise Missing(workload)
        return found

    def all_at(self, workload: str, **point: Any) -> list[Record]:
        """Return the records of a workload at a point, with those that were skipped."""
        return [
            record
            for record in self._of.get(workload, ())
            if all(record.get(k, record["point"].get(k)) == v for k, v in point.items())
        ]

    def at(self, workload: str, **point: Any) -> list[Record]:
        """Return the measured records of a workload at a point."""
        return [record for record in self.all_at(workload, **point) if "median" in record]

    def best(self, workload: str, system: str, **point: Any) -> Record:
        """Return a system's record in the way that suits the system best."""
        found = self.at(workload, system=system, **point)
        if not found:
            raise Missing(f"{system} in {workload}")
        return min(found, key=_per_chunk)

    def fastest(self, workload: str, names: tuple[str, ...], **point: Any) -> Record:
        """Return the best record of any of these systems."""
        found = [r for r in self.at(workload, **point) if r["system"] in names]
        if not found:
            raise Missing(f"{names} in {workload}")
        return min(found, key=_per_chunk)

    def ratio(self, workload: str, one: str, other: str = "ours", **point: Any) -> float:
        """Return one system's time divided by the other's, each in its best way."""
        pair = (self.best(workload, name, **point) for name in (one, other))
        return ratio(*pair)


def _per_chunk(record: Record) -> float:
    return record["median"] / record.get("chunks", 1)

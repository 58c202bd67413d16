"""Compare shmpar with other libraries and with the limits of the machine.

Systems take turns: a round is one call of each, in random order, and there are several rounds.
The memory that a process happens to get makes it faster or slower for as long as it lives. So
all processes are started several times, too, in another order each time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from benchmarks import figures, harness, systems, workloads
from benchmarks.harness import Child, Failed
from benchmarks.workloads import Point, Workload, cold

Record = dict[str, Any]
Key = tuple[str, int]  # a system and its number of workers
Turn = tuple[Point, str, tuple[str, ...]]  # a point, a system, and its ways there

SHARED_PACKAGES = ("numpy", "scipy", "cloudpickle")  # used by several systems


def main(arguments: list[str]) -> None:
    """Measure, print, and write the figures to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=", ".join(workloads.NAMES))
    parser.add_argument("--systems", help="names with commas; all: " + ",".join(systems.NAMES))
    parser.add_argument("--workers", type=int, default=harness.cores())
    parser.add_argument("--quick", action="store_const", dest="size", const="quick", default="full")
    parser.add_argument("--smoke", action="store_const", dest="size", const="smoke")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args(arguments)
    chosen = _choose(",".join(options.workloads) or None, workloads.NAMES, parser)
    names = _choose(options.systems, systems.NAMES, parser)
    found = measure(chosen, names, options.size, options.workers)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(dumps(found))


def _choose(
    given: str | None, known: tuple[str, ...], parser: argparse.ArgumentParser
) -> list[str]:
    """Return the names of a list with commas, or all."""
    names = given.split(",") if given else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    return [name for name in known if name in names]


def measure(chosen: list[str], names: list[str], size: str, workers: int) -> dict[str, Any]:
    """Measure workloads with systems; return everything that the file of figures holds."""
    began, load = time.time(), harness.load()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - as joblib does
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=place, ignore_cleanup_errors=True) as home,
        Schedule(names, size, workers, home) as schedule,
    ):
        for name in chosen:
            print(f"== {name}: {workloads.load(name).title}", flush=True)
            records = schedule.measure(name, lambda text: print(f"   {text}", file=sys.stderr))
            print(figures.table(records), flush=True)
    for name, reason in schedule.left_out.items():
        print(f"left out: {name}: {reason}")
    return {
        "format": 1,
        "size": size,
        "workers": workers,
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "machine": harness.describe_machine(),
        "load": [load, harness.load()],
        "commit": harness.commit(),
        "versions": {**_versions(*SHARED_PACKAGES), **schedule.versions},
        "left_out": schedule.left_out,
        "records": [figures.rounded(record) for record in schedule.records],
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def dumps(found: dict[str, Any]) -> str:
    """Return JSON with a line for each record, so that runs can be compared line by line."""
    records = ",\n".join("  " + json.dumps(record) for record in found["records"])
    head = json.dumps({**found, "records": None}, indent=1)
    return head.replace('"records": null', f'"records": [\n{records}\n ]') + "\n"


@dataclass(frozen=True)
class Effort:
    """Limits of time, in seconds, and of rounds."""

    share: float  # part of the time that a workload gives to each system
    call: float  # longer calls are skipped
    repeat: float  # longer calls are made once
    least: int  # rounds
    rounds: int  # at most
    restarts: int = 1  # at most

    def rounds_per_start(self, workload: Workload, seconds: float) -> int:
        """Return the number of rounds after each start for a call that takes so long."""
        if seconds > self.repeat:
            return 0
        starts = self.starts(workload)
        rounds = math.ceil(workload.seconds * self.share / starts / max(seconds, 1e-6))
        return max(-(-self.least // starts), min(rounds, self.most_rounds(workload)))

    def most_rounds(self, workload: Workload) -> int:
        """Return the largest number of rounds after each start."""
        return -(-min(self.rounds, workload.rounds) // self.starts(workload))

    def starts(self, workload: Workload) -> int:
        """Return how often all processes are started."""
        return min(self.restarts, workload.restarts)


EFFORTS = {
    "smoke": Effort(share=0, call=20, repeat=20, least=1, rounds=1),
    "quick": Effort(share=0.1, call=1.0, repeat=0.25, least=2, rounds=20),
    "full": Effort(share=1, call=8, repeat=2, least=3, rounds=200, restarts=3),
}


@dataclass
class Entry:
    """A system in one of its ways, with its times so far."""

    child: Child
    way: str
    chunks: int
    seconds: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # the round of each time
    rounds: int = 0
    burst: int = 1  # calls per turn; short calls are repeated, since a pause slows them


class Schedule:
    """The order of all measurements, the processes of the systems, and the records."""

    def __init__(self, names: list[str], size: str, workers: int, directory: str) -> None:
        self.names, self.size, self.workers, self.directory = names, size, workers, directory
        self.effort = EFFORTS[size]
        self.records: list[Record] = []
        self.versions: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._children: dict[Key, Child] = {}
        self._used: set[Key] = set()  # processes that have done something already
        self._last: dict[tuple[str, ...], tuple[int, float]] = {}
        self._least: dict[tuple[str, str], float] = {}  # least seconds per chunk of any workload

    def __enter__(self) -> Self:
        """Start nothing before it is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        for key in list(self._children):
            self._end(key)

    def measure(self, name: str, report: Callable[[str], None]) -> list[Record]:
        """Measure a workload at all of its points."""
        workload, before = workloads.load(name), len(self.records)
        points = workload.points(self.size)
        if "workers" in points[0]:  # Why: numbers of workers are compared with each other.
            began = time.monotonic()
            names = self._participants(workload)
            turns = [(point, one, workload.ways) for point in points for one in names]
            self._together(name, workload, turns)
            report(f"{name}: {time.monotonic() - began:.0f} s")
            return self.records[before:]
        for point in points:
            began = time.monotonic()
            getattr(self, workload.how)(name, workload, point)
            report(f"{name} {point}: {time.monotonic() - began:.0f} s")
        return self.records[before:]

    def time(self, name: str, workload: Workload, point: Point) -> None:
        """Measure the seconds of a warm call, in turns."""
        names = self._participants(workload)
        nbytes, free = workload.job(point).nbytes, harness.available_memory()
        if 1.3 * nbytes > free:
            for one in names:
                self._skip(name, point, one, f"needs {1.3 * nbytes / 1e9:.0f} GB of memory")
        elif 1.2 * nbytes * len(names) > 0.75 * free:
            for one in names * (2 if nbytes < 0.1 * free else 1):
                self._alone(name, workload, point, one)
        else:
            self._together(name, workload, [(point, one, workload.ways) for one in names])

    def _together(self, name: str, workload: Workload, turns: list[Turn]) -> None:
        drawn = random.Random(name)  # noqa: S311
        for start in range(self.effort.starts(workload)):
            if start:
                for point, one, _ in turns:
                    self._end(self._key(point, one))
            first = start * self.effort.most_rounds(workload)
            entries = self._rounds(name, workload, drawn.sample(turns, len(turns)), drawn, first)
            place = {(str(point), one): number for number, (point, one, _) in enumerate(turns)}
            entries.sort(key=lambda pair: place[str(pair[0]), pair[1].child.name])
            for point, entry in entries:
                self._record(name, point, entry)
            again = {(str(point), e.child.name, e.way) for point, e in entries if e.rounds}
            turns = [
                (point, one, left)
                for point, one, ways in turns
                if (left := tuple(way for way in ways if (str(point), one, way) in again))
            ]

    def _rounds(
        self, name: str, workload: Workload, turns: list[Turn], drawn: random.Random, first: int
    ) -> list[tuple[Point, Entry]]:
        """Run the rounds after a start; `first` is the number of the first round."""
        entries = [
            (point, entry)
            for point, one, ways in turns
            for entry in self._entries(name, workload, point, one, ways)
        ]
        for number in range(self.effort.most_rounds(workload)):
            # Why: a call after a heavy one takes longer, so each round has another order.
            for point, entry in drawn.sample(entries, len(entries)):
                if number < entry.rounds:
                    self._call(name, point, entry, first + number)
        for point, one, _ in turns:
            self._drop(self._key(point, one))
        return entries

    def _alone(self, name: str, workload: Workload, point: Point, one: str) -> None:
        """Measure a system while no other system has the array in memory."""
        for entry in self._entries(name, workload, point, one, workload.ways):
            for number in range(min(3, entry.rounds)):
                self._call(name, point, entry, number)
            self._record(name, point, entry)
        self._drop(self._key(point, one))

    def _entries(
        self, name: str, workload: Workload, point: Point, one: str, ways: tuple[str, ...]
    ) -> Iterator[Entry]:
        """Load a workload and call it once in each way, unless the call would take too long."""
        try:
            child = self._child(self._key(point, one))
            if child is None:
                return
            self._used.add(self._key(point, one))
            loaded = child.request("load", workload=name, point=point)
        except Failed as failure:
            self._fail(name, point, one, failure)
            return
        if "unsuited" in loaded:
            self._skip(name, point, one, loaded["unsuited"])
            return
        for way in (way for way in loaded["ways"] if way in ways):
            entry = Entry(child, way, loaded["chunks"])
            expected = self._expected(name, point, entry)
            if expected > max(self.effort.call, workload.longest):
                self._skip(name, point, one, f"would take about {expected:.0f} s a call", way)
                continue
            try:
                reply = child.request("warm", way=way)
                # Why: the first call imports and compiles.
                if reply["seconds"] < 3 * self.effort.call:
                    reply = {"seconds": child.request("call", way=way)["seconds"][0]}
            except Failed as failure:
                self._fail(name, point, one, failure)
                return
            self._learn(name, point, entry, reply["seconds"])
            entry.burst = max(1, min(100, round(0.05 / max(reply["seconds"], 1e-6))))
            seconds = reply["seconds"] * entry.burst
            entry.rounds = self.effort.rounds_per_start(workload, seconds)
            if not entry.rounds:
                entry.seconds.append(reply["seconds"])
                entry.numbers.append(0)
            yield entry

    def _expected(self, name: str, point: Point, entry: Entry) -> float:
        """Return the expected seconds of a call, from calls of the system with fewer chunks."""
        if "cost_us" in point:
            return 0.0
        chunks, seconds = self._last.get(_series(name, point, entry), (1, 0.0))
        least = self._least.get((entry.child.name, entry.way), 0.0)
        return entry.chunks * max(seconds / chunks, least)

    def _learn(self, name: str, point: Point, entry: Entry, seconds: float) -> None:
        # Why: such a time is the cost of the function, or of the call, and not of its chunks.
        if "cost_us" in point or seconds < 0.05:
            return
        self._last[_series(name, point, entry)] = entry.chunks, seconds
        key = entry.child.name, entry.way
        self._least[key] = min(self._least.get(key, math.inf), seconds / entry.chunks)

    def _call(self, name: str, point: Point, entry: Entry, number: int) -> None:
        try:
            reply = entry.child.request("call", way=entry.way, times=entry.burst)
            entry.seconds.append(statistics.median(reply["seconds"]))
            entry.numbers.append(number)
        except Failed as failure:
            entry.rounds = 0
            self._fail(name, point, entry.child.name, failure)

    def memory(self, name: str, workload: Workload, point: Point) -> None:
        """Measure the peak of bytes during a call, in processes that have done nothing else."""
        for one in self._participants(workload):
            key = self._key(point, one)
            if key in self._used:
                self._end(key)
            try:
                if (child := self._child(key)) is None:
                    continue
                self._used.add(key)
                before = child.peak_memory("load", workload=name, point=point)
                way = "own" if one == "whole" and point["verb"] == "halo" else "same"
                reply = child.request("warm", way=way)
                if "unsuited" in reply:
                    self._skip(name, point, one, reply["unsuited"])
                    continue
                peak = child.peak_memory("call", way=way, times=2)
                self._add(name, point, one, way, {"bytes": [peak], "loaded": before})
                child.request("drop")
            except Failed as failure:
                self._fail(name, point, one, failure)

    def cold(self, name: str, workload: Workload, point: Point) -> None:
        """Measure the seconds of fresh processes."""
        names = self._participants(workload)
        rounds = {"smoke": 1, "quick": 1, "full": workload.rounds}[self.size]
        for one, way, seconds in cold.measure(names, rounds, self.workers, self.directory):
            if isinstance(seconds, str):
                self._skip(name, point, one, seconds, way)
            else:
                self._add(name, point, one, way, {"seconds": seconds})

    def _participants(self, workload: Workload) -> list[str]:
        chosen = self.names if workload.systems is None else workload.systems
        return [name for name in self.names if name in chosen and name not in self.left_out]

    def _key(self, point: Point, name: str) -> Key:
        return name, point.get("workers", self.workers)

    def _child(self, key: Key) -> Child | None:
        """Return the process of a system; start it if needed; None if it cannot start."""
        child, (name, workers) = self._children.get(key), key
        if child is None:
            place = os.path.join(self.directory, f"{name}-{workers}")
            os.makedirs(place, exist_ok=True)
            arguments = ["-m", "benchmarks.server", name, str(workers), place]
            child = self._children[key] = Child(name, arguments, place)
            try:
                self.versions |= child.request("open")["versions"]
            except Failed as failure:
                self.left_out[name] = str(failure)
                self._end(key)
                return None
        return child

    def _drop(self, key: Key) -> None:
        """Release the workload; end a process whose number of workers is not needed again."""
        if key in self._children:
            try:
                self._children[key].request("drop")
            except Failed:
                self._end(key)
        if key[1] != self.workers:
            self._end(key)

    def _end(self, key: Key) -> None:
        child = self._children.pop(key, None)
        self._used.discard(key)
        if child is not None:
            child.end()

    def _fail(self, name: str, point: Point, one: str, failure: Failed) -> None:
        """Record a failure; the system starts again for its next measurement."""
        self._skip(name, point, one, f"failed: {failure}")
        self._end(self._key(point, one))

    def _skip(self, name: str, point: Point, one: str, reason: str, way: str = "") -> None:
        self._add(name, point, one, way, {"skipped": reason})

    def _record(self, name: str, point: Point, entry: Entry) -> None:
        if entry.seconds:
            record = {"seconds": entry.seconds, "rounds": entry.numbers, "chunks": entry.chunks}
            self._add(name, point, entry.child.name, entry.way, record)

    def _add(self, name: str, point: Point, one: str, way: str, record: Record) -> None:
        """Add a record, or extend the record of an earlier start."""
        head = {"workload": name, "point": point, "system": one, "way": way}
        for old in self.records:
            if {key: old.get(key) for key in head} == head:
                if "seconds" in record and "seconds" in old:
                    old["seconds"] += record["seconds"]
                    old["rounds"] += record["rounds"]
                return
        self.records.append({**head, **record})


def _series(name: str, point: Point, entry: Entry) -> tuple[str, ...]:
    """Return the key of all points that one line of a picture joins."""
    return (name, entry.child.name, entry.way, point.get("verb", ""), point.get("order", ""))

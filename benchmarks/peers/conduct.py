"""Systems take turns: a round is one call of each, in any order, and there are several rounds.

What memory a process happens to get makes it faster or slower for as long as it lives. So there
are several sittings, too, each with new processes that are started in another order.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks.peers import cold, machine, workloads
from benchmarks.peers.player import Failed, Player
from benchmarks.peers.workloads import Workload

Point = dict[str, Any]
Record = dict[str, Any]
Key = tuple[str, int]  # a system, and how many workers it has
Turn = tuple[Point, str, tuple[str, ...]]  # a system at a point, in some ways


@dataclass(frozen=True)
class Effort:
    """How long things may take, in seconds."""

    share: float  # of the time that a workload gives to each system
    call: float  # the longest single call; what takes longer is not begun
    again: float  # what takes longer is not repeated
    least: int  # rounds
    rounds: int  # at most
    sittings: int = 1  # at most

    def times(self, workload: Workload, seconds: float) -> int:
        """Rounds in each sitting of a call that takes so long."""
        if seconds > self.again:
            return 0
        sittings = self.sat(workload)
        rounds = math.ceil(workload.seconds * self.share / sittings / max(seconds, 1e-6))
        return max(-(-self.least // sittings), min(rounds, self.most(workload)))

    def most(self, workload: Workload) -> int:
        """The most rounds in a sitting."""
        return -(-min(self.rounds, workload.rounds) // self.sat(workload))

    def sat(self, workload: Workload) -> int:
        """How many sittings there are."""
        return min(self.sittings, workload.sittings)


EFFORTS = {
    "smoke": Effort(share=0, call=20, again=20, least=1, rounds=1),
    "quick": Effort(share=0.1, call=1.0, again=0.25, least=2, rounds=20),
    "full": Effort(share=1, call=8, again=2, least=3, rounds=200, sittings=3),
}


@dataclass
class Entry:
    """A system in one of its ways, with what it took so far."""

    player: Player
    way: str
    chunks: int
    seconds: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the round that each is from
    rounds: int = 0
    burst: int = 1  # calls a turn: what is warm is not what follows a rest


class Conductor:
    """Holds the processes of systems and what they have measured."""

    def __init__(self, names: list[str], size: str, workers: int, directory: str) -> None:
        self.names, self.size, self.workers, self.directory = names, size, workers, directory
        self.effort = EFFORTS[size]
        self.records: list[Record] = []
        self.versions: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._players: dict[Key, Player] = {}
        self._used: set[Key] = set()  # those whose processes are not new any more
        self._last: dict[tuple[str, ...], tuple[int, float]] = {}
        self._least: dict[tuple[str, str], float] = {}  # seconds a chunk, whatever it was

    def __enter__(self) -> Self:
        """Nothing is started before it is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        for key in list(self._players):
            self._end(key)

    def measure(self, name: str, say: Callable[[str], None]) -> list[Record]:
        """Measure a workload at all of its points."""
        workload, before = workloads.load(name), len(self.records)
        points = workload.points(self.size)
        if "workers" in points[0]:  # what is compared is one number of them with another
            began = time.monotonic()
            names = self._taking_part(workload)
            turns = [(point, one, workload.ways) for point in points for one in names]
            self._together(name, workload, turns)
            say(f"{name}: {time.monotonic() - began:.0f} s")
            return self.records[before:]
        for point in points:
            began = time.monotonic()
            getattr(self, workload.how)(name, workload, point)
            say(f"{name} {point}: {time.monotonic() - began:.0f} s")
        return self.records[before:]

    def time(self, name: str, workload: Workload, point: Point) -> None:
        """Seconds of a warm call, in turns."""
        names = self._taking_part(workload)
        nbytes, free = workload.job(point).nbytes, machine.available()
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
        for sitting in range(self.effort.sat(workload)):
            if sitting:
                for point, one, _ in turns:
                    self._end(self._key(point, one))
            first = sitting * self.effort.most(workload)
            entries = self._sit(name, workload, drawn.sample(turns, len(turns)), drawn, first)
            place = {(str(point), one): number for number, (point, one, _) in enumerate(turns)}
            entries.sort(key=lambda pair: place[str(pair[0]), pair[1].player.name])
            for point, entry in entries:
                self._record(name, point, entry)
            again = {(str(point), e.player.name, e.way) for point, e in entries if e.rounds}
            turns = [
                (point, one, kept)
                for point, one, ways in turns
                if (kept := tuple(way for way in ways if (str(point), one, way) in again))
            ]

    def _sit(
        self, name: str, workload: Workload, turns: list[Turn], drawn: random.Random, first: int
    ) -> list[tuple[Point, Entry]]:
        """Some rounds, whose numbers begin with the first."""
        entries = [
            (point, entry)
            for point, one, ways in turns
            for entry in self._entries(name, workload, point, one, ways)
        ]
        for number in range(self.effort.most(workload)):
            # Anew for each round: what comes after a heavy one takes up to a third longer.
            for point, entry in drawn.sample(entries, len(entries)):
                if number < entry.rounds:
                    self._call(name, point, entry, first + number)
        for point, one, _ in turns:
            self._drop(self._key(point, one))
        return entries

    def _alone(self, name: str, workload: Workload, point: Point, one: str) -> None:
        """A turn is the only one that has the array in memory."""
        for entry in self._entries(name, workload, point, one, workload.ways):
            for number in range(min(3, entry.rounds)):
                self._call(name, point, entry, number)
            self._record(name, point, entry)
        self._drop(self._key(point, one))

    def _entries(
        self, name: str, workload: Workload, point: Point, one: str, ways: tuple[str, ...]
    ) -> Iterator[Entry]:
        """Load a workload and call it once in each way, unless that would take too long."""
        try:
            player = self._player(self._key(point, one))
            if player is None:
                return
            self._used.add(self._key(point, one))
            loaded = player.ask("load", workload=name, point=point)
        except Failed as failure:
            self._fail(name, point, one, failure)
            return
        if "unsuited" in loaded:
            self._skip(name, point, one, loaded["unsuited"])
            return
        for way in (way for way in loaded["ways"] if way in ways):
            entry = Entry(player, way, loaded["chunks"])
            due = self._foreseen(name, point, entry)
            if due > max(self.effort.call, workload.longest):
                self._skip(name, point, one, f"would take about {due:.0f} s a call", way)
                continue
            try:
                answer = player.ask("warm", way=way)
                if answer["seconds"] < 3 * self.effort.call:  # the first call imports and compiles
                    answer = {"seconds": player.ask("call", way=way)["seconds"][0]}
            except Failed as failure:
                self._fail(name, point, one, failure)
                return
            self._learn(name, point, entry, answer["seconds"])
            entry.burst = max(1, min(100, round(0.05 / max(answer["seconds"], 1e-6))))
            entry.rounds = self.effort.times(workload, answer["seconds"] * entry.burst)
            if not entry.rounds:
                entry.seconds.append(answer["seconds"])
                entry.numbers.append(0)
            yield entry

    def _foreseen(self, name: str, point: Point, entry: Entry) -> float:
        """Seconds that a call will take, by what fewer chunks of the same took, or any chunks."""
        if "cost_us" in point:
            return 0.0
        chunks, seconds = self._last.get(_series(name, point, entry), (1, 0.0))
        least = self._least.get((entry.player.name, entry.way), 0.0)
        return entry.chunks * max(seconds / chunks, least)

    def _learn(self, name: str, point: Point, entry: Entry, seconds: float) -> None:
        if "cost_us" in point or seconds < 0.05:  # the function's cost, or the call's
            return
        self._last[_series(name, point, entry)] = entry.chunks, seconds
        key = entry.player.name, entry.way
        self._least[key] = min(self._least.get(key, math.inf), seconds / entry.chunks)

    def _call(self, name: str, point: Point, entry: Entry, number: int) -> None:
        try:
            answer = entry.player.ask("call", way=entry.way, times=entry.burst)
            entry.seconds.append(statistics.median(answer["seconds"]))
            entry.numbers.append(number)
        except Failed as failure:
            entry.rounds = 0
            self._fail(name, point, entry.player.name, failure)

    def memory(self, name: str, workload: Workload, point: Point) -> None:
        """Bytes: the peak while it is called again, in processes that have done nothing else."""
        for one in self._taking_part(workload):
            key = self._key(point, one)
            if key in self._used:
                self._end(key)
            try:
                if (player := self._player(key)) is None:
                    continue
                self._used.add(key)
                before = player.peak("load", workload=name, point=point)
                way = "own" if one == "whole" and point["verb"] == "halo" else "same"
                answer = player.ask("warm", way=way)
                if "unsuited" in answer:
                    self._skip(name, point, one, answer["unsuited"])
                    continue
                peak = player.peak("call", way=way, times=2)
                record = {"bytes": [peak], "loaded": before}
                self._add(name, point, one, way, record)
                player.ask("drop")
            except Failed as failure:
                self._fail(name, point, one, failure)

    def cold(self, name: str, workload: Workload, point: Point) -> None:
        """Seconds of fresh processes."""
        names = self._taking_part(workload)
        rounds = {"smoke": 1, "quick": 1, "full": workload.rounds}[self.size]
        for one, way, seconds in cold.measure(names, rounds, self.workers, self.directory):
            if isinstance(seconds, str):
                self._skip(name, point, one, seconds, way)
            else:
                self._add(name, point, one, way, {"seconds": seconds})

    def _taking_part(self, workload: Workload) -> list[str]:
        chosen = self.names if workload.systems is None else workload.systems
        return [name for name in self.names if name in chosen and name not in self.left_out]

    def _key(self, point: Point, name: str) -> Key:
        return name, point.get("workers", self.workers)

    def _player(self, key: Key) -> Player | None:
        """The process of a system, started if there is none; None if it cannot be."""
        player, (name, workers) = self._players.get(key), key
        if player is None:
            place = os.path.join(self.directory, f"{name}-{workers}")
            os.makedirs(place, exist_ok=True)
            player = self._players[key] = Player(name, workers, place)
            try:
                self.versions |= player.ask("open")["versions"]
            except Failed as failure:
                self.left_out[name] = str(failure)
                self._end(key)
                return None
        return player

    def _drop(self, key: Key) -> None:
        """Have it forget the workload; one of another number of workers is not needed again."""
        if key in self._players:
            try:
                self._players[key].ask("drop")
            except Failed:
                self._end(key)
        if key[1] != self.workers:
            self._end(key)

    def _end(self, key: Key) -> None:
        player = self._players.pop(key, None)
        self._used.discard(key)
        if player is not None:
            player.end()

    def _fail(self, name: str, point: Point, one: str, failure: Failed) -> None:
        """A system that failed starts anew for what comes next."""
        self._skip(name, point, one, f"failed: {failure}")
        self._end(self._key(point, one))

    def _skip(self, name: str, point: Point, one: str, reason: str, way: str = "") -> None:
        self._add(name, point, one, way, {"skipped": reason})

    def _record(self, name: str, point: Point, entry: Entry) -> None:
        if entry.seconds:
            record = {"seconds": entry.seconds, "rounds": entry.numbers, "chunks": entry.chunks}
            self._add(name, point, entry.player.name, entry.way, record)

    def _add(self, name: str, point: Point, one: str, way: str, record: Record) -> None:
        """Keep a record; a second turn alone goes on where the first ended."""
        head = {"workload": name, "point": point, "system": one, "way": way}
        for old in self.records:
            if {key: old.get(key) for key in head} == head:
                if "seconds" in record and "seconds" in old:
                    old["seconds"] += record["seconds"]
                    old["rounds"] += record["rounds"]
                return
        self.records.append({**head, **record})


def _series(name: str, point: Point, entry: Entry) -> tuple[str, ...]:
    """What all points of one line in a picture have in common."""
    return (name, entry.player.name, entry.way, point.get("verb", ""), point.get("order", ""))

"""The commands ls and clean: named segments, and removing those of the dead.

Imports segment, and the tables and answer beside it.

Guarantees
----------
Only what markers of this user list is shown, and only the segments of dead processes are removed:
those whose marker's lock is free, and which no living process has taken over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from shmpar.cli.answer import Answer
from shmpar.cli.tables import age, columns, count, printable, size
from shmpar.segment import inventory
from shmpar.segment.marker import Entry, sweep

__all__ = ["Found", "clean", "found", "listing"]


@dataclass(frozen=True, slots=True)
class Found:
    """A named segment.

    Attributes
    ----------
    entry : Entry
        What its marker says of it.
    alive : bool
        Whether the process that it belongs to is.
    """

    entry: Entry
    alive: bool


def found() -> list[Found]:
    """Named segments of this user, the oldest first."""
    known: dict[tuple[int, int], Found] = {}
    for marker in inventory():
        for entry in marker.entries:
            if marker.alive or entry.identity not in known:  # one that was taken over has two
                known[entry.identity] = Found(entry, marker.alive)
    return sorted(known.values(), key=lambda one: (one.entry.since or 0, one.entry.name))


def listing() -> Answer:
    """List this user's named segments."""
    all_, now = found(), time.time()
    data = {"segments": [_described(one, now) for one in all_]}
    if not all_:
        return Answer("no named segments", data)
    header = ("NAME", "PID", "AGE", "SIZE", "STATE")
    lines = columns([header, *(_row(one, now) for one in all_)], right={1, 2, 3})
    return Answer("\n".join([*lines, "", _summary(all_)]), data)


def _age(one: Found, now: float) -> float | None:
    return None if one.entry.since is None else max(0.0, now - one.entry.since)


def _described(one: Found, now: float) -> dict[str, Any]:
    entry = one.entry
    seconds = _age(one, now)
    return {
        "name": entry.name,
        "pid": entry.pid,
        "age": None if seconds is None else round(seconds),
        "size": entry.size,
        "alive": one.alive,
    }


def _row(one: Found, now: float) -> tuple[str, ...]:
    entry = one.entry
    pid = "-" if entry.pid is None else str(entry.pid)
    state = "alive" if one.alive else "stale"
    return printable(entry.name), pid, age(_age(one, now)), size(entry.size), state


def _summary(all_: list[Found]) -> str:
    stale = [one for one in all_ if not one.alive]
    text = f"{count(len(all_), 'segment')}, {size(sum(one.entry.size for one in all_))}"
    if not stale:
        return text
    nbytes = size(sum(one.entry.size for one in stale))
    return f"{text}; {len(stale)} stale, {nbytes}: python -m shmpar clean"


def clean(*, dry_run: bool) -> Answer:
    """Remove what the dead have left, or say what would be removed."""
    before = {one.entry.identity for one in found() if not one.alive}
    removed = sorted(sweep(dry_run=dry_run), key=lambda entry: entry.name)
    after = [] if dry_run else [one.entry for one in found() if not one.alive]
    left = [entry for entry in after if entry.identity in before]  # others died just now
    nbytes = sum(entry.size for entry in removed)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {count(len(removed), 'segment')}, {size(nbytes)}"]
    if removed:
        lines = [*_sized(removed), "", *lines]
    elif not left:
        lines = ["nothing to remove"]
    if left:
        lines += ["", "could not be removed from /dev/shm:", *_sized(left)]
    data = {"dry_run": dry_run, "segments": _sizes(removed), "bytes": nbytes, "left": _sizes(left)}
    return Answer("\n".join(lines), data, 1 if left else 0)


def _sized(entries: list[Entry]) -> list[str]:
    header = ("NAME", "SIZE")
    return columns([header, *((printable(e.name), size(e.size)) for e in entries)], right={1})


def _sizes(entries: list[Entry]) -> list[dict[str, Any]]:
    return [{"name": entry.name, "size": entry.size} for entry in entries]

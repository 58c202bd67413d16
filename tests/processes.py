"""Which processes belong to this test run, read from ``/proc``.

A process is known as ours by its parent, or by a token in the environment that every program
started from a test inherits, however often it forked, changed its group or lost its parent.
Where there is no ``/proc`` nothing is found, and what builds on this finds nothing left.
"""

from __future__ import annotations

import os
import select
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

TOKEN_NAME = "SHMPAR_TEST_RUN"  # noqa: S105 (no secret)
# One a process that runs tests, of which pytest-xdist has several; an inherited one belongs to
# somebody else.
TOKEN = uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment.

    Attributes
    ----------
    pid, parent, group, session : int
        As in ``/proc/<pid>/stat``.
    zombie : bool
        Whether it has ended and waits for its parent to reap it.
    place : int
        Address of its environment.  Every program has its own, and a child of a fork its parent's.
    """

    pid: int
    parent: int
    group: int
    session: int
    zombie: bool
    place: int

    def __str__(self) -> str:
        """Name it as a report does."""
        kind = "child" if self.parent == os.getpid() else f"parent {self.parent}"
        state = ", ended but never waited for" if self.zombie else ""
        return f"{self.pid} ({kind}{state}): {command(self.pid)}"


def pids() -> frozenset[int]:
    """Every process of this machine.  Cost: one listing of ``/proc``, some 60 us."""
    with suppress(OSError):
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())
    return frozenset()


def look(pid: int) -> Process | None:
    """Read one process; None if it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 1 :].split()  # a command may hold spaces and brackets
    parent, group, session = map(int, fields[1:4])
    zombie = fields[0] in (b"Z", b"X")
    return Process(pid, parent, group, session, zombie=zombie, place=int(fields[47]))


def command(pid: int) -> str:
    """Command line of a process, cut to one line of a report."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().decode(errors="replace").replace("\0", " ").split()
        return " ".join(words)[:160] or "(no command line)"
    return "(gone)"


def carries(pid: int, token: str) -> bool:
    """Whether a process was started with that token, or one that extends it."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return f"{TOKEN_NAME}={token}".encode() in file.read()
    return False


def is_ours(process: Process) -> bool:
    """Whether a process was started, at whatever distance, by this test run.

    The one without parent or token is a child of a fork of this very interpreter.
    """
    if process.parent == os.getpid():
        return True
    if process.zombie:  # an orphan that has ended is its reaper's, and holds nothing
        return False
    if process.parent == 1 and process.group == os.getpgrp():  # whose fork it is tells its place
        own = look(os.getpid())
        if own is not None and process.place in {0, own.place}:  # 0: it is hidden from us
            return True
    return carries(process.pid, TOKEN)


def of_session(leader: int, token: str) -> Iterator[Process]:
    """Living processes of one session, or started with one token."""
    for pid in sorted(pids() - {os.getpid()}):
        process = look(pid)
        if process is None or process.zombie:
            continue
        if process.session == leader or carries(pid, token):
            yield process


def wait_for_exit(waited: Iterable[int], seconds: float) -> bool:
    """Wait until at least one of these processes has ended; reap none.

    Returns
    -------
    bool
        False if all of them still run after that many seconds.
    """
    poll = select.poll()
    opened: list[int] = []
    try:
        for pid in waited:
            try:
                opened.append(os.pidfd_open(pid))
            except ProcessLookupError:
                return True
            poll.register(opened[-1], select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        for fd in opened:
            os.close(fd)


def outlive(leader: int, token: str, seconds: float) -> list[Process]:
    """Name the processes of a session that are still there after that many seconds."""
    deadline = time.monotonic() + seconds
    while alive := list(of_session(leader, token)):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not wait_for_exit([process.pid for process in alive], remaining):
            break
    return alive

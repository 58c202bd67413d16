"""Find the processes that belong to this test run, in ``/proc``.

A process belongs to this test run if its parent does, or if its environment has a token.  Every
program started by a test inherits the token, even if it forks, changes its group or is orphaned.
On a system without ``/proc`` no process is found, and no leak of a process is reported.
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
# Why: each worker of pytest-xdist has its own token; an inherited token belongs to another run.
TOKEN = uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Process:
    """A process at one moment.

    Attributes
    ----------
    pid, parent, group, session : int
        As in ``/proc/<pid>/stat``.
    zombie : bool
        True if the process has exited and its parent has not reaped it.
    environment_address : int
        Address of the environment, which differs between programs; a forked child has the address
        of its parent.
    """

    pid: int
    parent: int
    group: int
    session: int
    zombie: bool
    environment_address: int

    def __str__(self) -> str:
        """Return the line of a report."""
        kind = "child" if self.parent == os.getpid() else f"parent {self.parent}"
        state = ", exited but never waited for" if self.zombie else ""
        return f"{self.pid} ({kind}{state}): {command(self.pid)}"


def pids() -> frozenset[int]:
    """Return the pids of all processes of this machine."""
    with suppress(OSError):
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())
    return frozenset()


def read(pid: int) -> Process | None:
    """Read the state of a process; return None if it no longer exists."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 1 :].split()  # a command may hold spaces and brackets
    parent, group, session = map(int, fields[1:4])
    zombie = fields[0] in (b"Z", b"X")
    return Process(pid, parent, group, session, zombie=zombie, environment_address=int(fields[47]))


def command(pid: int) -> str:
    """Return the command line of a process, shortened to one line of a report."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().decode(errors="replace").replace("\0", " ").split()
        return " ".join(words)[:160] or "(no command line)"
    return "(gone)"


def has_token(pid: int, token: str) -> bool:
    """Return True if the environment of a process has a token that starts with `token`."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return f"{TOKEN_NAME}={token}".encode() in file.read()
    return False


def is_ours(process: Process) -> bool:
    """Return True if this test run started a process, directly or indirectly.

    An orphan without the token belongs to this run if a fork of this interpreter forked it.
    """
    if process.parent == os.getpid():
        return True
    if process.zombie:  # Why: an exited orphan holds nothing, and its new parent reaps it
        return False
    if process.parent == 1 and process.group == os.getpgrp():
        own = read(os.getpid())
        # Why: the kernel shows 0 if we may not read the address.
        if own is not None and process.environment_address in {0, own.environment_address}:
            return True
    return has_token(process.pid, TOKEN)


def of_session(leader: int, token: str) -> Iterator[Process]:
    """Find the running processes of a session, or with a token."""
    for pid in sorted(pids() - {os.getpid()}):
        process = read(pid)
        if process is None or process.zombie:
            continue
        if process.session == leader or has_token(pid, token):
            yield process


def wait_for_exit(waited: Iterable[int], seconds: float) -> bool:
    """Wait until at least one of these processes has exited; reap none.

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


def wait_for_session(leader: int, token: str, seconds: float) -> list[Process]:
    """Wait until all processes of a session have exited; return those that still run."""
    deadline = time.monotonic() + seconds
    while alive := list(of_session(leader, token)):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not wait_for_exit([process.pid for process in alive], remaining):
            break
    return alive

"""The processes that one has started, theirs too: their memory, their rest and their end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from benchmarks.pss import pss

Process = tuple[int, str]  # a number alone may be given anew: when it started tells


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()  # state, parent, ...; [19] is the start


def family(pid: int) -> list[Process]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            fields = _stat(int(name))
            children.setdefault(int(fields[1]), []).append(int(name))
            starts[int(name)] = fields[19]
    found = [pid] if pid in starts else []
    for one in found:
        found.extend(children.get(one, ()))
    return [(one, starts[one]) for one in found]


def stop(pid: int) -> list[Process]:
    """Stop the whole family; return who it was, for :func:`resume`."""
    stopped: list[Process] = []
    while new := [one for one in family(pid) if one not in stopped]:  # one may have forked
        stopped += new
        _signal(new, signal.SIGSTOP)
        while any(map(_runs, new)):
            time.sleep(0)
    return stopped


def resume(stopped: list[Process]) -> None:
    """Have them go on."""
    _signal(stopped, signal.SIGCONT)


def _signal(processes: list[Process], number: int) -> None:
    for pid, _ in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def memory(pid: int) -> int:
    """Bytes: proportional set sizes of the whole family, as far as they are there to be read."""
    total = 0
    for one, _ in family(pid):
        with suppress(OSError, StopIteration):
            total += pss([one])
    return total


def end(processes: list[Process], grace: float = 5.0) -> list[int]:
    """Wait for processes to end, then kill those that have not; return these."""
    until = time.monotonic() + grace
    while (alive := [one for one in processes if _lives(one)]) and time.monotonic() < until:
        time.sleep(0.05)
    _signal(alive, signal.SIGKILL)
    return [pid for pid, _ in alive]


def _lives(process: Process) -> bool:
    return _state(process) not in "ZX"


def _runs(process: Process) -> bool:
    """Neither stopped nor through, nor in a wait of the kernel's that nothing interrupts."""
    return _state(process) in "RS"


def _state(process: Process) -> str:
    pid, start = process
    try:
        fields = _stat(pid)
    except OSError:
        return "X"
    return fields[0] if fields[19] == start else "X"

"""What a test left behind: processes, threads, segments, descriptors and temporary files.

A :class:`Snapshot` is taken before; :func:`left_since` says what is there now and was not then.
Nothing here opens a file in ``/dev/shm``: closing any descriptor of a marker file would drop the
lock that its manager holds.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from tests import processes

SHM = "/dev/shm"
_MEMORY = (f"{SHM}/", "/memfd:", "/dev/zero (deleted)")  # how /proc calls shared memory

Identity = tuple[int, int]  # device and inode

_allowed: set[int] = set()


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that a test left behind.

    Attributes
    ----------
    kind : str
        ``"process"``, ``"thread"``, ``"segment"`` (a name in ``/dev/shm``), ``"memory"`` (shared
        memory that is still open or mapped), ``"descriptor"`` or ``"file"``.
    what : str
        Its name, as a report shows it.
    key : object
        What it is waited for by: a living process' pid, a thread; else None.
    """

    kind: str
    what: str
    key: int | threading.Thread | None = None

    def __str__(self) -> str:
        """One line of the report."""
        return f"{self.kind:<10} {self.what}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What exists at one moment.  Cost: about 0.15 ms, 1.5 more while shared memory is mapped."""

    pids: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: dict[int, Identity]
    segments: dict[str, int]
    files: frozenset[str]
    shared_kb: int
    mappings: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look at everything."""
        shared_kb = _shared_kb()
        return cls(
            pids=processes.pids(),
            threads=frozenset(threading.enumerate()),
            descriptors=_descriptors(),
            segments=_segments(),
            files=_files(),
            shared_kb=shared_kb,
            mappings=_mappings() if shared_kb else frozenset(),
        )


def allow_processes(*pids: int) -> None:
    """Let these outlive the test that starts them: the workers of a module's or session's pool.

    A pool that starts its workers before it is yielded needs no allowance.
    """
    _allowed.update(pids)


def left_since(before: Snapshot) -> list[Left]:
    """All that is there now and was not then."""
    return [
        *_left_processes(before),
        *_left_threads(before),
        *_left_segments(before),
        *_left_descriptors(before),
        *_left_mappings(before),
        *_left_files(before),
    ]


def left_after_waiting(before: Snapshot, seconds: float = 2.0) -> list[Left]:
    """Name what is left when garbage is collected and what is about to end has had time to.

    Waits for processes and threads to end; what a finished process or thread still holds, an
    unreaped child and an open descriptor have no second chance.
    """
    gc.collect()
    deadline = time.monotonic() + seconds
    while left := left_since(before):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not _something_ended(left, remaining):
            break
    return left


def report(left: list[Left]) -> str:
    """Say what is left, a line each."""
    lines = "\n".join(f"  {one}" for one in left)
    return f"the test left behind:\n{lines}"


def _something_ended(left: list[Left], seconds: float) -> bool:
    pids = [one.key for one in left if isinstance(one.key, int)]
    if pids:
        return processes.wait_for_exit(pids, seconds)
    threads = [one.key for one in left if isinstance(one.key, threading.Thread)]
    for thread in threads[:1]:
        thread.join(seconds)
        return not thread.is_alive()
    if any(one.kind in {"segment", "file"} for one in left):
        # a name goes without any notice that could be waited for
        return not threading.Event().wait(min(seconds, 0.02))
    return False


def _left_processes(before: Snapshot) -> Iterator[Left]:
    allowed = _allowed | _standard_pids()
    for pid in sorted(processes.pids() - before.pids - allowed):
        process = processes.look(pid)
        if process is not None and processes.is_ours(process):
            yield Left("process", str(process), None if process.zombie else pid)


def _left_threads(before: Snapshot) -> Iterator[Left]:
    for thread in threading.enumerate():
        if thread not in before.threads and thread is not threading.current_thread():
            daemon = " (daemon)" if thread.daemon else ""
            yield Left("thread", f"{thread.name}{daemon}", thread)


def _left_segments(before: Snapshot) -> Iterator[Left]:
    new = [name for name, inode in _segments().items() if before.segments.get(name) != inode]
    for path in _ours_of(f"{SHM}/{name}" for name in sorted(new)):
        yield Left("segment", path)


def _left_descriptors(before: Snapshot) -> Iterator[Left]:
    allowed = _standard_descriptors()
    for fd, identity in sorted(_descriptors().items()):
        if before.descriptors.get(fd) == identity or fd in allowed:
            continue
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(_MEMORY):
                yield Left("memory", f"descriptor {fd}: {target}, {os.fstat(fd).st_size} bytes")
            else:
                yield Left("descriptor", f"{fd}: {target}")


def _left_mappings(before: Snapshot) -> Iterator[Left]:
    """Compare mappings of shared memory; one that was never touched is not seen."""
    if _shared_kb() > before.shared_kb:
        for mapping in sorted(_mappings() - before.mappings):
            yield Left("memory", f"mapping {mapping}")


def _left_files(before: Snapshot) -> Iterator[Left]:
    folder = tempfile.gettempdir()
    for path in _ours_of(os.path.join(folder, name) for name in sorted(_files() - before.files)):
        yield Left("file", path)


def _shared_kb() -> int:
    """KiB of shared memory that this process has touched and still maps."""
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"RssShmem:"):
                return int(line.split()[1])
    return 0


def _mappings() -> frozenset[str]:
    """Address range and file of each mapping of shared memory."""
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        lines = (line.rstrip().split(None, 5) for line in file)
        found = (fields for fields in lines if len(fields) > 5)
        return frozenset(f"{f[0]} {f[1]} {f[5]}" for f in found if f[5].startswith(_MEMORY))
    return frozenset()


def _descriptors() -> dict[int, Identity]:
    found: dict[int, Identity] = {}
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        with suppress(OSError):  # the listing's own is closed by now
            status = os.fstat(int(name))
            found[int(name)] = status.st_dev, status.st_ino
    return found


def _segments() -> dict[str, int]:
    with suppress(OSError), os.scandir(SHM) as entries:
        return {entry.name: entry.inode() for entry in entries}
    return {}


def _files() -> frozenset[str]:
    names = os.listdir(tempfile.gettempdir())
    return frozenset(name for name in names if name.startswith("shmpar"))


def _ours_of(paths: Iterator[str]) -> Iterator[str]:
    """Those of this user that no process of somebody else's test run holds open."""
    found: dict[str, Identity] = {}
    for path in paths:
        with suppress(OSError):
            status = os.lstat(path)
            if status.st_uid == os.geteuid():
                found[path] = status.st_dev, status.st_ino
    held = _held_elsewhere() if found else set()
    yield from (path for path, identity in found.items() if identity not in held)


def _held_elsewhere() -> set[Identity]:
    """Files that processes outside this test run hold open.  Cost: milliseconds."""
    held: set[Identity] = set()
    for pid in processes.pids() - {os.getpid()}:
        process = processes.look(pid)
        if process is None or processes.is_ours(process):
            continue
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(status.st_mode):
                        held.add((status.st_dev, status.st_ino))
    return held


def _standard_pids() -> set[int]:
    """Helpers that multiprocessing starts once and keeps until the interpreter ends."""
    return _standard(("_pid", "_forkserver_pid"))


def _standard_descriptors() -> set[int]:
    """Name the pipes that keep those helpers alive."""
    return _standard(("_fd", "_forkserver_alive_fd"))


def _standard(attributes: tuple[str, ...]) -> set[int]:
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    helpers = getattr(tracker, "_resource_tracker", None), getattr(server, "_forkserver", None)
    values = (getattr(helper, name, None) for helper in helpers for name in attributes)
    return {value for value in values if value is not None}

"""Find leaks of a test: processes, threads, segments, descriptors and temporary files.

Take a :class:`Snapshot` before the test; :func:`leaks_since` then lists the things that are new.
This module opens no file in ``/dev/shm``: closing any descriptor of a marker file would release the
lock of its name registry.
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

from shmpar.memory import reuse
from tests import processes

SHM = "/dev/shm"
_MEMORY = (f"{SHM}/", "/memfd:", "/dev/zero (deleted)")  # prefixes of shared memory in /proc

Identity = tuple[int, int]  # device and inode

_allowed: set[int] = set()
_listed: dict[str, tuple[int, frozenset[str]]] = {}  # names in a folder that has this time


@dataclass(frozen=True, slots=True)
class Leak:
    """A thing that a test left behind.

    Attributes
    ----------
    kind : str
        ``"process"``, ``"thread"``, ``"segment"`` (a name in ``/dev/shm`` that this test run holds,
        or one of shmpar that no other process holds), ``"memory"`` (shared memory that is still
        open or mapped), ``"descriptor"`` or ``"file"``.
    name : str
        Name in the report.
    key : object
        Pid of a running process, or a thread, that can be waited for; otherwise None.
    """

    kind: str
    name: str
    key: int | threading.Thread | None = None

    def __str__(self) -> str:
        """Return a line of the report."""
        return f"{self.kind:<10} {self.name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The processes, threads, descriptors, segments, files and mappings at one moment."""

    pids: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: dict[int, Identity]
    segments: dict[str, int]
    files: frozenset[str]
    shared_kb: int
    mappings: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Record the present state."""
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
    """Let processes outlive the test that starts them: workers of a pool with a wider scope.

    A fixture that starts the workers of its pool before it yields does not need this.
    """
    _allowed.update(pids)


def leaks_since(before: Snapshot) -> list[Leak]:
    """Return everything that exists now and is not in the snapshot."""
    return [
        *_leaked_processes(before),
        *_leaked_threads(before),
        *_leaked_segments(before),
        *_leaked_descriptors(before),
        *_leaked_mappings(before),
        *_leaked_files(before),
    ]


def leaks_after_waiting(before: Snapshot, seconds: float = 10.0) -> list[Leak]:
    """Return the leaks after a garbage collection, and after processes and threads had time to end.

    An unreaped child or an open descriptor is a leak at once, since waiting cannot remove it.
    """
    gc.collect(1)  # Why: most objects of the test are young, and a full collection is slow
    if not leaks_since(before):
        return []
    gc.collect()
    reuse.clear()  # Why: a pool that is open would close these files a second later
    deadline = time.monotonic() + seconds
    while leaks := leaks_since(before):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not _something_ended(leaks, remaining):
            break
    return leaks


def report(leaks: list[Leak]) -> str:
    """Return the text of a report, with a line for each leak."""
    lines = "\n".join(f"  {one}" for one in leaks)
    return f"the test left behind:\n{lines}"


def _something_ended(leaks: list[Leak], seconds: float) -> bool:
    pids = [one.key for one in leaks if isinstance(one.key, int)]
    if pids:
        return processes.wait_for_exit(pids, seconds)
    threads = [one.key for one in leaks if isinstance(one.key, threading.Thread)]
    for thread in threads[:1]:
        thread.join(seconds)
        return not thread.is_alive()
    if any(one.kind in {"segment", "file"} for one in leaks):
        # Why: there is no event for the removal of a name.
        return not threading.Event().wait(min(seconds, 0.02))
    return False


def _leaked_processes(before: Snapshot) -> Iterator[Leak]:
    allowed = _allowed | _standard_pids()
    for pid in sorted(processes.pids() - before.pids - allowed):
        process = processes.read(pid)
        if process is not None and processes.is_ours(process):
            yield Leak("process", str(process), None if process.zombie else pid)


def _leaked_threads(before: Snapshot) -> Iterator[Leak]:
    for thread in threading.enumerate():
        if thread not in before.threads and thread is not threading.current_thread():
            daemon = " (daemon)" if thread.daemon else ""
            yield Leak("thread", f"{thread.name}{daemon}", thread)


def _leaked_segments(before: Snapshot) -> Iterator[Leak]:
    new = [name for name, inode in _segments().items() if before.segments.get(name) != inode]
    found = _of_this_user(f"{SHM}/{name}" for name in sorted(new))
    ours, others = _holders() if found else (set(), set())
    for path, identity in found.items():
        named = path.startswith(f"{SHM}/shmpar") and identity not in others
        # Why: joblib and multiprocessing of other programs leave names that no process holds.
        if named or identity in ours:
            yield Leak("segment", path)


def _leaked_descriptors(before: Snapshot) -> Iterator[Leak]:
    allowed = _standard_descriptors()
    for fd, identity in sorted(_descriptors().items()):
        if before.descriptors.get(fd) == identity or fd in allowed:
            continue
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(_MEMORY):
                yield Leak("memory", f"descriptor {fd}: {target}, {os.fstat(fd).st_size} bytes")
            else:
                yield Leak("descriptor", f"{fd}: {target}")


def _leaked_mappings(before: Snapshot) -> Iterator[Leak]:
    """Compare the mappings of shared memory, except those that were never touched."""
    if _shared_kb() > before.shared_kb:
        for mapping in sorted(_mappings() - before.mappings):
            yield Leak("memory", f"mapping {mapping}")


def _leaked_files(before: Snapshot) -> Iterator[Leak]:
    folder = tempfile.gettempdir()
    new = sorted(_files() - before.files)
    found = _of_this_user(os.path.join(folder, name) for name in new)
    _, others = _holders() if found else (set(), set())
    for path, identity in found.items():
        if identity not in others:
            yield Leak("file", path)


def _shared_kb() -> int:
    """Return the shared memory in KiB that this process has touched and still maps."""
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"RssShmem:"):
                return int(line.split()[1])
    return 0


def _mappings() -> frozenset[str]:
    """Return the address range and the file of each mapping of shared memory."""
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        lines = (line.rstrip().split(None, 5) for line in file)
        found = (fields for fields in lines if len(fields) > 5)
        return frozenset(f"{f[0]} {f[1]} {f[5]}" for f in found if f[5].startswith(_MEMORY))
    return frozenset()


def _descriptors() -> dict[int, Identity]:
    found: dict[int, Identity] = {}
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        with suppress(OSError):  # the descriptor of the listing itself is closed
            status = os.fstat(int(name))
            found[int(name)] = status.st_dev, status.st_ino
    return found


def _segments() -> dict[str, int]:
    with suppress(OSError), os.scandir(SHM) as entries:
        return {entry.name: entry.inode() for entry in entries}
    return {}


def _files() -> frozenset[str]:
    """Return the temporary files of ours; the folder may hold thousands of others."""
    folder = tempfile.gettempdir()
    now, changed = time.time_ns(), os.stat(folder).st_mtime_ns
    then, names = _listed.pop(folder, (0, frozenset()))
    if then != changed:
        names = frozenset(name for name in os.listdir(folder) if name.startswith("shmpar"))
    # Why: the clock of the file system has coarse ticks, so a later change may have this time.
    if now - changed > 10**8:
        _listed[folder] = changed, names
    return names


def _of_this_user(paths: Iterator[str]) -> dict[str, Identity]:
    """Return the identity of each path that belongs to this user."""
    found: dict[str, Identity] = {}
    for path in paths:
        with suppress(OSError):
            status = os.lstat(path)
            if status.st_uid == os.geteuid():
                found[path] = status.st_dev, status.st_ino
    return found


def _holders() -> tuple[set[Identity], set[Identity]]:
    """Return the files that this test run holds, and those that other processes hold."""
    ours: set[Identity] = set()
    others: set[Identity] = set()
    for pid in processes.pids():
        if pid == os.getpid():
            ours.update(_held(pid))
        elif process := processes.read(pid):
            (ours if processes.is_ours(process) else others).update(_held(pid))
    return ours, others


def _held(pid: int) -> Iterator[Identity]:
    """Find the regular files that a process has open, and those that it maps from `SHM`."""
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(status.st_mode):
                    yield status.st_dev, status.st_ino
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            if f" {SHM}/".encode() in line:  # Why: a semaphore is mapped, and open nowhere
                device, inode = line.split(None, 5)[3:5]
                major, minor = (int(part, 16) for part in device.split(b":"))
                yield os.makedev(major, minor), int(inode)


def _standard_pids() -> set[int]:
    """Return the pids of helpers that multiprocessing keeps until the interpreter exits."""
    return _standard(("_pid", "_forkserver_pid"))


def _standard_descriptors() -> set[int]:
    """Return the descriptors of the pipes that keep these helpers alive."""
    return _standard(("_fd", "_forkserver_alive_fd"))


def _standard(attributes: tuple[str, ...]) -> set[int]:
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    helpers = getattr(tracker, "_resource_tracker", None), getattr(server, "_forkserver", None)
    values = (getattr(helper, name, None) for helper in helpers for name in attributes)
    return {value for value in values if value is not None}

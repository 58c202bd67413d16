"""Marker files: what a killed process named, and that it is dead.

Imports the descriptors, naming and ladder beside it.  A marker is
``/dev/shm/shmpar_<hex>.marker``, mode 0600; one line a name: device, inode, name; above it a line
that says by which process, and when.

Guarantees
----------
A line is written before its name exists, so whatever instant a process dies at, all of its names
are listed.  A line removes a name only from the very file that it was written for, and only while
no living marker lists that file too: who has taken an array over keeps it when its maker dies.
The lock is the kernel's and goes with the process, in any pid namespace.  It is a POSIX record
lock, which forked children do not inherit (an open-file lock would look alive as long as one of
them lives).  Its price: closing *any* descriptor of the file drops it, so this process never
opens a marker of its own again; ``_ours`` has the descriptors.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from shmpar.segment import descriptors, ladder, naming

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows has no named segments of ours
    fcntl = None  # type: ignore[assignment]

__all__ = ["Entry", "Inventory", "Marker", "inventory", "reap", "sweep"]

_PATTERN: Final = re.compile(r"shmpar_[0-9a-f]+\.marker")
_LINE: Final = re.compile(
    r"^(?:by ([0-9]{1,18}) at ([0-9]{1,20})\n)?([0-9]{1,20}) ([0-9]{1,20}) ([^/\n]+)\n",
    re.MULTILINE,
)
_FLAGS: Final = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_CREATED: Final = _FLAGS | os.O_CREAT | os.O_EXCL | os.O_APPEND
_ours: dict[tuple[int, str], int] = {}  # by (pid, path): a forked child owns none


class Entry(NamedTuple):
    """One name that a marker lists.

    Attributes
    ----------
    name : str
        File name in ``/dev/shm``.
    identity : tuple of (int, int)
        Device and inode that it was given to.
    pid : int or None
        Who gave it, by the number that this process has in its own pid namespace.
    since : float or None
        When, in seconds since the epoch.
    size : int
        Bytes of the file; 0 unless it was looked at.
    """

    name: str
    identity: naming.Identity
    pid: int | None = None
    since: float | None = None
    size: int = 0


class Inventory(NamedTuple):
    """What one marker says.

    Attributes
    ----------
    path : str
        The marker file.
    alive : bool
        Whether its manager still holds the lock.
    entries : tuple of Entry
        What it lists that exists.
    """

    path: str
    alive: bool
    entries: tuple[Entry, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Listed names that exist."""
        return tuple(entry.name for entry in self.entries)


class Marker:
    """The list of one manager's names, locked as long as this process lives.

    The segments on the list hold it, so it goes with the last of them.

    Examples
    --------
    >>> marker = Marker()
    >>> marker.close()
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.path, self._fd = _locked_file()

    def record(self, name: str, identity: naming.Identity) -> None:
        """Write down a name that is about to exist."""
        who = f"by {self._pid} at {time.time_ns()}"
        os.write(self._fd, f"{who}\n{identity[0]} {identity[1]} {name}\n".encode())

    def close(self) -> None:
        """Remove the file, then drop the lock; do nothing in a forked child, or twice."""
        fd, self._fd = self._fd, -1
        if fd < 0 or self._pid != os.getpid():
            return
        with suppress(OSError):
            os.unlink(self.path)
        os.close(fd)
        _ours.pop((self._pid, self.path), None)

    @property
    def closed(self) -> bool:
        """Whether the file was removed."""
        return self._fd < 0

    __del__ = close


def _locked_file() -> tuple[str, int]:
    """Create and lock a marker; again if a reaper took it between the two."""
    while True:
        path = f"{ladder.SHM}/{naming.generated('.marker')}"
        _ours[os.getpid(), path] = -1
        fd = descriptors.opened(partial(os.open, path, _CREATED, 0o600))
        fcntl.lockf(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            _ours[os.getpid(), path] = fd
            return path, fd
        os.close(fd)
        del _ours[os.getpid(), path]


def reap(*, dry_run: bool = False) -> list[str]:
    """Remove the named segments of processes that died without closing them.

    Parameters
    ----------
    dry_run : bool
        Only say what would be removed.

    Returns
    -------
    list of str
        The names, without those of other users and of living processes.

    Notes
    -----
    Cost: one listing of ``/dev/shm``, and an open and a lock a marker of others.

    Examples
    --------
    >>> isinstance(reap(dry_run=True), list)
    True
    """
    return [entry.name for entry in sweep(dry_run=dry_run)]


def sweep(*, dry_run: bool = False) -> list[Entry]:
    """Do as :func:`reap`, and say more of what was removed."""
    removed: list[Entry] = []
    for path in _foreign():
        with _opened(path) as fd:
            if fd is None or not _dead(fd):
                continue
            entries = _existing(_entries(fd))
            held = _held(but=path) if entries else set()
            entries = [entry for entry in entries if entry.identity not in held]
            removed += entries if dry_run else _remove(path, entries)
    return removed


def inventory() -> list[Inventory]:
    """Every marker of this user, with the names that exist.  Cost: as :func:`reap`."""
    found = [
        Inventory(path, alive=True, entries=tuple(_existing(_entries(fd)))) for path, fd in _own()
    ]
    for path in _foreign():
        with _opened(path) as fd:
            if fd is not None:
                entries = tuple(_existing(_entries(fd)))
                found.append(Inventory(path, not _dead(fd), entries))
    return found


def _own() -> list[tuple[str, int]]:
    """Markers of this process, and their descriptors: opening one again would drop its lock."""
    return sorted((path, fd) for (pid, path), fd in list(_ours.items()) if pid == os.getpid())


def _held(*, but: str) -> set[naming.Identity]:
    """Files that living markers list.  That which is locked here is not opened again."""
    held = {entry.identity for _, fd in _own() for entry in _entries(fd)}
    for path in _foreign():
        if path == but:
            continue
        with _opened(path) as fd:
            if fd is not None and not _dead(fd):
                held.update(entry.identity for entry in _entries(fd))
    return held


def _foreign() -> Iterator[str]:
    """Markers of this user that other processes made."""
    try:
        names = os.listdir(ladder.SHM)
    except OSError:
        return
    for name in names:
        path = f"{ladder.SHM}/{name}"
        if _PATTERN.fullmatch(name) and (os.getpid(), path) not in _ours:
            yield path


@contextmanager
def _opened(path: str) -> Iterator[int | None]:
    """Open a marker of this user; None if it is somebody else's or has gone."""
    try:
        fd = descriptors.opened(lambda: os.open(path, _FLAGS | os.O_NONBLOCK))
    except OSError:
        yield None
        return
    try:
        yield fd if os.fstat(fd).st_uid == os.geteuid() else None
    finally:
        os.close(fd)


def _dead(fd: int) -> bool:
    """Whether nobody holds the lock; if so, it is now ours until the descriptor closes."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return bool(os.fstat(fd).st_nlink)


def _entries(fd: int) -> list[Entry]:
    """Read the lines of a marker; one that was cut short by a death named nothing yet."""
    with suppress(OSError):
        text = os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
        lines = _LINE.findall(text)
        return [_entry(*line) for line in lines]
    return []


def _entry(pid: str, since: str, device: str, inode: str, name: str) -> Entry:
    who = (int(pid), int(since) / 1e9) if pid else (None, None)
    return Entry(name, (int(device), int(inode)), *who)


def _existing(entries: list[Entry]) -> list[Entry]:
    """Those whose name still leads to their file, with its size."""
    sized = [(entry, _size(entry)) for entry in entries]
    return [entry._replace(size=size) for entry, size in sized if size is not None]


def _size(entry: Entry) -> int | None:
    with suppress(OSError, ValueError):  # ValueError: a NUL
        found = os.lstat(f"{ladder.SHM}/{entry.name}")
        if found.st_uid == os.geteuid() and (found.st_dev, found.st_ino) == entry.identity:
            return found.st_size
    return None


def _remove(path: str, entries: list[Entry]) -> list[Entry]:
    """Remove the names before their list: a reaper that dies in between is repeated."""
    removed = [entry for entry in entries if naming.remove(entry.name, entry.identity)]
    if not _existing(entries):  # what cannot be removed stays on its list
        with suppress(OSError):
            os.unlink(path)
    return removed

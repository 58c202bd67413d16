"""Marker files: what a killed process named, and that it is dead.

Imports the naming and ladder beside it.  A marker is ``/dev/shm/shmpar_<hex>.marker``, mode 0600;
one line a name: device, inode, name.

Guarantees
----------
A line is written before its name exists, so whatever instant a process dies at, all of its names
are listed.  A line removes a name only from the very file that it was written for.
The lock is the kernel's and goes with the process, in any pid namespace.  It is a POSIX record
lock, which forked children do not inherit (an open-file lock would look alive as long as one of
them lives).  Its price: closing *any* descriptor of the file drops it, so this process never
opens a marker of its own again; ``_ours`` knows them.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmpar.segment import ladder, naming

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows has no named segments of ours
    fcntl = None  # type: ignore[assignment]

__all__ = ["Entry", "Inventory", "Marker", "inventory", "reap"]

_PATTERN: Final = re.compile(r"shmpar_[0-9a-f]+\.marker")
_LINE: Final = re.compile(r"^([0-9]+) ([0-9]+) ([^/\n]+)\n", re.MULTILINE)
_FLAGS: Final = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_ours: set[tuple[int, str]] = set()  # (pid, path): a forked child owns none


@dataclass(frozen=True, slots=True)
class Entry:
    """One name that a marker lists.

    Attributes
    ----------
    name : str
        File name in ``/dev/shm``.
    identity : tuple of (int, int)
        Device and inode that it was given to.
    """

    name: str
    identity: naming.Identity


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one marker says.

    Attributes
    ----------
    path : str
        The marker file.
    alive : bool
        Whether its manager still holds the lock.
    names : tuple of str
        Listed names that exist.
    """

    path: str
    alive: bool
    names: tuple[str, ...]


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
        os.write(self._fd, f"{identity[0]} {identity[1]} {name}\n".encode())

    def close(self) -> None:
        """Remove the file, then drop the lock; do nothing in a forked child, or twice."""
        fd, self._fd = self._fd, -1
        if fd < 0 or self._pid != os.getpid():
            return
        with suppress(OSError):
            os.unlink(self.path)
        os.close(fd)
        _ours.discard((self._pid, self.path))

    @property
    def closed(self) -> bool:
        """Whether the file was removed."""
        return self._fd < 0

    __del__ = close


def _locked_file() -> tuple[str, int]:
    """Create and lock a marker; again if a reaper took it between the two."""
    while True:
        path = f"{ladder.SHM}/{naming.generated('.marker')}"
        _ours.add((os.getpid(), path))
        fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)
        _ours.discard((os.getpid(), path))


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
    removed: list[str] = []
    for path in _foreign():
        with _opened(path) as fd:
            if fd is None or not _dead(fd):
                continue
            entries = [entry for entry in _entries(fd) if _exists(entry)]
            removed += [entry.name for entry in entries]
            if not dry_run:
                _remove(path, entries)
    return removed


def inventory() -> list[Inventory]:
    """Every marker of this user, with the names that exist.  Cost: as :func:`reap`."""
    found = [_read(path, alive=True) for pid, path in sorted(_ours) if pid == os.getpid()]
    for path in _foreign():
        with _opened(path) as fd:
            if fd is not None:
                names = tuple(entry.name for entry in _entries(fd) if _exists(entry))
                found.append(Inventory(path, not _dead(fd), names))
    return found


def _read(path: str, *, alive: bool) -> Inventory:
    """Say that a marker of this process exists: opening it would drop its lock."""
    return Inventory(path, alive, ())


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
        fd = os.open(path, _FLAGS | os.O_NONBLOCK)
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
        return [Entry(name, (int(device), int(inode))) for device, inode, name in lines]
    return []


def _exists(entry: Entry) -> bool:
    with suppress(OSError, ValueError):  # ValueError: a NUL
        found = os.lstat(f"{ladder.SHM}/{entry.name}")
        mine = found.st_uid == os.geteuid()
        return mine and (found.st_dev, found.st_ino) == entry.identity
    return False


def _remove(path: str, entries: list[Entry]) -> None:
    """Remove the names before their list: a reaper that dies in between is repeated."""
    for entry in entries:
        naming.remove(entry.name, entry.identity)
    with suppress(OSError):
        os.unlink(path)

"""Names of segments: making, checking, linking, opening and removing them.

Imports ``shmpar.errors`` and the descriptors and ladder beside it.

Guarantees
----------
A name is either a plain file name in ``/dev/shm`` or exactly ``/proc/<pid>/fd/<n>``; nothing else
is ever opened by name.  What is opened is a regular file of the same user, no symbolic link is
followed, and through ``/proc`` only files that have no name at all.  It is looked at before it is
opened, since opening a device or a pipe does something, and after, since it may be another by then.
A name is removed only while it still leads to the very file that it was given to.

Marker files: what a killed process named, and that it is dead.

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

import errno
import os
import re
import stat
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from shmpar.errors import SegmentGone
from shmpar.memory import allocate, limits

if TYPE_CHECKING:
    from collections.abc import Iterator

Identity = tuple[int, int]  # device, inode

_LONGEST: Final = 255
_MARKER: Final = re.compile(r"shmpar_[0-9a-f]+\.marker")
_DESCRIPTOR: Final = re.compile(r"/proc/[1-9][0-9]{0,9}/fd/[0-9]{1,9}")


def generate_name(suffix: str = "") -> str:
    """Make a fresh name of at most 31 characters.

    Examples
    --------
    >>> len(generate_name()) <= 31
    True
    """
    return f"shmpar_{os.urandom(8).hex()}{suffix}"


def checked(name: str) -> str:
    """Give back a name that a user chose.

    Raises
    ------
    TypeError
        It is no str.
    ValueError
        It is no plain file name of printable text, or looks like a marker of ours.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    # Printable: a marker has one line a name, and a terminal shows them. Surrogates are not.
    plain = name.isprintable() and "/" not in name and "@" not in name
    short = plain and name not in {"", ".", ".."} and len(name.encode()) <= _LONGEST
    if not short or _MARKER.fullmatch(name):
        shown = f"{name[:60]!r}..." if len(name) > _LONGEST else repr(name)
        raise ValueError(
            f"{shown} cannot name a segment: use a file name of printable characters, "
            "without '/' and '@'"
        )
    return name


def descriptor_name(fd: int) -> str:
    """How others find a file of this process that cannot be linked."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def link(fd: int, name: str) -> None:
    """Give a nameless file in ``/dev/shm`` a name.

    Raises
    ------
    FileExistsError
        The name is taken.
    OSError
        The file lies elsewhere, or the system cannot link what was never named.
    """
    with _folder() as folder:  # linkat needs a folder to follow the link in /proc
        os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=folder, dst_dir_fd=folder)


@contextmanager
def _folder() -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = limits.open_with_retry(lambda: os.open(allocate.SHM, flags))
    try:
        yield fd
    finally:
        os.close(fd)


def leads(name: str, identity: Identity) -> bool:
    """Whether a name in ``/dev/shm`` belongs to that file, of this user."""
    try:
        found = os.lstat(f"{allocate.SHM}/{name}")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity and found.st_uid == os.geteuid()


def remove(name: str, identity: Identity) -> bool:
    """Remove a name in ``/dev/shm`` if it still belongs to that file; say whether it did."""
    with suppress(OSError):
        if leads(name, identity):
            os.unlink(f"{allocate.SHM}/{name}")
            return True
    return False


def open_named(name: str) -> tuple[int, bool]:
    """Open a segment by name; gives the descriptor and whether it may be written.

    Raises
    ------
    ValueError
        The name is neither plain nor a descriptor's, or leads to something that is no segment.
    SegmentGone
        There is nothing of that name.
    PermissionError
        It belongs to another user.
    """
    path, flags = _path(name), os.O_CLOEXEC | os.O_NONBLOCK
    if not path.startswith("/proc/"):
        flags |= os.O_NOFOLLOW
    fd, writable = _open(path, flags, name)
    try:
        vet(os.fstat(fd), name)
    except BaseException:
        os.close(fd)
        raise
    return fd, writable


def _path(name: str) -> str:
    if _DESCRIPTOR.fullmatch(name) and sys.platform == "linux":
        return name
    return f"{allocate.SHM}/{checked(name)}"


def _open(path: str, flags: int, name: str) -> tuple[int, bool]:
    try:
        vet(os.stat(path, follow_symlinks=path.startswith("/proc/")), name)
        try:
            return limits.open_with_retry(lambda: os.open(path, os.O_RDWR | flags)), True
        except PermissionError:
            return os.open(path, os.O_RDONLY | flags), False
    except (FileNotFoundError, ProcessLookupError):
        raise SegmentGone(
            f"no segment {name!r}: it was closed, its owner has ended, or it never existed; "
            "keep the owner's array alive until others have attached"
        ) from None
    except PermissionError:
        raise
    except OSError as error:  # a symbolic link, a folder, a socket
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        raise ValueError(f"{name!r} is no segment: {error.strerror}") from None


def vet(found: os.stat_result, name: str) -> None:
    """Raise ``ValueError`` or ``PermissionError`` unless the file can be a segment."""
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name!r} is no segment: not a regular file")
    if name.startswith("/proc/") and found.st_nlink:
        raise ValueError(f"{name!r} is no segment: the file has a name of its own")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"segment {name!r} belongs to user {found.st_uid}; attach as them")


try:
    import fcntl
except ImportError:  # Windows has no named segments of ours
    fcntl = None  # type: ignore[assignment]


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
    identity: Identity
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

    def record(self, name: str, identity: Identity) -> None:
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
        path = f"{allocate.SHM}/{generate_name('.marker')}"
        _ours[os.getpid(), path] = -1
        fd = limits.open_with_retry(partial(os.open, path, _CREATED, 0o600))
        fcntl.lockf(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            _ours[os.getpid(), path] = fd
            return path, fd
        os.close(fd)
        del _ours[os.getpid(), path]


def remove_stale(*, dry_run: bool = False) -> list[Entry]:
    """Remove the named segments of processes that died without closing them.

    Parameters
    ----------
    dry_run : bool
        Only return the names that would be removed.

    Returns
    -------
    list of Entry
        The removed names, without those of other users and of living processes.

    Notes
    -----
    Cost: lists ``/dev/shm``, and opens and locks each registry of another process.

    Examples
    --------
    >>> isinstance(remove_stale(dry_run=True), list)
    True
    """
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
    """Every marker of this user, with the names that exist.  Cost: as :func:`remove_stale`."""
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


def _held(*, but: str) -> set[Identity]:
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
        names = os.listdir(allocate.SHM)
    except OSError:
        return
    for name in names:
        path = f"{allocate.SHM}/{name}"
        if _PATTERN.fullmatch(name) and (os.getpid(), path) not in _ours:
            yield path


@contextmanager
def _opened(path: str) -> Iterator[int | None]:
    """Open a marker of this user; None if it is somebody else's or has gone."""
    try:
        fd = limits.open_with_retry(lambda: os.open(path, _FLAGS | os.O_NONBLOCK))
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
        found = os.lstat(f"{allocate.SHM}/{entry.name}")
        if found.st_uid == os.geteuid() and (found.st_dev, found.st_ino) == entry.identity:
            return found.st_size
    return None


def _remove(path: str, entries: list[Entry]) -> list[Entry]:
    """Remove the names before their list: a reaper that dies in between is repeated."""
    removed = [entry for entry in entries if remove(entry.name, entry.identity)]
    if not _existing(entries):  # what cannot be removed stays on its list
        with suppress(OSError):
            os.unlink(path)
    return removed

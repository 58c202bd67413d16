"""Names of segments: check, open and remove them, and remove the names of dead processes.

A name is a plain file name in ``/dev/shm`` or exactly ``/proc/<pid>/fd/<n>``.

A :class:`NameRegistry` lists the names that one manager gave.  It is a file
``/dev/shm/shmpar_<hex>.marker`` of mode 0600, with two lines per name: the process and the time,
then device, inode and name.

Guarantees
----------
Nothing else is ever opened by name.  An opened file is a regular file of the same user.  No
symbolic link is followed, and through ``/proc`` only files without any name are opened.
A name is removed only while it still points to the very file that it was given to.
A line is written before its name exists, so all names of a process are listed whenever it dies.
A registry of a dead process removes no name that the registry of a living process lists too: an
array that was taken over survives its maker.
"""

import itertools
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from shmpar.errors import SegmentGone
from shmpar.memory import allocate, system
from shmpar.memory.limits import ClosedOnError, open_with_retry

try:
    import fcntl
except ImportError:  # Windows has no named segments of ours
    fcntl = None  # type: ignore[assignment]

Identity = tuple[int, int]  # device, inode
Check = Callable[[os.stat_result], object]  # raises an error

_LONGEST: Final = 255
# Why text: to compile all patterns of this module would delay the start of each worker.
_REGISTRY: Final = r"shmpar_[0-9a-f]+\.marker"
_DESCRIPTOR: Final = r"/proc/[1-9][0-9]{0,9}/fd/[0-9]{1,9}"


def generate_name(suffix: str = "") -> str:
    """Return a fresh name of at most 31 characters.

    Examples
    --------
    >>> len(generate_name()) <= 31
    True
    """
    return f"shmpar_{os.urandom(8).hex()}{suffix}"


def check_name(name: str) -> str:
    """Return a name that a user chose, if it is a possible name.

    Raises
    ------
    TypeError
        It is no str.
    ValueError
        It is no plain file name of printable text, or looks like a registry.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    # Why: a registry has one name per line, and a terminal shows names.  A surrogate, which cannot
    # be encoded, is not printable.
    printable = name.isprintable() and "/" not in name and "@" not in name
    short = printable and name not in {"", ".", ".."} and len(name.encode()) <= _LONGEST
    if not short or re.fullmatch(_REGISTRY, name):
        shown = f"{name[:60]!r}..." if len(name) > _LONGEST else repr(name)
        raise ValueError(
            f"{shown} cannot name a segment: use a file name of printable characters, "
            "without '/' and '@'"
        )
    return name


def points_to(name: str, identity: Identity) -> bool:
    """Return True if a name in ``/dev/shm`` belongs to this file, and the file to this user."""
    return _size(name, identity) is not None


def _size(name: str, identity: Identity) -> int | None:
    """Return the bytes of a file of this user; None if the name no longer points to the file."""
    with suppress(OSError, ValueError):  # Why: a NUL in a registry is a ValueError
        found = os.lstat(f"{allocate.SHM}/{name}")
        if (found.st_dev, found.st_ino) == identity and found.st_uid == os.geteuid():
            return found.st_size
    return None


def remove(name: str, identity: Identity) -> bool:
    """Remove a name in ``/dev/shm`` if it still points to this file; return True if it did."""
    with suppress(OSError):
        if points_to(name, identity):
            os.unlink(f"{allocate.SHM}/{name}")
            return True
    return False


def open_named(name: str) -> tuple[int, bool]:
    """Open a segment by name; return the descriptor, and True if it may be written.

    Raises
    ------
    ValueError
        The name is neither plain nor of a descriptor, or points to another kind of file.
    SegmentGone
        The name does not exist.
    PermissionError
        It belongs to another user.
    """
    in_proc = bool(re.fullmatch(_DESCRIPTOR, name)) and sys.platform == "linux"
    path = name if in_proc else f"{allocate.SHM}/{check_name(name)}"

    def check(found: os.stat_result) -> None:
        if in_proc and found.st_nlink:
            raise ValueError(f"{name!r} is no segment: the file has a name of its own")
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{name!r} belongs to user {found.st_uid}; attach as that user")

    return open_checked(path, repr(name), check, follow=in_proc)


def open_checked(
    path: str, shown: str, check: Check, *, writable: bool = True, follow: bool = False
) -> tuple[int, bool]:
    """Open a regular file that passes a check; return the descriptor, and True if writable.

    A file that may only be read is opened for reading. The errors are those of `open_named`, and
    those that the check raises.
    """

    def examine(found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{shown} is no segment: not a regular file")
        check(found)

    flags = os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        # Why: checked before it is opened, since opening a device or a pipe has effects, and after,
        # since the name may point to another file by then.
        examine(os.stat(path, follow_symlinks=follow))
        fd, writable = _open(path, flags, writable=writable)
    except (SegmentGone, PermissionError):
        raise
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        raise SegmentGone(
            f"no segment {shown}: it was closed, its owner has exited, or it never existed; "
            "keep the owner's array alive until others have attached"
        ) from None
    except OSError as error:  # a symbolic link, a folder, a socket, a path that is too long
        if error.errno in system.NO_DESCRIPTORS:
            raise
        raise ValueError(f"{shown} is no segment: {error.strerror}") from None
    with ClosedOnError(fd):
        examine(os.fstat(fd))
    return fd, writable


def _open(path: str, flags: int, *, writable: bool) -> tuple[int, bool]:
    if writable:
        with suppress(PermissionError):
            return open_with_retry(os.open, path, os.O_RDWR | flags), True
    return open_with_retry(os.open, path, os.O_RDONLY | flags), False


_LINES: Final = (
    r"(?m)^(?:by ([0-9]{1,18}) at ([0-9]{1,20})\n)?([0-9]{1,20}) ([0-9]{1,20}) ([^/\n]+)\n"
)
_FLAGS: Final = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)

# Lock: a registry is locked with a POSIX record lock, which the kernel releases with the process,
# in any pid namespace.  A forked child does not inherit it; an open-file lock would look held as
# long as a child lives.  But closing any descriptor of the file releases the lock, so this process
# never opens a registry of its own again: their descriptors are here, by path.
_own_registries: dict[str, int] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own_registries.clear)


class Entry(NamedTuple):
    """A name in a registry.

    Attributes
    ----------
    name : str
        File name in ``/dev/shm``.
    identity : tuple of (int, int)
        Device and inode of its file.
    pid : int or None
        The process that gave the name, in its own pid namespace.
    since : float or None
        The time, in seconds since the epoch.
    size : int
        Bytes of the file; 0 if they are unknown.
    """

    name: str
    identity: Identity
    pid: int | None = None
    since: float | None = None
    size: int = 0


class Inventory(NamedTuple):
    """The contents of one registry.

    Attributes
    ----------
    path : str
        The file of the registry.
    alive : bool
        True if its process holds the lock.
    entries : tuple of Entry
        The listed names that exist.
    """

    path: str
    alive: bool
    entries: tuple[Entry, ...]


class NameRegistry:
    """The file that lists the names of one manager; locked while this process lives.

    The segments on the list hold it, so it is removed with the last of them.

    Examples
    --------
    >>> registry = NameRegistry()
    >>> registry.close()
    """

    def __init__(self) -> None:
        self._pid, self._fd = os.getpid(), -1
        flags = _FLAGS | os.O_CREAT | os.O_EXCL | os.O_APPEND
        while self._fd < 0:
            self.path = f"{allocate.SHM}/{generate_name('.marker')}"
            _own_registries[self.path] = -1
            fd = open_with_retry(os.open, self.path, flags, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX)
            except BaseException:  # Why: some systems refuse record locks
                self._fd = fd
                self.close()
                raise
            # Why: another process may have removed the file as stale before it was locked.
            if os.fstat(fd).st_nlink:
                self._fd = _own_registries[self.path] = fd
            else:
                os.close(fd)
                del _own_registries[self.path]

    def record(self, name: str, identity: Identity) -> None:
        """List a name; call this before the name exists."""
        origin = f"by {self._pid} at {time.time_ns()}"
        line = f"{origin}\n{identity[0]} {identity[1]} {name}\n".encode()
        size = os.fstat(self._fd).st_size
        try:
            while line:  # Why: a full file system takes a part of it, and tells no error
                line = line[os.write(self._fd, line) :]
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def close(self) -> None:
        """Remove the file, then release the lock; do nothing in a forked child, or twice."""
        fd, self._fd = self._fd, -1
        if fd < 0 or self._pid != os.getpid():
            return
        with suppress(OSError):
            os.unlink(self.path)
        os.close(fd)
        _own_registries.pop(self.path, None)

    @property
    def closed(self) -> bool:
        """True if the file was removed."""
        return self._fd < 0

    __del__ = close


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
    with _registries() as registries:
        living = [fd for _, fd, alive in registries if alive]
        taken_over = {entry.identity for fd in living for entry in _entries(fd)}
        for path, fd, alive in registries:
            if alive:
                continue
            stale = [entry for entry in _existing(fd) if entry.identity not in taken_over]
            removed += [one for one in stale if dry_run or remove(one.name, one.identity)]
            # Why: the registry goes last, so that another process repeats this if it stops here,
            # or if a name is left that a process has taken over which dies too.
            if not dry_run and not _existing(fd):
                with suppress(OSError):
                    os.unlink(path)
    return removed


def inventory() -> list[Inventory]:
    """Return every registry of this user, with the names that exist."""
    with _registries() as registries:
        return [Inventory(path, alive, _existing(fd)) for path, fd, alive in registries]


class Nameless(NamedTuple):
    """A segment without a name that processes of this user map or hold.

    Attributes
    ----------
    path : str
        The kernel's name for it.
    size, used : int
        Its bytes, and those that are reserved.
    pids : tuple of int
        The processes.
    """

    path: str
    size: int
    used: int
    pids: tuple[int, ...]


_NAMELESS: Final = r"(/dev/shm/#\d+|/memfd:shmpar) \(deleted\)"
# A line about a mapped one: start, end, flags, offset, device, inode, path.
_MAPPED: Final = (
    rf"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) +{_NAMELESS}"
)


def nameless() -> list[Nameless]:
    """Return the segments without a name of the live processes of this user, largest first.

    Other programs' nameless files in ``/dev/shm`` are among them.
    """
    # None stands for a file that is no segment.
    found: dict[Identity, Nameless | None] = {}
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    # Why all descriptors first: they tell the size, and whether the file has a name by now.
    for look, pid in itertools.product((_opened_by, _mapped_by), pids):
        with suppress(OSError):  # the process has exited, or belongs to another user
            if os.stat(f"/proc/{pid}/fd").st_uid == os.geteuid():
                for identity, made in look(pid):
                    known = found.setdefault(identity, made)
                    if known is not None:
                        found[identity] = known._replace(pids=tuple(sorted({*known.pids, pid})))
    segments = [one for one in found.values() if one is not None]
    return sorted(segments, key=lambda one: -one.used)


def _opened_by(pid: int) -> Iterator[tuple[Identity, Nameless | None]]:
    """Yield the files of which a process has descriptors."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # it was closed meanwhile
            match = re.fullmatch(_NAMELESS, os.readlink(f"/proc/{pid}/fd/{name}"))
            if match:
                status = os.stat(f"/proc/{pid}/fd/{name}")
                made = Nameless(match[1], status.st_size, 512 * status.st_blocks, ())
                # Why: the kernel shows no name of a file that got one later, and a file of no
                # bytes is a ticket counter.
                is_other = bool(status.st_nlink) or not status.st_size
                yield (status.st_dev, status.st_ino), None if is_other else made


def _mapped_by(pid: int) -> Iterator[tuple[Identity, Nameless]]:
    """Yield the files that a process maps, if without a descriptor, with every byte reserved."""
    # Why not /proc/<pid>/map_files: only the superuser may follow its links.
    whole: dict[Identity, tuple[str, int]] = {}
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for match in filter(None, map(re.compile(_MAPPED).match, lines)):
            begin, end, offset, major, minor = [int(match[k], 16) for k in range(1, 6)]
            identity, stop = (os.makedev(major, minor), int(match[6])), offset + end - begin
            whole[identity] = match[7], max(stop, whole.get(identity, ("", 0))[1])
    for identity, (path, size) in whole.items():
        yield identity, Nameless(path, size, size, ())


@contextmanager
def _registries() -> Iterator[list[tuple[str, int, bool]]]:
    """Open the registries of this user: path, descriptor, and True if their process lives.

    Until the end of the block this process holds the locks of the dead ones.
    """
    with ExitStack() as stack:
        found = [(path, fd, True) for path, fd in sorted(_own_registries.items()) if fd >= 0]
        listed: list[str] = []
        with suppress(OSError):  # other systems have no such folder
            listed = open_with_retry(os.listdir, allocate.SHM)
        for name in listed:
            path = f"{allocate.SHM}/{name}"
            # Why: closing any descriptor of an own registry would release its lock.
            if re.fullmatch(_REGISTRY, name) and path not in _own_registries:
                with suppress(OSError):  # it belongs to another user, or no longer exists
                    fd = open_with_retry(os.open, path, _FLAGS | os.O_NONBLOCK)
                    stack.callback(os.close, fd)
                    if os.fstat(fd).st_uid == os.geteuid():
                        found.append((path, fd, not _is_dead(fd)))
        yield found


def _is_dead(fd: int) -> bool:
    """Return True if no process holds the lock; this process holds it then, until it closes."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):  # Why: without locks nobody can tell
        return False
    return bool(os.fstat(fd).st_nlink)


def _entries(fd: int) -> list[Entry]:
    """Read a registry; a line that a death cut short belongs to a name that does not exist."""
    with suppress(OSError):
        text = os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
        return [
            Entry(name, (int(dev), int(ino)), int(pid or 0) or None, int(since or 0) / 1e9 or None)
            for pid, since, dev, ino, name in re.findall(_LINES, text)
        ]
    return []


def _existing(fd: int) -> tuple[Entry, ...]:
    """Return the entries of a registry whose names still point to their files, with the sizes."""
    found = [(entry, _size(entry.name, entry.identity)) for entry in _entries(fd)]
    return tuple(entry._replace(size=size) for entry, size in found if size is not None)

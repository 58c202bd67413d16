"""How many bytes may still be asked for, by memory and by file system.

Imports the standard library only.

Guarantees
----------
Nothing is cached: two calls a second apart see what other processes did in between.
An unreadable or unlimited source never counts as "none left": it does not take part.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Group",
    "available",
    "device",
    "folders",
    "groups",
    "memory",
    "oom_kills",
    "volatile",
]

_UNLIMITED = 1 << 62
ROOT = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}


class Group(NamedTuple):
    """A control group that limits the memory of this process.

    Attributes
    ----------
    limit, used : int
        Bytes.
    reclaimable : int
        Bytes of `used` that are page cache, given back when memory is asked for.
    """

    limit: int
    used: int
    reclaimable: int

    @property
    def left(self) -> int:
        """Bytes that may still be filled; negative if a lowered limit is exceeded."""
        return self.limit - self.used + self.reclaimable


def memory() -> int:
    """Bytes of RAM that this process may still fill, by the kernel's and the cgroup's count.

    Swap does not count: shared memory that is swapped out is slower than no shared memory.

    Notes
    -----
    Cost: reads four small files of ``/proc`` and ``/sys``, about 60 us.

    Examples
    --------
    >>> memory() > 0
    True
    """
    return max(0, min([available(), *(group.left for group in groups())]))


def device(fd: int) -> int:
    """Bytes free on the file system of an open file; a memory file knows no limit."""
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize if found.f_blocks else _UNLIMITED


def volatile(fd: int) -> bool:
    """Whether the file lies in RAM (tmpfs, ramfs, a memory file), so that RAM limits it too."""
    number = os.fstat(fd).st_dev
    return _filesystem(f"{os.major(number)}:{os.minor(number)}") in {"tmpfs", "ramfs", ""}


def _filesystem(device_number: str) -> str:
    """Type of a mounted file system; empty for one that is mounted nowhere (memfd)."""
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.split(" ", 3)[2] == device_number:
                return line.partition(" - ")[2].split(" ", 1)[0]
        return ""
    return "unknown"


def available() -> int:
    """Bytes of RAM that the kernel could still hand out (MemAvailable), whoever may have them."""
    with suppress(OSError), open("/proc/meminfo", "rb") as lines:
        for line in lines:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _physical()


def _physical() -> int:
    """Total RAM, for kernels that do not say how much of it is available."""
    with suppress(ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _UNLIMITED


def groups() -> Iterator[Group]:
    """The memory cgroup of this process and each of its ancestors, those that have a limit."""
    for version, folder in folders("memory"):
        group = _group(folder, *_FILES[version])
        if group is not None:
            yield group


def folders(controller: str) -> Iterator[tuple[int, str]]:
    """Where the control groups of this process lie, each followed by those above it.

    Parameters
    ----------
    controller : str
        "memory" or "cpu"; groups of version 2 have all controllers.

    Yields
    ------
    version : int
        1 or 2.
    folder : str
        It may be missing: in a container the path may not exist, the root does.
    """
    with suppress(OSError), open(MEMBERSHIP, encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers == "":
                yield from ((2, folder) for folder in _upwards(ROOT, path))
            elif controller in controllers.split(","):
                yield from ((1, folder) for folder in _upwards(f"{ROOT}/{controller}", path))


def _upwards(root: str, path: str) -> Iterator[str]:
    while True:
        yield root + path.rstrip("/")
        if path in {"/", ""}:
            return
        path = os.path.dirname(path)


def _group(folder: str, limit: str, usage: str) -> Group | None:
    try:
        ceiling, used = (_number(f"{folder}/{name}") for name in (limit, usage))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return None if ceiling >= _UNLIMITED else Group(ceiling, used, _reclaimable(folder))


def oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory, here or in our control groups.

    It counts on this machine as a whole where no control group counts; 0 where nothing does.
    """
    counts = [
        _count(f"{folder}/{'memory.events' if version > 1 else 'memory.oom_control'}")
        for version, folder in folders("memory")
    ]
    return max([*counts, _count("/proc/vmstat")])


def _count(path: str) -> int:
    with suppress(OSError, ValueError), open(path, "rb") as lines:
        for line in lines:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0


def _number(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read())


def _reclaimable(folder: str) -> int:
    """Page cache that is charged to the group, but is given back when memory is asked for."""
    with suppress(OSError), open(f"{folder}/memory.stat", "rb") as lines:
        found = dict(line.split() for line in lines)
        return int(found.get(b"total_inactive_file", found.get(b"inactive_file", b"0")))
    return 0

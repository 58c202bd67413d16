"""File descriptors: how many the segments use, and room for more, for workers too.

Imports the standard library only.

Guarantees
----------
``born`` and ``died`` may run in any thread and inside a finalizer: they take no lock.
The soft limit is only ever raised, never beyond the hard one.
No memory and no worker gets the number of a standard stream that is closed: whoever printed would
write into an array.

How many bytes may still be asked for, by memory and by file system.

Imports the standard library only.

Guarantees
----------
Nothing is cached: two calls a second apart see what other processes did in between.
An unreadable or unlimited source never counts as "none left": it does not take part.

How many CPUs this process may use.

Imports the segment package's room.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]


_T = TypeVar("_T")
# Until 3.13 mmap keeps a duplicate of the descriptor that it was made of.
PER_SEGMENT: Final = 1 if sys.version_info >= (3, 13) else 2
MARGIN: Final = 640  # more than come with one message, with what maps them

_alive: set[int] = set()
born = _alive.add
died = _alive.discard


def used() -> int:
    """Descriptors that the segments of this process hold."""
    return len(_alive) * PER_SEGMENT


def descriptors_scarce() -> bool:
    """Whether segments use more than a quarter of what this process may open."""
    if resource is None:
        return False
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 <= soft < 4 * used()


def keep_standard_streams() -> None:
    """Open ``/dev/null`` in the place of each standard stream that is closed.  Cost: 1 us."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            if null != fd:
                os.dup2(null, fd, inheritable=False)
                os.close(null)


def reserve_descriptors(fd: int) -> None:
    """Raise the limit before numbers come near it, of which this one is the newest.

    For what comes through a socket: the kernel drops descriptors that there is no room for, and
    they cannot be asked for again.
    """
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < fd + MARGIN and soft != hard:
            _raise_limit()


def open_with_retry(open_: Callable[[], _T]) -> _T:
    """Call ``open_``; where the process is out of descriptors, raise its limit and call again.

    What is called leaves nothing open when it fails.

    Raises
    ------
    OSError
        EMFILE if the hard limit is reached too, saying what to do; any other unchanged.
    """
    try:
        return open_()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    if _raise_limit():
        return open_()
    raise OSError(
        errno.EMFILE,
        f"{os.strerror(errno.EMFILE)}: {used()} descriptors are held by shared arrays; "
        "drop arrays, use fewer workers, or raise the hard limit (ulimit -Hn)",
    )


def _raise_limit() -> bool:
    if resource is None:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    with suppress(ValueError, OSError):  # macOS refuses an unlimited soft limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return True
    return False


_UNLIMITED = 1 << 62
CGROUP_ROOT = "/sys/fs/cgroup"
CGROUP_MEMBERSHIP = "/proc/self/cgroup"
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


def free_memory() -> int:
    """Bytes of RAM that this process may still fill, by the kernel's and the cgroup's count.

    Swap does not count: shared memory that is swapped out is slower than no shared memory.

    Notes
    -----
    Cost: reads four small files of ``/proc`` and ``/sys``, about 60 us.

    Examples
    --------
    >>> free_memory() > 0
    True
    """
    return max(0, min([available_memory(), *(group.left for group in memory_groups())]))


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


def available_memory() -> int:
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


def memory_groups() -> Iterator[Group]:
    """The memory cgroup of this process and each of its ancestors, those that have a limit."""
    for version, folder in cgroup_folders("memory"):
        group = _group(folder, *_FILES[version])
        if group is not None:
            yield group


def cgroup_folders(controller: str) -> Iterator[tuple[int, str]]:
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
    with suppress(OSError), open(CGROUP_MEMBERSHIP, encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers == "":
                yield from ((2, folder) for folder in _upwards(CGROUP_ROOT, path))
            elif controller in controllers.split(","):
                yield from ((1, folder) for folder in _upwards(f"{CGROUP_ROOT}/{controller}", path))


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
        for version, folder in cgroup_folders("memory")
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


NUM_WORKERS_VARIABLE = "SHMPAR_NUM_WORKERS"


def available_cpus() -> int:
    """CPUs by affinity and by the quota of the control group, at least 1.

    The environment variable ``SHMPAR_NUM_WORKERS`` overrides both.

    Raises
    ------
    ValueError
        If the variable is set to what is no number above 0.
    """
    chosen = os.environ.get(NUM_WORKERS_VARIABLE)
    if chosen:
        if not chosen.isdecimal() or int(chosen) < 1:
            raise ValueError(
                f"{NUM_WORKERS_VARIABLE} is a number of workers, 1 or more, not {chosen!r}"
            )
        return int(chosen)
    affinity, quota = affinity_cpus(), quota_cpus()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def affinity_cpus() -> int:
    """CPUs that the scheduler may put this process on; all of them where it has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cpus() -> float | None:
    """CPUs that the scheduler's bandwidth control gives, 1.5 perhaps; None without one.

    The narrowest of this process' control group and those above it.
    """
    found = [_quota(version, folder) for version, folder in cgroup_folders("cpu")]
    return min((quota for quota in found if quota > 0), default=None)


def _quota(version: int, folder: str) -> float:
    if version == 1:
        pair = [_read(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    else:
        pair = _read(f"{folder}/cpu.max").split()
    try:
        quota, period = map(int, pair)
        return quota / period
    except (ValueError, ZeroDivisionError):  # no such group, or "max"
        return 0.0


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read()
    return ""

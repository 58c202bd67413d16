"""Limits of this process: file descriptors, memory and CPUs.

Guarantees
----------
:func:`register` and :func:`unregister` may run in any thread and inside a finalizer: they take no
lock.  The soft limit of descriptors is only raised, and never beyond the hard limit.
No file gets the number of a closed standard stream: text that is printed would be written to it.
Free memory is never cached: two calls a second apart see the allocations of other processes.
A limit that is absent or cannot be read is ignored; it never counts as "no memory left".
"""

import errno
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, ParamSpec, TypeVar

from shmpar.memory import system

try:
    import resource
except ImportError:  # Windows has no limits of this kind
    resource = None  # type: ignore[assignment]

P = ParamSpec("P")
T = TypeVar("T")

# Why: until Python 3.13, mmap keeps a duplicate of the descriptor that it maps.
DESCRIPTORS_PER_SEGMENT: Final = 1 if sys.version_info >= (3, 13) else 2
# Why: one message carries fewer descriptors than this, mappings included.
MESSAGE_DESCRIPTORS: Final = 640

_SYSTEM_LIMIT: Final = "fs.file-max"
_open_segments: set[int] = set()
register = _open_segments.add
unregister = _open_segments.discard


def used_descriptors() -> int:
    """Return the number of descriptors that the segments of this process hold."""
    return len(_open_segments) * DESCRIPTORS_PER_SEGMENT


def descriptors_scarce() -> bool:
    """Return True if segments hold more than a quarter of the descriptors of this process."""
    soft, _ = descriptor_limits()
    return 0 <= soft < 4 * used_descriptors()


def keep_standard_streams() -> None:
    """Open ``/dev/null`` under the number of each standard stream that is closed.

    Processes that are started later inherit it, as they would inherit the stream.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == fd:
                os.set_inheritable(fd, True)  # noqa: FBT003 - positional by its signature
            else:  # Why: another thread has opened a file under the number.
                os.close(null)


def reserve_descriptors(newest: int) -> None:
    """Raise the soft limit if it could be reached by one more message after this descriptor.

    The kernel drops the descriptors of a message that exceed the limit; they cannot be requested
    again.
    """
    soft, hard = descriptor_limits()
    if 0 <= soft < newest + MESSAGE_DESCRIPTORS and soft != hard:
        raise_descriptor_limit()


def open_with_retry(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that opens a file; retry it with a higher limit if descriptors run out.

    The function must leave nothing open when it fails.

    Raises
    ------
    OSError
        EMFILE if the hard limit is reached too, or ENFILE, with advice; any other error unchanged.
    """
    try:
        return function(*args, **kwargs)
    except OSError as error:
        if error.errno not in system.NO_DESCRIPTORS:
            raise
        number = error.errno or 0
    if number == errno.EMFILE and raise_descriptor_limit():
        return function(*args, **kwargs)
    limit = f"the limit of the machine (sysctl {_SYSTEM_LIMIT})"
    if number == errno.EMFILE:
        limit = f"the hard limit of {descriptor_limits()[1]} (ulimit -Hn)"
    raise OSError(
        number,
        f"{os.strerror(number)}: shared arrays hold {used_descriptors()} descriptors; "
        f"drop arrays, close files, use fewer workers, or raise {limit}",
    )


def reopen(fd: int) -> int:
    """Open the file of a descriptor anew, with an offset and locks of its own."""
    return open_with_retry(os.open, f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


class ClosedOnError:
    """Closes a descriptor if its ``with`` block raises an exception, which may be an interrupt."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        """Do nothing; a function with a yield would be slower."""

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            os.close(self._fd)


def descriptor_limits() -> tuple[int, int]:
    """Return the soft and the hard limit; -1 if there is none."""
    return _limits("RLIMIT_NOFILE")


def _limits(name: str) -> tuple[int, int]:
    return system.attempt(
        "getrlimit", lambda: resource.getrlimit(getattr(resource, name)), lambda: (-1, -1)
    )


def raise_descriptor_limit() -> bool:
    """Raise the soft limit to the hard limit; return False if that is not possible."""
    soft, hard = descriptor_limits()
    with suppress(ValueError, OSError):  # Why: macOS refuses an unlimited soft limit
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return True
    return False


UNLIMITED: Final = 1 << 62
CGROUP_ROOT = "/sys/fs/cgroup"
CGROUP_MEMBERSHIP = "/proc/self/cgroup"
_MEMORY_FILES: Final = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
_CPU_FILES: Final = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}


class MemoryGroup(NamedTuple):
    """A control group that limits the memory of this process.

    Attributes
    ----------
    limit, used : int
        Bytes.
    reclaimable : int
        Bytes of `used` that are page cache, which the kernel drops when memory is requested.
    """

    limit: int
    used: int
    reclaimable: int

    @property
    def left(self) -> int:
        """Bytes that may still be filled; negative if a lowered limit is exceeded."""
        return self.limit - self.used + self.reclaimable


def free_memory() -> int:
    """Return the bytes of RAM that this process may still fill.

    The kernel and every control group of this process limit them.  Swap does not count: shared
    memory that is swapped out is slower than no shared memory.

    Notes
    -----
    Cost: reads four small files of ``/proc`` and ``/sys``.

    Examples
    --------
    >>> free_memory() > 0
    True
    """
    return max(0, min([available_memory(), *(group.left for group in memory_groups())]))


def available_memory() -> int:
    """Return the bytes of RAM that the kernel can still allocate (MemAvailable)."""
    kilobytes = _field("/proc/meminfo", "MemAvailable:")
    if kilobytes is not None:
        return kilobytes * 1024
    with suppress(AttributeError, ValueError, OSError):  # Why: other systems report only all RAM
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNLIMITED


def memory_groups() -> Iterator[MemoryGroup]:
    """Yield the memory control group of this process and its ancestors, if they have a limit."""
    for version, folder in cgroup_folders("memory"):
        try:
            limit, used = _numbers(folder, _MEMORY_FILES[version])
        except ValueError:  # the group is missing, or has the limit "max"
            continue
        if limit < UNLIMITED:
            stat = f"{folder}/memory.stat"
            cache = _field(stat, "total_inactive_file") or _field(stat, "inactive_file") or 0
            yield MemoryGroup(limit, used, cache)


def free_on_device(fd: int) -> int:
    """Return the free bytes of the file system of an open file; a memory file has no limit."""

    def free() -> int:
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize if found.f_blocks else UNLIMITED

    return system.attempt("fstatvfs", free, lambda: UNLIMITED)


def is_in_memory(fd: int) -> bool:
    """Return True if the file lies in RAM (tmpfs, ramfs, a memory file), which limits it too."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = [line.split() for line in _lines("/proc/self/mountinfo")]
    kinds = [words[words.index("-") + 1] for words in mounts if words[2] == number]
    # Why: a memory file belongs to a file system that is mounted nowhere.
    return bool(mounts) and (not kinds or kinds[0] in {"tmpfs", "ramfs"})


def oom_kills() -> int:
    """Return the number of processes that the kernel has killed because memory ran out.

    It is the count of our control groups or, without them, of the machine; 0 if there is none.
    """
    files = {1: "memory.oom_control", 2: "memory.events"}
    paths = [f"{folder}/{files[version]}" for version, folder in cgroup_folders("memory")]
    return max(_field(path, "oom_kill") or 0 for path in (*paths, "/proc/vmstat"))


def cgroup_folders(controller: str) -> Iterator[tuple[int, str]]:
    """Yield the folders of the control groups of this process, each before its ancestors.

    Parameters
    ----------
    controller : str
        "memory", "cpu" or "pids"; groups of version 2 have all controllers.

    Yields
    ------
    version : int
        1 or 2.
    folder : str
        It may be missing: in a container the path may not exist, while the root does.
    """
    for line in _lines(CGROUP_MEMBERSHIP):
        _, controllers, path = line.rstrip("\n").split(":", 2)
        if controllers == "":
            yield from ((2, folder) for folder in _ancestors(CGROUP_ROOT, path))
        elif controller in controllers.split(","):
            yield from ((1, folder) for folder in _ancestors(f"{CGROUP_ROOT}/{controller}", path))


def _ancestors(root: str, path: str) -> Iterator[str]:
    while path not in {"/", ""}:
        yield root + path
        path = os.path.dirname(path)
    yield root


def _lines(path: str) -> list[str]:
    """Return the lines of a small file of the kernel; none if it cannot be read."""
    with suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.readlines()
    return []


def _numbers(folder: str, names: Sequence[str]) -> list[int]:
    """Return all numbers in some files of a folder; a missing file has none."""
    lines = [line for name in names for line in _lines(f"{folder}/{name}")]
    return [int(word) for word in " ".join(lines).split()]


def _field(path: str, name: str) -> int | None:
    """Return the number after a name, in a file with one name per line."""
    for line in _lines(path):
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return None


NUM_WORKERS_VARIABLE: Final = "SHMPAR_NUM_WORKERS"


def available_cpus() -> int:
    """Return the number of CPUs by affinity and by the quota of the control group, at least 1.

    The environment variable ``SHMPAR_NUM_WORKERS`` overrides both.

    Raises
    ------
    ValueError
        If the variable is set, but not to a number above 0.
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
    """Return the number of CPUs that this process may run on; all where affinity is unknown."""
    return system.attempt(
        "sched_getaffinity", lambda: len(os.sched_getaffinity(0)), lambda: os.cpu_count() or 1
    )


def quota_cpus() -> float | None:
    """Return the CPUs that the control groups grant, for example 1.5; None without a quota.

    The smallest quota counts, of the control group of this process and its ancestors.
    """
    quotas = [_cpu_quota(version, folder) for version, folder in cgroup_folders("cpu")]
    return min((quota for quota in quotas if quota > 0), default=None)


def _cpu_quota(version: int, folder: str) -> float:
    try:
        quota, period = _numbers(folder, _CPU_FILES[version])
        return quota / period
    except (ValueError, ZeroDivisionError):  # the group is missing, or has the limit "max"
        return 0.0


# Why: an interpreter with NumPy takes so many bytes that it shares with no other process.
_WORKER_BYTES: Final = 20 << 20
# Why: its socket, the ends of its life pipe, its pidfd, and its counter of calls.
_WORKER_DESCRIPTORS: Final = 5


def check_workers(count: int, *, processes: bool) -> None:
    """Raise ``ValueError`` with the sums if a machine cannot have so many workers.

    Parameters
    ----------
    processes : bool
        They are processes; else threads of this process.

    Notes
    -----
    Cost: reads about ten small files of ``/proc`` and ``/sys``.
    """
    most, where = _most_tasks()
    rows = [("processes" if processes else "threads", 1, most, where)]
    if processes:
        _, hard = descriptor_limits()
        rows.append(("bytes of memory", _WORKER_BYTES, free_memory(), "free"))
        rows.append(("descriptors", _WORKER_DESCRIPTORS, hard, "ulimit -Hn"))
    lacking = [row for row in rows if 0 <= row[2] < row[1] * count]
    if lacking:
        sums = ", ".join(
            f"{each * count:,} of {room:,} {what} ({name})" for what, each, room, name in rows
        )
        fits = min(room // each for _, each, room, _ in lacking)
        raise ValueError(
            f"n_workers is at most {fits:,} here, not {count:,}, which would take {sums}. Without "
            f"n_workers a pool has one per CPU, {available_cpus()}"
        )


def _most_tasks() -> tuple[int, str]:
    """Return the number of processes and threads that may exist, and the name of the limit."""
    found = [(10_000, "for one pool")]  # Why: no machine has so many CPUs.
    for name in ("pid_max", "threads-max"):
        found += [(n, f"kernel.{name}") for n in _numbers("/proc/sys/kernel", [name])]
    for _, folder in cgroup_folders("pids"):
        with suppress(ValueError):  # Why: it may be "max"
            found += [(n, "pids.max") for n in _numbers(folder, ["pids.max"])]
    user, _ = _limits("RLIMIT_NPROC")
    return min([*found, (user, "ulimit -u")] if user >= 0 else found)

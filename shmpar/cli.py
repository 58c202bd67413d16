"""The commands ``doctor``, ``ls``, ``clean`` and ``environments`` of ``python -m shmpar``.

- A check of the doctor measures: it makes names, draws tickets and starts a worker, and removes
  them. A check that fails is reported as a problem; the other checks still run.
- Only the segments in this user's registries are listed. Only the segments of dead processes are
  removed: the lock of their registry is free, and no living process has taken them over.
- An answer is printed in one piece; with ``--json`` it is one JSON object.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from shmpar.display import format_bytes, format_seconds, format_table
from shmpar.errors import SegmentFull, ShmparError, format_count, summarize
from shmpar.memory import allocate, huge, limits, system
from shmpar.memory.limits import NUM_WORKERS_VARIABLE, affinity_cpus, available_cpus, quota_cpus
from shmpar.memory.manager import Manager
from shmpar.memory.names import Entry, inventory, nameless, remove_stale
from shmpar.memory.segment import create
from shmpar.version import __version__

_EXAMPLES: Final = (("small", 1 << 20), ("large", 1 << 30))
_LITTLE_MEMORY: Final = 128 << 20  # bytes
_OWN_DESCRIPTORS: Final = 64  # of a program without workers
_WORKER_DESCRIPTORS: Final = 6
_WORKER_SECONDS: Final = 60
_INTERRUPTED: Final = 130  # the exit code of a shell after Ctrl-C
_NO_PROC: Final = "/proc is not mounted"
_TICKETS: Final = {"offset": "the offset of a shared file", "lock": "a lock on a shared file"}


class Answer(NamedTuple):
    """The answer of a command: text, the same as JSON, and the exit code.

    Sizes in the JSON are in bytes, times in seconds.
    """

    text: str
    data: dict[str, Any]
    code: int = 0


class Section:
    """Facts that the doctor has found, and problems, each with advice."""

    def __init__(self, key: str, title: str) -> None:
        self.key = key
        self.title = title
        self.data: dict[str, Any] = {}
        self.lines: list[tuple[str, str]] = []
        self.problems: list[dict[str, str]] = []

    def add(self, key: str, value: Any, label: str = "", text: str | None = None) -> None:
        """Add a fact to the JSON, and a line to the text if it has a label."""
        self.data[key] = value
        if label:
            self.lines.append((label, str(value) if text is None else text))

    def problem(self, what: str, advice: str) -> None:
        """Add a problem."""
        self.problems.append({"what": what, "advice": advice})


def _named_segments() -> list[tuple[Entry, bool]]:
    """Return this user's named segments, oldest first; True for a living owner."""
    found: dict[tuple[int, int], tuple[Entry, bool]] = {}
    for registry in inventory():
        for entry in registry.entries:
            # Why: a segment that was taken over is also in the registry of its dead creator.
            if registry.alive or entry.identity not in found:
                found[entry.identity] = entry, registry.alive
    return sorted(found.values(), key=lambda one: (one[0].since or 0, one[0].name))


def _stale(segments: Iterable[tuple[Entry, bool]]) -> list[Entry]:
    return [entry for entry, alive in segments if not alive]


def _not_removed(stale: Iterable[Entry]) -> list[Entry]:
    """Return those of the stale segments that still exist and are stale."""
    before = {entry.identity for entry in stale}
    return [entry for entry in _stale(_named_segments()) if entry.identity in before]


def _size(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _printable(name: str) -> str:
    """Escape the characters of a file name that a terminal obeys or does not show."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def _count_and_size(entries: Sequence[Entry]) -> str:
    return f"{format_count(len(entries), 'segment')}, {format_bytes(_size(entries))}"


def ls(*, every: bool = False) -> Answer:
    """List this user's named segments; with `every` also those without a name."""
    answer = _list_named()
    if not every:
        return answer
    found = nameless()
    rows = [("MEMORY", "PIDS", "SIZE", "USED")]
    for one in found:
        pids = ", ".join(map(str, one.pids))
        rows.append((one.path, pids, format_bytes(one.size), format_bytes(one.used)))
    table = format_table(rows, "<<>>") if found else []
    total = f"{format_count(len(found), 'segment')} without a name"
    total += f", {format_bytes(sum(one.used for one in found))} in use"
    data = {**answer.data, "nameless": [one._asdict() for one in found]}
    return Answer("\n".join([answer.text, "", *table, *[""] * bool(table), total]), data)


def _list_named() -> Answer:
    now, found = time.time(), _named_segments()
    rows, segments = [("NAME", "PID", "AGE", "SIZE", "STATE")], []
    for entry, alive in found:
        pid, size = entry.pid, entry.size
        age = None if entry.since is None else max(0, round(now - entry.since))
        segments.append({"name": entry.name, "pid": pid, "age": age, "size": size, "alive": alive})
        texts = "-" if pid is None else str(pid), "-" if age is None else format_seconds(age)
        state = "alive" if alive else "stale"
        rows.append((_printable(entry.name), *texts, format_bytes(size), state))
    if not segments:
        return Answer("no named segments", {"segments": segments})
    summary = _count_and_size([entry for entry, _ in found])
    if stale := _stale(found):
        summary += f"; {len(stale)} stale, {format_bytes(_size(stale))}: python -m shmpar clean"
    lines = format_table(rows, "<>>><")
    return Answer("\n".join([*lines, "", summary]), {"segments": segments})


def clean(*, dry_run: bool) -> Answer:
    """Remove the named segments of dead processes, or list them with `dry_run`."""
    before = _stale(_named_segments())
    removed = sorted(remove_stale(dry_run=dry_run), key=lambda entry: entry.name)
    # Why: only segments that were stale before, since another process may have died just now.
    left = [] if dry_run else _not_removed(before)
    lines = [*_table(removed), ""] if removed else []
    lines.append(f"{'would remove' if dry_run else 'removed'} {_count_and_size(removed)}")
    if left:
        lines += ["", f"could not be removed from {allocate.SHM}:", *_table(left)]
    data: dict[str, Any] = {"dry_run": dry_run, "bytes": _size(removed)}
    for key, entries in (("segments", removed), ("left", left)):
        data[key] = [{"name": entry.name, "size": entry.size} for entry in entries]
    text = "\n".join(lines) if removed or left else "nothing to remove"
    return Answer(text, data, 1 if left else 0)


def _table(entries: Iterable[Entry]) -> list[str]:
    rows = [(_printable(entry.name), format_bytes(entry.size)) for entry in entries]
    return format_table([("NAME", "SIZE"), *rows], "<>")


def environments(*, remove: bool) -> Answer:
    """List the environments that ``shmpar.environment()`` has made, or remove them."""
    from shmpar.engines import environments as kept  # Why here: no other command needs it.

    found = kept.environments()
    left = [one for one in found if remove and not kept.remove(one.path)]
    rows = [("FOLDER", "PYTHON", "SIZE", "STATE", "REQUIREMENTS")]
    for one in found:
        state = "complete" if one.complete else "incomplete"
        wanted = _printable(", ".join(one.requirements)) or "-"
        rows.append((one.path, one.python or "-", format_bytes(one.nbytes), state, wanted))
    lines = [*format_table(rows, "<<><<"), ""] if found else []
    gone = [one for one in found if one not in left]
    size = format_bytes(sum(one.nbytes for one in gone))
    total = f"{format_count(len(gone), 'environment')}, {size}"
    lines.append(f"removed {total}" if remove else total)
    if left:
        lines += ["", "being made, and so not removed:", *[one.path for one in left]]
    data = {
        "environments": [one._asdict() for one in found],
        "removed": [one.path for one in gone] if remove else [],
        "left": [one.path for one in left],
    }
    text = "\n".join(lines) if found else "no environments"
    return Answer(text, data, 1 if left else 0)


def doctor(*, engine: str | None = None) -> Answer:
    """Run all checks, and those of the hosts of a scheduler of Dask.

    Cost: a few tenths of a second, for the start of a worker.

    Parameters
    ----------
    engine : str, optional
        Address of the scheduler.
    """
    before = _named_segments()  # Why: a new name or pool removes stale segments.
    checks: list[tuple[str, str, Callable[[Section], None]]] = [
        ("versions", "Versions", _check_versions),
        ("system_calls", "System calls", _check_system_calls),
        ("workers", "Workers", _check_workers),
        ("descriptors", "Workers", _check_descriptors),  # Why: before a pool raises the limit.
        ("trial", "Workers", _check_trial),
        ("tickets", "Workers", _check_tickets),
        ("memory", "Memory", _check_memory),
        ("shared_memory", "Memory", _check_shared_memory),
        ("places", "Array placement", _check_places),
        ("segments", "Named segments", partial(_check_segments, before)),
    ]
    if engine is not None:
        checks.append(("cluster", f"Hosts of {engine}", partial(_check_cluster, engine)))
    sections = []
    for key, title, check in checks:
        section = Section(key, title)
        try:
            check(section)
        except Exception as error:  # noqa: BLE001 - every error is a problem to report
            what = f"the check of {key} failed: {summarize(error)}"
            section.problem(what, "report it, with this whole output")
        sections.append(section)
    problems = [problem for section in sections for problem in section.problems]
    data = {section.key: section.data for section in sections}
    text = _doctor_text(sections, problems)
    return Answer(text, {"ok": not problems, "problems": problems, **data}, int(bool(problems)))


def _doctor_text(sections: list[Section], problems: list[dict[str, str]]) -> str:
    table = iter(format_table([line for one in sections for line in one.lines], "<<"))
    lines = []
    for title, group in groupby(sections, lambda section: section.title):
        rows = [f"  {next(table)}" for section in group for _ in section.lines]
        lines += [title, *rows, ""] if rows else []
    if not problems:
        return "\n".join([*lines, "Nothing is wrong."])
    lines.append(f"{format_count(len(problems), 'problem')}:")
    for number, problem in enumerate(problems, 1):
        lines += [f"  {number}. {problem['what']}", f"     Advice: {problem['advice']}."]
    return "\n".join(lines)


def _check_cluster(address: str, section: Section) -> None:
    """Show the hosts of a scheduler of Dask, and those that a pool would refuse."""
    try:
        from shmpar.cluster.dask import inspect
    except ImportError:
        advice = "install it, for example by the extra shmpar[dask]"
        section.problem("distributed is missing", advice)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            hosts = inspect(address)
        except (OSError, ValueError) as error:
            section.problem(
                f"{address} cannot be reached: {error}",
                "start a scheduler of Dask there, or give the address that it prints",
            )
            return
    section.add("hosts", [one._asdict() for one in hosts], "hosts", str(len(hosts)))
    if not hosts:
        section.problem(f"{address} has no host", "start workers of Dask: dask worker ADDRESS")
    for one in hosts:
        memory = format_bytes(one.memory_limit) if one.memory_limit else "no limit"
        cpus = f"{format_count(one.cpus, 'CPU')}, {format_count(one.threads, 'thread')}"
        where = "this machine" if one.near else one.machine
        text = f"{where}: {cpus}, {memory}, {one.versions}"
        section.lines.append((one.address, text if not one.refused else f"refused: {one.refused}"))
        if one.refused:
            section.problem(
                f"{one.address} would be refused: {one.refused}",
                "install the same versions there, as dask.distributed asks for too",
            )
    for warned in caught:
        if warned.category.__name__ == "SecurityWarning":
            section.problem(str(warned.message), "see docs/security.md")


def _check_versions(section: Section) -> None:
    section.add("shmpar", __version__, "shmpar")
    section.add("python", platform.python_version(), "Python")
    section.add("executable", sys.executable, "interpreter", sys.executable or "unknown")
    system = f"{platform.system()} {platform.release()}"
    section.add("system", platform.platform(), "system", system)
    for name in ("numpy", "cloudpickle", "tqdm"):
        version = None
        try:
            version = str(importlib.import_module(name).__version__)
        except ImportError as error:
            what = f"{name} cannot be imported: {error}"
            section.problem(what, f"python -m pip install {name}")
        section.add(name, version, name, version or "missing")


def _check_system_calls(section: Section) -> None:
    """Try each optional system call; tell the loss where one is missing or refused."""
    fd = allocate.make_file(1).fd
    missing = {}
    try:
        for name, (trial, loss) in _CALLS.items():
            try:
                trial(fd)
            except (OSError, AttributeError, ImportError) as error:
                # Why: the trial of setpgid has an invalid argument, and so no effect.
                if name != "setpgid" or getattr(error, "errno", None) != errno.EINVAL:
                    missing[name] = f"{error}"
                    section.lines.append((name, f"missing: {loss}"))
    finally:
        os.close(fd)
    text = f"{len(_CALLS) - len(missing)} of {len(_CALLS)}"
    section.add("missing", missing, "optional calls", text)


def _try_seals(_: int) -> None:
    with open(os.memfd_create("shmpar", os.MFD_ALLOW_SEALING), "wb") as file:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)


def _try_signal(_: int) -> None:
    ends = os.pipe()
    try:
        fcntl.fcntl(ends[0], fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(ends[0], fcntl.F_SETSIG, signal.SIGURG)
    finally:
        for end in ends:
            os.close(end)


def _try_sockets(_: int) -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        end.close()


def _try_limit(_: int) -> None:
    import resource  # Why here: Windows lacks it.

    resource.getrlimit(resource.RLIMIT_NOFILE)


def _try_lock(fd: int) -> None:
    flock = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, flock)


_SLOWER: Final = "the end of a worker is noticed up to 0.1 s later"
_NO_NAMES: Final = "arrays have no names"
# Each optional call: a trial, which takes the descriptor of a file, and the loss without it.
_CALLS: Final[dict[str, tuple[Callable[[int], object], str]]] = {
    "pidfd_open": (lambda _: os.close(os.pidfd_open(os.getpid())), _SLOWER),
    "SOCK_SEQPACKET": (_try_sockets, "a socket does not tell the end of its worker"),
    "eventfd": (lambda _: os.close(os.eventfd(0)), "a pool holds one more descriptor"),
    "setpgid": (lambda _: os.setpgid(0, -1), "Ctrl-C also reaches workers that start"),
    "F_SETSIG": (_try_signal, "workers have one more thread, and may outlive their parent in C"),
    "getrlimit": (_try_limit, "the limit on open files is not raised"),
    "sched_getaffinity": (
        lambda _: os.sched_getaffinity(0), "Pool() starts one worker for each CPU of the machine"
    ),
    "O_TMPFILE": (
        lambda _: os.close(os.open(allocate.SHM, os.O_TMPFILE | os.O_RDWR)),
        f"arrays lie in memory files; {_NO_NAMES} that you choose",
    ),
    "memfd_create": (
        lambda _: os.close(os.memfd_create("shmpar")),
        f"arrays for which {allocate.SHM} has no room lie in temporary files",
    ),
    "fallocate": (
        lambda fd: system.fallocate(fd, 0, 1),
        "memory is filled with zeros; a full disk under a mapped output is SIGBUS",
    ),
    "fstatvfs": (os.fstatvfs, "a full disk is noticed late"),
    "seals": (_try_seals, "long messages are copied"),
    "F_OFD_SETLK": (_try_lock, "array.lock locks the whole segment"),
    "F_SETLK": (lambda fd: fcntl.lockf(fd, fcntl.LOCK_UN), _NO_NAMES),
    "flock": (lambda fd: fcntl.flock(fd, fcntl.LOCK_UN), "ledger= is refused"),
    "/proc": (lambda _: os.stat("/proc/self/fd"), f"{_NO_NAMES} and no locks"),
}  # fmt: skip


def _check_workers(section: Section) -> None:
    """Check the number of workers that a pool starts."""
    affinity, quota = affinity_cpus(), quota_cpus()
    chosen = os.environ.get(NUM_WORKERS_VARIABLE) or None
    reason = "one for each CPU allowed"
    if chosen:
        reason = f"set by {NUM_WORKERS_VARIABLE}"
    elif quota is not None and math.ceil(quota) < affinity:
        reason = "limited by the quota of the control group"
    try:
        number = available_cpus()
        section.add("pool", number, "Pool()", f"{format_count(number, 'worker')}, {reason}")
    except ValueError as error:
        section.add("pool", None, "Pool()", "fails")
        section.problem(str(error), f"unset {NUM_WORKERS_VARIABLE}, or set it to 1 or more")
    section.add("affinity", affinity, "CPUs allowed", f"{affinity} of {os.cpu_count() or '?'}")
    text = "none" if quota is None else f"{quota:g} CPU" + "s" * (quota != 1)
    section.add("quota", quota, "CPU quota", text)
    section.add(NUM_WORKERS_VARIABLE, chosen, NUM_WORKERS_VARIABLE, chosen or "not set")
    methods = multiprocessing.get_all_start_methods()
    text = f"{', '.join(methods)} (of multiprocessing; shmpar uses none of them)"
    section.add("start_methods", methods, "start methods", text)


def _check_trial(section: Section) -> None:
    """Start a worker and let it compute."""
    from shmpar.pool import Pool

    start = time.perf_counter()
    try:
        with Pool(1) as pool:
            # Why: an error, also a timeout, leaves the block, which ends the worker.
            run = pool.parallel_map(abs, range(-3, 0), wait=False)
            result = run.result(_WORKER_SECONDS)
    except Exception as error:  # noqa: BLE001 - every error is a problem to report
        what = f"no worker can be started: {summarize(error)}"
        if isinstance(error, TimeoutError):
            what = f"a worker has started, but computed nothing within {_WORKER_SECONDS} s"
        section.problem(what, "read the worker's output; engine='threads' needs no processes")
        section.add("seconds", None, "one worker", "cannot be started")
        return
    seconds = time.perf_counter() - start
    if result != [3, 2, 1]:
        what = f"a worker computed {result!r}, not [3, 2, 1]"
        section.problem(what, "reinstall shmpar and NumPy")
    text = f"started, computed and exited in {format_seconds(seconds)}"
    section.add("seconds", round(seconds, 3), "one worker", text)


def _check_descriptors(section: Section) -> None:
    """Check the number of files that a pool needs and this process may open."""
    soft, hard = [None if one < 0 else one for one in limits.descriptor_limits()]
    try:
        workers = available_cpus()
    except ValueError:
        workers = affinity_cpus()
    needed = _OWN_DESCRIPTORS + _WORKER_DESCRIPTORS * workers
    section.add("soft", soft, "open files", f"{soft or 'no limit'}; Pool() needs about {needed}")
    section.add("hard", hard, "can be raised to", f"{hard or 'no limit'}")
    section.add("needed", needed)
    # Why: the hard limit alone, since a pool raises the soft limit.
    if hard is not None and hard < needed:
        what = f"a process may open {hard} files, Pool() needs about {needed}"
        section.problem(what, "raise the hard limit: ulimit -Hn 4096, as root")


def _check_tickets(section: Section) -> None:
    """Draw tickets."""
    try:
        from shmpar.ipc.tickets import new_tickets
    except ImportError:
        section.add("kind", None, "tickets", "none: no worker processes on this system")
        return
    with closing(new_tickets()) as counter:
        works = (counter.claim(3), counter.claim(1), counter.stop(9)) == (0, 3, 4)
    text = _TICKETS[counter.kind]
    section.add("kind", counter.kind if works else None, "tickets", text)
    if not works:
        what = f"{text} does not count: chunks could be computed twice"
        section.problem(what, "use engine='threads', and report this system")


def _check_memory(section: Section) -> None:
    available, usable = limits.available_memory(), limits.free_memory()
    section.add("available", available, "available", f"{format_bytes(available)} (MemAvailable)")
    value, text = None, "no limit"
    if group := min(limits.memory_groups(), key=lambda one: one.left, default=None):
        value = group._asdict()
        limit, used, reclaimable = map(format_bytes, group)
        text = f"{used} of {limit} used, {reclaimable} of it reclaimable"
    section.add("control_group", value, "control group", text)
    section.add("usable", usable, "for arrays", f"at most {format_bytes(usable)}")
    if usable < _LITTLE_MEMORY:
        what = f"only {format_bytes(usable)} of memory are left: arrays fail with SegmentFull"
        section.problem(what, "end other programs, or raise the container's memory limit")


def _check_shared_memory(section: Section) -> None:
    """Check /dev/shm: its size, nameless files and names."""
    refusal = allocate.capacities()[0].refusal
    total, free, text = None, None, "missing"
    with suppress(OSError):
        total, _, free = shutil.disk_usage(allocate.SHM)
        text = f"{format_bytes(total)}, {format_bytes(free)} free"
    reason = refusal or _refused_name()
    section.add("size", total, allocate.SHM, text)
    section.add("free", free)
    section.add("nameless", not refusal, "nameless files", refusal or "yes (O_TMPFILE)")
    section.add("named", not reason, "names", f"no: {reason}" if reason else "yes")
    section.add("huge_pages", *_huge_pages())
    if sys.platform == "linux" and reason:
        advice = f"make {allocate.SHM} a tmpfs that this user may write to (mode 1777)"
        if total is None:
            advice = f"mount a tmpfs (in a container: --tmpfs {allocate.SHM}, or --shm-size=1g)"
        elif not free:
            advice = f"remove unused files from {allocate.SHM}, or enlarge it (--shm-size=1g)"
        elif reason == _NO_PROC:
            advice = "mount it, as root: mount -t proc proc /proc"
        section.problem(f"arrays cannot have names in {allocate.SHM}: {reason}", advice)


def _huge_pages() -> tuple[bool, str, str]:
    """Make a segment in huge pages; return whether that works, a label and a text."""
    label, made = "huge pages", 0
    with suppress(OSError, SegmentFull):
        made = create(huge.MIN_BYTES).huge_bytes
    if made:
        return True, label, "yes: large arrays lie in pages of 2 MiB"
    reason = huge.refusal() or "the kernel has no free page of 2 MiB"
    return False, label, f"no: {reason}; new arrays cost more time"


def _refused_name() -> str:
    """Name a segment of one byte; return the reason if that fails, else an empty string."""
    if not os.path.isdir("/proc/self/fd"):
        return _NO_PROC
    try:
        with Manager() as manager:
            segment = manager.create(1)
            if manager.name(segment).startswith("/"):
                return "not even one byte is free there"
    except (OSError, MemoryError) as error:
        return str(error)
    return ""


def _check_places(section: Section) -> None:
    """Find the kind of memory of a small and of a large array."""
    found = allocate.capacities()
    for key, nbytes in _EXAMPLES:
        passed = []
        kind, text = None, "refused (SegmentFull)"
        for one in found:
            if not one.refusal and one.free >= nbytes:
                kind, text = one.source.kind, f"{one.source.kind} ({one.source.where} has room)"
                break
            passed.append(f"{one.source.where}: {one.refusal or format_bytes(one.free) + ' free'}")
        label = f"array of {format_bytes(nbytes)}"
        section.add(key, kind, label, "; ".join([text, *passed]))
    for one in found:
        text = f"{one.source.where}: {one.refusal or 'up to ' + format_bytes(one.free)}"
        section.add(one.source.kind, None if one.refusal else one.free, one.source.kind, text)


def _check_segments(before: list[tuple[Entry, bool]], section: Section) -> None:
    """Compare the named segments before and after the start of the trial's pool."""
    alive, stale = [entry for entry, alive in before if alive], _stale(before)
    left = _not_removed(stale)
    for key, entries in (("alive", alive), ("stale", stale), ("left", left)):
        text = _count_and_size(entries) if entries else "none"
        if key == "stale" and entries and not left:
            text += "; removed at the start of the pool above"
        value = {"count": len(entries), "bytes": _size(entries)}
        section.add(key, value, key if entries or key != "left" else "", text)
    if left:
        what = f"dead processes have left {_count_and_size(left)}"
        section.problem(what, "python -m shmpar clean")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of this process.

    Returns
    -------
    int
        The exit code: 0, or 1 if a problem was found.

    Raises
    ------
    SystemExit
        With code 2 for invalid arguments, with 0 after ``--help`` and ``--version``, and with a
        text after an error of the system.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command, as_json = options.pop("command"), options.pop("json")
    try:
        answer: Answer = command(**options)
        _print(json.dumps(answer.data, indent=2) if as_json else answer.text)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (OSError, ShmparError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from None
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shmpar", description="Check and clean up shmpar on this machine."
    )
    parser.add_argument("--version", action="version", version=f"shmpar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    added = {}
    for command, about in (
        (doctor, "check this machine; exit code 1 if there is a problem"),
        (ls, "list your named segments, with their processes"),
        (clean, "remove the named segments of your dead processes; segments of living ones stay"),
        (environments, "list the environments that shmpar.environment() has made"),
    ):
        name, description = command.__name__, about.capitalize() + "."
        one = added[command] = commands.add_parser(name, help=about, description=description)
        one.add_argument("--json", action="store_true", help="print one JSON object")
        one.set_defaults(command=command)
    hosts = "also check the hosts of a scheduler of Dask, for instance tls://scheduler:8786"
    added[doctor].add_argument("--engine", metavar="ADDRESS", help=hosts)
    nameless_too = "also list segments without a name, which live processes hold"
    added[ls].add_argument("--all", action="store_true", dest="every", help=nameless_too)
    dry_run = "only list the segments that would be removed"
    added[clean].add_argument("-n", "--dry-run", action="store_true", help=dry_run)
    remove = "remove all of them; first end the pools that use one"
    added[environments].add_argument("--remove", action="store_true", help=remove)
    return parser


def _print(text: str) -> None:
    """Print to a standard output of any encoding, to a closed pipe, or nowhere if it is closed."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201
    except OSError as error:
        # Why: the interpreter would flush the rest at exit, and fail again.
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # Why: `head` has exited
            raise

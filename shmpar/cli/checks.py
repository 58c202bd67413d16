"""What the doctor looks at: each check is a function that gives a section.

Imports cpus, segment, tickets, pool and version, and the answer, segments and tables beside it.

Guarantees
----------
A check measures rather than assumes: names are made, tickets drawn and a worker started, for real.
Whatever it makes it removes.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import platform
import shutil
import sys
import time
from typing import Any, Final

from shmpar.cli.answer import Fact, Problem, Section
from shmpar.cli.segments import Found, found
from shmpar.cli.tables import count, size
from shmpar.cpus import VARIABLE, affinity_cpus, available_cpus, quota_cpus
from shmpar.segment import Manager, ladder, room
from shmpar.version import __version__

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

__all__ = [
    "descriptors",
    "memory",
    "places",
    "segments",
    "shared_memory",
    "tickets",
    "trial",
    "versions",
    "workers",
]

_LINUX: Final = sys.platform == "linux"
_EXAMPLES: Final = {"small": (1 << 20, "array of 1 MiB"), "large": (1 << 30, "array of 1 GiB")}
_LITTLE: Final = 128 << 20  # bytes of memory below which hardly anything can be computed
_OWN: Final = 64  # descriptors that a program has open besides its workers'
_PER_WORKER: Final = 6  # descriptors
_PATIENCE: Final = 60  # seconds


def versions() -> Section:
    """What runs: the interpreter and the packages."""
    facts = [
        Fact("shmpar", "shmpar", __version__, __version__),
        Fact("python", "Python", platform.python_version(), platform.python_version()),
        Fact("executable", "interpreter", sys.executable, sys.executable or "unknown"),
        Fact("system", "system", platform.platform(), f"{platform.system()} {platform.release()}"),
    ]
    problems = []
    for name in ("numpy", "cloudpickle", "tqdm"):
        try:
            version = str(importlib.import_module(name).__version__)
        except ImportError as error:
            version = ""
            problems.append(
                Problem(f"{name} cannot be imported: {error}", f"python -m pip install {name}")
            )
        facts.append(Fact(name, name, version or None, version or "missing"))
    return Section("versions", "Versions", tuple(facts), tuple(problems))


def workers() -> Section:
    """How many a pool starts, and why."""
    affinity, quota = affinity_cpus(), quota_cpus()
    chosen = os.environ.get(VARIABLE) or None
    problems: tuple[Problem, ...] = ()
    number: int | None = None
    try:
        number = available_cpus()
        text = f"{count(number, 'worker')}, {_why(affinity, quota, chosen)}"
    except ValueError as error:
        text = "fails"
        problems = (Problem(str(error), f"unset {VARIABLE}, or set it to 1 or more"),)
    limited = "none" if quota is None else f"{quota:g} CPUs"
    methods = multiprocessing.get_all_start_methods()  # the first is the default
    facts = (
        Fact("pool", "Pool()", number, text),
        Fact("affinity", "CPUs allowed", affinity, f"{affinity} of {os.cpu_count() or '?'}"),
        Fact("quota", "CPU quota", quota, limited),
        Fact(VARIABLE, VARIABLE, chosen, chosen or "not set"),
        Fact(
            "start_methods",
            "start methods",
            methods,
            f"{', '.join(methods)} (of multiprocessing; workers do not depend on them)",
        ),
    )
    return Section("workers", "Workers", facts, problems)


def _why(affinity: int, quota: float | None, chosen: str | None) -> str:
    if chosen:
        return f"as {VARIABLE} says"
    if quota is not None and math.ceil(quota) < affinity:
        return "by the quota of the control group"
    return "one for each CPU allowed"


def trial() -> Section:
    """Whether a worker can be started; how long it takes until it has computed something."""
    from shmpar.pool import Pool

    start = time.perf_counter()
    try:
        with Pool(1) as pool:
            # A failure leaves the block, which then ends the worker whatever it does.
            result = pool.parallel_map(abs, range(-3, 0), wait=False).result(_PATIENCE)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is wrong
        fact = Fact("seconds", "one worker", None, "cannot be started")
        return Section("trial", "Workers", (fact,), (_not_started(error),))
    seconds = time.perf_counter() - start
    problems = () if result.tolist() == [3, 2, 1] else (_wrong(result),)
    text = f"started, computed and ended in {seconds:.2f} s"
    fact = Fact("seconds", "one worker", round(seconds, 3), text)
    return Section("trial", "Workers", (fact,), problems)


def _not_started(error: Exception) -> Problem:
    if isinstance(error, TimeoutError):
        what = f"a worker was started, but has computed nothing within {_PATIENCE} s"
    else:
        what = f"no worker can be started: {type(error).__name__}: {error}"
    return Problem(what, "look at what it printed; engine='threads' needs no worker processes")


def _wrong(result: Any) -> Problem:
    return Problem(f"a worker computed {result!r} for [3, 2, 1]", "reinstall shmpar and NumPy")


def memory() -> Section:
    """How much of it there is, for this process."""
    group = min(room.groups(), key=lambda one: one.left, default=None)
    usable = room.memory()
    if group is None:
        described, text = None, "no limit"
    else:
        described = {"limit": group.limit, "used": group.used, "reclaimable": group.reclaimable}
        text = f"{size(group.used)} of {size(group.limit)} used"
        text += f", {size(group.reclaimable)} of that can be given back"
    facts = (
        Fact(
            "available", "available", room.available(), f"{size(room.available())} (MemAvailable)"
        ),
        Fact("control_group", "control group", described, text),
        Fact("usable", "for arrays", usable, f"at most {size(usable)}"),
    )
    problems: tuple[Problem, ...] = ()
    if usable < _LITTLE:
        what = f"only {size(usable)} of memory are left: arrays will be refused (SegmentFull)"
        problems = (Problem(what, "end other programs, or raise the container's memory limit"),)
    return Section("memory", "Memory", facts, problems)


def shared_memory() -> Section:
    """What /dev/shm is good for."""
    refusal = ladder.survey()[0].refusal
    total, free = _disk()
    named, why = _named() if not refusal else (False, refusal)
    room_there = "missing" if total is None else f"{size(total)}, {size(free or 0)} free"
    facts = (
        Fact("size", ladder.SHM, total, room_there),
        Fact("free", "", free, ""),
        Fact("nameless", "nameless files", not refusal, refusal or "yes (O_TMPFILE)"),
        Fact("named", "names", named, "yes" if named else f"no: {why}"),
    )
    problems: tuple[Problem, ...] = ()
    if _LINUX and not named:
        what = f"arrays cannot have names in {ladder.SHM}: {why}"
        problems = (Problem(what, _advice(total, free)),)
    return Section("shared_memory", "Memory", facts, problems)


def _disk() -> tuple[int | None, int | None]:
    """Size of /dev/shm and bytes free there; None if there is none."""
    try:
        usage = shutil.disk_usage(ladder.SHM)
    except OSError:
        return None, None
    return usage.total, usage.free


def _named() -> tuple[bool, str]:
    """Name a segment of one byte; if that fails, say why."""
    try:
        with Manager() as manager:
            segment = manager.create(1)
            if manager.name(segment).startswith("/"):
                return False, "no room there, not even for one byte"
    except (OSError, MemoryError) as error:
        return False, str(error)
    return True, ""


def _advice(total: int | None, free: int | None) -> str:
    if total is None:
        return f"mount a tmpfs there (in a container: --tmpfs {ladder.SHM}, or --shm-size=1g)"
    if not free:
        return f"remove files that nobody needs from {ladder.SHM}, or enlarge it (--shm-size=1g)"
    return f"make {ladder.SHM} a tmpfs that this user may write to (mode 1777)"


def places() -> Section:
    """Which kind of memory an array gets, small or large."""
    rungs = ladder.survey()
    facts = [_place(key, rungs) for key in _EXAMPLES]
    for one in rungs:
        text = f"{one.rung.where}: {one.refusal or 'up to ' + size(one.free)}"
        facts.append(Fact(one.rung.kind, one.rung.kind, None if one.refusal else one.free, text))
    return Section("places", "Where an array lies", tuple(facts))


def _place(key: str, rungs: list[ladder.Outlook]) -> Fact:
    """The first rung with room, and why not one before it."""
    nbytes, label = _EXAMPLES[key]
    passed: list[str] = []
    for one in rungs:
        if not one.refusal and one.free >= nbytes:
            text = "; ".join([f"{one.rung.kind} ({one.rung.where} has room)", *passed])
            return Fact(key, label, one.rung.kind, text)
        passed.append(f"{one.rung.where}: {one.refusal or size(one.free) + ' free'}")
    return Fact(key, label, None, "; ".join(["refused (SegmentFull)", *passed]))


def descriptors() -> Section:
    """How many files this process may open, and how many a pool needs."""
    if resource is None:
        return Section("descriptors", "Workers", ())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        number = available_cpus()
    except ValueError:
        number = affinity_cpus()
    needed = _OWN + _PER_WORKER * number
    facts = (
        Fact("soft", "open files", _limit(soft), f"{_shown(soft)}; Pool() needs about {needed}"),
        Fact("hard", "can be raised to", _limit(hard), _shown(hard)),
        Fact("needed", "", needed, ""),
    )
    problems: tuple[Problem, ...] = ()
    # A pool raises the soft limit by itself.
    if hard != resource.RLIM_INFINITY and hard < needed:
        what = f"a process may open {hard} files, Pool() needs about {needed}"
        problems = (Problem(what, "raise the hard limit: ulimit -Hn 4096, as root"),)
    return Section("descriptors", "Workers", facts, problems)


def _limit(number: int) -> int | None:
    return None if number == resource.RLIM_INFINITY else number


def _shown(number: int) -> str:
    return "no limit" if _limit(number) is None else str(number)


def tickets() -> Section:
    """How chunks are handed out to workers."""
    try:
        from shmpar.tickets import new_tickets
    except ImportError:
        fact = Fact("kind", "tickets", None, "none: no worker processes on this system")
        return Section("tickets", "Workers", (fact,))
    counter = new_tickets()
    try:
        works = (counter.claim(3), counter.claim(1), counter.stop(9)) == (0, 3, 4)
    finally:
        counter.close()
    how = {"offset": "the offset of a shared file", "lock": "a lock on a shared file"}
    fact = Fact("kind", "tickets", counter.kind if works else None, how[counter.kind])
    problems: tuple[Problem, ...] = ()
    if not works:
        what = f"{how[counter.kind]} does not count: chunks could be computed twice"
        problems = (Problem(what, "use engine='threads', and report this system"),)
    return Section("tickets", "Workers", (fact,), problems)


def segments(before: list[Found]) -> Section:
    """Named segments: of the living, and of the dead, which the trial's pool has removed."""
    alive = [one for one in before if one.alive]
    stale = [one for one in before if not one.alive]
    names = {one.entry.identity for one in stale}
    left = [one for one in found() if one.entry.identity in names]
    removed = "" if left or not stale else "; removed when the pool above was started"
    facts = (
        Fact("alive", "alive", *_sum(alive)),
        Fact("stale", "stale", _sum(stale)[0], _sum(stale)[1] + removed),
        Fact("left", "left" if left else "", *_sum(left)),
    )
    problems: tuple[Problem, ...] = ()
    if left:
        what = f"processes that died have left {_sum(left)[1]}"
        problems = (Problem(what, "python -m shmpar clean"),)
    return Section("segments", "Named segments", facts, problems)


def _sum(some: list[Found]) -> tuple[dict[str, int], str]:
    nbytes = sum(one.entry.size for one in some)
    text = f"{count(len(some), 'segment')}, {size(nbytes)}" if some else "none"
    return {"count": len(some), "bytes": nbytes}, text

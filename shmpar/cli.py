"""What a command found out.

Imports nothing of the package.

Text for people: sizes, ages, and columns that are aligned.

Imports nothing of the package.

The commands ls and clean: named segments, and removing those of the dead.

Imports segment, and the tables and answer beside it.

Guarantees
----------
Only what markers of this user list is shown, and only the segments of dead processes are removed:
those whose marker's lock is free, and which no living process has taken over.

What the doctor looks at: each check is a function that gives a section.

Imports cpus, segment, tickets, pool and version, and the answer, segments and tables beside it.

Guarantees
----------
A check measures rather than assumes: names are made, tickets drawn and a worker started, for real.
Whatever it makes it removes.

The command doctor: all checks, one after the other, and what they say together.

Imports the checks, answer, segments and tables beside it.

Guarantees
----------
A check that fails is a problem that was found, and does not end the others.

The arguments of ``python -m shmpar``, and what its answers are printed as.

Imports the commands beside it.

Guarantees
----------
An answer is printed whole, in one piece; with ``--json`` it is one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from shmpar.memory import allocate, limits
from shmpar.memory.limits import NUM_WORKERS_VARIABLE, affinity_cpus, available_cpus, quota_cpus
from shmpar.memory.manager import Manager
from shmpar.memory.names import Entry, inventory, remove_stale
from shmpar.version import __version__

__all__ = [
    "Answer",
    "Fact",
    "Found",
    "Problem",
    "Section",
    "age",
    "clean",
    "columns",
    "count",
    "descriptors",
    "examine",
    "found",
    "listing",
    "main",
    "memory",
    "places",
    "printable",
    "segments",
    "shared_memory",
    "size",
    "tickets",
    "trial",
    "versions",
    "workers",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command says.

    Attributes
    ----------
    text : str
        For people; no newline at the end.
    data : dict
        The same as JSON; sizes in bytes, times in seconds.
    code : int
        Exit code.
    """

    text: str
    data: dict[str, Any]
    code: int = 0


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is so.

    Attributes
    ----------
    key : str
        Its name in JSON.
    label : str
        Its name for people; empty for what another fact's text says.
    value : object
        As JSON.
    text : str
        For people.
    """

    key: str
    label: str
    value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    what : str
        What is wrong.
    advice : str
        What to do.
    """

    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Section:
    """What belongs together.

    Attributes
    ----------
    key : str
        Its name in JSON.
    title : str
        Its name for people.
    facts : tuple of Fact
        What is so.
    problems : tuple of Problem
        What of it is wrong.
    """

    key: str
    title: str
    facts: tuple[Fact, ...]
    problems: tuple[Problem, ...] = ()


_STEP = 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86400  # seconds


def size(nbytes: int) -> str:
    """Bytes as people read them.

    Examples
    --------
    >>> [size(n) for n in (0, 1023, 1024, 1536, 64 << 20, 1 << 40)]
    ['0 B', '1023 B', '1.0 KiB', '1.5 KiB', '64.0 MiB', '1.0 TiB']
    """
    if nbytes < _STEP:
        return f"{nbytes} B"
    value, units = float(nbytes), iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    while value >= _STEP:
        value, unit = value / _STEP, next(units)
    return f"{value:.1f} {unit}"


def age(seconds: float | None) -> str:
    """Time as people say it, in its largest unit; ``-`` if it is not known.

    Examples
    --------
    >>> [age(t) for t in (None, 0.4, 59, 60, 7300, 200_000)]
    ['-', '0 s', '59 s', '1 min', '2 h', '2 d']
    """
    if seconds is None:
        return "-"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{max(0, int(seconds))} s"


def count(number: int, noun: str) -> str:
    """How many, with the noun's plural.

    Examples
    --------
    >>> count(1, "segment"), count(2, "segment")
    ('1 segment', '2 segments')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(name: str) -> str:
    r"""A file name with what a terminal would obey or not show escaped.

    Examples
    --------
    >>> printable("temperatures"), printable("a\tb")
    ('temperatures', 'a\\tb')
    """
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Rows of text in aligned columns, two spaces between them.

    Parameters
    ----------
    rows : sequence of sequence of str
        Of one length.
    right : collection of int
        Columns that end, rather than begin, at one place.

    Examples
    --------
    >>> columns([("NAME", "SIZE"), ("a", "1 B")], right={1})
    ['NAME  SIZE', 'a      1 B']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """A named segment.

    Attributes
    ----------
    entry : Entry
        What its marker says of it.
    alive : bool
        Whether the process that it belongs to is.
    """

    entry: Entry
    alive: bool


def found() -> list[Found]:
    """Named segments of this user, the oldest first."""
    known: dict[tuple[int, int], Found] = {}
    for marker in inventory():
        for entry in marker.entries:
            if marker.alive or entry.identity not in known:  # one that was taken over has two
                known[entry.identity] = Found(entry, marker.alive)
    return sorted(known.values(), key=lambda one: (one.entry.since or 0, one.entry.name))


def listing() -> Answer:
    """List this user's named segments."""
    all_, now = found(), time.time()
    data = {"segments": [_described(one, now) for one in all_]}
    if not all_:
        return Answer("no named segments", data)
    header = ("NAME", "PID", "AGE", "SIZE", "STATE")
    lines = columns([header, *(_row(one, now) for one in all_)], right={1, 2, 3})
    return Answer("\n".join([*lines, "", _summary(all_)]), data)


def _age(one: Found, now: float) -> float | None:
    return None if one.entry.since is None else max(0.0, now - one.entry.since)


def _described(one: Found, now: float) -> dict[str, Any]:
    entry = one.entry
    seconds = _age(one, now)
    return {
        "name": entry.name,
        "pid": entry.pid,
        "age": None if seconds is None else round(seconds),
        "size": entry.size,
        "alive": one.alive,
    }


def _row(one: Found, now: float) -> tuple[str, ...]:
    entry = one.entry
    pid = "-" if entry.pid is None else str(entry.pid)
    state = "alive" if one.alive else "stale"
    return printable(entry.name), pid, age(_age(one, now)), size(entry.size), state


def _summary(all_: list[Found]) -> str:
    stale = [one for one in all_ if not one.alive]
    text = f"{count(len(all_), 'segment')}, {size(sum(one.entry.size for one in all_))}"
    if not stale:
        return text
    nbytes = size(sum(one.entry.size for one in stale))
    return f"{text}; {len(stale)} stale, {nbytes}: python -m shmpar clean"


def clean(*, dry_run: bool) -> Answer:
    """Remove what the dead have left, or say what would be removed."""
    before = {one.entry.identity for one in found() if not one.alive}
    removed = sorted(remove_stale(dry_run=dry_run), key=lambda entry: entry.name)
    after = [] if dry_run else [one.entry for one in found() if not one.alive]
    left = [entry for entry in after if entry.identity in before]  # others died just now
    nbytes = sum(entry.size for entry in removed)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {count(len(removed), 'segment')}, {size(nbytes)}"]
    if removed:
        lines = [*_sized(removed), "", *lines]
    elif not left:
        lines = ["nothing to remove"]
    if left:
        lines += ["", "could not be removed from /dev/shm:", *_sized(left)]
    data = {"dry_run": dry_run, "segments": _sizes(removed), "bytes": nbytes, "left": _sizes(left)}
    return Answer("\n".join(lines), data, 1 if left else 0)


def _sized(entries: list[Entry]) -> list[str]:
    header = ("NAME", "SIZE")
    return columns([header, *((printable(e.name), size(e.size)) for e in entries)], right={1})


def _sizes(entries: list[Entry]) -> list[dict[str, Any]]:
    return [{"name": entry.name, "size": entry.size} for entry in entries]


try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]


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
    chosen = os.environ.get(NUM_WORKERS_VARIABLE) or None
    problems: tuple[Problem, ...] = ()
    number: int | None = None
    try:
        number = available_cpus()
        text = f"{count(number, 'worker')}, {_why(affinity, quota, chosen)}"
    except ValueError as error:
        text = "fails"
        problems = (Problem(str(error), f"unset {NUM_WORKERS_VARIABLE}, or set it to 1 or more"),)
    limited = "none" if quota is None else f"{quota:g} CPUs"
    methods = multiprocessing.get_all_start_methods()  # the first is the default
    facts = (
        Fact("pool", "Pool()", number, text),
        Fact("affinity", "CPUs allowed", affinity, f"{affinity} of {os.cpu_count() or '?'}"),
        Fact("quota", "CPU quota", quota, limited),
        Fact(NUM_WORKERS_VARIABLE, NUM_WORKERS_VARIABLE, chosen, chosen or "not set"),
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
        return f"as {NUM_WORKERS_VARIABLE} says"
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
    group = min(limits.memory_groups(), key=lambda one: one.left, default=None)
    usable = limits.free_memory()
    if group is None:
        described, text = None, "no limit"
    else:
        described = {"limit": group.limit, "used": group.used, "reclaimable": group.reclaimable}
        text = f"{size(group.used)} of {size(group.limit)} used"
        text += f", {size(group.reclaimable)} of that can be given back"
    facts = (
        Fact(
            "available",
            "available",
            limits.available_memory(),
            f"{size(limits.available_memory())} (MemAvailable)",
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
    refusal = allocate.capacities()[0].refusal
    total, free = _disk()
    named, why = _named() if not refusal else (False, refusal)
    room_there = "missing" if total is None else f"{size(total)}, {size(free or 0)} free"
    facts = (
        Fact("size", allocate.SHM, total, room_there),
        Fact("free", "", free, ""),
        Fact("nameless", "nameless files", not refusal, refusal or "yes (O_TMPFILE)"),
        Fact("named", "names", named, "yes" if named else f"no: {why}"),
    )
    problems: tuple[Problem, ...] = ()
    if _LINUX and not named:
        what = f"arrays cannot have names in {allocate.SHM}: {why}"
        problems = (Problem(what, _advice(total, free)),)
    return Section("shared_memory", "Memory", facts, problems)


def _disk() -> tuple[int | None, int | None]:
    """Size of /dev/shm and bytes free there; None if there is none."""
    try:
        usage = shutil.disk_usage(allocate.SHM)
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
        return f"mount a tmpfs there (in a container: --tmpfs {allocate.SHM}, or --shm-size=1g)"
    if not free:
        return f"remove files that nobody needs from {allocate.SHM}, or enlarge it (--shm-size=1g)"
    return f"make {allocate.SHM} a tmpfs that this user may write to (mode 1777)"


def places() -> Section:
    """Which kind of memory an array gets, small or large."""
    rungs = allocate.capacities()
    facts = [_place(key, rungs) for key in _EXAMPLES]
    for one in rungs:
        text = f"{one.source.where}: {one.refusal or 'up to ' + size(one.free)}"
        facts.append(
            Fact(one.source.kind, one.source.kind, None if one.refusal else one.free, text)
        )
    return Section("places", "Where an array lies", tuple(facts))


def _place(key: str, rungs: list[allocate.Capacity]) -> Fact:
    """The first rung with room, and why not one before it."""
    nbytes, label = _EXAMPLES[key]
    passed: list[str] = []
    for one in rungs:
        if not one.refusal and one.free >= nbytes:
            text = "; ".join([f"{one.source.kind} ({one.source.where} has room)", *passed])
            return Fact(key, label, one.source.kind, text)
        passed.append(f"{one.source.where}: {one.refusal or size(one.free) + ' free'}")
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
        from shmpar.ipc.tickets import new_tickets
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


def examine() -> Answer:
    """Look at everything.  Cost: a worker is started, a few tenths of a second."""
    before = found()  # whatever makes a name or a pool removes those of the dead
    sections = [
        _checked(check)
        for check in (
            versions,
            workers,
            descriptors,  # before a pool raises the limit
            trial,
            tickets,
            memory,
            shared_memory,
            places,
            partial(segments, before),
        )
    ]
    problems = [problem for section in sections for problem in section.problems]
    return Answer(_text(sections, problems), _data(sections, problems), 1 if problems else 0)


def _checked(check: Callable[[], Section]) -> Section:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a doctor that fails says where
        name = getattr(check, "__name__", "segments")
        what = f"looking at {name} failed: {type(error).__name__}: {error}"
        return Section(name, name.capitalize(), (), (Problem(what, "report it, with all of this"),))


def _data(sections: list[Section], problems: list[Problem]) -> dict[str, Any]:
    found_wrong = [{"what": one.what, "advice": one.advice} for one in problems]
    facts = {section.key: {one.key: one.value for one in section.facts} for section in sections}
    return {"ok": not problems, "problems": found_wrong, **facts}


def _text(sections: list[Section], problems: list[Problem]) -> str:
    facts = [(section.title, fact) for section in sections for fact in section.facts if fact.label]
    aligned = columns([(f"  {fact.label}", fact.text) for _, fact in facts])
    titled = zip((title for title, _ in facts), aligned, strict=True)
    lines: list[str] = []
    for title, group in groupby(titled, key=itemgetter(0)):
        lines += [title, *(line for _, line in group), ""]
    return "\n".join([*lines, *_doctor_wrong(problems)])


def _doctor_wrong(problems: list[Problem]) -> list[str]:
    if not problems:
        return ["Nothing is wrong."]
    lines = [f"{count(len(problems), 'problem')}:"]
    for number, one in enumerate(problems, 1):
        lines += [f"  {number}. {one.what}", f"     What to do: {one.advice}."]
    return lines


Command = Callable[[argparse.Namespace], Answer]

_INTERRUPTED = 130  # what a shell says of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of this process.

    Returns
    -------
    int
        The exit code: 0 if all is well, 1 if a problem was found.

    Raises
    ------
    SystemExit
        With code 2 for arguments that cannot be, with 0 after ``--help`` and ``--version``.
    """
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        answer = command(options)
        text = json.dumps(answer.data, indent=2) if options.json else answer.text
        _print(text)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shmpar", description="Look after shmpar on this machine."
    )
    parser.add_argument("--version", action="version", version=f"shmpar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    _add(
        commands,
        "doctor",
        lambda _: examine(),
        "say what this machine gives to shmpar, and what is wrong; exit code 1 if anything is",
    )
    _add(
        commands,
        "ls",
        lambda _: listing(),
        "list your named segments, with who made them and whether that process is alive",
    )
    cleaning = _add(
        commands,
        "clean",
        lambda options: clean(dry_run=options.dry_run),
        "remove the named segments of your processes that died; what is alive stays",
    )
    cleaning.add_argument(
        "-n", "--dry-run", action="store_true", help="only say what would be removed"
    )
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command,
    about: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=command)
    return parser


def _print(text: str) -> None:
    """Print on whatever standard output is: a terminal of another encoding, a pipe that closed."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; what is left must not be flushed at exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

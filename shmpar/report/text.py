"""The report as a table for terminals, and numbers as people read them.

Imports plan.

What would make a call faster: rules, of which the one that promises most is told.

Imports grid and plan.

Guarantees
----------
A rule speaks of what was measured in this run, names the figure that it goes by, and promises a
share of the run's time of which it knows where it went; what we add to each chunk, which no clock
sees, is a constant. Below a tenth nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shmpar.grid import Grid
from shmpar.plan import describe_region

if TYPE_CHECKING:
    from shmpar.report.report import Report

__all__ = [
    "LARGE",
    "advice",
    "coarser",
    "count",
    "facts",
    "finer",
    "rate",
    "seconds",
    "size",
    "table",
    "title",
    "worker_rows",
]

_SHOWN = 3  # of the slowest chunks
_WORKERS = 16  # a line each; more are told in one
LARGE = 64 << 20  # bytes; less may never leave the caches, so that memory is no measure of it
_NAME = 40  # characters of a function's name
_TENTH = 9.95  # from here on a number has no more than one decimal


def seconds(value: float) -> str:
    """A duration in the unit that gives it one to three digits.

    Examples
    --------
    >>> [seconds(s) for s in (0, 1.26e-6, 0.000342, 0.0125, 1.5, 754)]
    ['0 s', '1.3 us', '342 us', '12 ms', '1.5 s', '754 s']
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= unit * 0.9995:
            return f"{_short(value / unit)} {name}"
    return f"{_short(value * 1e6)} us" if value else "0 s"


def size(nbytes: float) -> str:
    """Bytes in decimal units, as bandwidths are given.

    Examples
    --------
    >>> [size(n) for n in (0, 999, 19200, 800e6)]
    ['0 B', '999 B', '19 kB', '800 MB']
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit * 0.9995:
            return f"{_short(nbytes / unit)} {name}"
    return f"{round(nbytes)} B"


def rate(giga: float) -> str:
    """Gigabytes a second.

    Examples
    --------
    >>> rate(0.0312), rate(12.34)
    ('0.031 GB/s', '12 GB/s')
    """
    return f"{giga:.2g} GB/s" if giga < _TENTH else f"{giga:.0f} GB/s"


def count(number: int, noun: str) -> str:
    """How many, with the noun's plural.

    Examples
    --------
    >>> count(1, "chunk"), count(20000, "chunk")
    ('1 chunk', '20,000 chunks')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < _TENTH else f"{value:.0f}"


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."


def title(report: Report) -> str:
    """What was called, on what."""
    name = f"{report.verb}({_cut(report.function)})" if report.function else report.verb
    on = f" on {count(report.workers, 'worker')} ({report.engine})" if report.engine else ""
    return f"{name}: {count(report.chunks, 'chunk')} in {seconds(report.seconds)}{on}"


def facts(report: Report) -> list[tuple[str, str]]:
    """Names and values of what is told of the whole run."""
    lines = [("chunks", _chunks(report))]
    if report.computed:
        mean = seconds(report.serial_seconds / report.computed)
        lines += [
            ("a chunk", f"{mean} on average, {count(report.claims, 'claim')}"),
            ("one worker", f"{seconds(report.serial_seconds)}, {report.speedup:.2f}x as long"),
        ]
    if report.bytes_read or report.bytes_written:
        lines.append(("memory", _traffic(report)))
    if report.array_bytes:
        lines.append(("arrays", _places(report)))
    if report.deaths:
        lost = sum(one.end - one.begin for one in report.timings.attempts if one.died)
        blamed = [str(one.chunk) for one in report.attempts if one.chunk is not None]
        where = f" in chunk {', '.join(blamed)}" if blamed else ""
        lines.append(("deaths", f"{count(report.deaths, 'worker')}{where}, {seconds(lost)} lost"))
    if report.retries:
        lines.append(("retries", f"{report.retries:,}"))
    if report.seed is not None:
        lines.append(("seed", str(report.seed)))
    return lines


def _chunks(report: Report) -> str:
    parts = [f"{report.done:,} done"]
    if report.complete and report.timings.before:
        parts.append(f"{report.timings.before:,} of them before this run")
    if report.failed:
        parts.append(f"{report.failed:,} failed")
    rest = report.chunks - report.done - report.failed
    if rest:
        parts.append(f"{rest:,} {'not computed' if report.complete else 'to come'}")
    return ", ".join(parts)


def _traffic(report: Report) -> str:
    read, written = report.bytes_read, report.bytes_written
    moved = f"{size(read)} read, {size(written)} written"
    if read + written >= LARGE and report.complete:
        moved += f", {rate(report.gb_per_second)} of {rate(report.ceiling)}"
    return moved


def _places(report: Report) -> str:
    """Where the memory is, shared arrays first told once, then what each worker takes."""
    where = ", ".join(f"{size(nbytes)} in {kind}" for kind, nbytes in report.array_bytes.items())
    if not report.worker_bytes:
        return where
    return f"{where}; workers have up to {size(max(report.worker_bytes))} of their own"


def worker_rows(report: Report) -> list[tuple[str, str, str, str, str, str]]:
    """A line a worker: number, chunks, claims, and its three times."""
    return [
        (
            str(one.worker),
            f"{one.chunks:,}",
            f"{one.claims:,}",
            seconds(one.user),
            seconds(one.waiting),
            seconds(one.overhead),
        )
        for one in report.worker_times
    ]


def table(report: Report) -> str:
    """The whole report as text of fixed width."""
    lines = [title(report)]
    pairs = facts(report)
    width = max(len(name) for name, _ in pairs)
    lines += [f"  {name:<{width}}  {value}" for name, value in pairs]
    rows = worker_rows(report)
    if report.computed and rows:
        head = ("worker", "chunks", "claims", "in chunks", "waiting", "overhead")
        lines += ["", *_columns(head, rows[:_WORKERS])]
        if len(rows) > _WORKERS:
            lines.append(f"  ... and {len(rows) - _WORKERS} more")
    if report.computed > 1:
        slow = [
            (str(one.chunk), describe_region(one.region), seconds(one.seconds))
            for one in report.slowest(_SHOWN)
        ]
        lines += ["", *_columns(("slowest", "region", "took"), slow, left={1})]
    if advice := report.advice:
        lines += ["", f"  {advice}"]
    return "\n".join(lines)


def _columns(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: frozenset[int] | set[int] = frozenset(),
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


_WORTH = 0.1  # of the run's time
_BLOCK_COST, _ITEM_COST = 3e-6, 0.5e-6  # seconds that we add to a chunk
_AIM = 1e-3  # seconds of a chunk for which that is nothing
_SPREAD = 4  # chunks a worker, so that uneven ones balance
_BOUND = 0.6  # of the ceiling; the rest goes to page tables, and to lines fetched to be written
_WAIT = 0.01  # seconds that are worth a remark on the workers' start
_LATE = 0.2  # of the run, before the begin of an item that comes late
_COPIED = 1 << 20  # bytes
_TRIFLE = 1e-3  # seconds of work; a call costs a few tenths of that
_SEGMENTS = {"shm", "memfd", "tempfile"}  # kinds of memory that outputs are made in
_WITHOUT_CHUNKS = {"parallel_map", "apply_along_axis"}


class Hint(NamedTuple):
    """What a rule says.

    Attributes
    ----------
    gain : float
        Share of the run's time that it is about.
    text : str
        One line.
    """

    gain: float
    text: str


def advice(report: Report) -> str:
    """The line that promises most, or an empty one."""
    if not report.complete or not report.computed or report.failed:
        return ""
    hints = [hint for rule in _RULES if (hint := rule(report)) and hint.gain >= _WORTH]
    if hints:
        return max(hints, key=lambda hint: hint.gain).text
    return _memory(report)


def _starting(report: Report) -> Hint | None:
    waited = _start(report)
    if waited < _WAIT:
        return None
    text = f"workers were starting for {seconds(waited)}: later calls in the same pool do not wait"
    return Hint(waited / report.seconds, text)


def _start(report: Report) -> float:
    """Seconds until the first worker was up, from when all was ready for it."""
    joined = report.timings.joined
    return max(0.0, min(joined) - report.preparing) if joined and report.cold else 0.0


def _copied(report: Report) -> Hint | None:
    copied = sum(nbytes for kind, nbytes in report.inputs if kind == "private")
    if report.engine != "processes" or copied < _COPIED:
        return None
    share = report.preparing / report.seconds
    text = (
        f"{100 * share:.0f} % of the time went by before the first chunk, while {size(copied)} of "
        f"input were copied: x = pool.array(x) copies it once for many calls"
    )
    return Hint(share, text)


def _made(report: Report) -> Hint | None:
    made = sum(nbytes for kind, nbytes in report.outputs if kind in _SEGMENTS)
    if made < LARGE or any(kind == "private" for kind, _ in report.inputs):
        return None
    share = (report.preparing + report.timings.awaited) / report.seconds
    text = (
        f"{100 * share:.0f} % of the time went by while {size(made)} of output were made: out= "
        "writes into an array that is there"
    )
    return Hint(share, text)


def _few(report: Report) -> Hint | None:
    chunks, workers = report.chunks, report.workers
    grid = finer(report.plan.grid, workers * _SPREAD / max(chunks, 1))
    if chunks >= workers or grid is None or report.verb in _WITHOUT_CHUNKS:
        return None
    begin, end = report.timings.span
    busy = "keeps 1" if chunks == 1 else f"keep {chunks}"
    text = f"{count(chunks, 'chunk')} {busy} of {workers} workers busy: try chunks={grid}"
    return Hint((end - begin) / report.seconds * (1 - chunks / workers), text)


def _uneven(report: Report) -> Hint | None:
    timings = report.timings
    if report.chunks < report.workers or timings.attempts:
        return None
    _, end = timings.span
    idle = [end - last for last in timings.last_ends]
    ends = timings.begins + timings.durations
    place = int(ends.argmax())
    chunk, took = int(timings.chunks[place]), float(timings.durations[place])
    if took < max(idle) / 2:  # it is not that chunk which the others have waited for
        return None
    gain = sum(idle) / report.workers / report.seconds
    where = describe_region(report.plan.region(chunk))
    if report.verb in _WITHOUT_CHUNKS:
        late = float(timings.begins[place]) - report.preparing > _LATE * report.seconds
        text = f"the others waited for chunk {chunk} {where}, {seconds(took)}: put such items first"
        return Hint(gain, text) if late else None
    grid = finer(report.plan.grid, max(2.0, took / max(_mean(report), 1e-9)))
    if grid is None:
        return None
    text = (
        f"the others waited for chunk {chunk} {where}, {seconds(took)}: try smaller chunks, "
        f"chunks={grid}"
    )
    return Hint(gain, text)


def _small(report: Report) -> Hint | None:
    mean, items = _mean(report), report.verb in _WITHOUT_CHUNKS
    cost = (_ITEM_COST if items else _BLOCK_COST) * report.computed / report.workers
    if mean >= _AIM / 10 or report.verb == "apply_along_axis":
        return None
    if items:
        text = (
            f"an item takes {seconds(mean)}, hardly more than a call: map_blocks with a function "
            f"of a block of items calls it less often"
        )
        return Hint(cost / report.seconds, text)
    spare = report.chunks / (report.workers * _SPREAD)
    grid = coarser(report.plan.grid, min(_AIM / mean, spare))
    if grid is None:
        return None
    text = f"a chunk takes {seconds(mean)}, hardly more than handing it out: try chunks={grid}"
    return Hint(cost / report.seconds, text)


def _no_gain(report: Report) -> Hint | None:
    serial = report.serial_seconds
    if serial >= min(report.seconds, _TRIFLE) or report.engine == "serial":
        return None
    lost = report.seconds - serial - report.preparing - _start(report)
    text = (
        f"all chunks together took {seconds(serial)}, the call {seconds(report.seconds)}: a plain "
        f"loop is faster than any pool"
    )
    return Hint(lost / report.seconds, text)


def _memory(report: Report) -> str:
    """What is bound by memory has no share that could be saved by other chunks or workers."""
    moved = report.bytes_read + report.bytes_written
    begin, end = report.timings.span
    if moved < LARGE or end <= begin:
        return ""
    reached = moved / (end - begin) / 1e9
    if reached < _BOUND * report.ceiling:
        return ""
    return (
        f"the function is bound by memory ({rate(reached)} of {rate(report.ceiling)}): more "
        f"workers will not help, smaller dtypes or fewer passes over the array will"
    )


def _mean(report: Report) -> float:
    return report.serial_seconds / report.computed


_RULES: tuple[Callable[[Report], Hint | None], ...] = (
    _starting,
    _copied,
    _made,
    _few,
    _uneven,
    _small,
    _no_gain,
)


def coarser(grid: Grid, factor: float) -> tuple[int, ...] | None:
    """Lengths of chunks that are about so many times as large; None if they would not be twice.

    The last axes grow first, so that a chunk is as contiguous as it can be.

    Examples
    --------
    >>> coarser(Grid.cut((100, 80), (10, 10)), 16)
    (20, 80)
    >>> coarser(Grid.cut((100, 80), (10, 10)), 1.5) is None
    True
    """
    left = int(factor)
    if left < 2:  # noqa: PLR2004 - twice
        return None
    steps = []
    for axis in reversed(grid.axes):
        times = max(1, min(left, len(axis)))
        left //= times
        steps.append(max(1, min(axis.size, axis.step * times)))
    return tuple(reversed(steps))


def finer(grid: Grid, factor: float) -> tuple[int, ...] | None:
    """Lengths of chunks that are about so many times smaller; None if nothing can be cut.

    Only axes that are cut already are cut further, the first ones first; if none is, the longest:
    a function may need the others whole.

    Examples
    --------
    >>> finer(Grid.cut((100, 80), (50, -1)), 8)
    (7, 80)
    >>> finer(Grid.cut((100, 80), -1), 4)
    (25, 80)
    >>> finer(Grid.cut((1, 1), 1), 4) is None
    True
    """
    steps = [max(1, min(axis.step, axis.size)) for axis in grid.axes]
    cut = [place for place, axis in enumerate(grid.axes) if len(axis) > 1]
    if not cut:
        cut = sorted(range(grid.ndim), key=lambda place: -steps[place])[:1]
    before = list(steps)
    for place in cut:
        times = min(factor, steps[place])
        steps[place] = max(1, math.ceil(steps[place] / times))
        factor /= before[place] / steps[place]
        if factor <= 1:
            break
    made = math.prod(-(-axis.size // step) for axis, step in zip(grid.axes, steps, strict=True))
    return tuple(steps) if made > grid.size else None

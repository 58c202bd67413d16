"""The report as a table for terminals, and numbers as people read them.

Imports plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shmpar.plan import describe_region

if TYPE_CHECKING:
    from shmpar.report.report import Report

__all__ = ["LARGE", "count", "facts", "rate", "seconds", "size", "table", "title", "worker_rows"]

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

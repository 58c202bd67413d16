"""The report as text, and the formatters that it shares with the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shmpar.plan import describe_region

if TYPE_CHECKING:
    from shmpar.report.report import Report

LARGE = 64 << 20  # bytes; Why: less may stay in the caches and says nothing about the memory
WORKER_COLUMNS = ("worker", "chunks", "claims", "in chunks", "waiting", "overhead")

_MAX_SLOWEST = 3
_MAX_WORKERS = 16  # rows of the table
_MAX_NAME = 40  # characters of a function's name
_MAX_CHUNKS = 5  # chunk numbers in the line about deaths
_DURATIONS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_SIZES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_ONE_DECIMAL = 99.95  # larger numbers have no decimals


def format_seconds(value: float) -> str:
    """Write a duration in the largest unit that fits.

    Examples
    --------
    >>> [format_seconds(s) for s in (0, 1.26e-6, 0.000342, 0.0125, 4, 754, 200_000)]
    ['0 s', '1.3 us', '342 us', '12.5 ms', '4 s', '12.6 min', '2.3 d']
    """
    return _in_units(value, _DURATIONS) if value else "0 s"


def format_bytes(nbytes: float) -> str:
    """Write a number of bytes in the largest binary unit that fits.

    Examples
    --------
    >>> [format_bytes(n) for n in (0, 1023, 1536, 64 << 20, 800e6)]
    ['0 B', '1023 B', '1.5 KiB', '64 MiB', '763 MiB']
    """
    return _in_units(nbytes, _SIZES)


def _in_units(value: float, units: Sequence[tuple[float, str]]) -> str:
    # Why: 0.9995, so that a value that would be rounded up to 1000 ms is written as 1.0 s.
    unit, name = next((one for one in units if value >= 0.9995 * one[0]), units[-1])
    scaled = value / unit
    digits = 0 if scaled >= _ONE_DECIMAL or scaled == int(scaled) else 1
    return f"{scaled:.{digits}f} {name}"


def format_rate(gigabytes: float) -> str:
    """Write a rate in gigabytes (10**9) per second.

    Examples
    --------
    >>> format_rate(0.0312), format_rate(12.34), format_rate(234.5)
    ('0.031 GB/s', '12 GB/s', '234 GB/s')
    """
    return f"{gigabytes:.2g} GB/s" if gigabytes < _ONE_DECIMAL else f"{gigabytes:.0f} GB/s"


def format_count(number: int, noun: str) -> str:
    """Write a number and its noun, in the plural unless the number is 1.

    Examples
    --------
    >>> format_count(1, "chunk"), format_count(20000, "chunk")
    ('1 chunk', '20,000 chunks')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return the lines of a table; `align` has one ``<`` (left) or ``>`` (right) per column.

    Examples
    --------
    >>> format_table([("NAME", "SIZE"), ("a", "1 B")], "<>")
    ['NAME  SIZE', 'a      1 B']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def title(report: Report) -> str:
    """Return the headline: the call, its chunks, its duration and its workers."""
    name = report.function
    if len(name) > _MAX_NAME:
        name = f"{name[: _MAX_NAME - 3]}..."
    call = f"{report.verb}({name})" if name else report.verb
    chunks, duration = format_count(report.chunks, "chunk"), format_seconds(report.seconds)
    workers = f"{format_count(report.workers, 'worker')} ({report.engine})"
    return f"{call}: {chunks} in {duration}" + (f" on {workers}" if report.engine else "")


def facts(report: Report) -> list[tuple[str, str]]:
    """Return labels and texts about the whole run."""
    found = [("chunks", _chunks(report))]
    if report.computed:
        mean = format_seconds(report.serial_seconds / report.computed)
        serial = format_seconds(report.serial_seconds)
        found += [
            ("per chunk", f"{mean} on average; {format_count(report.claims, 'claim')}"),
            ("one worker", f"would take {serial}; speedup {report.speedup:.2f}"),
        ]
    if report.bytes_read or report.bytes_written:
        found.append(("data", _data(report)))
    if report.array_bytes:
        found.append(("memory", _memory(report)))
    if report.deaths:
        found.append(("deaths", _deaths(report)))
    if report.retries:
        found.append(("retries", f"{report.retries:,}"))
    if report.failed:
        filled = f" and {'was' if report.failed == 1 else 'were'} filled" if report.filled else ""
        found.append(("failures", f"{format_count(report.failed, 'chunk')} failed{filled}"))
    if report.seed is not None:
        found.append(("seed", str(report.seed)))
    return found


def _chunks(report: Report) -> str:
    parts = [f"{report.done:,} done"]
    if report.complete and report.timings.done_before:
        parts.append(f"{report.timings.done_before:,} of them before this run")
    if rest := report.chunks - report.done - report.failed:
        parts.append(f"{rest:,} {'not computed' if report.complete else 'pending'}")
    return ", ".join(parts)


def _data(report: Report) -> str:
    read, written = report.bytes_read, report.bytes_written
    moved = f"{format_bytes(read)} read, {format_bytes(written)} written"
    if read + written >= LARGE and report.complete:
        rate, bandwidth = format_rate(report.gb_per_second), format_rate(report.ceiling)
        moved += f"; {rate} of {bandwidth} memory bandwidth"
    return moved


def _memory(report: Report) -> str:
    arrays = ", ".join(
        f"{format_bytes(size)} in {kind}" for kind, size in report.array_bytes.items()
    )
    if not report.worker_bytes:
        return arrays
    return f"{arrays}; up to {format_bytes(max(report.worker_bytes))} private memory per worker"


def _deaths(report: Report) -> str:
    chunks = sorted({claim.chunk for claim in report.attempts if claim.chunk is not None})
    lost = sum(claim.end - claim.begin for claim in report.timings.attempts if claim.died)
    text = f"{format_count(report.deaths, 'worker')} died"
    if chunks:
        numbers = ", ".join(map(str, chunks[:_MAX_CHUNKS]))
        more = ", ..." if len(chunks) > _MAX_CHUNKS else ""
        text += f" in {'chunk' if len(chunks) == 1 else 'chunks'} {numbers}{more}"
    return f"{text}; {format_seconds(lost)} lost"


def worker_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row per worker, with the cells of `WORKER_COLUMNS`."""
    rows = []
    for one in report.worker_times:
        times = map(format_seconds, (one.user, one.waiting, one.overhead))
        rows.append((str(one.worker), f"{one.chunks:,}", f"{one.claims:,}", *times))
    return rows


def slowest_rows(report: Report, count: int) -> list[tuple[str, str, str, str]]:
    """Return a row per slow chunk: number, region, duration and worker."""
    return [
        (str(one.chunk), describe_region(one.region), format_seconds(one.seconds), str(one.worker))
        for one in report.slowest(count)
    ]


def render(report: Report) -> str:
    """Return the whole report as text."""
    lines = format_table(facts(report), "<<")
    rows = worker_rows(report)
    if report.computed and rows:
        lines += ["", *format_table([WORKER_COLUMNS, *rows[:_MAX_WORKERS]], ">>>>>>")]
        if len(rows) > _MAX_WORKERS:
            lines.append(f"... and {len(rows) - _MAX_WORKERS} more")
    if report.computed > 1:
        head = ("slowest", "region", "took", "worker")
        lines += ["", *format_table([head, *slowest_rows(report, _MAX_SLOWEST)], "><>>")]
    if advice := report.advice:
        lines += ["", advice]
    return "\n".join([title(report), *(f"  {line}" if line else "" for line in lines)])

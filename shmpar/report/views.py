"""The report as text and as HTML for notebooks, with its advice; runs and pools as HTML.

Colours of the HTML are borders, bars and accents: text has the colour of the page, which may be
light or dark.

The advice about a faster call is the hint with the largest gain, a share of the run's time.
Each hint goes by figures that were measured in this run, and names them. Costs that no clock sees,
such as the cost of handing out a chunk, are constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from shmpar.display import (
    BLUE,
    format_bytes,
    format_call,
    format_rate,
    format_seconds,
    format_table,
    html_progress,
    html_table,
)
from shmpar.errors import format_count
from shmpar.grid import Grid
from shmpar.memory.segment import SegmentInfo
from shmpar.plan import describe_region
from shmpar.report.timings import WorkerTime

if TYPE_CHECKING:
    from shmpar.pool import Pool
    from shmpar.report.report import Report
    from shmpar.runtime.run import Run

LARGE = 64 << 20  # bytes; Why: less may stay in the caches and says nothing about the memory

_HOST_COLUMNS = ("host", "spans", "sent", "returned", "computing", "transport", "lost")
_WORKER_COLUMNS = ("worker", "chunks", "claims", "in chunks", "waiting", "overhead")
_SLOW_COLUMNS = ("region", "took", "worker")
_MAX_SLOWEST, _MAX_SLOWEST_IN_HTML = 3, 5
_MAX_WORKERS, _MAX_WORKERS_IN_HTML = 16, 64
_MAX_CHUNKS = 5  # chunk numbers in the line about deaths
_MAX_ERROR = 400  # characters, in HTML
_COLOURS = {"in chunks": BLUE, "overhead": "#e69f00", "waiting": "#d9d9d9"}

Hint = tuple[float, str]  # the gain, and the advice in one line

_MIN_GAIN = 0.1  # share of the run's time
_BLOCK_OVERHEAD, _ITEM_OVERHEAD = 3e-6, 0.5e-6  # seconds per chunk
_TARGET_SECONDS = 1e-3  # duration of a chunk that makes this overhead negligible
_CHUNKS_PER_WORKER = 4  # enough to balance uneven chunks
_MEMORY_BOUND = 0.6  # share of the bandwidth; Why: page tables and write-allocate take the rest
_MOST_MEMORY = 1.25  # the same; Why: beyond, the function has not read all from memory
_MIN_START_SECONDS = 0.01
_LATE = 0.2  # share of the run's time before a late item starts
_MIN_COPIED = 1 << 20  # bytes
_SMALL_WORK = 1e-3  # seconds of all chunks together
_ALLOCATED = {"shm", "memfd", "tempfile"}  # kinds of memory that outputs are allocated in
_FEW_READS = 1.25  # of each unit of a store
_WITHOUT_CHUNKS = {"parallel_map", "apply_along_axis"}  # verbs without `chunks=`


class MemoryTable(tuple[SegmentInfo, ...]):
    """Segments, largest first; as text, a table.

    Attributes
    ----------
    nbytes : int
        Bytes of all segments.
    """

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(one.nbytes for one in self)

    def __str__(self) -> str:
        rows = [("PURPOSE", "SIZE", "HUGE PAGES", "KIND", "NAME")]
        for one in self:
            huge = format_bytes(one.huge_bytes) if one.huge_bytes else "-"
            rows.append((one.purpose, format_bytes(one.nbytes), huge, one.kind, one.name or "-"))
        total = f"{format_count(len(self), 'segment')}, {format_bytes(self.nbytes)}"
        return "\n".join([*format_table(rows, "<>><<"), "", total])

    __repr__ = __str__


def title(report: Report) -> str:
    """Return the headline: the call, its chunks, its duration and its workers."""
    call = format_call(report.verb, report.function)
    chunks, duration = format_count(report.chunks, "chunk"), format_seconds(report.seconds)
    workers = f"{format_count(report.workers, 'worker')} ({report.engine})"
    if report.hosts:
        workers = f"{format_count(len(report.hosts), 'host')} ({report.engine})"
    return f"{call}: {chunks} in {duration}" + (f" on {workers}" if report.engine else "")


def facts(report: Report) -> list[tuple[str, str]]:
    """Return labels and texts about the whole run."""
    found = {"chunks": _chunks(report)}
    if report.computed:
        mean = format_seconds(report.serial_seconds / report.computed)
        serial = format_seconds(report.serial_seconds)
        found["per chunk"] = f"{mean} on average; {format_count(report.claims, 'claim')}"
        found["one worker"] = f"would take {serial}; speedup {report.speedup:.2f}"
    read, written = report.bytes_read, report.bytes_written
    if read or written:
        found["data"] = f"{format_bytes(read)} read, {format_bytes(written)} written"
    if read + written >= LARGE and report.complete:
        rate, bandwidth = format_rate(report.gb_per_second), format_rate(report.ceiling)
        # Why: a function may read a part of its blocks, or read the same data from a cache.
        of = ", more than the" if report.gb_per_second > report.ceiling else " of"
        found["data"] += f"; {rate}{of} {bandwidth} memory bandwidth"
    if report.store_read or report.store_written:
        found["stores"] = _stores(report)
    if report.array_bytes:
        found["memory"] = _memory(report)
    if report.deaths:
        found["deaths"] = _deaths(report)
    if report.retries:
        found["retries"] = f"{report.retries:,}"
    if report.failed:
        filled = f" and {'was' if report.failed == 1 else 'were'} filled" if report.filled else ""
        found["failures"] = f"{format_count(report.failed, 'chunk')} failed{filled}"
    if report.seed is not None:
        found["seed"] = str(report.seed)
    return list(found.items())


def _stores(report: Report) -> str:
    moved = [(report.store_read, "read"), (report.store_written, "written")]
    text = ", ".join([f"{format_bytes(size)} {verb}" for size, verb in moved if size])
    spent, all_of_it = report.store_seconds, max(report.serial_seconds, 1e-9)
    share = f"{min(100, round(100 * spent / all_of_it))} % of the work"
    text = f"{text} in {format_seconds(spent)}, {share}"
    again = report.unit_reads > _FEW_READS
    return text + f"; each unit is read {report.unit_reads:.1f} times" * again


def _memory(report: Report) -> str:
    sizes = [f"{format_bytes(size)} in {kind}" for kind, size in report.array_bytes.items()]
    if report.huge_bytes:
        sizes.append(f"{format_bytes(report.huge_bytes)} of it in huge pages")
    text = ", ".join(sizes)
    if report.worker_bytes:
        text += f"; up to {format_bytes(max(report.worker_bytes))} private memory per worker"
    return text


def _chunks(report: Report) -> str:
    parts = [f"{report.done:,} done"]
    if report.complete and report.timings.done_before:
        parts.append(f"{report.timings.done_before:,} of them before this run")
    if rest := report.chunks - report.done - report.failed:
        parts.append(f"{rest:,} {'not computed' if report.complete else 'pending'}")
    return ", ".join(parts)


def _deaths(report: Report) -> str:
    chunks = sorted({claim.chunk for claim in report.attempts if claim.chunk is not None})
    lost = sum(claim.end - claim.begin for claim in report.timings.attempts if claim.died)
    text = f"{format_count(report.deaths, 'worker')} died"
    if chunks:
        numbers = ", ".join(map(str, chunks[:_MAX_CHUNKS]))
        more = ", ..." if len(chunks) > _MAX_CHUNKS else ""
        text += f" in {'chunk' if len(chunks) == 1 else 'chunks'} {numbers}{more}"
    return f"{text}; {format_seconds(lost)} lost"


def _workers(report: Report, most: int) -> tuple[tuple[str, ...], list[tuple[str, ...]], str, str]:
    """Return the table of the first workers, or hosts, and a note on the others.

    Returns
    -------
    head, rows, align
        As for :func:`shmpar.display.format_table`.
    note : str
        Empty if there are no others.
    """
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if report.hosts:
        head, align = _HOST_COLUMNS, "<>>>>><"
        rows = [
            (
                one.name,
                f"{one.spans:,}",
                *map(format_bytes, (one.bytes_out, one.bytes_in)),
                *map(format_seconds, (one.computing, one.transport)),
                one.lost or "-",
            )
            for one in report.hosts
        ]
    else:
        head, align = _WORKER_COLUMNS, ">>>>>>"
        rows = [
            (str(one.worker), f"{one.chunks:,}", f"{one.claims:,}", *map(format_seconds, one[3:]))
            for one in report.worker_times
        ]
    more = len(rows) - most
    return head, rows[:most], align, f"... and {more} more" if more > 0 else ""


def _slowest(report: Report, count: int) -> list[tuple[str, str, str, str]]:
    """Return a row per slow chunk: number, region, duration and worker."""
    return [
        (str(one.chunk), describe_region(one.region), format_seconds(one.seconds), str(one.worker))
        for one in report.slowest(count)
    ]


def render(report: Report) -> str:
    """Return the whole report as text."""
    lines = format_table(facts(report), "<<")
    if report.hosts or report.computed:
        head, rows, align, note = _workers(report, _MAX_WORKERS)
        lines += ["", *format_table([head, *rows], align), *[note] * bool(note)]
    if report.computed > 1:
        rows = [("slowest", *_SLOW_COLUMNS), *_slowest(report, _MAX_SLOWEST)]
        lines += ["", *format_table(rows, "><>>")]
    if advice := report.advice:
        lines += ["", advice]
    return "\n".join([title(report), *(f"  {line}" if line else "" for line in lines)])


# HTML


def render_html(report: Report) -> str:
    """Return the whole report as a fragment of HTML."""
    parts = [f"<strong>{escape(title(report))}</strong>"]
    if advice := report.advice:
        style = f"border-left:3px solid {_COLOURS['overhead']};padding-left:0.6em;margin:0.4em 0"
        parts.append(f"<div style='{style}'>{escape(advice)}</div>")
    parts.append(html_table([(label, escape(fact)) for label, fact in facts(report)], "<<"))
    if report.hosts or report.computed:
        head, rows, align, note = _workers(report, _MAX_WORKERS_IN_HTML)
        rows = [tuple(map(escape, row)) for row in rows]
        if not report.hosts:
            pairs = zip(rows, report.worker_times, strict=False)
            rows = [(*row, _bar(one, report.seconds)) for row, one in pairs]
            head, align = (*map(_underlined, head), ""), f"{align}<"
        parts += [html_table(rows, align, head), f"<div>{note}</div>" * bool(note)]
    if report.computed:
        slow = ("slowest chunk", *_SLOW_COLUMNS)
        parts.append(html_table(_slowest(report, _MAX_SLOWEST_IN_HTML), "><>>", slow))
    return f"<div>{''.join(parts)}</div>"


def _underlined(name: str) -> str:
    """Underline the name of a column with its colour in the bars."""
    colour = _COLOURS.get(name)
    return f"<span style='border-bottom:0.25em solid {colour}'>{name}</span>" if colour else name


def _bar(one: WorkerTime, whole: float) -> str:
    """Return a bar that is as long as the run, divided by the time of a worker."""
    times = {"in chunks": one.user, "overhead": one.overhead, "waiting": one.waiting}
    parts = [
        f"<span title='{name} {format_seconds(value)}' style='display:inline-block;"
        f"height:0.8em;width:{100 * value / max(whole, 1e-9):.2f}%;"
        f"background:{_COLOURS[name]}'></span>"
        for name, value in times.items()
    ]
    style = "width:16em;margin-top:0.3em;white-space:nowrap;line-height:0"
    return f"<div style='{style}'>{''.join(parts)}</div>"


def render_run(run: Run, status: str) -> str:
    """Return a run as a fragment of HTML: its state in plain words, its progress, its report."""
    execution, (settled, chunks) = run.execution, run.progress
    report, seconds = run.report, format_seconds(run.report.seconds)
    call, bad = format_call(report.verb, report.function), run.done() and settled < chunks
    style = "width:12em;vertical-align:middle"
    bar = html_progress(settled, chunks, style, bad=bad or bool(execution.errors))
    rows = [
        ("state", escape(status)),
        (f"{execution.noun}s", f"{bar} {settled:,} of {chunks:,}"),
        ("time", seconds),
    ]
    if execution.errors:
        first = str(run.failed[0])
        first = first if len(first) <= _MAX_ERROR else f"{first[:_MAX_ERROR]}..."
        style = "overflow-wrap:anywhere;white-space:pre-wrap"
        first = f"<span style='{style}'>{escape(first)}</span>"
        rows.append(("failures", f"{len(execution.errors):,}; the first: {first}"))
        rows.append(("", "<code>run.failed</code> has all errors"))
    summary = "<summary style='cursor:pointer'>report (<code>run.report</code>)</summary>"
    return (
        f"<div><strong>Run: {escape(call)}</strong>{html_table(rows, '<<')}"
        f"<details>{summary}{render_html(report)}</details></div>"
    )


def render_pool(pool: Pool) -> str:
    """Return a pool as a fragment of HTML: the workers, the memory, and the last run."""
    if pool.engine == "serial":
        workers = "none: the calling thread computes"
    elif kind := {"processes": "process", "threads": "thread"}.get(pool.engine):
        workers = format_count(pool.n_workers, f"worker {kind}", f"worker {pool.engine}")
    else:
        workers = "on the hosts"
    memory, run = pool.memory, pool.last_run
    segments = format_count(len(memory), "segment")
    rows = [
        ("workers", f"{workers}{', ended' if pool.closed else ''}"),
        ("memory", f"{format_bytes(memory.nbytes)} in {segments}" if memory else "none in use"),
        ("last run", "none" if run is None else escape(repr(run)[len("<shmpar.Run: ") : -1])),
    ]
    state = "closed" if pool.closed else "open"
    return f"<div><strong>Pool: {pool.engine}, {state}</strong>{html_table(rows, '<<')}</div>"


# Advice


def advise(report: Report) -> str:
    """Return the advice with the largest gain, or an empty string."""
    if not report.complete or not report.timings.chunks.size or report.failed:
        return ""
    if report.hosts:
        return ""  # Why: its rules are for workers that share the memory of this machine.
    hints = [*_call_hints(report), *_chunk_hints(report), *_store_hints(report)]
    gain, advice = max(hints, default=(0.0, ""))
    return advice if gain >= _MIN_GAIN else _memory_bound(report)


def _call_hints(report: Report) -> Iterator[Hint]:
    """Yield advice about the start of workers, the memory of arrays, and too little work."""
    seconds, preparing, joined = report.seconds, report.preparing, report.timings.joined.values()
    starting = max(0.0, min(joined) - preparing) if joined and report.cold else 0.0
    if starting >= _MIN_START_SECONDS:
        fact = f"workers were starting for {format_seconds(starting)}"
        yield starting / seconds, f"{fact}: later calls in the same pool do not wait"
    copied = sum(nbytes for kind, nbytes in report.inputs if kind == "private")
    if report.engine == "processes" and copied >= _MIN_COPIED:
        share = preparing / seconds
        fact = f"{100 * share:.0f} % of the time passed before the first chunk"
        copying = f"while {format_bytes(copied)} of input were copied"
        yield share, f"{fact}, {copying}: x = pool.array(x) copies only once"
    allocated = sum(nbytes for kind, nbytes in report.outputs if kind in _ALLOCATED)
    if allocated >= LARGE and not copied:
        share = (preparing + max(report.timings.output_waits, default=0.0)) / seconds
        fact = f"{100 * share:.0f} % of the time passed while {format_bytes(allocated)} of output"
        yield share, f"{fact} were allocated: out= writes into an existing array"
    serial = report.serial_seconds
    if serial < min(seconds, _SMALL_WORK) and report.engine != "serial":
        fact = f"all chunks together took {format_seconds(serial)}, the call"
        gain = (seconds - serial - preparing - starting) / seconds
        yield gain, f"{fact} {format_seconds(seconds)}: a plain loop is faster than any pool"


def _chunk_hints(report: Report) -> Iterator[Hint]:
    """Yield advice about the number and the size of chunks."""
    timings, seconds = report.timings, report.seconds
    chunks, workers = report.chunks, report.workers
    by_items, mean = report.verb in _WITHOUT_CHUNKS, report.serial_seconds / report.computed
    begin, end = timings.span
    grid = finer(report.plan.grid, workers * _CHUNKS_PER_WORKER / max(chunks, 1))
    if chunks < workers and grid and not by_items:
        fact = f"{format_count(chunks, 'chunk')} keep{'s' if chunks == 1 else ''} {chunks} of"
        gain = (end - begin) / seconds * (1 - chunks / workers)
        yield gain, f"{fact} {format_count(workers, 'worker')} busy: try chunks={grid}"
    # A worker without chunks has waited since the begin of the first chunk.
    last_ends = np.full(timings.n_workers, begin)
    np.maximum.at(last_ends, timings.workers, timings.ends)
    idle = end - last_ends
    index = int(timings.ends.argmax())
    chunk, duration = int(timings.chunks[index]), float(timings.durations[index])
    # Why idle.max(): a shorter chunk is not the only one that the others waited for.
    if chunks >= workers and not timings.attempts and duration >= idle.max() / 2:
        gain, region = idle.sum() / workers / seconds, describe_region(report.plan.region(chunk))
        fact = f"workers waited for chunk {chunk} {region}, which took {format_seconds(duration)}"
        grid = finer(report.plan.grid, max(2.0, duration / max(mean, 1e-9)))
        late = float(timings.begins[index]) - report.preparing > _LATE * seconds
        if by_items and late:
            yield gain, f"{fact}: put slow items first"
        elif grid and not by_items:
            yield gain, f"{fact}: try smaller chunks, chunks={grid}"
    share = report.computed / workers / seconds
    if mean >= _TARGET_SECONDS / 10:
        return
    if report.verb == "parallel_map":
        fact = f"an item takes {format_seconds(mean)}, hardly more than a call"
        advice = "map_blocks calls a function once per block of items"
        yield _ITEM_OVERHEAD * share, f"{fact}: {advice}"
    spare = chunks / (workers * _CHUNKS_PER_WORKER)
    if not by_items and (grid := coarser(report.plan.grid, min(_TARGET_SECONDS / mean, spare))):
        fact = f"a chunk takes {format_seconds(mean)}, hardly more than handing it out"
        yield _BLOCK_OVERHEAD * share, f"{fact}: try chunks={grid}"


def _store_hints(report: Report) -> Iterator[Hint]:
    """Yield advice about units of stores that are read several times."""
    moved = report.store_read + report.store_written
    if report.unit_reads <= _FEW_READS or not moved:
        return
    reading = report.store_seconds * report.store_read / moved / report.workers
    gain = reading / report.seconds * (1 - 1 / report.unit_reads)
    fact = f"each unit {report.units} of a store is read {report.unit_reads:.1f} times"
    axes, advice = report.plan.grid.axes, 'chunks="auto"'
    if len(axes) == len(report.units):
        halo = report.plan.halo
        depths = ((0, 0),) * len(axes) if halo is None else halo.depth
        # Why two: chunks of a single unit read the units around it again for their halo.
        lengths = tuple(
            [
                min(axis.size, n * max(-(-axis.step // n), 1 + any(depth)))
                for axis, n, depth in zip(axes, report.units, depths, strict=True)
            ]
        )
        if all(axis.step == n for axis, n in zip(axes, lengths, strict=True)):
            return  # Why: the chunks are good, and the halo alone reads units again.
        advice = f"chunks={lengths}"
    yield gain, f"{fact}: try {advice}"


def _memory_bound(report: Report) -> str:
    """Return the advice for a memory-bound function.

    Why it is not a hint: other chunks or more workers save no share of its time.
    """
    moved = report.bytes_read + report.bytes_written
    begin, end = report.timings.span
    reached = moved / max(end - begin, 1e-9) / 1e9
    if moved < LARGE or end <= begin:
        return ""
    if not _MEMORY_BOUND <= reached / report.ceiling <= _MOST_MEMORY:
        return ""
    rates = f"{format_rate(reached)} of {format_rate(report.ceiling)}"
    advice = "use smaller dtypes or fewer passes, not more workers"
    return f"the function is bound by memory bandwidth ({rates}): {advice}"


def coarser(grid: Grid, factor: float) -> tuple[int, ...] | None:
    """Return chunk lengths about `factor` times as large; None for a factor below 2.

    The last axes grow first, so that a chunk stays as contiguous as possible.

    Examples
    --------
    >>> coarser(Grid.cut((100, 80), (10, 10)), 16)
    (20, 80)
    >>> coarser(Grid.cut((100, 80), (10, 10)), 1.5) is None
    True
    """
    left = int(factor)
    if left < 2:  # noqa: PLR2004
        return None
    steps = []
    for axis in reversed(grid.axes):
        times = max(1, min(left, len(axis)))
        left //= times
        steps.append(max(1, min(axis.size, axis.step * times)))
    return tuple(steps[::-1])


def finer(grid: Grid, factor: float) -> tuple[int, ...] | None:
    """Return chunk lengths about `factor` times smaller; None if no axis can be cut.

    Cut only the axes that are already cut, the first axes first, since the function may need the
    other axes whole. Without a cut axis, cut the longest.

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
    cut = [number for number, axis in enumerate(grid.axes) if len(axis) > 1]
    if not cut:
        cut = sorted(range(grid.ndim), key=lambda number: -steps[number])[:1]
    for number in cut:
        before = steps[number]
        steps[number] = math.ceil(before / min(math.ceil(factor), before))
        factor /= before / steps[number]
        if factor <= 1:
            break
    size = math.prod(-(-axis.size // step) for axis, step in zip(grid.axes, steps, strict=True))
    return tuple(steps) if size > grid.size else None

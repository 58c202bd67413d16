"""Advice about a faster call: rules, of which the rule with the largest gain is shown.

Each rule goes by figures that were measured in this run, and names them. Its gain is a share of the
run's time. Costs that no clock sees, such as the cost of handing out a chunk, are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmpar.grid import Grid
from shmpar.plan import describe_region
from shmpar.report.text import LARGE, format_bytes, format_count, format_rate, format_seconds

if TYPE_CHECKING:
    from shmpar.report.report import Report

Hint = tuple[float, str]  # the gain, and the advice in one line

_MIN_GAIN = 0.1  # share of the run's time
_BLOCK_OVERHEAD, _ITEM_OVERHEAD = 3e-6, 0.5e-6  # seconds per chunk
_TARGET_SECONDS = 1e-3  # duration of a chunk that makes this overhead negligible
_CHUNKS_PER_WORKER = 4  # enough to balance uneven chunks
_MEMORY_BOUND = 0.6  # share of the bandwidth; Why: page tables and write-allocate take the rest
_MIN_START_SECONDS = 0.01
_LATE = 0.2  # share of the run's time before a late item starts
_MIN_COPIED = 1 << 20  # bytes
_SMALL_WORK = 1e-3  # seconds of all chunks together
_ALLOCATED = {"shm", "memfd", "tempfile"}  # kinds of memory that outputs are allocated in
_WITHOUT_CHUNKS = {"parallel_map", "apply_along_axis"}  # verbs without `chunks=`


def advise(report: Report) -> str:
    """Return the advice with the largest gain, or an empty string."""
    if not report.complete or not report.computed or report.failed:
        return ""
    hints = [hint for rule in _RULES if (hint := rule(report)) and hint[0] >= _MIN_GAIN]
    return max(hints)[1] if hints else _memory_bound(report)


def _cold_start(report: Report) -> Hint | None:
    waited = _start_seconds(report)
    if waited < _MIN_START_SECONDS:
        return None
    text = f"workers were starting for {format_seconds(waited)}"
    return waited / report.seconds, f"{text}: later calls in the same pool do not wait"


def _start_seconds(report: Report) -> float:
    """Return the wait for the first worker of a cold pool."""
    joined = report.timings.joined.values()
    return max(0.0, min(joined) - report.preparing) if joined and report.cold else 0.0


def _copied_input(report: Report) -> Hint | None:
    copied = sum(nbytes for kind, nbytes in report.inputs if kind == "private")
    if report.engine != "processes" or copied < _MIN_COPIED:
        return None
    share = report.preparing / report.seconds
    text = (
        f"{100 * share:.0f} % of the time passed before the first chunk, while "
        f"{format_bytes(copied)} of input were copied: x = pool.array(x) copies only once"
    )
    return share, text


def _allocated_output(report: Report) -> Hint | None:
    nbytes = sum(nbytes for kind, nbytes in report.outputs if kind in _ALLOCATED)
    if nbytes < LARGE or any(kind == "private" for kind, _ in report.inputs):
        return None
    share = (report.preparing + max(report.timings.output_waits, default=0.0)) / report.seconds
    text = (
        f"{100 * share:.0f} % of the time passed while {format_bytes(nbytes)} of output were "
        "allocated: out= writes into an existing array"
    )
    return share, text


def _few_chunks(report: Report) -> Hint | None:
    chunks, workers = report.chunks, report.workers
    grid = finer(report.plan.grid, workers * _CHUNKS_PER_WORKER / max(chunks, 1))
    if chunks >= workers or grid is None or report.verb in _WITHOUT_CHUNKS:
        return None
    begin, end = report.timings.span
    keep = f"keep{'s' if chunks == 1 else ''} {chunks} of {workers} workers busy"
    text = f"{format_count(chunks, 'chunk')} {keep}: try chunks={grid}"
    return (end - begin) / report.seconds * (1 - chunks / workers), text


def _uneven_chunks(report: Report) -> Hint | None:
    timings = report.timings
    if report.chunks < report.workers or timings.attempts:
        return None
    _, end = timings.span
    idle = [end - last for last in timings.last_ends]
    index = int((timings.begins + timings.durations).argmax())
    chunk, duration = int(timings.chunks[index]), float(timings.durations[index])
    if duration < max(idle) / 2:  # Why: then the others did not wait for the last chunk alone
        return None
    gain = sum(idle) / report.workers / report.seconds
    region = describe_region(report.plan.region(chunk))
    text = f"workers waited for chunk {chunk} {region}, which took {format_seconds(duration)}: "
    if report.verb in _WITHOUT_CHUNKS:
        late = float(timings.begins[index]) - report.preparing > _LATE * report.seconds
        return (gain, f"{text}put slow items first") if late else None
    grid = finer(report.plan.grid, max(2.0, duration / max(_mean_seconds(report), 1e-9)))
    return (gain, f"{text}try smaller chunks, chunks={grid}") if grid else None


def _small_chunks(report: Report) -> Hint | None:
    mean = _mean_seconds(report)
    if mean >= _TARGET_SECONDS / 10 or report.verb == "apply_along_axis":
        return None
    share = report.computed / report.workers / report.seconds
    if report.verb in _WITHOUT_CHUNKS:
        text = (
            f"an item takes {format_seconds(mean)}, hardly more than a call: "
            "map_blocks calls a function once per block of items"
        )
        return _ITEM_OVERHEAD * share, text
    spare = report.chunks / (report.workers * _CHUNKS_PER_WORKER)
    grid = coarser(report.plan.grid, min(_TARGET_SECONDS / mean, spare))
    if grid is None:
        return None
    text = (
        f"a chunk takes {format_seconds(mean)}, hardly more than handing it out: try chunks={grid}"
    )
    return _BLOCK_OVERHEAD * share, text


def _small_work(report: Report) -> Hint | None:
    serial = report.serial_seconds
    if serial >= min(report.seconds, _SMALL_WORK) or report.engine == "serial":
        return None
    lost = report.seconds - serial - report.preparing - _start_seconds(report)
    text = (
        f"all chunks together took {format_seconds(serial)}, the call "
        f"{format_seconds(report.seconds)}: a plain loop is faster than any pool"
    )
    return lost / report.seconds, text


def _memory_bound(report: Report) -> str:
    """Return the advice for a memory-bound function.

    Why it is not a rule: other chunks or more workers save no share of its time.
    """
    moved = report.bytes_read + report.bytes_written
    begin, end = report.timings.span
    if moved < LARGE or end <= begin:
        return ""
    reached = moved / (end - begin) / 1e9
    if reached < _MEMORY_BOUND * report.ceiling:
        return ""
    return (
        f"the function is bound by memory bandwidth ({format_rate(reached)} of "
        f"{format_rate(report.ceiling)}): use smaller dtypes or fewer passes, not more workers"
    )


def _mean_seconds(report: Report) -> float:
    return report.serial_seconds / report.computed


_RULES: tuple[Callable[[Report], Hint | None], ...] = (
    _cold_start,
    _copied_input,
    _allocated_output,
    _few_chunks,
    _uneven_chunks,
    _small_chunks,
    _small_work,
)


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
    return tuple(reversed(steps))


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

"""Where the time of one small call goes, and the constants that larger ones are made of.

``python -m benchmarks.anatomy FILE.svg`` measures a call and draws it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

import shmpar
from benchmarks.bare import bare
from benchmarks.timing import alternate, ratio
from shmpar.engines.launch import Launched
from shmpar.engines.processes import Ears
from shmpar.ipc.ledger import Ledger
from shmpar.ipc.tickets import new_tickets
from shmpar.runtime.loop import Driver
from shmpar.worker.loop import Clock

STAGES = (
    "the verb reads its arguments and makes a plan",
    "the run begins: memory, tickets, messages",
    "the bell; the worker wakes and makes ready",
    "between the two chunks",
    "the worker says that it is done; the parent wakes",
    "the run ends: the result is copied and given",
)


def stages(rounds: int) -> dict[str, float]:
    """Microseconds of each stage of a warm call on two chunks (medians)."""
    now, marks = time.monotonic_ns, [0, 0, 0]
    found = []
    with (
        _marked(Driver, "run", lambda: marks.__setitem__(0, now())),
        _marked(Launched, "ring", lambda: marks.__setitem__(1, now())),
        _marked(Ears, "heard", lambda: marks.__setitem__(2, now())),
        shmpar.Pool(2) as pool,
    ):
        array = pool.array(np.arange(10.0))
        for _ in range(rounds + 100):
            began = now()
            called = pool.block_reduce(_when, array, chunks=5)
            ended = now()
            built, rung, woken = marks
            found.append([began, built, rung, *sorted(called.tolist()), woken, ended])
    steps = np.diff(np.array(found[100:]), axis=1) / 1e3
    return dict(zip(STAGES, np.median(steps, axis=0).tolist(), strict=True))


def _when(_block: np.ndarray) -> int:
    return time.monotonic_ns()


@contextmanager
def _marked(
    owner: type,
    name: str,
    tell: Callable[[], object],
) -> Iterator[None]:
    """Have a method tell when it begins."""
    method = getattr(owner, name)

    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        tell()
        return method(self, *args, **kwargs)

    setattr(owner, name, marked)
    try:
        yield
    finally:
        setattr(owner, name, method)


def anatomy(*, quick: bool) -> None:
    """Where the time of a warm call on an array of two chunks goes (medians)."""
    found = stages(100 if quick else 3_000)
    for name, microseconds in found.items():
        print(f"  {microseconds:7.1f} us  {name}")
    print(f"  {sum(found.values()):7.1f} us  in all")


def constants(*, quick: bool) -> None:
    """What a claim, a row, a block and a byte cost."""
    print(f"  claim, alone                {_claim('offset', quick):8.2f} us (file offset)")
    print(f"                              {_claim('lock', quick):8.2f} us (byte-range lock)")
    for workers in (2, 8):
        each = _claims_at_once(workers, quick)
        print(f"  claim, {workers} processes at once  {each:8.2f} us of the counter's time")
    rows, blocks = _added(quick)
    print(f"  added to a row              {rows:8.2f} us")
    print(f"  added to a block            {blocks:8.2f} us")
    chunk, claim, kept = _noting(quick)
    print(f"  noting a chunk's time       {chunk:8.2f} us (chunks of 20 us and more)")
    print(f"  noting a claim's time       {claim:8.2f} us")
    print(f"  kept of a chunk             {kept:8.2f} bytes")
    one, two = _bandwidth(1, quick), _bandwidth(2, quick)
    print(f"  memory, one process         {one:8.1f} GB/s read")
    print(f"  memory, two processes       {two:8.1f} GB/s read, together")


def _claim(kind: str, quick: bool) -> float:
    tickets, count = new_tickets(kind), 2_000 if quick else 200_000
    claim, began = tickets.claim, time.perf_counter()
    for _ in range(count):
        claim(1)
    spent = time.perf_counter() - began
    tickets.close()
    return spent / count * 1e6


def _claims_at_once(workers: int, quick: bool) -> float:
    tickets, count = new_tickets("offset"), 2_000 if quick else 100_000

    def loop(_worker: int, _workers: int) -> None:
        for _ in range(count):
            tickets.claim(1)

    with bare(loop, workers) as call:
        call()
        began = time.perf_counter()
        call()
        spent = time.perf_counter() - began
    tickets.close()
    return spent / count / workers * 1e6


def _added(quick: bool) -> tuple[float, float]:
    """Microseconds that are added to a row, and to a block, over what the loop itself takes."""
    rows = shmpar.array(np.ones((2_000 if quick else 200_000, 4)))
    plain = rows.view(np.ndarray)

    def nothing(_row: np.ndarray) -> float:
        return 1.0

    def same(block: np.ndarray) -> np.ndarray:
        return block

    def loop() -> None:
        for number in range(len(plain)):
            nothing(plain[number])

    with shmpar.Pool(1) as pool:
        out = pool.empty_like(rows)
        systems = {
            "loop": loop,
            "rows": lambda: pool.parallel_map(nothing, rows),
            "blocks": lambda: pool.map_blocks(same, rows, chunks=(1, -1), out=out),
        }
        times = alternate(systems, 3 if quick else 9)
    loop_seconds = statistics.median(times["loop"])
    return tuple(  # type: ignore[return-value]
        (ratio(times, name, "loop") - 1) * loop_seconds / len(plain) * 1e6
        for name in ("rows", "blocks")
    )


def _noting(quick: bool) -> tuple[float, float, float]:
    """Microseconds for the report's sake, a chunk and a claim, and bytes a chunk."""
    count = 2_000 if quick else 200_000
    memory = bytearray(Ledger.nbytes(workers=1, chunks=count))
    ledger = Ledger(memory, workers=1, chunks=count)
    assignment = SimpleNamespace(
        origin=0.0, waited=0.0, slot=ledger.slot(0), joined=0.0, todo=None, ledger=ledger, worker=0
    )
    clock, size = Clock(assignment), 10

    def nothing(_chunk: int) -> None:
        pass

    def seconds(compute: Callable[[int], None]) -> float:
        began = time.perf_counter()
        for chunk in range(count):
            compute(chunk)
        return time.perf_counter() - began

    clock.begin(nothing, 0, count, time.perf_counter())
    clock.end(count)  # long chunks: from now on each is noted
    timed = clock.begin(nothing, 0, count, time.perf_counter())
    chunk = min(seconds(timed) - seconds(nothing) for _ in range(5)) / count
    began = time.perf_counter()
    for first in range(0, count, size):
        clock.begin(nothing, first, first + size, time.perf_counter())
        clock.end(0.0)
    claim = (time.perf_counter() - began) / (count / size)
    return chunk * 1e6, claim * 1e6, len(ledger.copy()) / count


def _bandwidth(workers: int, quick: bool) -> float:
    """GB/s that so many processes read, each an array of its own."""
    size, rounds = (1_000_000 if quick else 50_000_000), 5
    arrays = [np.ones(size) for _ in range(workers)]

    def loop(worker: int, _workers: int) -> None:
        for _ in range(rounds):
            arrays[worker].sum()

    with bare(loop, workers) as call:
        call()
        began = time.perf_counter()
        call()
        spent = time.perf_counter() - began
    return rounds * workers * arrays[0].nbytes / spent / 1e9


ALL = {"anatomy": anatomy, "constants": constants}


_LANES = (0, 0, 1, 1, 1, 0)  # whose time each stage is: the parent's or the worker's
_FILLS = ("#ffc95c", "#f2a65a", "#b9dcff", "#6aa9e0", "#8fbf8f", "#e3b7d8")
_INK, _FAINT = "#1b2733", "#8a97a5"
_WIDE, _LEFT, _LANE, _TOP = 760, 74, 44, 34


def draw(found: dict[str, float]) -> str:
    """A picture (SVG) of the stages on two lanes, to scale, with a numbered legend."""
    total = sum(found.values())
    scale = (_WIDE - _LEFT - 20) / total
    high = _TOP + 2 * _LANE + 36 + 20 * len(found)
    font = f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" fill="{_INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {high}" {font}>',
        f'<rect width="{_WIDE}" height="{high}" fill="white"/>',
    ]
    for lane, name in enumerate(("parent", "worker")):
        parts.append(f'<text x="10" y="{_TOP + lane * _LANE + 21}">{name}</text>')
    begin = 0.0
    for number, (name, spent) in enumerate(found.items()):
        x, wide = _LEFT + begin * scale, spent * scale
        y = _TOP + _LANES[number] * _LANE
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="32" fill="{_FILLS[number]}"/>'
            f'<text x="{x + wide / 2:.1f}" y="{y + 21}" text-anchor="middle">{number + 1}</text>'
        )
        y = _TOP + 2 * _LANE + 34 + 20 * number
        parts.append(
            f'<rect x="{_LEFT}" y="{y - 11}" width="12" height="12" fill="{_FILLS[number]}"/>'
            f'<text x="{_LEFT + 22}" y="{y}">{number + 1}. {name}: {spent:.0f} us</text>'
        )
        begin += spent
    for microseconds in range(0, int(total) + 1, 100):
        x = _LEFT + microseconds * scale
        place = f'x="{x:.1f}" y="18" text-anchor="middle"'
        parts.append(
            f'<text {place} fill="{_FAINT}">{microseconds} us</text>'
            f'<path d="M{x:.1f} 23v{2 * _LANE + 6}" stroke="{_FAINT}" stroke-width="0.5"/>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(draw(stages(3_000)))

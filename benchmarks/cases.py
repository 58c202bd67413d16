"""Small workloads of shmpar alone, and the process in which `compare` measures a checkout.

``python -m benchmarks compare`` runs this file as a script, with another checkout on the path.
So it imports nothing of the benchmarks, and of shmpar only public names that have not changed
for long: the same file must work with the old source and with the new.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

import shmpar

WORKERS = 2
WARM_SECONDS = 0.05  # time for a processor to reach its speed and for caches to fill
TURN_SECONDS = 0.15  # time that a turn spends on timed calls
BUSY_SECONDS = 60  # Why: a busy loop must end even if nobody is left to end it.
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)

_BUSY = """
import os, sys, time
parent, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < until and os.getppid() == parent:
    for _ in range(10_000):
        pass
"""


@dataclass(frozen=True)
class Case:
    """A prepared workload: a call, or a measurement of its own that returns seconds or bytes."""

    call: Callable[[shmpar.Pool], Any] | None = None
    value: Callable[[shmpar.Pool], float] | None = None
    array: np.ndarray | None = None  # the input, for systems that do the same by hand

    def measure(self, pool: shmpar.Pool) -> float:
        """Return the figure of one turn."""
        if self.value is not None:
            return self.value(pool)
        return statistics.median(time_calls(lambda: self.call(pool)))


def time_calls(
    call: Callable[[], Any], seconds: float = TURN_SECONDS, warm: float = WARM_SECONDS
) -> list[float]:
    """Warm up, then return the seconds of each call until the time is over; two calls at least."""
    until = time.perf_counter() + warm
    while True:
        call()
        if time.perf_counter() >= until:
            break
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < until:
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
        del result  # Why: to release the memory of a result is not part of the next call.
    return times


@contextmanager
def busy_loops(count: int = WORKERS) -> Iterator[None]:
    """Run plain Python processes that keep processors busy; they are always reaped."""
    arguments = [sys.executable, "-I", "-S", "-c", _BUSY, str(os.getpid()), str(BUSY_SECONDS)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        started += [subprocess.Popen(arguments) for _ in range(count)]
        time.sleep(0.05)  # Why: the interpreters must be up.
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


# Warm calls -----------------------------------------------------------------------------------


def floor(_: int) -> Case:
    """A warm call on two chunks, on an idle machine."""
    array = shmpar.array(np.arange(10.0))
    return Case(lambda pool: pool.block_reduce(lambda block: block[0], array, chunks=5))


def floor_busy(size: int) -> Case:
    """A warm call on two chunks, beside two busy loops."""
    idle = floor(size)

    def value(pool: shmpar.Pool) -> float:
        with busy_loops():
            return idle.measure(pool)

    return Case(value=value)


def submit(_: int) -> Case:
    """A round trip of `submit`."""
    return Case(lambda pool: pool.submit(abs, -1).result())


def small_output(count: int) -> Case:
    """A warm call on two chunks, whose output of 80 kB is made by the call."""
    array = shmpar.array(np.arange(float(count)))
    return Case(lambda pool: pool.map_blocks(lambda block: block * 2, array, chunks=count // 2))


def tiny_rows(rows: int) -> Case:
    """np.sum of rows of 16 numbers."""
    array = shmpar.array(np.random.default_rng(0).normal(size=(rows, 16)))
    return Case(lambda pool: pool.parallel_map(np.sum, array), array=array)


def mean_std(tile: np.ndarray) -> tuple[float, float]:
    """Return two values of a tile."""
    return tile.mean(), tile.std()


def tiles(side: int) -> Case:
    """Mean and standard deviation of tiles of 100 x 100."""
    image = shmpar.array(np.random.default_rng(0).normal(size=(side, side)))
    return Case(lambda pool: pool.block_reduce(mean_std, image, chunks=(100, 100)), array=image)


def burn(row: np.ndarray) -> float:
    """Loop in pure Python as often as the row says."""
    total = 0.0
    for step in range(int(row[0]) * 40):
        total += step * 1e-9
    return total


def uneven_rows(count: int) -> Case:
    """Pure-Python rows; the last tenth costs 500 times as much."""
    work = np.ones(count, dtype=np.int64)
    work[-count // 10 :] = 500
    costs = shmpar.array(work[:, None])
    return Case(lambda pool: pool.parallel_map(burn, costs), array=costs)


def nap(row: np.ndarray) -> float:
    """Sleep for as long as the row says."""
    if row[0]:
        time.sleep(row[0])
    return row[0]


def slow_rows(count: int) -> Case:
    """Rows of a microsecond, and a tenth of them, one behind the other, that take 2 ms each."""
    seconds = np.zeros(count)
    seconds[count // 12 :][: count // 10] = 2e-3
    costs = shmpar.array(seconds[:, None])
    return Case(lambda pool: pool.parallel_map(nap, costs), array=costs)


def halo(side: int) -> Case:
    """SciPy's Gaussian filter with a halo, 36 chunks of float32, into an existing output."""
    from scipy.ndimage import gaussian_filter

    image = shmpar.array(np.random.default_rng(0).standard_normal((side, side), "f4"))
    out, chunk = shmpar.empty((side, side), "f4"), -(-side // 6)

    def call(pool: shmpar.Pool) -> np.ndarray:
        blur = lambda window: gaussian_filter(window, 3, truncate=4)  # noqa: E731
        return pool.map_overlap(blur, image, depth=12, chunks=(chunk, chunk), out=out)

    return Case(call, array=image)


def ufunc(count: int) -> Case:
    """np.sqrt of a large array into an existing output."""
    array, out = shmpar.array(np.arange(float(count))), shmpar.empty(count)
    return Case(lambda pool: pool.map_blocks(np.sqrt, array, out=out), array=array)


def fresh_ufunc(count: int) -> Case:
    """np.sqrt of a large array; the output is made by the call, and released."""
    array = shmpar.array(np.arange(float(count)))
    return Case(lambda pool: pool.map_blocks(np.sqrt, array), array=array)


def plain_input(count: int) -> Case:
    """The sum of each block of a large plain array, which the call copies."""
    array = np.arange(float(count))
    return Case(lambda pool: pool.block_reduce(np.sum, array, chunks=1 << 20), array=array)


def row_sums(rows: int) -> Case:
    """np.sum of rows of 10,000 numbers."""
    array = shmpar.ones((rows, 10_000))
    return Case(lambda pool: pool.parallel_map(np.sum, array), array=array)


def copy_in(numbers: int) -> Case:
    """shmpar.array of a large plain array, and its release."""
    source = np.ones(numbers)

    def call(_: shmpar.Pool) -> None:
        with shmpar.array(source):
            pass

    return Case(call, array=source)


def map_arrays(numbers: int) -> Case:
    """Executor.map of np.abs over eight plain arrays, which it returns."""
    arrays = [np.random.default_rng(n).normal(size=numbers) for n in range(8)]
    return Case(lambda pool: list(pool.map(np.abs, arrays)))


def captured(numbers: int) -> Case:
    """A call per row of a closure over a large plain array."""
    big, rows = np.random.default_rng(0).normal(size=numbers), np.arange(8.0)
    return Case(lambda pool: pool.parallel_map(lambda row: big.sum() + row, rows), array=big)


def in_flight(side: int) -> Case:
    """Ten runs with wait=False at once."""
    array = shmpar.array(np.random.default_rng(0).normal(size=(side, side)))

    def call(pool: shmpar.Pool) -> None:
        sort = lambda block: np.sort(block, axis=1)  # noqa: E731
        runs = [pool.map_blocks(sort, array, chunks=(50, -1), wait=False) for _ in range(10)]
        for run in runs:
            run.result()

    return Case(call, array=array)


# Own figures ----------------------------------------------------------------------------------


def _nothing(_row: np.ndarray) -> float:
    return 1.0


def _same(block: np.ndarray) -> np.ndarray:
    return block


def _added(rows: int, call: Callable[[shmpar.Pool], Any], array: np.ndarray) -> Case:
    """Measure a call's seconds per chunk beyond those of a plain loop, in turns."""
    plain = array.view(np.ndarray)

    def loop() -> None:
        for number in range(rows):
            _nothing(plain[number])

    def value(pool: shmpar.Pool) -> float:
        def pair() -> tuple[float, float]:
            began = time.perf_counter()
            loop()
            between = time.perf_counter()
            call(pool)
            return between - began, time.perf_counter() - between

        pair()
        until, added = time.perf_counter() + 2 * TURN_SECONDS, []
        while len(added) < 2 or time.perf_counter() < until:
            alone, took = pair()
            added.append((took - alone) / rows)
        return statistics.median(added)

    return Case(call, value, array)


def added_row(rows: int) -> Case:
    """Seconds that parallel_map adds to a row, with one worker."""
    array = shmpar.ones((rows, 4))
    return _added(rows, lambda pool: pool.parallel_map(_nothing, array), array)


def added_block(rows: int) -> Case:
    """Seconds that map_blocks adds to a block, with one worker."""
    array, out = shmpar.ones((rows, 4)), shmpar.empty((rows, 4))
    call = lambda pool: pool.map_blocks(_same, array, chunks=(1, -1), out=out)  # noqa: E731
    return _added(rows, call, array)


def start(_: int) -> Case:
    """Seconds from `Pool()` to the first result."""
    rows = np.arange(128.0).reshape(8, 16)

    def value(_: shmpar.Pool) -> float:
        began = time.perf_counter()
        with shmpar.Pool(WORKERS) as pool:
            pool.parallel_map(np.sum, rows)
            return time.perf_counter() - began

    return Case(value=value)


def _worker_pid(_: int) -> int:
    time.sleep(0.002)
    return os.getpid()


def worker_pids(pool: shmpar.Pool, workers: int = WORKERS) -> set[int]:
    """Wait until all workers of a pool are up; return their pids."""
    pids: set[int] = set()
    while len(pids) < workers:
        pids.update(pool.parallel_map(_worker_pid, range(8 * workers), dtype=object))
    return pids


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("Pss:"))


def memory(numbers: int) -> Case:
    """Bytes beyond input and output per worker after a call: proportional set sizes."""

    def value(_: shmpar.Pool) -> float:
        before = _pss(os.getpid())
        with shmpar.Pool(WORKERS) as pool:
            pids = worker_pids(pool)
            array = pool.ones((20, numbers))
            result = pool.map_blocks(lambda block: block + 1, array, chunks=(1, -1))
            after = sum(map(_pss, (os.getpid(), *pids)))
            return (after - before - array.nbytes - result.nbytes) / WORKERS

    return Case(value=value)


@dataclass(frozen=True)
class Sizes:
    """A case with its sizes: for a test, by default, and for `--large`."""

    prepare: Callable[[int], Case]
    smoke: int
    default: int
    large: int
    workers: int = WORKERS
    unit: str = "seconds"

    @property
    def about(self) -> str:
        """The first line of the case's docstring."""
        return (self.prepare.__doc__ or "").splitlines()[0]


CASES = {
    "floor": Sizes(floor, 0, 0, 0),
    "floor_busy": Sizes(floor_busy, 0, 0, 0),
    "submit": Sizes(submit, 0, 0, 0),
    "small_output": Sizes(small_output, 10_000, 10_000, 10_000),
    "tiny_rows": Sizes(tiny_rows, 200, 20_000, 20_000),
    "tiles": Sizes(tiles, 300, 3_000, 10_000),
    "uneven_rows": Sizes(uneven_rows, 40, 1_500, 4_000),
    "slow_rows": Sizes(slow_rows, 40, 4_000, 40_000),
    "halo": Sizes(halo, 120, 1_800, 6_000),
    "ufunc": Sizes(ufunc, 100_000, 10_000_000, 100_000_000),
    "fresh_ufunc": Sizes(fresh_ufunc, 100_000, 10_000_000, 100_000_000),
    "plain_input": Sizes(plain_input, 100_000, 10_000_000, 100_000_000),
    "row_sums": Sizes(row_sums, 10, 1_000, 10_000),
    "copy_in": Sizes(copy_in, 100_000, 10_000_000, 100_000_000),
    "map_arrays": Sizes(map_arrays, 12_500, 1_250_000, 1_250_000),
    "captured": Sizes(captured, 10_000, 1_250_000, 10_000_000),
    "in_flight": Sizes(in_flight, 100, 600, 2_000),
    "added_row": Sizes(added_row, 1_000, 50_000, 200_000, workers=1),
    "added_block": Sizes(added_block, 1_000, 20_000, 200_000, workers=1),
    "start": Sizes(start, 0, 0, 0),
    "memory": Sizes(memory, 1_000, 50_000, 1_000_000, unit="bytes"),
}


# The process of a checkout --------------------------------------------------------------------


class Server:
    """Load and measure a case on request; its pool lives as long as the process."""

    def __init__(self) -> None:
        self._pool: shmpar.Pool | None = None
        self._workers: set[int] = set()
        self._case: Case | None = None

    def open(self) -> dict[str, Any]:
        """Return the place that shmpar was imported from, and its version."""
        return {"file": shmpar.__file__, "version": shmpar.__version__}

    def load(self, name: str, size: str) -> dict[str, Any]:
        """Prepare a case and make the first call, which does not count."""
        sizes = CASES[name]
        self._case = sizes.prepare(getattr(sizes, size))
        self._pool = shmpar.Pool(sizes.workers)
        self._workers = worker_pids(self._pool, sizes.workers)
        if self._case.call is not None:
            self._case.call(self._pool)
        return {}

    def measure(self) -> dict[str, Any]:
        """Return the figure of one turn."""
        return {"value": self._case.measure(self._pool)}

    def close(self) -> None:
        """Shut down the pool, whose workers are still stopped if the parent was killed."""
        for pid in self._workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self._pool is not None:
            self._pool.shutdown()


def serve() -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Why: other output is not a reply.
    # Why: a process that is stopped between requests would not notice that its parent died.
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGCONT)
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001 - the other checkout and other cases go on
            reply = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)
    server.close()


if __name__ == "__main__":
    serve()

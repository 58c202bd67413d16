"""Make thousands of runs and arrays, with or without faults, and measure the resources in use.

``python -m tests.soak runs 100000``, ``arrays 10000``, or ``faults SECONDS SEED``. The program
fails if descriptors, threads, mappings or memory grow between the first tenth and the end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import shmpar
from tests.pools import wait_for_workers

X = np.arange(10_000.0).reshape(100, 100)
LARGE = np.arange(30_000.0)  # large enough to be captured in shared memory


class Usage(NamedTuple):
    """Resources that a process holds."""

    descriptors: int
    threads: int
    mappings: int
    private_kb: int
    shared_kb: int

    @classmethod
    def of_process(cls, pid: int) -> Usage:
        """Read the resources of a process from /proc."""
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        with open(f"/proc/{pid}/maps") as file:
            mappings = file.read().splitlines()
        # Why not RssShmem: it grows while a segment is filled with small results.
        shared = [one.split()[0].split("-") for one in mappings if " /dev/shm/" in one]
        shared_kb = sum(int(end, 16) - int(start, 16) for start, end in shared) >> 10
        private_kb = int(status["RssAnon"].split()[0])
        descriptors, threads = len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"])
        return cls(descriptors, threads, len(mappings), private_kb, shared_kb)


TOLERANCE = Usage(2, 0, 12, 4_000, 500)  # growth that is no leak


def collect(_: int) -> int:
    """Collect garbage; return the pid."""
    gc.collect()
    return os.getpid()


def usage(pool: shmpar.Pool) -> dict[str, Usage]:
    """Return the resources of this process, and the maximum over workers, without garbage."""
    wait_for_workers(pool)
    collected: set[int] = set()
    while len(collected) < pool.n_workers:
        collected.update(pool.parallel_map(collect, range(8), dtype=object))
    pool._last_run = None
    gc.collect()
    # Why: a worker may come late to the plan of a run that the other ones have done.
    while any(one.outstanding for one in list(pool._loop.engine._handles.values())):
        time.sleep(0.001)
    before, workers = None, _of_workers(pool)
    while workers != before:
        time.sleep(0.01)
        before, workers = workers, _of_workers(pool)
    most = Usage(*map(max, zip(*workers, strict=True)))
    return {"parent": Usage.of_process(os.getpid()), "worker": most}


def _of_workers(pool: shmpar.Pool) -> list[Usage]:
    return [Usage.of_process(pid) for pid in pool._loop.engine.pids()]


def show(done: str, found: dict[str, Usage]) -> None:
    """Print a line."""
    print(done, *(f"{name}: {' '.join(map(str, one))}" for name, one in found.items()), flush=True)


def check(first: dict[str, Usage], last: dict[str, Usage]) -> None:
    """Fail if a process uses more resources than before."""
    for process, before in first.items():
        values = zip(Usage._fields, before, last[process], TOLERANCE, strict=True)
        for name, old, new, tolerance in values:
            assert new <= old + tolerance, f"{name} of the {process}: {old} before, {new} after"


def watch(pool: shmpar.Pool, steps: Iterator[str]) -> None:
    """Take all steps and show the usage; compare it after the first step and after the last."""
    first = None
    print(f"{'':>16} (descriptors threads mappings private_kb shared_kb)")
    for done in steps:
        found = usage(pool)
        show(done, found)
        first = first or found
    check(first or found, found)


# Without faults


def one_run(pool: shmpar.Pool, number: int) -> None:
    """Make a small run; every fourth run is of one of eight other kinds, with a new function."""
    if number % 4:
        assert pool.map_blocks(np.negative, X[:4], chunks=2)[0, 1] == -1
        return
    match number // 4 % 8:
        case 0:
            assert pool.map_blocks(lambda b: b + number, X[:4], chunks=2)[0, 0] == number
        case 1:
            assert pool.parallel_map(lambda n: (n, number), range(5), dtype=object)[2] == (
                2,
                number,
            )
        case 2:
            assert pool.submit(lambda: LARGE[number % 100]).result() == number % 100
        case 3:
            runs = [pool.block_reduce(np.sum, X, chunks=50, wait=False) for _ in range(2)]
            assert [run.result().sum() for run in runs] == [X.sum()] * 2
        case 4:
            held = LARGE + number
            got = pool.parallel_map(lambda n: held[n], range(5))
            assert got[3] == number + 3
        case 5:
            with contextlib.suppress(shmpar.ChunkError):
                pool.map_blocks(lambda b: 1 // 0, X, chunks=50)
        case 6:
            assert pool.submit(np.full, 20_000, number).result()[-1] == number
        case 7:
            assert pool.sum(X) == X.sum()


def runs(pool: shmpar.Pool, total: int) -> Iterator[str]:
    """Make `total` runs in ten steps."""
    for step in range(1, 11):
        for number in range(total // 10 * (step - 1), total // 10 * step):
            one_run(pool, number)
        yield f"{total // 10 * step:>11} runs"


def arrays(pool: shmpar.Pool, total: int) -> Iterator[str]:
    """Make `total` arrays in ten steps: plain, named, attached, or sent to workers."""
    for step in range(1, 11):
        for number in range(total // 10):
            one = pool.array(LARGE) if number % 2 else shmpar.full(number % 50 * 100 + 1, 1.0)
            if number % 3 == 0:
                other = shmpar.attach(one.name, one.shape, one.dtype)
                assert other[-1] == one[-1]
            if number % 5 == 0:
                assert pool.map_blocks(np.negative, one)[-1] == -one[-1]
        one = other = None
        yield f"{total // 10 * step:>9} arrays"


# With faults


@contextlib.contextmanager
def at_random_time(rng: random.Random, act: Callable[[], object]) -> Iterator[None]:
    """Call a function at a random moment of the block."""
    timer = threading.Timer(rng.uniform(0, 0.05), act)
    timer.start()
    try:
        yield
        timer.join()  # Why: a late interrupt must arrive inside this block
    finally:
        timer.join()


def slow(block: Any) -> Any:
    """Compute for half a millisecond."""
    end = time.perf_counter() + 5e-4
    while time.perf_counter() < end:
        pass
    return -block


EXPECTED: dict[str, tuple[type[BaseException], ...]] = {
    "poisoned": (shmpar.WorkerDied, ExceptionGroup),
    "late": (shmpar.TaskTimeout,),
    "interrupted": (KeyboardInterrupt,),
}


class Faults:
    """Make runs with faults of every kind, in a random order."""

    def __init__(self, pool: shmpar.Pool, rng: random.Random, folder: str) -> None:
        self.pool, self.rng, self.folder = pool, rng, folder
        self.right = 0
        self.errors: Counter[str] = Counter()
        self.acts = [self.killed, self.poisoned, self.late, self.interrupted]
        self.acts += [self.cancelled, self.saved, self.another_pool, self.plain]

    def killed(self) -> None:
        """Kill a worker at a random moment."""
        pid, how = self.rng.choice(self.pool._loop.engine.pids()), self.rng.choice([9, 11, 15])
        with at_random_time(self.rng, lambda: _kill(pid, how)):
            self.check(self.pool.map_blocks(slow, X, chunks=10, retries=5))

    def poisoned(self) -> None:
        """Kill every worker that computes a certain chunk."""
        bad = self.rng.randrange(100)

        def work(block: Any, block_id: Any) -> Any:
            return os._exit(3) if block_id == (bad // 10, bad % 10) else -block

        how = self.rng.choice(["raise", "collect", "fill"])
        got = self.pool.map_blocks(work, X, chunks=10, on_error=how, dtype=float)
        assert how == "fill"
        assert np.isnan(got).sum() == 100

    def late(self) -> None:
        """Exceed the time limit of a chunk."""
        self.pool.parallel_map(
            lambda n: time.sleep(60) if n == 7 else n, range(20), task_timeout=0.2, retries=0
        )

    def interrupted(self) -> None:
        """Interrupt a call at a random moment."""
        with at_random_time(self.rng, lambda: os.kill(os.getpid(), signal.SIGINT)):
            self.check(self.pool.map_blocks(slow, X, chunks=10))

    def cancelled(self) -> None:
        """Cancel a run while other runs and calls go on."""
        runs = [self.pool.map_blocks(slow, X, chunks=10, wait=False) for _ in range(3)]
        calls = [self.pool.submit(np.full, 20_000, number) for number in range(5)]
        runs[1].cancel()
        self.check(runs[0].result(60))
        self.check(runs[2].result(60))
        assert [call.result(60)[-1] for call in calls] == [0, 1, 2, 3, 4]

    def saved(self) -> None:
        """Save the results and a ledger on disk."""
        out, ledger = f"{self.folder}/out.npy", f"{self.folder}/ledger"
        self.check(self.pool.map_blocks(slow, X, chunks=20, out=out, ledger=ledger))
        os.unlink(out)
        os.unlink(ledger)

    def another_pool(self) -> None:
        """Start another pool, use it and close it."""
        with shmpar.Pool(2, max_tasks_per_worker=5) as other:
            self.check(other.map_blocks(slow, X, chunks=20))

    def plain(self) -> None:
        """Make a few runs without faults."""
        for number in range(32):
            one_run(self.pool, number)
        self.right += 32

    def check(self, got: Any) -> None:
        """Check a result and count it."""
        np.testing.assert_array_equal(got, -X)
        self.right += 1

    def step(self) -> None:
        """Make a run with a random fault."""
        act = self.rng.choice(self.acts)
        try:
            with warnings.catch_warnings(action="ignore"):
                act()
        except EXPECTED.get(act.__name__, ()) as error:
            self.errors[type(error).__name__] += 1

    def steps(self, seconds: float) -> Iterator[str]:
        """Take ten steps of equal time."""
        began = time.monotonic()
        for number in range(1, 11):
            while time.monotonic() < began + seconds * number / 10:
                self.step()
            yield f"{seconds * number / 10:>14.0f} s"


def _kill(pid: int, how: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def main(mode: str, size: str, seed: str = "0") -> None:
    """Run ``runs``, ``arrays`` or ``faults``."""
    with shmpar.Pool(2) as pool, tempfile.TemporaryDirectory() as folder:
        if mode == "faults":
            soak = Faults(pool, random.Random(int(seed)), folder)
            watch(pool, soak.steps(float(size)))
            print(f"{soak.right} right results; {dict(soak.errors)}")
        else:
            watch(pool, (runs if mode == "runs" else arrays)(pool, int(size)))
    print("flat")


if __name__ == "__main__":
    main(*sys.argv[1:])

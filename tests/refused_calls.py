"""A program: all kinds of calls, while the kernel refuses some system calls.

The arguments are the number of the error and the names of the refused calls, as in
``tests/seccomp.py``; then ``--engines`` and the engines, if not all.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from tests import leaks, seccomp

if __name__ == "__main__":
    number, *rest = sys.argv[1:]
    names, _, chosen = " ".join(rest).partition("--engines")
    seccomp.refuse(names.split(), int(number))
    ENGINES = chosen.split() or ["processes", "threads", "serial"]

import numpy as np

import shmpar
from shmpar.memory import limits
from shmpar.memory import names as names_of_segments
from shmpar.memory.allocate import SHM


def once(folder: str, what: str) -> bool:
    """Return True in the first process that asks."""
    try:
        os.close(os.open(f"{folder}/{what}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def error_of(kind: type[BaseException], call: Callable[[], object]) -> Any:
    """Return the error of this kind that a call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def check(pool: shmpar.Pool, folder: str, engine: str) -> None:
    """Make calls of each kind, and compare the results."""
    small, large = np.arange(100.0).reshape(10, 10), np.arange(2_500_000.0)
    assert (pool.map_blocks(np.negative, small, chunks=5) == -small).all()
    assert (pool.map_blocks(lambda b: b + 1, large, chunks=300_000) == large + 1).all()
    assert pool.sum(pool.asarray(large)) == large.sum()
    assert (pool.map_overlap(lambda b: b * 2, small, chunks=5, depth=1) == 2 * small).all()
    assert pool.parallel_map(abs, range(-9, 0)) == list(range(9, 0, -1))
    ballast = os.urandom(200_000)  # Why: a long message lies in a file
    assert pool.parallel_map(lambda n: len(ballast) + n, range(2)) == [200_000, 200_001]
    found = pool.parallel_map(lambda n: np.full(20_000, n), range(3), dtype=object)
    assert [one[-1] for one in found] == [0, 1, 2]
    assert pool.submit(len, ballast).result(60) == 200_000
    assert pool.submit(bytes, 300_000).result(60) == bytes(300_000)
    assert pool.submit(np.full, 20_000, 7).result(60)[-1] == 7
    assert list(pool.map(len, [ballast, "abc"])) == [200_000, 3]
    failed = error_of(shmpar.ChunkError, lambda: pool.parallel_map(lambda n: 1 // n, range(3)))
    assert failed.chunk == 0
    path, files = f"{folder}/{engine}.npy", {}
    for _ in range(2):
        assert (pool.map_blocks(np.negative, small, out=path, **files) == -small).all()
        files = {"ledger": f"{folder}/{engine}.ledger"}
        if "flock" in names.split():
            refused = functools.partial(pool.map_blocks, np.negative, small, out=path, **files)
            assert "cannot be locked" in str(error_of(OSError, refused))
            break
    assert (np.load(path) == -small).all()
    total = pool.zeros(1)

    def add(n: int) -> None:
        with total.lock:
            total[0] += n

    if {"F_OFD_SETLK", "flock"} <= set(names.split()):
        error = error_of(shmpar.ChunkError, lambda: pool.parallel_map(add, range(2)))
        assert isinstance(error.__cause__, shmpar.SegmentError), error.__cause__
    else:
        pool.parallel_map(add, range(200))
        assert total[0] == sum(range(200)), total
    mapped = np.memmap(f"{folder}/{engine}.bin", np.float64, "w+", shape=(1000, 1000))
    pool.map_blocks(np.add, pool.ones((1000, 1000)), 1.0, out=mapped, chunks=500)
    assert mapped.min() == mapped.max() == 2
    if engine == "processes":
        check_processes(pool, folder)


def check_processes(pool: shmpar.Pool, folder: str) -> None:
    """Let workers die, cancel, and attach by address."""

    def dies(n: int) -> int:
        if n == 3 and once(folder, "dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    assert pool.parallel_map(dies, range(6)) == list(range(6))
    assert not once(folder, "dies")
    died = error_of(shmpar.WorkerDied, lambda: pool.submit(os._exit, 3).result(60))
    assert died.exitcode == 3, died
    shared = pool.array(np.arange(5))

    def attached(n: int) -> int:
        return int(shmpar.attach(address)[n])

    address = shared.address
    assert pool.parallel_map(attached, range(5)) == list(range(5))
    chosen = f"shmpar-test-{os.getpid()}"
    if {"F_SETLK", "link", "O_TMPFILE"} & set(names.split()):
        error_of(shmpar.SegmentError, lambda: pool.zeros(3, name=chosen))
    else:
        assert pool.zeros(3, name=chosen).name == chosen

    def waits(n: int) -> None:
        threading.Event().wait()

    late = {"task_timeout": 0.2, "retries": 0}
    error_of(shmpar.TaskTimeout, lambda: pool.parallel_map(waits, range(2), **late))
    assert pool.parallel_map(abs, range(3)) == [0, 1, 2]


def main() -> None:
    """Check each engine, and look for things that are left."""
    assert 1 <= limits.available_cpus() <= (os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        for engine in ENGINES:
            before = leaks.Snapshot.take()
            with shmpar.Pool(2, engine=engine) as pool:
                check(pool, folder, engine)
            del pool
            # Why without names: other tests make some at the same time.
            named = {"segment", "file"}
            left = [one for one in leaks.leaks_after_waiting(before) if one.kind not in named]
            assert not left, leaks.report(left)
            assert not names_of_segments._own_registries
            assert not any(str(os.getpid()) in name for name in os.listdir(SHM))
        temporary = [name for name in os.listdir(folder) if name.endswith(".tmp")]
        assert not temporary, temporary
    print("right")


if __name__ == "__main__":
    main()

"""Too little address space, full disks and truncated files: each is told as such."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import shmpar
from tests.interpreters import run_python
from tests.test_full_tmpfs import check as check_on_full_disk

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")

ADDRESS_SPACE = """
import resource, sys
import numpy as np
import shmpar

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (used() + more, resource.RLIM_INFINITY))

def told(call):
    try:
        call()
    except shmpar.SegmentFull as error:
        return "ulimit -v" in str(error)
    return "no error"

"""


def check(source: str, expected: str, *args: str) -> None:
    """Run a program, and compare its output; it must write no error."""
    done = run_python(ADDRESS_SPACE + source, *args, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


@pytest.mark.parametrize("engine", ["processes", "threads", "serial"])
def test_address_space_that_runs_out_is_segment_full(engine: str, tmp_path: Path) -> None:
    """The error names the limit; the pool works with smaller arrays, and when the limit is gone."""
    out = tmp_path / "out.npy"
    check(
        f"""
much = np.broadcast_to(np.ones(1), (1 << 24,))
with shmpar.Pool(1, engine={engine!r}) as pool:
    pool.map_blocks(np.negative, np.zeros((4, 100)))
    limit(64 << 20)
    for call in (
        lambda: pool.zeros(1 << 28),
        lambda: pool.map_blocks(np.negative, much),
        lambda: pool.map_blocks(np.copy, much, chunks=1 << 20, dtype="f8"),
        lambda: pool.parallel_map(lambda n: np.zeros(1 << 19), range(64), dtype="f8"),
        lambda: pool.map_blocks(np.copy, much, chunks=1 << 20, out={str(out)!r}),
    ):
        print(told(call))
    try:
        pool.submit(np.zeros, 1 << 26).result(60)
    except MemoryError:
        print(pool.parallel_map(abs, range(3)))
    limit(1 << 40)
    print(pool.zeros(1 << 24).sum(), pool.submit(abs, -3).result(60))
""",
        "True\n" * 5 + "[0, 1, 2]\n0.0 3\n",
    )


def test_address_space_of_a_worker_that_runs_out_is_told() -> None:
    """A worker that cannot map an input says so, and lives."""
    check(
        """
def limit_worker():
    limit(256 << 20)

with shmpar.Pool(1, initializer=limit_worker) as pool:
    pid = pool.submit(__import__("os").getpid).result(60)
    large = pool.zeros(1 << 26)
    print(told(lambda: pool.parallel_map(np.sum, large.reshape(8, -1))))
    held = pool.submit(lambda: large.sum()).exception(60)
    print(isinstance(held, shmpar.SegmentFull), "ulimit -v" in str(held))
    print(pool.parallel_map(abs, range(3)))
    print(pool.submit(__import__("os").getpid).result(60) == pid)
""",
        "True\nTrue True\n[0, 1, 2]\nTrue\n",
    )


# Why programs: a fault would be SIGBUS.
TRUNCATED = """
import os, sys
import numpy as np
import shmpar

FILE = sys.argv[1] + "/values"
CALLS = {
    "input": lambda values: pool.map_blocks(np.negative, values, chunks=1000),
    "rows": lambda values: pool.parallel_map(np.sum, values.reshape(10, -1)),
    "output": lambda values: pool.map_blocks(np.negative, np.arange(10_000.0), out=values),
    "reduction": lambda values: pool.sum(values),
    "halo": lambda values: pool.map_overlap(np.negative, values, depth=1, chunks=1000),
    "copy": lambda values: pool.array(values),
}
if ENGINE == "processes":
    CALLS |= {
        "argument": lambda values: pool.submit(np.sum, values).result(60),
        "map": lambda values: list(pool.map(np.sum, [values])),
        "captured": lambda values: pool.parallel_map(lambda n: values[n], range(3)),
        "part": lambda values: pool.submit(np.sum, np.asarray(values)[5000:5010]).result(60),
    }

def mapped():
    np.arange(10_000.0).tofile(FILE)
    return np.memmap(FILE, np.float64, "r+")

def told(call, values):
    os.truncate(FILE, 100)
    try:
        call(values)
    except shmpar.ShmparError as error:
        return "shortened" in str(error) and not isinstance(error, MemoryError)
    return "no error"

with shmpar.Pool(1, engine=ENGINE) as pool:
    for name, call in CALLS.items():
        for used in (False, True):
            values = mapped()
            if used:
                call(values)
            assert told(call, values) is True, (name, used)
            del values
    print(pool.parallel_map(abs, range(-3, 0)))
"""


@pytest.mark.parametrize("engine", ["processes", "threads", "serial"])
def test_a_truncated_file_is_told(engine: str, tmp_path: Path) -> None:
    """The error names truncation, and no lack of room, in each verb and each argument."""
    done = run_python(f"ENGINE = {engine!r}\n{TRUNCATED}", str(tmp_path))
    assert (done.stdout, done.stderr, done.returncode) == ("[3, 2, 1]\n", "", 0)


def test_a_file_that_is_truncated_during_a_call_kills_a_worker_that_says_so(tmp_path: Path) -> None:
    """The signal is named, with its cause."""
    np.arange(10_000.0).tofile(tmp_path / "values")
    values = np.memmap(tmp_path / "values", np.float64, "r+")
    path = str(tmp_path / "values")

    def cuts(block: np.ndarray) -> float:
        os.truncate(path, 100)
        return block.sum()

    with shmpar.Pool(1, retries=0) as pool:
        with pytest.raises(shmpar.WorkerDied, match=r"SIGBUS .*truncated"):
            pool.block_reduce(cuts, values, chunks=5000)
        assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]


@needs_root
def test_a_full_disk_has_the_same_words_on_each_way(tmp_path: Path) -> None:
    """Outputs by path and by memmap, ledgers and traces say that there is no room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    check_on_full_disk(
        """
def words(call):
    try:
        call()
    except shmpar.SegmentFull as error:
        return "no room for" in str(error) and "No space left" in str(error)
    return "no error"

with shmpar.Pool(1) as pool:
    sparse = np.memmap(DISK + "/sparse", np.float64, "w+", shape=X.shape)
    fill()
    print(words(lambda: pool.map_blocks(np.negative, X, out=DISK + "/x.npy")))
    print(words(lambda: pool.map_blocks(np.negative, X, out=sparse)))
    ledger = {"out": DISK + "/../y.npy", "ledger": DISK + "/x.ledger"}
    print(words(lambda: pool.map_blocks(np.negative, X, chunks=1, **ledger)))
    print(words(lambda: pool.last_run.report.to_perfetto(DISK + "/trace")))
    works(pool)
print(sorted(os.listdir(DISK)))
""",
        "True\n" * 4 + "['filler', 'sparse']\n",
        disk=str(disk),
    )

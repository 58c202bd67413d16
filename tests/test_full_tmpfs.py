"""A full file system in each phase of a run: the next source, or ``SegmentFull``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.test_little_shm import in_little_shm

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="mounting a small file system needs root",
)

# fill() leaves this many bytes of the file system free; works() checks the pool.
PROGRAM = """
import os, sys, threading
from shmpar.memory.locate import locate
import numpy as np
import shmpar

DISK = {disk!r}
X = np.arange(250_000.0).reshape(500, 500)  # 2 MB

def fill(leave=0):
    with open(DISK + "/filler", "ab") as file:
        for step in (1 << 20, 1 << 16, 1 << 12):
            while (room := os.statvfs(DISK)).f_bavail * room.f_frsize >= leave + step:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:  # another process has taken the space
                    break

def empty():
    os.truncate(DISK + "/filler", 0)

def works(pool):
    assert (pool.map_blocks(np.negative, X, chunks=100) == -X).all()
    assert pool.parallel_map(abs, np.arange(-3, 0)).tolist() == [3, 2, 1]
    assert pool.submit(np.full, 20_000, 7).result(60)[-1] == 7

def kinds(pool):
    return " ".join(pool.last_run.report.memory)

def refused(call):
    try:
        call()
    except (shmpar.SegmentFull, OSError) as error:
        return type(error).__name__
    return "no error"

"""


def check(source: str, expected: str, size: str = "8m", disk: str = "/dev/shm") -> None:
    """Run a program with a file system of this size, and compare its output."""
    program = PROGRAM.replace("{disk!r}", repr(disk)) + source
    assert in_little_shm(program, size, disk) == expected


def test_arrays_when_shm_is_full() -> None:
    """Nameless arrays lie in the next source; a name needs the full one."""
    check(
        """
with shmpar.Pool(2) as pool:
    works(pool)
    early = pool.zeros(1000)
    fill()
    made = [pool.array(X), pool.zeros((500, 500)), pool.full((500, 500), 3.0)]
    print(*(locate(one).segment.kind for one in made))
    print(refused(lambda: pool.zeros((500, 500), name="shmpar-test-full")))
    fill()
    print(refused(lambda: early.name) == "SegmentFull")
    print(sorted(set(os.listdir(DISK)) - {"filler"}))
    works(pool)
    empty()
    print(early.name in os.listdir(DISK))
print(os.listdir(DISK))
""",
        "memfd memfd memfd\nSegmentFull\nTrue\n[]\nTrue\n['filler']\n",
    )


def test_a_run_when_shm_is_full() -> None:
    """Copies of inputs, outputs, the ledger and captured arrays lie in the next source."""
    check(
        """
fill()
with shmpar.Pool(2) as pool:
    works(pool)
    print(kinds(pool))
    held = np.ones((500, 500))
    assert (pool.map_blocks(lambda b: b + held[0, 0], X, chunks=100) == X + 1).all()
    print(kinds(pool))
    assert pool.map_blocks(np.negative, X, chunks=1).sum() == -X.sum()  # a ledger of 250 KB
    several = [pool.map_blocks(np.negative, X, wait=False) for _ in range(4)]
    assert all((run.result(60) == -X).all() for run in several)
    big = pool.parallel_map(lambda n: np.full(50_000, n), range(20), dtype=object)
    assert [one[-1] for one in big] == list(range(20))
    works(pool)
with shmpar.Pool(2) as pool:
    works(pool)
print(os.listdir(DISK))
""",
        "private memfd\nprivate memfd\n['filler']\n",
    )


@pytest.mark.parametrize(
    "leave",
    [0, 2_100_000, *(pytest.param(n, marks=pytest.mark.stress) for n in (4096, 50_000, 100_000))],
)
def test_shm_fills_up_in_the_middle_of_a_run(leave: int) -> None:
    """Reserved memory stays; later segments lie in the next source."""
    check(
        f"""
def greedy(block):
    if block[0, 0] == 0:
        fill({leave})
    return -block

with shmpar.Pool(2) as pool:
    for _ in range(3):
        empty() if os.path.exists(DISK + "/filler") else None
        assert (pool.map_blocks(greedy, X, chunks=100) == -X).all()
        got = pool.parallel_map(lambda n: (n, np.full(30_000, n)), range(9), dtype=object)
        assert [one[1][-1] for one in got] == list(range(9))
        works(pool)
print(os.listdir(DISK))
""",
        "['filler']\n",
    )


def test_another_process_fills_and_empties_shm_all_the_time() -> None:
    """At any moment there is no signal, and every result is right."""
    check(
        """
import random
stop = threading.Event()
def other():
    rng = random.Random(3)
    while not stop.is_set():
        try:
            fill(rng.choice([0, 8192, 1 << 20, 3 << 20]))
        except OSError:
            pass
        stop.wait(rng.random() * 0.003)
        empty()

open(DISK + "/filler", "w").close()
thread = threading.Thread(target=other, daemon=True)
with shmpar.Pool(2) as pool:
    thread.start()
    for number in range(10):
        assert (pool.map_blocks(np.negative, X, chunks=100) == -X).all()
        made = pool.array(X)
        assert (pool.map_overlap(np.copy, made, depth=1, chunks=200) == X).all()
        try:
            made.name
        except (shmpar.SegmentFull, OSError):
            pass
    stop.set()
    thread.join()
    works(pool)
    del made
print(os.listdir(DISK))
""",
        "['filler']\n",
    )


def test_files_on_a_full_disk(tmp_path: Path) -> None:
    """``out=`` and ``ledger=`` raise an error and leave no file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    check(
        """
with shmpar.Pool(2) as pool:
    works(pool)
    out, ledger, elsewhere = DISK + "/x.npy", DISK + "/x.ledger", DISK + "/../y.npy"
    fill(1_000_000)
    for leave, options in [
        (1_000_000, {"out": out}),
        (0, {"out": out}),
        (0, {"out": elsewhere, "ledger": ledger}),
        (0, {"out": elsewhere, "ledger": ledger, "chunks": 1}),
    ]:
        fill(leave)
        said = refused(lambda: pool.map_blocks(np.negative, X, **options))
        print(said, os.listdir(DISK), os.path.exists(elsewhere))
    works(pool)
    empty()
    result = pool.map_blocks(np.negative, X, out=out, ledger=ledger)
    fill()
    assert (result == -X).all()
    assert (pool.map_blocks(np.negative, X, out=out, ledger=ledger) == -X).all()
    works(pool)
print(sorted(os.listdir(DISK)))
""",
        "SegmentFull ['filler'] False\n" * 4 + "['filler', 'x.ledger', 'x.npy']\n",
        disk=str(disk),
    )

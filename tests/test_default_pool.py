"""The default pool, its latest run and its end, and pools that no machine can have."""

from __future__ import annotations

import re

import pytest

import shmpar

PROGRAM = """
import shmpar
assert shmpar.last_run is None
assert float(shmpar.mean([1, 2, 6])) == 3
run = shmpar.last_run
assert run is shmpar.default_pool().last_run and run.done()
pool = shmpar.default_pool()
assert pool is shmpar.default_pool() and not pool.closed
assert pool.n_workers == 2
pool.shutdown()
assert pool.closed and shmpar.last_run is run
assert int(shmpar.sum([1, 2])) == 3
assert shmpar.default_pool() is not pool and shmpar.last_run is not run
with shmpar.default_pool():
    pass
assert shmpar.default_pool().n_workers == 2
try:
    shmpar.map_blocks(lambda block: 1 // 0, [1])
except shmpar.ChunkError as error:
    assert shmpar.last_run is error.run
print("last_run" in dir(shmpar), "default_pool" in shmpar.__all__)
"""


def test_the_default_pool_has_a_latest_run_and_an_end(run_python, monkeypatch) -> None:
    """It is made once, ended by shutdown() or a with block, and made again by the next call."""
    monkeypatch.setenv("SHMPAR_NUM_WORKERS", "2")
    done = run_python(PROGRAM)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_reading_the_latest_run_makes_no_pool(run_python) -> None:
    """There is none before the first call."""
    done = run_python("import shmpar, threading; print(shmpar.last_run, threading.active_count())")
    assert done.stdout == "None 1\n"


def test_a_pool_that_no_machine_can_have_is_refused_with_the_sums() -> None:
    """The error has the memory, processes and descriptors that it takes, and those there are."""
    with pytest.raises(ValueError, match=r"^n_workers is at most") as caught:
        shmpar.Pool(100_000)
    text = str(caught.value)
    for part in (
        r"100,000 of [\d,]+ processes \(",
        r"2,097,152,000,000 of [\d,]+ bytes of memory \(free\)",
        r"500,000 of [\d,]+ descriptors \(ulimit -Hn\)",
        r"n_workers a pool has one per CPU, \d+$",
    ):
        assert re.search(part, text), (part, text)


def test_a_limit_on_descriptors_counts(run_python) -> None:
    """A low hard limit refuses what the machine could have otherwise."""
    done = run_python(
        "import resource, shmpar\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "try: shmpar.Pool(80)\n"
        "except ValueError as error: print(error)\n"
    )
    assert done.stdout.startswith("n_workers is at most 40 here, not 80"), done.stdout + done.stderr
    assert "400 of 200 descriptors" in done.stdout

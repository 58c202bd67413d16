"""Runs in a control group with little memory: the next source, and OOM kills."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from shmpar.memory import limits
from tests.interpreters import output_after_setup

LIMIT = 400 << 20  # bytes


@pytest.fixture
def group() -> Iterator[str]:
    """Return the folder of a new memory control group with a limit."""
    version, above = next(iter(limits.cgroup_folders("memory")), (0, ""))
    folder = f"{above}/shmpar-test-{secrets.token_hex(4)}"
    limit = {1: "memory.limit_in_bytes", 2: "memory.max"}
    try:
        os.mkdir(folder)
    except OSError as error:
        pytest.skip(f"making a control group is not allowed here: {error}")
    try:
        try:
            with open(f"{folder}/{limit[version]}", "w", encoding="ascii") as file:
                file.write(str(LIMIT))
        except OSError as error:
            pytest.skip(f"memory is not limited by control groups here: {error}")
        yield folder
    finally:
        os.rmdir(folder)


def run_in(group: str, source: str) -> str:
    """Run a snippet in a control group; return its output."""
    return output_after_setup(["sh"], f"echo $$ > {group}/cgroup.procs", source)


@pytest.mark.alone
def test_a_run_beyond_the_limit_takes_the_next_source(group: str) -> None:
    """The limit counts although the machine has more memory; the report names the source."""
    source = """
import numpy as np, shmpar
with shmpar.Pool(1) as pool:
    rows = np.broadcast_to(np.ones(1, "u1"), (300_000_000,))
    out = pool.map_blocks(lambda block: block.astype("u2"), rows, dtype="u2", chunks=1_000_000)
    print(out[::1000].sum(), *pool.last_run.report.memory)
"""
    assert run_in(group, source) == "300000 private tempfile\n"


@pytest.mark.alone
def test_an_oom_kill_of_a_worker_is_recognised(group: str) -> None:
    """The kernel counts OOM kills; the error names the cause and has advice."""
    source = """
import os, signal
import numpy as np, shmpar

def takes(n):
    if n == 5:
        return int(np.ones(80_000_000).sum())
    return n

def dies(n):
    if n == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return n

with shmpar.Pool(1, retries=0) as pool:
    for func in (takes, dies, takes):
        try:
            pool.parallel_map(func, range(10))
        except shmpar.WorkerDied as error:
            print(error.chunk, error.exitcode, "OOM kill" in str(error))
    print(pool.parallel_map(abs, range(3)))
"""
    output = "5 -9 True\n5 -9 False\n5 -9 True\n[0, 1, 2]\n"
    assert run_in(group, source) == output


@pytest.mark.alone
@pytest.mark.stress
@pytest.mark.parametrize("round_", range(20))
def test_a_limit_that_is_met_half_way(group: str, round_: int) -> None:
    """While another process takes the memory, arrays are whole or refused; none is killed."""
    source = f"""
import mmap, numpy as np, os, random, shmpar, time
from shmpar.memory import limits
chance = random.Random({round_})
values = np.arange(25_000_000.0)  # 200 MB
taken = mmap.mmap(-1, 300 << 20)
if (child := os.fork()) == 0:
    time.sleep(chance.uniform(0, 0.03))
    for start in range(0, len(taken), 1 << 20):
        if limits.free_memory() < 100 << 20:  # more than an array takes between two looks
            break
        taken[start : start + (1 << 20)] = bytes(1 << 20)
    time.sleep(0.5)
    os._exit(0)
outcomes = set()
for _ in range(10):
    try:
        with shmpar.array(values[: chance.randrange(8_000_000, 25_000_000)]) as array:
            outcomes.add(bool(array.sum() == values[: array.size].sum()))  # takes no memory
    except shmpar.SegmentFull:
        outcomes.add("refused")
print(outcomes <= {{True, "refused"}}, os.waitpid(child, 0)[1])
"""
    assert run_in(group, source) == "True 0\n"

"""Workers exit when their parent is killed, and no memory or file is left."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

import shmpar
from tests.interpreters import interpreter

# Work during the death of the parent: Python code, C code that holds the GIL, or none.
LOADS = {
    "python": "while True: pass",
    "gil": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    "sleep": "import time; time.sleep(60)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
}

PARENT = """
import sys
import numpy as np
import shmpar

load = sys.argv[1]

def work(block):
    import os
    os.write(2, b"w")
    exec(load)

named = shmpar.ones(1000, name=None)
print(named.name, flush=True)
with shmpar.Pool(2) as pool:
    image = pool.array(np.ones((400, 400)))
    pool.zeros(10).name
    print("up", flush=True)
    pool.block_reduce(work, image, chunks=200)
"""


# Make pools, arrays, runs, calls and files in a random order until this process is killed.
RANDOM_WORK = """
import os, random, re, sys, time
import numpy as np
import shmpar

rng, folder = random.Random(int(sys.argv[1])), sys.argv[2]
image = np.arange(40_000.0).reshape(200, 200)
pool = shmpar.Pool(2)
count = 0

def path():
    global count
    count += 1
    return f"{folder}/{count}.npy"

def slow(block):
    time.sleep(0.002)
    return block * 2

def a_pool():
    with shmpar.Pool(2) as pool:
        pool.map_blocks(np.negative, image, chunks=50)

def arrays():
    made = [pool.array(image) for _ in range(5)] + [shmpar.zeros(100)]
    made[0].name, made[-1].name, made[1].address
    shmpar.full(10, 3, name=f"shmpar-test-{os.getpid()}-{rng.random()}")

def runs():
    pool.map_blocks(slow, image, chunks=50)
    pool.map_overlap(np.copy, image, depth=2, boundary="reflect", chunks=70)

def objects():
    pool.parallel_map(lambda n: {"a": np.full(20_000, n)}, range(8), dtype=object)

def mixed():
    runs = [pool.map_blocks(slow, image, chunks=50, wait=False) for _ in range(4)]
    calls = [pool.submit(np.full, 20_000, n) for n in range(4)]
    [one.result() for one in runs + calls]

def files():
    pool.map_blocks(slow, image, chunks=50, out=path())
    pool.map_blocks(slow, image, chunks=50, out=path(), ledger=path() + ".ledger")

def short_gil():
    pool.parallel_map(lambda n: re.match('(a+)+$', 'a' * 20 + 'b') and None, range(4))

def gil():
    pool.parallel_map(lambda n: re.match('(a+)+$', 'a' * 40 + 'b') and None, range(4))

ACTS = [a_pool, arrays, runs, objects, mixed, files, short_gil]
print("up", flush=True)
while True:
    rng.choice(ACTS)()
    if rng.random() < 0.03:
        gil()
"""


def segments() -> set[str]:
    """Return the names of shmpar in /dev/shm."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("shmpar")}


def start_next_pool(before: set[str]) -> None:
    """Check that the next pool removes the stale names."""
    with shmpar.Pool(1, engine="serial"):
        pass
    assert segments() <= before


def kill_a_parent(load: str, moment: float | None) -> None:
    """Start a parent; kill it during its work (None), or `moment` seconds after its start."""
    before = segments()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # The context manager fails if a process outlives the parent by two seconds.
    with interpreter(PARENT, LOADS[load], **pipes) as parent:
        if moment is None:
            assert parent.stderr.read(2) == b"ww", "both workers are at work"
        else:
            select.select([], [], [], moment)
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(10) == -signal.SIGKILL
    start_next_pool(before)


def kill_a_parent_at_random_work(rng: random.Random, folder: Path) -> None:
    """Kill a parent at a random moment of mixed work, and check the files that it made."""
    before = segments()
    work, temporary = folder / "work", folder / "temporary"
    work.mkdir()
    temporary.mkdir()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    seed, env = str(rng.randrange(2**32)), {"TMPDIR": str(temporary)}
    with interpreter(RANDOM_WORK, seed, str(work), env=env, **pipes) as parent:
        assert parent.stdout.readline() == b"up\n"
        select.select([], [], [], rng.uniform(0, 1.2))
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(10) == -signal.SIGKILL, parent.stderr.read().decode()
    start_next_pool(before)
    assert os.listdir(temporary) == []
    for path in work.iterdir():
        if path.suffix == ".npy":
            assert np.load(path).shape == (200, 200)
        else:
            assert path.suffix in {".ledger", ".partial"}, f"an incomplete file: {path.name}"
        path.unlink()
    work.rmdir()
    temporary.rmdir()


@pytest.mark.alone
@pytest.mark.parametrize("load", LOADS)
def test_workers_exit_after_a_kill_of_their_parent_at_work(load: str) -> None:
    """Every worker exits within two seconds, even in C code that holds the GIL."""
    kill_a_parent(load, None)


@pytest.mark.alone
def test_workers_exit_after_a_kill_of_their_parent_at_any_moment(
    stress_seed: int, tmp_path: Path
) -> None:
    """The parent may be importing, starting, or at any work."""
    rng = random.Random(stress_seed)
    kill_a_parent(rng.choice(list(LOADS)), rng.uniform(0, 0.8))
    for _ in range(2):
        kill_a_parent_at_random_work(rng, tmp_path)


@pytest.mark.stress
def test_300_parents_killed_at_random_moments(stress_seed: int, tmp_path: Path) -> None:
    """After two seconds no process, segment or incomplete file is left."""
    rng = random.Random(stress_seed)
    for _ in range(200):
        kill_a_parent_at_random_work(rng, tmp_path)
    for _ in range(100):
        kill_a_parent(rng.choice(list(LOADS)), rng.choice([None, rng.uniform(0, 1.0)]))
    print("300 parents killed: 0 processes after 2 s, 0 segments, 0 files")

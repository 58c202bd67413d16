"""A parent that is killed takes its workers along, and leaves no memory."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess

import pytest

from tests.interpreters import interpreter

# What the workers do when their parent dies: Python code, and C code that holds the GIL.
LOADS = {
    "python": "while True: pass",
    "gil": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    "sleep": "import time; time.sleep(60)",
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


def segments() -> set[str]:
    """Names of ours in /dev/shm."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("shmpar")}


def kill_a_parent(load: str, moment: float | None) -> None:
    """Start a parent; kill it at work (None), or `moment` seconds after it began to start."""
    before = segments()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # The context manager asserts that nothing it started outlives it by two seconds.
    with interpreter(PARENT, LOADS[load], **pipes) as parent:
        if moment is None:
            assert parent.stderr.read(2) == b"ww", "both workers are at work"
        else:
            select.select([], [], [], moment)
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(10) == -signal.SIGKILL
    reap = "import shmpar\nwith shmpar.Pool(1): pass"
    with interpreter(reap) as next_one:
        assert next_one.wait(60) == 0
    assert segments() <= before, "the next pool removes what the dead had named"


@pytest.mark.parametrize("load", LOADS)
def test_workers_end_with_a_parent_that_is_killed_at_work(load: str) -> None:
    """Within two seconds, also in the middle of C code that holds the GIL."""
    kill_a_parent(load, None)


def test_workers_end_with_a_parent_that_is_killed_at_any_moment(stress_seed: int) -> None:
    """Importing, starting, running."""
    rng = random.Random(stress_seed)
    for _ in range(3):
        kill_a_parent(rng.choice(list(LOADS)), rng.uniform(0, 0.8))


@pytest.mark.stress
def test_50_parents_killed_at_random_moments(stress_seed: int) -> None:
    """After two seconds no process, no segment."""
    rng = random.Random(stress_seed)
    for _ in range(50):
        kill_a_parent(rng.choice(list(LOADS)), rng.choice([None, rng.uniform(0, 1.0)]))
    print("50 parents killed: 0 processes after 2 s, 0 segments")

"""Ctrl-C at any moment: the call ends, the next one is right, and nothing is left."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.interpreters import interpreter

BOUND = 5.0  # seconds from Ctrl-C to its KeyboardInterrupt, on a machine with other work
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

# Each waits for its interrupt, tells of it, and uses the same pool again.
CALLS = {
    "short chunks": "pool.map_blocks(lambda b: time.sleep(0.001) or said(b), image, chunks=2)",
    "long chunks": "pool.map_blocks(lambda b: time.sleep(said(b).size), image, chunks=100)",
    "C code": "pool.map_blocks(lambda b: said(b).size and re.match('(a+)+$', A_LOT), image)",
    "a reduction": "pool.block_reduce(lambda b: time.sleep(said(b).size), image, chunks=50)",
}
SCRIPT = """
import os, re, sys, time
A_LOT = 'a' * 40 + 'b'
import numpy as np
import shmpar

image = np.arange(40_000.0).reshape(200, 200)

def said(block):
    os.write(1, b"at work\\n")  # whole, also beside another worker's
    return block

with shmpar.Pool(2, engine=sys.argv[2]) as pool:
    try:
        eval(sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(pool.map_blocks(np.negative, image).sum(), flush=True)
    sys.exit(7)
"""


def lines_from(process: subprocess.Popen[str]) -> Iterator[str]:
    """Lines of its standard output, but for the many of its workers."""
    for line in process.stdout:
        if line != "at work\n":
            yield line.rstrip("\n")


@contextmanager
def script(source: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script that must end with status 7, leave no process and say no word of complaint."""
    with interpreter(source, *args, text=True, **PIPES) as process:
        yield process
        assert process.wait(30) == 7, process.stderr.read()
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("call", "engine"),
    [
        *((call, "processes") for call in CALLS),
        ("short chunks", "threads"),
        ("short chunks", "serial"),
        ("long chunks", "serial"),
    ],
)
def test_an_interrupt_ends_the_call_and_the_pool_goes_on(call: str, engine: str) -> None:
    """KeyboardInterrupt within a moment; the next call of the same pool is right."""
    with script(SCRIPT, CALLS[call], engine) as process:
        assert process.stdout.readline() == "at work\n"
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        lines = lines_from(process)
        assert next(lines) == "interrupted"
        assert time.monotonic() - pressed < BOUND
        assert next(lines) == str(-sum(range(40_000)) + 0.0)


def test_an_interrupt_while_workers_start() -> None:
    """The run has begun, and no worker is up yet."""
    source = """
        import sys
        import numpy as np, shmpar
        pool = shmpar.Pool(2, initializer=lambda: sys.stdin.read())
        try:
            print("at work", flush=True)
            pool.map_blocks(np.negative, np.arange(4))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        with shmpar.Pool(2) as other:
            print(other.map_blocks(np.negative, np.arange(4)).tolist(), flush=True)
        pool.shutdown()
        sys.exit(7)
    """
    with script(source) as process:
        assert process.stdout.readline() == "at work\n"
        os.killpg(process.pid, signal.SIGINT)
        assert list(lines_from(process)) == ["interrupted", "[0, -1, -2, -3]"]


def test_an_interrupt_of_a_script_that_does_not_catch_it() -> None:
    """It ends as any script does, by the signal, with one traceback, and leaves nothing."""
    source = """
        import os, time
        import shmpar
        with shmpar.Pool(2) as pool:
            pool.parallel_map(lambda n: os.write(1, b"at work\\n") and time.sleep(60), range(9))
    """
    with interpreter(source, text=True, **PIPES) as process:
        assert process.stdout.readline() == "at work\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(BOUND) == -signal.SIGINT
        error = process.stderr.read()
        assert error.count("Traceback") == 1
        assert error.endswith("KeyboardInterrupt\n")


# At random moments

CAMPAIGN = '''
import os, select, signal, sys
import numpy as np
import shmpar

image = np.arange(10_000.0).reshape(100, 100)
pressed, wakeup = os.pipe()
os.set_blocking(pressed, False)
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


def square(block):
    return block * block


def runs(pool):
    for _ in range(3):
        pool.map_blocks(square, image, chunks=10)
        pool.block_reduce(np.sum, image, chunks=25)


def a_new_pool():
    """Creation, the start of its workers, runs, close."""
    with shmpar.Pool(2) as pool:
        runs(pool)


def warm_runs():
    for _ in range(10):
        runs(kept)


def background():
    """Runs that nobody waits for, then for all."""
    several = [kept.map_blocks(square, image, chunks=10, wait=False) for _ in range(9)]
    for run in several:
        run.result()


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return len(file.read().split())


def check():
    got = kept.map_blocks(square, image, chunks=10)
    assert (got == image * image).all(), "a wrong result"
    assert kept.parallel_map(abs, range(5)).tolist() == [0, 1, 2, 3, 4]


kept = shmpar.Pool(2)
check()
for line in sys.stdin:
    kind, presses = line.split()
    try:
        print("began", flush=True)
        globals()[kind]()
        select.select([pressed], [], [])
    except KeyboardInterrupt:
        pass
    done = False
    while not done:  # the second of two may come as late as here
        try:
            while len(os.read(pressed, 9)) == 9: pass
        except (BlockingIOError, KeyboardInterrupt):
            pass
        try:
            print("ended", flush=True)
            sys.stdin.readline()
            done = True
        except KeyboardInterrupt:
            pass
    check()
    print(children(), flush=True)
kept.shutdown()
sys.exit(7)
'''
KINDS = {"a_new_pool": 0.5, "warm_runs": 0.05, "background": 0.05}  # and about how long they take


def interrupt_at_random(rng: random.Random, times: int, presses: int = 1) -> float:
    """Interrupt one process so many times; return the longest time that it took to react."""
    longest = 0.0
    with script(CAMPAIGN) as process:
        for number in range(times):
            kind = rng.choice(list(KINDS))
            tell(process, f"{kind} {presses}")
            assert read(process) == "began"
            pressed = 0.0
            for _ in range(presses):
                select.select([], [], [], rng.uniform(0, KINDS[kind]))
                pressed = time.monotonic()
                os.killpg(process.pid, signal.SIGINT)
            said = [read(process)]
            longest = max(longest, time.monotonic() - pressed)
            tell(process, "")
            while (line := read(process)) == "ended":
                said.append(line)
            assert line == "2", f"{line} workers after {kind}, round {number}"
        process.stdin.close()
    return longest


def tell(process: Any, line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def read(process: Any) -> str:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line.rstrip("\n")

"""Ctrl-C at any moment: the call ends, the next one is right, and nothing is left."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import interpreter
from tests.pools import wait_for_workers

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


def test_an_interrupt_of_the_bar(nothing_left: None) -> None:
    """What a progress callback of the user does may take long."""
    told = []

    def slow(*numbers: int) -> None:
        if not told:
            told.append(numbers)
            os.kill(os.getpid(), signal.SIGINT)
            select.select([], [], [], 60)

    array = np.arange(100.0)
    with shmpar.Pool(1) as pool:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pool.map_blocks(lambda b: time.sleep(0.01) or b, array, chunks=1, progress=slow)
        assert time.monotonic() - began < BOUND
        assert pool.map_blocks(np.negative, array)[-1] == -99


def test_a_child_of_the_users_has_his_handler(nothing_left: None) -> None:
    """Also one that another thread has forked while a call holds interrupts back."""
    found = []

    def forks() -> None:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
            found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with shmpar.Pool(1) as pool:
        forker = threading.Thread(target=forks)
        forker.start()
        while forker.is_alive():
            pool.map_blocks(np.negative, np.arange(100.0), chunks=10)
    assert found == [0] * 20


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
import fcntl, gc, os, select, signal, sys, termios, time
import numpy as np
import shmpar

large = np.ones((1000, 1000))
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


def several():
    """Runs and calls that nobody waits for yet, some of them cancelled."""
    runs = [kept.map_blocks(slow, image, chunks=10, wait=False) for _ in range(4)]
    calls = [kept.submit(np.full, 20_000, number) for number in range(8)]
    runs[1].cancel()
    for one in runs[:1] + runs[2:] + calls:
        one.result()


def slow(block):
    time.sleep(0.0005)
    return block


def arrays():
    """Copies, plain and named, inputs that are copied in, and outputs."""
    for _ in range(3):
        made = [kept.array(large), shmpar.array(large), kept.full((500, 500), 3.0)]
        made[1].name, made[2].name
        kept.map_blocks(np.negative, large)


def calls():
    for _ in range(5):
        assert kept.submit(abs, -1).result() == 1
        assert list(kept.map(abs, range(-9, 0), chunksize=2))[0] == 9


def closing():
    """With work in progress, by cancelling it and by waiting for it."""
    for cancel in (True, False):
        other = shmpar.Pool(2)
        try:
            other.map_blocks(slow, image, chunks=10, wait=False)
            [other.submit(abs, -1) for _ in range(9)]
        finally:
            other.shutdown(cancel_futures=cancel)


def wait_for(presses):
    """Wait until as many signals have come; two may have come as one."""
    until = time.monotonic() + 2
    while count() < presses and (presses == 1 or time.monotonic() < until):
        select.select([pressed][count():], [], [], 0.01)


def count():
    """Signals that have come."""
    return int.from_bytes(fcntl.ioctl(pressed, termios.FIONREAD, bytes(4)), sys.byteorder)


def left():
    """Processes, descriptors, and kilobytes of shared memory that are touched and mapped."""
    gc.collect()
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = len(file.read().split())
    with open("/proc/self/status") as file:
        shared = next(line.split()[1] for line in file if line.startswith("RssShmem"))
    return children, len(os.listdir("/proc/self/fd")), shared


def check():
    got = kept.map_blocks(square, image, chunks=10)
    assert (got == image * image).all(), "a wrong result"
    assert kept.parallel_map(abs, range(5)).tolist() == [0, 1, 2, 3, 4]


def swallow(unraisable):
    """Count complaints of finalizers.

    Of an interrupt that came in one, which Python drops, whosever it is, and of a segment that was
    interrupted before it was whole.
    """
    half_made = unraisable.exc_type is AttributeError and "Segment" in str(unraisable.exc_value)
    if unraisable.exc_type is KeyboardInterrupt or half_made:
        swallowed.append(1)
    else:
        sys.__unraisablehook__(unraisable)


swallowed = []
sys.unraisablehook = swallow
kept = shmpar.Pool(2)
check()
for line in sys.stdin:
    kind, presses = line.split()
    try:
        print("began", flush=True)
        globals()[kind]()
        wait_for(1)
    except KeyboardInterrupt:
        pass
    settled = False
    while not settled:
        try:
            print("ended", flush=True)
            wait_for(int(presses))  # the second of two may come as late as here
            settled = True
        except KeyboardInterrupt:
            pass
    os.read(pressed, 99)
    check()
    print("left", len(swallowed), *left(), flush=True)
kept.shutdown()
sys.exit(7)
'''
KINDS = {  # and about how long they take
    "a_new_pool": 0.5,
    "warm_runs": 0.05,
    "background": 0.05,
    "several": 0.1,
    "arrays": 0.1,
    "calls": 0.02,
    "closing": 0.8,
}


def test_a_process_is_interrupted_again_and_again(stress_seed: int) -> None:
    """A few of the campaign below, in the default suite."""
    interrupt_at_random(random.Random(stress_seed), 10)


@pytest.mark.parametrize("how", ["map", "submit"])
def test_one_while_a_worker_is_started_loses_none(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool thread goes on with the start; see ``nothing_left``."""
    calls = {
        "map": lambda: pool.map_blocks(np.negative, np.arange(2.0)).tolist(),
        "submit": lambda: pool.submit(np.negative, np.arange(2.0)).result(60).tolist(),
    }
    with shmpar.Pool(1) as pool:
        wait_for_workers(pool)
        launcher, ended = pool._loop.engine._launcher, pool._loop.engine.pids()
        start = launcher.start

        def interrupted(number: int) -> Any:
            launched = start(number)
            signal.raise_signal(signal.SIGINT)
            return launched

        os.kill(ended[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while pool._loop.engine.pids() and time.monotonic() < deadline:
            pool._loop.engine.wake()
        monkeypatch.setattr(launcher, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls[how]()
        monkeypatch.undo()
        assert calls[how]() == [0, -1]


@pytest.mark.stress
@pytest.mark.parametrize(("times", "presses"), [(300, 1), (100, 2)])
def test_a_process_is_interrupted_300_times(stress_seed: int, times: int, presses: int) -> None:
    """In whatever it does: it reacts within a second, the next call is right, nothing is kept."""
    seconds = interrupt_at_random(random.Random(stress_seed), times, presses)
    print(
        f"{times} times {presses} interrupts: KeyboardInterrupt after {seconds[times // 2]:.3f} s "
        f"(median), {seconds[-1]:.3f} s (longest); the next call right each time, no process left"
    )
    assert seconds[-1] < 1


def interrupt_at_random(rng: random.Random, times: int, presses: int = 1) -> list[float]:
    """Interrupt one process so many times; return how long it took to react, in order."""
    seconds: list[float] = []
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
            ended = pressed
            while (line := read(process)) == "ended":
                ended = time.monotonic()
            seconds.append(ended - pressed)
            dropped, workers, *more = map(int, line.removeprefix("left").split())
            assert workers == 2, f"{line} workers after {kind}, round {number}"
            descriptors, shared = more
            assert descriptors < 100, f"after {kind}, round {number}"
            assert shared < 7_000, f"{shared} KB of shared memory after {kind}, round {number}"
        process.stdin.close()
    print(f"{dropped} of {times} interrupts ended in a complaint of a finalizer")
    assert dropped <= 1 + times // 50
    return sorted(seconds)


def tell(process: Any, line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def read(process: Any) -> str:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line.rstrip("\n")

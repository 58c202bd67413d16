"""Ctrl-C at any moment ends the call; the next call is right, and nothing is left."""

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

BOUND = 20.0  # seconds from Ctrl-C to KeyboardInterrupt, on a busy machine
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

# Calls that run until they are interrupted.
CALLS = {
    "short chunks": "pool.map_blocks(lambda b: time.sleep(0.001) or report(b), image, chunks=2)",
    "long chunks": "pool.map_blocks(lambda b: time.sleep(report(b).size), image, chunks=100)",
    "C code": "pool.map_blocks(lambda b: report(b).size and re.match('(a+)+$', A_LOT), image)",
    "a reduction": "pool.block_reduce(lambda b: time.sleep(report(b).size), image, chunks=50)",
}
SCRIPT = """
import os, re, sys, time
A_LOT = 'a' * 40 + 'b'
import numpy as np
import shmpar

image = np.arange(40_000.0).reshape(200, 200)

def report(block):
    os.write(1, b"at work\\n")  # a single write, since workers share the pipe
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
    """Yield the lines of standard output, except those of workers."""
    for line in process.stdout:
        if line != "at work\n":
            yield line.rstrip("\n")


@contextmanager
def script(source: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script that must exit with status 7, print no error and leave no process."""
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
    """The call raises KeyboardInterrupt soon, and the next call of the pool is right."""
    with script(SCRIPT, CALLS[call], engine) as process:
        assert process.stdout.readline() == "at work\n"
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        lines = lines_from(process)
        assert next(lines) == "interrupted"
        assert time.monotonic() - pressed < BOUND
        assert next(lines) == str(-sum(range(40_000)) + 0.0)


def test_an_interrupt_of_a_progress_callback(nothing_left: None) -> None:
    """An interrupt ends a callback that takes long, and the call."""
    calls = []

    def slow(*numbers: int) -> None:
        if not calls:
            calls.append(numbers)
            os.kill(os.getpid(), signal.SIGINT)
            select.select([], [], [], 60)

    array = np.arange(100.0)
    with shmpar.Pool(1) as pool:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pool.map_blocks(lambda b: time.sleep(0.01) or b, array, chunks=1, progress=slow)
        assert time.monotonic() - began < BOUND
        assert pool.map_blocks(np.negative, array)[-1] == -99


def test_a_forked_child_has_the_users_signal_handler(nothing_left: None) -> None:
    """A child that another thread forks during a call keeps the handler of the user."""
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
    """An interrupt ends a run whose workers are still starting."""
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
    """The signal ends the script with one traceback, and no process is left."""
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
    """Create a pool, start its workers, make runs, and close it."""
    with shmpar.Pool(2) as pool:
        runs(pool)


def warm_runs():
    for _ in range(10):
        runs(shared_pool)


def background():
    """Start runs without waiting, then wait for all of them."""
    started = [shared_pool.map_blocks(square, image, chunks=10, wait=False) for _ in range(9)]
    for run in started:
        run.result()


def mixed():
    """Start runs and calls, cancel a run, and wait for the others."""
    runs = [shared_pool.map_blocks(slow, image, chunks=10, wait=False) for _ in range(4)]
    calls = [shared_pool.submit(np.full, 20_000, number) for number in range(8)]
    runs[1].cancel()
    for one in runs[:1] + runs[2:] + calls:
        one.result()


def slow(block):
    time.sleep(0.0005)
    return block


def arrays():
    """Make arrays, some with names, and a call with an input that is copied."""
    for _ in range(3):
        made = [shared_pool.array(large), shmpar.array(large), shared_pool.full((500, 500), 3.0)]
        made[1].name, made[2].name
        shared_pool.map_blocks(np.negative, large)


def calls():
    for _ in range(5):
        assert shared_pool.submit(abs, -1).result() == 1
        assert list(shared_pool.map(abs, range(-9, 0), chunksize=2))[0] == 9


def closing():
    """Close a pool with work in progress, and cancel the work or wait for it."""
    for cancel in (True, False):
        other = shmpar.Pool(2)
        try:
            other.map_blocks(slow, image, chunks=10, wait=False)
            [other.submit(abs, -1) for _ in range(9)]
        finally:
            other.shutdown(cancel_futures=cancel)


def wait_for(presses):
    """Wait until this many signals have arrived; the kernel may merge two into one."""
    until = time.monotonic() + 2
    while count() < presses and (presses == 1 or time.monotonic() < until):
        select.select([pressed][count():], [], [], 0.01)


def count():
    """Return the number of signals that have arrived."""
    return int.from_bytes(fcntl.ioctl(pressed, termios.FIONREAD, bytes(4)), sys.byteorder)


def resources():
    """Return the number of processes and descriptors, and the KiB of mapped shared memory."""
    gc.collect()
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = len(file.read().split())
    with open("/proc/self/status") as file:
        shared = next(line.split()[1] for line in file if line.startswith("RssShmem"))
    return children, len(os.listdir("/proc/self/fd")), shared


def check():
    got = shared_pool.map_blocks(square, image, chunks=10)
    assert (got == image * image).all(), "a wrong result"
    assert shared_pool.parallel_map(abs, range(5)) == [0, 1, 2, 3, 4]


def count_dropped(unraisable):
    """Count the errors in finalizers that an interrupt may cause.

    Python drops an interrupt that arrives in a finalizer. A segment whose creation is interrupted
    has a finalizer that raises AttributeError.
    """
    half_made = unraisable.exc_type is AttributeError and "Segment" in str(unraisable.exc_value)
    if unraisable.exc_type is KeyboardInterrupt or half_made:
        dropped.append(1)
    else:
        sys.__unraisablehook__(unraisable)


dropped = []
sys.unraisablehook = count_dropped
shared_pool = shmpar.Pool(2)
check()
for line in sys.stdin:
    kind, presses = line.split()
    try:
        print("started", flush=True)
        globals()[kind]()
        wait_for(1)
    except KeyboardInterrupt:
        pass
    settled = False
    while not settled:
        try:
            print("finished", flush=True)
            wait_for(int(presses))  # the second of two signals may arrive as late as here
            settled = True
        except KeyboardInterrupt:
            pass
    os.read(pressed, 99)
    check()
    print("resources", len(dropped), *resources(), flush=True)
shared_pool.shutdown()
sys.exit(7)
'''
KINDS = {  # kinds of work, and their usual duration in seconds
    "a_new_pool": 0.5,
    "warm_runs": 0.05,
    "background": 0.05,
    "mixed": 0.1,
    "arrays": 0.1,
    "calls": 0.02,
    "closing": 0.8,
}


def test_a_process_is_interrupted_ten_times(stress_seed: int) -> None:
    """The default suite makes a few interrupts of the campaign below."""
    interrupt_at_random(random.Random(stress_seed), 10)


@pytest.mark.parametrize("how", ["map", "submit"])
def test_an_interrupt_while_a_worker_is_started_leaks_no_process(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool thread completes the start; the fixture ``nothing_left`` checks for leaks."""
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
    """The process reacts within a second at any moment, and the next call is right."""
    seconds = interrupt_at_random(random.Random(stress_seed), times, presses)
    print(
        f"{times} times {presses} interrupts: KeyboardInterrupt after {seconds[times // 2]:.3f} s "
        f"(median), {seconds[-1]:.3f} s (longest); the next call right each time, no process left"
    )
    assert seconds[-1] < 1


def interrupt_at_random(rng: random.Random, times: int, presses: int = 1) -> list[float]:
    """Interrupt a process this many times; return the sorted reaction times in seconds."""
    seconds: list[float] = []
    with script(CAMPAIGN) as process:
        for number in range(times):
            kind = rng.choice(list(KINDS))
            tell(process, f"{kind} {presses}")
            assert read(process) == "started"
            pressed = 0.0
            for _ in range(presses):
                select.select([], [], [], rng.uniform(0, KINDS[kind]))
                pressed = time.monotonic()
                os.killpg(process.pid, signal.SIGINT)
            ended = pressed
            while (line := read(process)) == "finished":
                ended = time.monotonic()
            seconds.append(ended - pressed)
            dropped, workers, *more = map(int, line.removeprefix("resources").split())
            assert workers == 2, f"{line} workers after {kind}, round {number}"
            descriptors, shared = more
            assert descriptors < 100, f"after {kind}, round {number}"
            assert shared < 7_000, f"{shared} KB of shared memory after {kind}, round {number}"
        process.stdin.close()
    print(f"{dropped} of {times} interrupts caused an error in a finalizer")
    assert dropped <= 1 + times // 50
    return sorted(seconds)


def tell(process: Any, line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def read(process: Any) -> str:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line.rstrip("\n")

"""Interrupts that end `Pool(...)` before its workers have been started leave no worker."""

from __future__ import annotations

import pytest

from tests.interpreters import run_python
from tests.pools import ENGINES

SOURCE = """
import contextlib, os, signal, sys, threading, time
import shmpar
from shmpar.engines import local, processes

(engine,) = sys.argv[1:]
kinds = local.SerialEngine, local.ThreadsEngine, processes.ProcessesEngine
starts = [kind.__init__.__code__ for kind in kinds]
left, held, pause = threading.Event(), [], threading.Event()

def interrupt(number, frame):
    while frame is not None and frame.f_code is not shmpar.Pool.__init__.__code__:
        frame = frame.f_back
    if frame is not None:
        raise KeyboardInterrupt

def hold(frame, event, argument):
    # Interrupt the main thread until it has left the constructor, then let the worker start.
    if event == "call" and frame.f_code in starts and not held:
        held.append(event)
        while not left.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            left.wait(0.01)

def remains():
    names = [one.name for one in threading.enumerate() if one.name.startswith("shmpar")]
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            names += file.read().split()
    return names

signal.signal(signal.SIGINT, interrupt)
threading.setprofile(hold)  # in the threads that start from now on
try:
    shmpar.Pool(1, engine=engine)
except KeyboardInterrupt:
    left.set()
assert held and left.is_set()
deadline = time.monotonic() + 20
while remains():
    assert time.monotonic() < deadline, remains()
    pause.wait(0.005)
with shmpar.Pool(1, engine=engine) as pool:
    assert pool.submit(abs, -1).result() == 1
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_that_start_after_the_constructor_was_left_are_ended(engine: str) -> None:
    """The pool's thread waits for an engine that another thread still makes, and ends it."""
    done = run_python(SOURCE, engine, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr

"""An interrupt at each place of a call where Python looks for signals, and a second one soon after.

Python handles a signal when a function begins, and after a call. A profile function raises
KeyboardInterrupt at these places of the main thread, at one of them after the other.
"""

from __future__ import annotations

import textwrap

import pytest

from tests.interpreters import run_python
from tests.pools import ENGINES

BOUND = 60.0  # seconds after which a script counts as a hang

SOURCE = f"""
import contextlib, faulthandler, gc, os, sys, threading, time, warnings
import numpy as np
import shmpar

engine, again, cases = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
warnings.simplefilter("ignore", ResourceWarning)
sys.unraisablehook = lambda *_: None  # Python drops an interrupt that comes in a finalizer
PACKAGE = os.path.dirname(shmpar.__file__)
array = np.arange(40.0)


class Interrupts:
    # Raise KeyboardInterrupt at the place number `at`, and once more, `again` places later.

    def __init__(self, at, again):
        self.left, self.again, self.places = at, again, []

    def profile(self, frame, event, arg):
        code = frame.f_code
        if code.co_filename == "<string>" or event not in ("call", "return", "c_return"):
            return
        if event == "return" and not code.co_filename.startswith(PACKAGE):
            return
        self.left -= 1
        if self.left < 0:
            file = os.path.basename(code.co_filename)
            self.places.append(f"{{file}}:{{frame.f_lineno}} {{event}}")
            if self.again:
                # Python drops a profile function that raises; the next call sets it again.
                self.left, self.again = self.again, 0
                sys.settrace(self.resume)
            raise KeyboardInterrupt

    def resume(self, frame, event, arg):
        sys.settrace(None)
        sys.setprofile(self.profile)

    def __enter__(self):
        sys.setprofile(self.profile)

    def __exit__(self, *_):
        sys.setprofile(None)
        sys.settrace(None)


def negate(block):
    return -block

def verb():
    pool.map_blocks(negate, array, chunks=10)

def progress():
    pool.map_blocks(negate, array, chunks=10, progress=lambda *_: None)

def calls():
    pool.submit(abs, -1).result()
    list(pool.map(abs, [-1, -2]))

def background():
    run = pool.map_blocks(negate, array, chunks=10, wait=False)
    list(run.completed())
    run.result()

def cancel():
    pool.submit(abs, -1).cancel()
    pool.map_blocks(negate, array, chunks=10, wait=False).cancel()

def own_pool():
    with shmpar.Pool(1, engine=engine) as other:
        other.submit(abs, -1).result()

def closing():
    other = shmpar.Pool(1, engine=engine)
    try:
        other.submit(abs, -1)
    finally:
        other.shutdown(wait=False)

def check(places):
    began = time.monotonic()
    assert not pool.closed, places
    assert pool.map_blocks(negate, array, chunks=10)[-1] == -39, places
    assert pool.submit(abs, -1).result(30) == 1, places
    assert time.monotonic() - began < 30, places

def threads():
    gc.collect()
    named = [one.name for one in threading.enumerate()]
    return sorted(name for name in named if name.startswith("shmpar") and "callback" not in name)

def children():
    found = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{{task}}/children") as file:
            found += len(file.read().split())
    return found

def wait_until(condition, places):
    deadline, pause = time.monotonic() + 20, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, (threads(), children(), places)
        pause.wait(0.005)


for argument in cases:
    case, step = argument.split("=")
    faulthandler.dump_traceback_later({BOUND}, exit=True)
    pool = shmpar.Pool(1, engine=engine)
    check([case])
    before, workers, at, all_places = threads(), children(), 0, [case]
    while True:
        interrupts = Interrupts(at, again)
        try:
            with interrupts:
                globals()[case]()
        except KeyboardInterrupt:
            pass
        places = [case, *interrupts.places]
        check(places)
        all_places += interrupts.places
        if case in ("own_pool", "closing"):
            wait_until(lambda: threads() == before and children() == workers, places)
        else:
            assert threads() == before, (threads(), places)
        if not interrupts.places:
            break
        at += int(step)
    pool.shutdown()
    wait_until(lambda: not threads() and not children(), [case, *all_places[-9:]])
    assert len(all_places) > 3, all_places
"""
# The number of places from an interrupt to the next. Why more: the last two start a pool each time.
STEPS = {"verb": 59, "progress": 59, "calls": 59, "background": 59, "cancel": 59}
STEPS |= {"own_pool": 177, "closing": 88}


def _run(engine: str, again: int, steps: dict[str, int]) -> None:
    cases = [f"{case}={step}" for case, step in steps.items()]
    done = run_python(textwrap.dedent(SOURCE), engine, str(again), *cases, timeout=2 * BOUND)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# Why stress: the second interrupt comes after the first, which is the same in both cases.
@pytest.mark.parametrize(
    ("engine", "again"),
    [
        *((engine, 3) for engine in ENGINES),
        *(pytest.param(engine, 0, marks=pytest.mark.stress) for engine in ENGINES),
    ],
)
def test_an_interrupt_at_some_places(engine: str, again: int) -> None:
    """After an interrupt at some places of any call the pool is open, right, and has one thread."""
    _run(engine, again, STEPS)


@pytest.mark.stress
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("again", [0, 1, 2, 5, 8, 13, 21])
def test_an_interrupt_at_each_place(engine: str, case: str, again: int) -> None:
    """After an interrupt at any place, and a second one later, the pool is as before."""
    _run(engine, again, {case: 1})

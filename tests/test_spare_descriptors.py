"""A few spare descriptors, from none on, in the parent or in a worker, at each kind of call."""

from __future__ import annotations

import sys

import pytest

from tests.interpreters import run_python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in /proc")

PROGRAM = """
import gc, os, resource, sys, tempfile
import numpy as np
import shmpar

def fill(spare, limit=120):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    drop(held[:spare])
    return held[spare:]

def drop(held):
    for fd in held:
        os.close(fd)

def fill_worker(spare):
    sys.held = fill(spare)
    return os.getpid()

def drop_worker():
    drop(sys.held)

folder = tempfile.mkdtemp()
ballast, x, y = os.urandom(200_000), np.arange(100.0), np.arange(300_000.0)

def arrays(n):
    return [np.full(20_000, n) for _ in range(3)]

def dies(n):
    if n == 2 and os.path.exists(folder + "/dies"):
        os.rmdir(folder + "/dies")
        os._exit(3)
    return n

def arm():
    if not os.path.exists(folder + "/dies"):
        os.mkdir(folder + "/dies")  # Why: it needs no descriptor

CALLS = {
    "verb": (lambda: pool.map_blocks(np.negative, x, chunks=10), lambda r: (r == -x).all()),
    "large": (lambda: pool.map_blocks(np.negative, y, chunks=30_000), lambda r: (r == -y).all()),
    "large argument": (
        lambda: pool.parallel_map(lambda n: len(ballast) + n, range(2)),
        lambda r: r == [200_000, 200_001],
    ),
    "objects": (
        lambda: pool.parallel_map(arrays, range(3), dtype=object),
        lambda r: [int(one[2][-1]) for one in r] == [0, 1, 2],
    ),
    "out": (
        lambda: pool.map_blocks(np.negative, x, chunks=10, out=folder + "/out.npy"),
        lambda r: (r == -x).all(),
    ),
    "no wait": (
        lambda: pool.parallel_map(abs, range(-3, 0), wait=False).result(60),
        lambda r: r == [3, 2, 1],
    ),
    "submit": (lambda: pool.submit(abs, -3).result(60), lambda r: r == 3),
    "submit large": (lambda: pool.submit(len, ballast).result(60), lambda r: r == 200_000),
    "large result": (
        lambda: pool.submit(bytes, 300_000).result(60),
        lambda r: r == bytes(300_000),
    ),
    "array results": (lambda: pool.submit(arrays, 5).result(60), lambda r: r[2][-1] == 5),
    "map": (
        lambda: list(pool.map(len, [ballast, "abc"], timeout=60)),
        lambda r: r == [200_000, 3],
    ),
    "death": (
        lambda: pool.parallel_map(dies, range(4)),
        lambda r: r == [0, 1, 2, 3],
    ),
    "death in submit": (lambda: pool.submit(dies, 2).result(60), lambda r: r == 2),
}
"""

ERROR = """
def outcome(call, right):
    arm()
    try:
        result = call()
    except (OSError, shmpar.ShmparError) as error:
        causes = [error, error.__cause__]
        assert any("ulimit -Hn" in str(one) for one in causes), causes
        return "error"
    assert right(result), result
    return "right"

"""

PARENT = """
shown = []
with shmpar.Pool(2, engine=ENGINE, retries=2) as pool:
    for name, (call, right) in CALLS.items():
        if "death" in name and ENGINE != "processes":
            continue
        assert outcome(call, right) == "right", name
        call = right = None
    for name in CALLS:
        if "death" in name and ENGINE != "processes":
            continue
        for spare in range(0, 8, STEP):
            held = fill(spare)
            shown.append(outcome(*CALLS[name]))
            drop(held)
            assert outcome(*CALLS[name]) == "right", (name, spare)
del pool
gc.collect()
print(set(shown) == {"right", "error"}, len(os.listdir("/proc/self/fd")))
"""

WORKER = """
with shmpar.Pool(1, retries=2) as pool:
    for name in CALLS:
        for spare in range(0, 7, STEP):
            pid = pool.submit(fill_worker, spare).result(60)
            outcome(*CALLS[name])
            if pool.submit(os.getpid).result(60) == pid:
                pool.submit(drop_worker).result(60)
            assert outcome(*CALLS[name]) == "right", (name, spare)
del pool
gc.collect()
print(len(os.listdir("/proc/self/fd")))
"""

CREATION = """
def make():
    with shmpar.Pool(2, engine=ENGINE) as pool:
        return pool.parallel_map(abs, range(-3, 0))

assert make() == [3, 2, 1]
gc.collect()
before, shown = os.listdir("/proc/self/fd"), []
for spare in [*range(0, 29, 2 * STEP if STEP > 1 else 1), 29]:
    held = fill(spare)
    shown.append(outcome(make, lambda r: r == [3, 2, 1]))
    drop(held)
    gc.collect()
    assert os.listdir("/proc/self/fd") == before, spare
    assert make() == [3, 2, 1]
print(shown[0], shown[-1])
"""


# Why steps: with processes each number of spare descriptors takes a while.
STEPS = [4, pytest.param(1, marks=pytest.mark.stress)]
CASES = pytest.mark.parametrize(
    ("engine", "step"),
    [
        ("processes", 4),
        pytest.param("processes", 1, marks=pytest.mark.stress),
        ("threads", 1),
        ("serial", 1),
    ],
)


def run(source: str, engine: str, step: int) -> tuple[str, str]:
    """Run a program; return its output and its errors."""
    program = "\n".join([PROGRAM, f"ENGINE = {engine!r}; STEP = {step}", ERROR, source])
    done = run_python(program, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@CASES
def test_a_parent_without_descriptors_fails_the_call_alone(engine: str, step: int) -> None:
    """The error names the limit, and the pool works when descriptors are free again."""
    out, errors = run(PARENT, engine, step)
    found, descriptors = out.split()
    assert (found, errors) == ("True", "")
    assert int(descriptors) == 4, "descriptors are left"


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_without_descriptors_fails_the_call_or_is_replaced(step: int) -> None:
    """A call gives the right result or an error that names the limit; the next call is right."""
    out, _ = run(WORKER, "processes", step)
    assert int(out) == 4, "descriptors are left"


@CASES
def test_a_pool_that_lacks_descriptors_is_an_error_and_leaves_nothing(
    engine: str, step: int
) -> None:
    """Each step of the start may be the last that finds a descriptor."""
    assert run(CREATION, engine, step) == ("error right\n", "")

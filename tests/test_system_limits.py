"""Limits on processes and threads, and a system without /proc: an error, or another way."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.interpreters import output_after_setup

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="another user and another /proc need root on Linux",
)

# Why another user: root has no limit on its processes. It keeps the right to read all files.
CAPABILITIES = "-all,+dac_override,+dac_read_search"


def as_another_user() -> str:
    """Return the shell of a user without other processes."""
    user = random.SystemRandom().randrange(1 << 20, 1 << 30)
    sets = " ".join(
        f"--{one}={CAPABILITIES}" for one in ("inh-caps", "ambient-caps", "bounding-set")
    )
    return f"setpriv --reuid {user} --regid {user} --clear-groups {sets} sh"


LIMIT = """
import os, resource, threading
import shmpar

def limit(soft=-1):
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (hard if soft < 0 else soft, hard))

def make():
    with shmpar.Pool(2, engine=ENGINE) as pool:
        return pool.parallel_map(abs, range(-3, 0))

def told(call):
    try:
        return call()
    except (OSError, RuntimeError) as error:
        words = str(error)
        return "ulimit -u" in words or "can't start new thread" in words or words

def left():
    return threading.active_count(), len(os.listdir("/proc/self/fd"))

"""


def check(source: str, expected: str, engine: str = "processes") -> None:
    """Run a program as a user without other processes, and compare its output."""
    shell = as_another_user().split()
    assert output_after_setup(shell, "true", f"ENGINE = {engine!r}\n{LIMIT}{source}") == expected


@pytest.mark.parametrize("engine", ["processes", "threads", "serial"])
def test_a_pool_without_processes_or_threads_is_an_error_and_leaves_nothing(engine: str) -> None:
    """Each start of a process or thread may be the last; afterwards a pool works."""
    check(
        """
assert make() == [3, 2, 1]
before, shown = left(), []
for most in range(1, 8):
    limit(most)
    shown.append(told(make))
    assert left() == before, (most, left(), before)
limit()
assert make() == [3, 2, 1]
print(shown[0], shown[-1], all(one in (True, [3, 2, 1]) for one in shown))
""",
        "True [3, 2, 1] True\n",
        engine,
    )


def test_a_worker_that_cannot_be_replaced_is_an_error() -> None:
    """The call that lost its worker fails in time, and the next one has workers again."""
    check(
        """
def dies(n):
    if n == 2:
        os._exit(3)
    return n

with shmpar.Pool(2) as pool:
    pool.parallel_map(abs, range(3))
    for call in (
        lambda: pool.parallel_map(dies, range(4)),
        lambda: pool.submit(os._exit, 3).result(60),
        lambda: pool.parallel_map(dies, range(4), wait=False).result(60),
    ):
        limit(1)
        print(told(call))
        limit()
        print(pool.parallel_map(abs, range(-3, 0)), pool.submit(abs, -1).result(60))
""",
        "True\n[3, 2, 1] 1\n" * 3,
    )


WITHOUT_PROC = """
import os, sys
import numpy as np
import shmpar

def dies(n):
    if n == 2 and os.path.exists(FOLDER + "/dies"):
        os.rmdir(FOLDER + "/dies")
        os._exit(3)
    return n

def told(call):
    try:
        call()
    except shmpar.ShmparError as error:
        return isinstance(error.__cause__ or error, shmpar.SegmentError)
    return "no error"

assert not os.listdir("/proc")
x, y = np.arange(100.0), np.arange(3_000_000.0)
ballast = os.urandom(100_000)
for engine in ("processes", "threads", "serial"):
    with shmpar.Pool(2, engine=engine) as pool:
        assert (pool.map_blocks(np.negative, y, chunks=100_000) == -y).all()
        assert pool.parallel_map(lambda n: len(ballast), range(2)) == [100_000] * 2
        files = {"out": f"{FOLDER}/{engine}.npy", "ledger": f"{FOLDER}/{engine}.ledger"}
        for _ in range(2):
            assert (pool.map_blocks(np.negative, x, **files) == -x).all()
        assert pool.submit(np.full, 20_000, 3).result(60)[-1] == 3
        mapped = np.memmap(f"{FOLDER}/{engine}.bin", np.float64, "w+", shape=100)
        mapped[:] = x
        pool.map_blocks(np.negative, mapped, out=mapped, chunks=10)
        assert (mapped == -x).all()
        assert "map_blocks" in str(pool.last_run.report)
        os.mkdir(FOLDER + "/dies")
        if engine == "processes":
            assert pool.parallel_map(dies, range(4)) == [0, 1, 2, 3]
        else:
            os.rmdir(FOLDER + "/dies")
        array = pool.zeros(3)
        print(
            told(lambda: array.name),
            told(lambda: pool.zeros(3, name="shmpar-test-no-proc")),
            told(array.lock.acquire),
        )
print(os.listdir("/dev/shm"), sorted(name for name in os.listdir(FOLDER) if "tmp" in name))
"""


def test_a_system_without_proc_has_all_verbs(tmp_path: Path) -> None:
    """Names and locks of arrays need /proc, and their errors say so; all else has another way."""
    out = output_after_setup(
        ["unshare", "-m", "sh"],
        "mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /proc",
        f"FOLDER = {str(tmp_path)!r}\n{WITHOUT_PROC}",
    )
    assert out == "True True True\n" * 3 + "[] []\n"


def test_a_sandbox_that_hides_other_processes_has_names_and_locks() -> None:
    """With hidepid a user sees the own processes alone, which is enough; /dev/fd is not needed."""
    mounts = (
        "mount -t tmpfs tmpfs /dev && mkdir -m 1777 /dev/shm && mknod -m 666 /dev/null c 1 3"
        " && mount -t proc -o hidepid=2 proc /proc"
    )
    out = output_after_setup(
        ["unshare", "-m", "sh", "-c", f'{mounts} && exec {as_another_user()} "$@"', "sh"],
        "true",
        """
import os
import numpy as np
import shmpar

assert not os.path.exists("/proc/1")
with shmpar.Pool(2) as pool:
    array = pool.array(np.arange(3.0))
    names = array.name, array.address
    print(pool.map_blocks(np.negative, array).tolist(), shmpar.attach(names[1]).tolist())
    with array.lock:
        print(pool.last_run.report.done)
print(os.listdir("/dev/shm"))
""",
    )
    assert out == "[-0.0, -1.0, -2.0] [0.0, 1.0, 2.0]\n1\n[]\n"

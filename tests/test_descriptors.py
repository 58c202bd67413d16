"""A pool raises the limit of descriptors in time, or raises an error with advice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.interpreters import run_python

LIMIT = """
import errno, os, resource, sys
import numpy as np
import shmpar

def limit(soft, hard=4096):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def fill():
    found = []
    try:
        while True:
            found.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE
    return found

def drop(some):
    for fd in some:
        os.close(fd)

"""


def check(source: str, expected: str) -> None:
    """Run a program, and compare its output; it must write no error."""
    done = run_python(LIMIT + source, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


def test_a_pool_of_many_workers_raises_the_limit() -> None:
    """Six workers need more descriptors than the soft limit allows."""
    check(
        """
limit(30)
with shmpar.Pool(6) as pool:
    print(pool.parallel_map(abs, range(-3, 0)))
""",
        "[3, 2, 1]\n",
    )


def test_a_pool_starts_with_no_descriptor_left() -> None:
    """The first file that a pool opens raises the limit."""
    check(
        """
with shmpar.Pool(1) as pool:  # imports modules
    pool.parallel_map(abs, range(3))
limit(64)
held = fill()
with shmpar.Pool(1) as pool:
    print(pool.parallel_map(abs, range(-3, 0)))
drop(held)
""",
        "[3, 2, 1]\n",
    )


@pytest.mark.parametrize("soft", [pytest.param(64, marks=pytest.mark.stress), 1024])
def test_results_that_lie_in_many_segments_arrive(soft: int) -> None:
    """The kernel drops descriptors beyond the limit, so the limit is raised before."""
    check(
        f"""
limit({soft}, 16384)
def item(n):
    return np.full(20_000, n)
with shmpar.Pool(1) as pool:
    found = pool.parallel_map(item, range(1500), dtype=object)
print(all((array == n).all() for n, array in enumerate(found)), len(found))
""",
        "True 1500\n",
    )


OPENS = [
    "a.name",
    "shmpar.attach(address)",
    "shmpar.attach(name, 3, 'f8', own=True)",
    "a.lock.acquire()",
    "shmpar.zeros(3, name='shmpar-test-few')",
    "shmpar.asarray(mapped).name",
    "pool.map_blocks(np.negative, mapped, out=out, ledger=ledger, chunks=10)",
]


def test_everything_that_opens_a_file_raises_the_limit(tmp_path: Path) -> None:
    """Names, addresses, locks, mapped files and ledgers raise the limit."""
    check(
        f"""
import shmpar.memory.names, shmpar.runtime.checkpoint
folder = {str(tmp_path)!r}
out, ledger = folder + "/out.npy", folder + "/ledger"
np.save(folder + "/in.npy", np.arange(100.0))
mapped = np.load(folder + "/in.npy", mmap_mode="r")
with shmpar.Pool(1) as pool:
    pool.map_blocks(np.negative, np.arange(100.0), out=folder + "/0.npy", ledger=folder + "/1")
    for work in {OPENS!r}:
        a, b = shmpar.zeros(3), shmpar.zeros(3)
        address, name = b.address, b.name
        low = len(os.listdir("/proc/self/fd"))
        limit(low)
        held = fill()
        exec(work)
        drop(held)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > low, work
print("done")
""",
        "done\n",
    )


def test_a_pool_works_above_the_numbers_that_select_takes() -> None:
    """A program may have opened a thousand files before."""
    check(
        """
limit(4096)
held = [os.dup(0) for _ in range(1500)]
with shmpar.Pool(2) as pool:
    for _ in range(3):
        print(pool.parallel_map(abs, range(-3, 0)))
""",
        "[3, 2, 1]\n" * 3,
    )


def test_a_limit_that_cannot_be_raised_is_an_error_and_leaves_nothing() -> None:
    """The error has advice, and no process and no descriptor is left."""
    check(
        """
limit(40, 40)
before = os.listdir("/proc/self/fd")
try:
    shmpar.Pool(20)
except OSError as error:
    print(error.errno == errno.EMFILE, "ulimit -Hn" in str(error))
print(os.listdir("/proc/self/fd") == before)
with shmpar.Pool(1) as pool:
    print(pool.parallel_map(abs, range(-3, 0)))
""",
        "True True\nTrue\n[3, 2, 1]\n",
    )


def test_a_message_that_cannot_be_sent_is_the_runs_error() -> None:
    """A long message needs a descriptor; the run does not wait if it was never sent."""
    check(
        """
limit(80, 80)
ballast = os.urandom(100_000)
def length(n):
    return len(ballast) + n
with shmpar.Pool(1) as pool:
    print(pool.parallel_map(length, range(2)))
    held = fill()
    try:
        pool.parallel_map(length, range(2))
    except OSError as error:
        print(error.errno == errno.EMFILE)
    drop(held)
    print(pool.parallel_map(length, range(2)))
""",
        "[100000, 100001]\nTrue\n[100000, 100001]\n",
    )


def test_a_task_that_cannot_be_sent_is_its_error() -> None:
    """The task that cannot be sent fails, and the next one is computed."""
    check(
        """
limit(80, 80)
ballast = os.urandom(100_000)
with shmpar.Pool(1) as pool:
    print(pool.submit(len, ballast).result())
    held = fill()
    future = pool.submit(len, ballast)
    error = future.exception()
    print(error.errno == errno.EMFILE)
    drop(held)
    print(pool.submit(len, ballast).result())
""",
        "100000\nTrue\n100000\n",
    )


def test_results_without_room_for_their_descriptors_are_an_error() -> None:
    """No result is lost, and none takes the place of another."""
    check(
        """
def many(n):
    return [np.full(20_000, m) for m in range(n, n + 40)]
with shmpar.Pool(1) as pool:
    pool.parallel_map(many, range(2), dtype=object)
    limit(80, 80)  # not the worker's
    held = fill()
    drop(held[:30])
    try:
        pool.parallel_map(many, range(2), dtype=object)
    except shmpar.SegmentError as error:
        print("hard limit" in str(error))
    drop(held[30:])
    found = pool.parallel_map(lambda n: np.full(20_000, n), range(3), dtype=object)
    print([int(array[0]) for array in found])
""",
        "True\n[0, 1, 2]\n",
    )


def test_a_closed_segment_fails_only_its_own_call(tmp_path: Path) -> None:
    """Segments of the same message are sent with the next one."""
    os.mkfifo(tmp_path / "gate")
    check(
        f"""
gate = {str(tmp_path / "gate")!r}
def wait(n):
    return len(open(gate).read())
with shmpar.Pool(1) as pool:
    good, bad = pool.array(np.arange(4.0)), pool.array(np.ones(4))
    waiting = [pool.parallel_map(wait, range(1), wait=False) for _ in range(2)]
    run = pool.map_blocks(np.add, good, bad, wait=False)  # a worker has two at most
    bad.close()
    for one in waiting:
        with open(gate, "w") as file:
            file.write("go")
        one.result()
    try:
        run.result()
    except shmpar.SegmentGone:
        print("gone")
    print(pool.map_blocks(np.negative, good).tolist())
""",
        "gone\n[-0.0, -1.0, -2.0, -3.0]\n",
    )


def test_a_worker_has_the_standard_streams_that_its_parent_has_closed() -> None:
    """Text that a function prints to a closed stream is lost, and stops no later call."""
    source = """
        import os, shmpar
        def speak(number):
            for fd in (1, 2):
                os.write(fd, b"a line of a library in C")
            return [os.fstat(fd).st_rdev for fd in range(3)]
        for fd in range(3):
            os.close(fd)
        with shmpar.Pool(1) as pool:
            calls = [pool.submit(speak, number) for number in range(3)]
            found = [call.result(timeout=10) for call in calls]
        null = os.stat(os.devnull).st_rdev
        assert found == 3 * [3 * [null]], found
        assert [os.fstat(fd).st_rdev for fd in range(3)] == 3 * [null]
    """
    done = run_python(source)
    assert done.returncode == 0


def test_nothing_that_is_received_is_a_standard_stream() -> None:
    """Text printed to a stream that was closed meanwhile is written to no result or argument."""
    source = """
        import contextlib, os, numpy as np, shmpar
        def speak(values):
            with contextlib.suppress(OSError):
                os.write(1, b"a line of a library in C")
            return values + 1
        with shmpar.Pool(1) as pool:
            pool.submit(os.close, 1).result()
            os.close(1)
            first = pool.submit(speak, np.zeros(40_000)).result()
            assert (pool.submit(speak, first).result() == 2).all()
            speak(0)
            assert (first == 1).all()
    """
    done = run_python(source)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_an_array_that_is_closed_while_it_is_sent_is_no_other_file(tmp_path: Path) -> None:
    """Another thread closes an input, and opens a file whose descriptor gets the same number."""
    (tmp_path / "zeros").write_bytes(bytes(8000))
    check(
        f"""
from shmpar.engines.worker_handle import WorkerHandle
attach = WorkerHandle.attach_payload
def late(handle, payload, attached):
    WorkerHandle.attach_payload = attach
    closed = values._handle.segment.fileno()
    values.close()
    assert os.open({str(tmp_path / "zeros")!r}, os.O_RDONLY) == closed
    attach(handle, payload, attached)
with shmpar.Pool(1) as pool:
    pool.submit(abs, 1).result()
    values = pool.array(np.full(1000, 3.0))
    WorkerHandle.attach_payload = late
    print(set(pool.map_blocks(np.negative, values).tolist()))
""",
        "{-3.0}\n",
    )


def test_arrays_that_need_most_of_the_descriptors_are_sent() -> None:
    """A message holds duplicates of descriptors, of which the hard limit leaves few."""
    check(
        """
limit(500, 500)
with shmpar.Pool(1) as pool:
    arrays = [pool.full(40_000, number) for number in range(200)]
    print(pool.submit(lambda: sum(array[0] for array in arrays)).result())
""",
        "19900\n",
    )


def test_an_initializer_gets_more_arrays_than_a_message_carries() -> None:
    """Their segments are sent ahead, as those of calls and runs."""
    check(
        """
arrays = [shmpar.full(40_000, number) for number in range(300)]
def remember(*given):
    global total
    total = sum(array[0] for array in given)
with shmpar.Pool(1, initializer=remember, initargs=arrays) as pool:
    print(pool.submit(lambda: total).result())
""",
        "44850\n",
    )


def test_a_file_that_takes_the_number_of_a_stream_stays_open() -> None:
    """Another thread opens a file between the look at a closed stream and its replacement."""
    source = """
        import os
        from shmpar.memory import limits
        look, found = os.fstat, []
        def late(fd):
            try:
                return look(fd)
            except OSError:
                found.append(os.open("/dev/zero", os.O_RDONLY))
                raise
        os.close(0)
        limits.os.fstat = late
        limits.keep_standard_streams()
        assert found == [0] and os.read(0, 1) == bytes(1)
    """
    assert run_python(source).returncode == 0


def test_no_array_is_a_standard_stream() -> None:
    """Text printed to a closed stream is lost, and never written to an array."""
    source = """
        import os, numpy as np, shmpar
        os.close(1)
        array = shmpar.zeros(40_000)
        named = shmpar.zeros(10, name=f"shmpar-test-{os.getpid()}")
        with shmpar.Pool(1) as pool:
            shared = pool.array(np.zeros(40_000))
            os.write(2, b"up\\n")
            try:
                print("hello", flush=True)
            except OSError:
                pass
            result = pool.map_blocks(lambda block: block + 1, shared, chunks=10_000)
        assert not array.any() and not shared.any() and not named.any()
        assert (result == 1).all()
    """
    done = run_python(source)
    assert (done.stdout, done.stderr, done.returncode) == ("", "up\n", 0)

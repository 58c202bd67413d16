"""Locks of arrays: threads, processes, timeouts, and the death of a holder."""

from __future__ import annotations

import copy
import fcntl
import functools
import gc
import pickle
import subprocess
import threading
import time

import numpy as np
import pytest

from shmpar.arrays import Lock, attach
from shmpar.arrays import creation as sa
from shmpar.arrays.sharedarray import _reopen
from shmpar.memory import limits, system
from tests.interpreters import interpreter, run_python

COUNT = """
    import pickle, sys
    a = pickle.loads(bytes.fromhex(sys.argv[1]))
    for _ in range(500):
        with a[1:].lock:
            a[0] += 1
"""
HOLD = """
    import pickle, sys
    a = pickle.loads(bytes.fromhex(sys.argv[1]))
    a.lock.acquire()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def counter():
    """Share a counter, and a second number that stays zero."""
    return sa.zeros(2, int)


def test_processes_exclude_each_other(counter):
    """No increment is lost if each process locks a view of the array."""
    code = pickle.dumps(counter).hex()
    with interpreter(COUNT, code) as one, interpreter(COUNT, code) as two:
        assert one.wait() == two.wait() == 0
    assert counter.tolist() == [1000, 0]


def test_threads_exclude_each_other(counter):
    """All arrays of one address have one lock object, which excludes threads."""
    assert pickle.loads(pickle.dumps(counter[1:])).lock is counter.lock

    def work():
        for _ in range(300):
            with counter.lock:
                seen = counter[0]
                threading.Event().wait(0)
                counter[0] = seen + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter[0] == 1200


def test_a_timeout_returns_false_and_death_releases(counter):
    """acquire() returns False at the deadline; the kernel releases the lock of a dead process."""
    pipe = subprocess.PIPE
    with interpreter(HOLD, pickle.dumps(counter).hex(), stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout.readline() == b"held\n"
        start = time.monotonic()
        assert not counter.lock.acquire(0)
        assert not counter.lock.acquire(timeout=0.05)
        assert 0.04 < time.monotonic() - start < 5
        assert not counter.lock.locked()
        holder.kill()
        holder.wait()
        assert counter.lock.acquire(timeout=5)
        counter.lock.release()


def test_waiting_ends_when_the_holder_releases(counter):
    """A with statement waits for the lock."""
    pipe = subprocess.PIPE
    with interpreter(HOLD, pickle.dumps(counter).hex(), stdin=pipe, stdout=pipe) as holder:
        holder.stdout.readline()
        got = threading.Event()

        def work():
            with counter.lock:
                got.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert not got.wait(0.02)
        holder.stdin.close()
        assert got.wait(10)
        thread.join()


def test_mistakes_are_named(counter):
    """A release without acquire and a negative timeout raise errors."""
    with pytest.raises(RuntimeError, match="not held"):
        counter.lock.release()
    with pytest.raises(ValueError, match="timeout"):
        counter.lock.acquire(-1)
    with pytest.raises(TypeError, match=r"acquire\(\) to wait"):
        counter.lock.acquire(True)


def test_a_copy_of_a_lock_is_the_lock(counter):
    """A copy neither closes the descriptor of the lock nor that of the segment."""
    lock = counter.lock
    with lock:
        for same in (copy.copy(lock), copy.deepcopy([lock])[0], pickle.loads(pickle.dumps(lock))):
            assert same is lock
        del same
        gc.collect()
    with lock:
        assert attach(counter.address)[0] == 0


def test_a_function_takes_a_lock_along(pool):
    """A lock that a function holds is that of its array, in each worker."""
    counter = pool.zeros((2, 3))
    lock = counter[1:].lock

    def add(row):
        with lock:
            counter[0] += row.sum()

    pool.parallel_map(add, np.ones((50, 2)))
    assert counter[0].tolist() == [100] * 3
    with lock:
        assert pool.submit(lambda: lock.acquire(timeout=0)).result() is False


def test_arrays_in_one_segment_have_separate_locks(monkeypatch):
    """A lock covers one array, and not the segment."""
    monkeypatch.setattr(limits, "descriptors_scarce", lambda: True)
    a, b = sa.zeros(3), sa.zeros(3)
    assert a._handle.segment == b._handle.segment
    with a.lock:
        assert b.lock.acquire(timeout=0)
        b.lock.release()


def test_a_forked_child_is_excluded_and_keeps_no_lock():
    """A forked child opens the segment again, and drops the lock of its parent."""
    done = run_python("""
        import os, warnings
        from shmpar.arrays import creation as sa
        warnings.simplefilter("ignore", DeprecationWarning)
        a = sa.zeros(3)
        a.lock.acquire()
        pid = os.fork()
        if pid == 0:
            raise SystemExit(a.lock.acquire(timeout=0.01))
        assert os.waitpid(pid, 0)[1] == 0, "the child took a lock that is held"
        a.lock.release()
        pid = os.fork()
        if pid == 0:
            assert a.lock.acquire(timeout=5)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert a.lock.acquire(timeout=5)
    """)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_used_lock_does_not_keep_the_memory():
    """The segment goes with the last array, without a garbage collection."""
    dropped = []
    made = sa.zeros(3)
    made._handle.segment.subscribe(dropped.append)
    with made.lock:
        pass
    gc.disable()
    try:
        del made
        assert len(dropped) == 1
    finally:
        gc.enable()


def test_without_locks_of_descriptions_the_whole_file_is_locked(counter, monkeypatch):
    """Without F_OFD_SETLK, as on macOS, flock excludes; a release lets the next one in."""
    monkeypatch.setattr(system, "_absent", set())
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    monkeypatch.delattr(fcntl, "F_OFD_SETLKW")
    reopen = functools.partial(_reopen, counter._handle.segment)
    one, two = (Lock(reopen, 0, lambda: counter) for _ in range(2))
    with one:
        assert not two.acquire(timeout=0)
    assert two.acquire()
    assert not one.acquire(timeout=0.001)
    two.release()

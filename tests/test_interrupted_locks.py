"""Locks of arrays at interrupts, and while another process holds them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from shmpar.arrays import creation as sa
from tests.interpreters import interpreter
from tests.test_array_lock import HOLD

TRY = """
    import pickle, sys
    print(pickle.loads(bytes.fromhex(sys.argv[1])).lock.acquire(timeout=0))
"""


def interrupt_after_fcntl(_: Any, event: str, function: Any) -> None:
    if event == "c_return" and getattr(function, "__name__", "") == "fcntl":
        sys.setprofile(None)
        raise KeyboardInterrupt


@pytest.mark.parametrize("timeout", [None, 1.0])
def test_an_interrupt_after_the_lock_was_given_returns_it(timeout: float | None) -> None:
    """Nobody would release the lock, for which all other processes wait."""
    made = sa.zeros(3)
    lock = made.lock
    sys.setprofile(interrupt_after_fcntl)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(timeout)
    sys.setprofile(None)
    assert not lock.locked()
    with interpreter(TRY, pickle.dumps(made).hex(), stdout=subprocess.PIPE) as other:
        assert other.communicate()[0] == b"True\n"
    with lock:
        assert lock.locked()


def test_an_interrupt_within_a_release_releases_the_lock() -> None:
    """The next thread of this process would wait for ever."""
    made = sa.zeros(3)
    lock = made.lock
    lock.acquire()
    sys.setprofile(interrupt_after_fcntl)
    with pytest.raises(KeyboardInterrupt):
        lock.release()
    sys.setprofile(None)
    assert not lock.locked()
    assert lock.acquire(timeout=0)
    lock.release()


def test_a_thread_that_waits_does_not_hold_the_lock() -> None:
    """While another process holds it, locked() is False and a release is an error."""
    made, pipe = sa.zeros(3), subprocess.PIPE
    lock = made.lock
    with interpreter(HOLD, pickle.dumps(made).hex(), stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        while not lock._thread_lock.locked():
            threading.Event().wait(0)
        assert not lock.locked()
        with pytest.raises(RuntimeError, match="not held"):
            lock.release()
        holder.stdin.close()
        thread.join()
    assert lock.locked()
    lock.release()

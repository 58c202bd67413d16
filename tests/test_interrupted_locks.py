"""Locks of arrays at interrupts, and while another process holds them."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmpar.arrays import creation as sa
from shmpar.arrays import lock as lock_module
from tests.interpreters import interpreter
from tests.test_array_lock import HOLD

TRY = """
    import pickle, sys
    print(pickle.loads(bytes.fromhex(sys.argv[1])).lock.acquire(timeout=0))
"""


def interrupted_after(number: int, call: Callable[[], object]) -> str | None:
    """Interrupt a call after a number of calls of C; return the name of the last one, if any."""
    names: list[str] = []

    def count(frame: Any, event: str, function: Any) -> None:
        if event == "c_return" and frame.f_code.co_filename == lock_module.__file__:
            names.append(function.__name__)
            if len(names) == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        call()
    except KeyboardInterrupt:
        return names[-1]
    finally:
        sys.setprofile(None)
    return None


@pytest.mark.parametrize("timeout", [None, 1.0])
def test_an_interrupt_of_an_acquire_returns_the_lock(timeout: float | None) -> None:
    """Nobody would release the lock, for which all other threads and processes wait."""
    made = sa.zeros(3)
    lock = made.lock
    for number in itertools.count(1):
        name = interrupted_after(number, lambda: lock.acquire(timeout))
        if name is None:
            break
        assert not lock.locked()
        if name == "fcntl":
            with interpreter(TRY, pickle.dumps(made).hex(), stdout=subprocess.PIPE) as other:
                assert other.communicate()[0] == b"True\n"
        assert lock.acquire(timeout=0), f"lost after {name}"
        lock.release()
    assert number > 3
    lock.release()


def test_an_interrupt_within_a_release_releases_the_lock() -> None:
    """The next thread of this process would wait for ever."""
    lock = sa.zeros(3).lock
    number = 0
    while lock.acquire(timeout=0):
        number += 1
        if interrupted_after(number, lock.release) is None:
            break
    assert number > 2
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

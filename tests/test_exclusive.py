"""Tests run at the same time or alone, and no test overtakes one that waits to run alone."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from tests.exclusive import running_test


class LockingProcess:
    """A process that runs tests, with its own descriptors of the two lock files."""

    def __init__(self, folder: Path) -> None:
        self.fds = [os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("gate", "tests")]

    def running_test(self, *, alone: bool):
        return running_test(*self.fds, alone=alone)

    def sees_gate_locked(self) -> bool:
        """Return True if a test waits at the gate."""
        try:
            fcntl.flock(self.fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fds[0], fcntl.LOCK_UN)
        return False


@pytest.fixture
def processes(tmp_path):
    """Three processes that share the lock files."""
    made = [LockingProcess(tmp_path) for _ in range(3)]
    yield made
    for process in made:
        for fd in process.fds:
            os.close(fd)


def test_ordinary_tests_run_at_the_same_time(processes):
    """Neither test waits for the other."""
    first, second, _ = processes
    with first.running_test(alone=False), second.running_test(alone=False):
        assert not first.sees_gate_locked()


def test_a_test_that_runs_alone_waits_and_is_not_overtaken(processes):
    """The test starts after the running test has finished, and before a test that came later."""
    first, second, third = processes
    order = []

    def run(process, name, *, alone):
        with process.running_test(alone=alone):
            order.append(name)

    alone = threading.Thread(target=run, args=(second, "alone"), kwargs={"alone": True})
    later = threading.Thread(target=run, args=(third, "later"), kwargs={"alone": False})
    with first.running_test(alone=False):
        alone.start()
        while not first.sees_gate_locked():
            pass
        later.start()
        order.append("first")
    alone.join()
    later.join()
    assert order == ["first", "alone", "later"]

"""Turns of the processes of one test run: what is marked ``alone`` runs beside no other test.

With ``pytest -n`` each worker of pytest-xdist runs tests.  Most of them leave each other alone;
those marked ``alone`` look at, or change, what a machine has once: who makes a name in ``/dev/shm``
removes all names of the dead.  ``conftest.py`` registers this module as a plugin.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests import leaks, processes

# Files of the test suite are there for every worker, and nobody has to remove them.
DOOR, ROOM = processes.__file__, leaks.__file__

NAME = "shmpar-turn-taker"  # of the plugin that a worker has


@contextmanager
def _locked(fd: int, how: int) -> Iterator[None]:
    fcntl.flock(fd, how)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def turn(door: int, room: int, *, alone: bool) -> Iterator[None]:
    """Be in the room, with others or alone; `door` and `room` are descriptors of files.

    Who waits to be alone waits in the door, so that those who come later do not get in before.
    """
    with ExitStack() as stack:
        with _locked(door, fcntl.LOCK_EX):
            stack.enter_context(_locked(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield


class Turns:
    """Takes a turn for each test of a worker."""

    def __init__(self) -> None:
        self._fds = [os.open(path, os.O_RDONLY) for path in (DOOR, ROOM)]

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds:
            os.close(fd)

    def be_alone(self) -> None:
        """Let all others end their tests, and none begin, until the present test has ended."""
        door, room = self._fds
        fcntl.flock(room, fcntl.LOCK_UN)  # two that waited for each other would wait for ever
        with _locked(door, fcntl.LOCK_EX):
            fcntl.flock(room, fcntl.LOCK_EX)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test, with its fixtures, in its turn."""
        alone = item.get_closest_marker("alone") is not None
        with turn(*self._fds, alone=alone):
            return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Take turns if this is one of several workers; a test run within a test is none."""
    if hasattr(config, "workerinput"):
        turns = Turns()
        config.pluginmanager.register(turns, NAME)
        config.add_cleanup(turns.close)

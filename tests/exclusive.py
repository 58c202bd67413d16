"""Run each test that is marked ``alone`` while no other process of the test run runs a test.

With ``pytest -n`` several worker processes of pytest-xdist run tests at the same time.  A test
marked ``alone`` reads or changes a resource that the machine has only once: for example, the first
name in ``/dev/shm`` removes all stale names.  ``conftest.py`` registers this module as a plugin.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests import leaks, processes

# Why: files of the test suite exist for every worker, and nobody has to remove them.
GATE_FILE, TESTS_FILE = processes.__file__, leaks.__file__

PLUGIN_NAME = "shmpar-exclusive-worker"  # registered in each worker of pytest-xdist


@contextmanager
def _locked(fd: int, operation: int) -> Iterator[None]:
    fcntl.flock(fd, operation)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def running_test(gate: int, tests: int, *, alone: bool) -> Iterator[None]:
    """Hold the lock of running tests, shared or exclusively; both arguments are descriptors.

    A test that must run alone holds the gate while it waits, so that later tests do not overtake.
    """
    # Lock: the gate comes before the lock of running tests.
    with ExitStack() as stack:
        with _locked(gate, fcntl.LOCK_EX):
            stack.enter_context(_locked(tests, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield


class ExclusiveTests:
    """Hold the locks for each test of a worker."""

    def __init__(self) -> None:
        self._fds = [os.open(path, os.O_RDONLY) for path in (GATE_FILE, TESTS_FILE)]

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds:
            os.close(fd)

    def wait_until_alone(self) -> None:
        """Wait until no other test runs; none starts before the present test has finished."""
        gate, tests = self._fds
        fcntl.flock(tests, fcntl.LOCK_UN)  # Why: two tests that both wait here would deadlock
        with _locked(gate, fcntl.LOCK_EX):
            fcntl.flock(tests, fcntl.LOCK_EX)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test with its fixtures while the locks are held."""
        alone = item.get_closest_marker("alone") is not None
        with running_test(*self._fds, alone=alone):
            return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin in a worker of pytest-xdist, but not in a test run within a test."""
    if hasattr(config, "workerinput"):
        plugin = ExclusiveTests()
        config.pluginmanager.register(plugin, PLUGIN_NAME)
        config.add_cleanup(plugin.close)

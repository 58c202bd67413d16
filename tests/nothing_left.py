"""The fixture that fails every test and every doctest with a leak.

``conftest.py`` registers this module as a plugin, so that it also covers the doctests of
``shmpar``, which are outside the folder of ``conftest.py``.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shmpar import pool
from shmpar.memory import reuse
from tests.exclusive import PLUGIN_NAME
from tests.leaks import Snapshot, leaks_after_waiting, leaks_since, report

_raised = pytest.StashKey[bool]()


def freeze() -> None:
    """Hide the present objects from the collector.

    The fixture ``nothing_left`` collects garbage after many tests, which is slow if the collector
    also visits the objects of pytest and of imported libraries.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def frozen_objects_of_earlier_modules() -> None:
    """Freeze the reports of the tests so far, and the libraries that these have imported."""
    freeze()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if more processes, threads, memory, descriptors or files exist than before the test.

    Resources of fixtures with a wider scope do not count, since these are set up earlier.  A
    fixture that the test does not request, and that must be torn down before the comparison,
    requests this fixture as an argument.
    """
    before = Snapshot.take()
    yield
    reuse.clear()
    if not leaks_since(before):
        return
    _drop_references(request.node)
    gc.collect()
    reuse.clear()
    _settle_pools()  # Why last: a pool thread reads files when memory is kept
    left = leaks_after_waiting(before)
    exclusive = request.config.pluginmanager.get_plugin(PLUGIN_NAME)
    if exclusive is not None and any(one.kind in {"segment", "file"} for one in left):
        exclusive.wait_until_alone()  # Why: a name does not tell which worker has made it
        left = leaks_since(before)
    if not left:
        return
    if request.node.stash.get(_raised, False):
        # Why: the traceback of a failed test may hold the objects that seem to be leaked.
        request.node.add_report_section("teardown", "left behind", report(left))
    else:
        pytest.fail(report(left), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Record that a test raised an exception: failed, was skipped, or failed as expected."""
    if call.excinfo is not None:
        item.stash[_raised] = True


def _drop_references(item: Any) -> None:
    """Drop the references of pytest and doctest to objects of a finished test."""
    getattr(item, "funcargs", {}).clear()
    vars(builtins).pop("_", None)  # doctest's last expression


def _settle_pools(seconds: float = 20.0) -> None:
    """Let the threads of open pools return from the runs and calls that they have resolved.

    Until then such a thread holds a call, and so the memory of its task and its result.
    """
    for one in list(pool._open_pools):
        if one._loop._thread is not None:  # Why: a request would start the thread.
            settled = threading.Event()
            with contextlib.suppress(RuntimeError):  # of a pool that an earlier process has made
                one._loop._post(settled.set)
                settled.wait(seconds)

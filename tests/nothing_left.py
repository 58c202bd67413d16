"""The fixture that fails every test, and every doctest, that leaves something behind.

``conftest.py`` registers this module as a plugin, so that it covers the doctests of ``shmpar``
too, which lie outside its folder.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest

from tests.leaks import Snapshot, left_after_waiting, left_since, report
from tests.turns import NAME

_raised = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare what exists after the test and its fixtures with what existed before.

    Fixtures of a wider scope are set up earlier, so what they hold is not counted.  A fixture
    that must be torn down before the comparison, and is not requested by the test, names this
    one as its argument.
    """
    before = Snapshot.take()
    yield
    if not left_since(before):
        return
    _forget(request.node)
    left = left_after_waiting(before)
    turns = request.config.pluginmanager.get_plugin(NAME)
    if turns is not None and any(one.kind in {"segment", "file"} for one in left):
        turns.be_alone()  # a name does not tell which worker's test has made it
        left = left_since(before)
    if not left:
        return
    if request.node.stash.get(_raised, False):
        # its traceback holds the test's variables; the test has failed anyway
        request.node.add_report_section("teardown", "left behind", report(left))
    else:
        pytest.fail(report(left), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Remember that a test raised: failed, was skipped, or failed as expected."""
    if call.excinfo is not None:
        item.stash[_raised] = True


def _forget(item: Any) -> None:
    """Drop what pytest and doctest still hold of a finished test."""
    getattr(item, "funcargs", {}).clear()
    vars(builtins).pop("_", None)  # doctest's last expression

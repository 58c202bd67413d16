"""Runs and calls end with an outcome: after a failure in a rare place, and where none can begin."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.engines import packing
from shmpar.ipc.protocol import CallFinished
from shmpar.runtime import progress
from shmpar.runtime.calls import Call
from tests.pools import wait_for_workers
from tests.work.concurrent import Gate, wait_at_gate
from tests.work.loading import Elsewhere

BOUND = 30.0  # seconds after which a wait counts as a hang
X = np.arange(16.0).reshape(4, 4)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


# Stores and files


# Results


# Workers


# Pools that cannot begin


# The pool thread


# Names of multiprocessing


def test_a_cancelled_map_async_is_done_for_every_waiter(tmp_path: Path, gate: Gate) -> None:
    """concurrent.futures.wait() returns it."""
    with shmpar.Pool(1) as pool:
        slow = pool.submit(wait_at_gate, str(tmp_path), 3)
        gate.wait_for_worker()
        joined = pool.map_async(abs, range(4))
        assert joined.cancel()
        gate.open()
        assert slow.result(BOUND) == 3
        assert concurrent.futures.wait([joined], BOUND).done == {joined}
        assert joined.cancelled()


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_the_results_before_an_error_of_the_iterable_come_first(method: str) -> None:
    """As multiprocessing gives them; afterwards the iterator is at its end."""

    def numbers() -> Iterator[int]:
        yield from range(200)
        raise ZeroDivisionError

    found = []
    with shmpar.Pool(1, engine="threads") as pool:
        results = getattr(pool, method)(abs, numbers())
        with pytest.raises(ZeroDivisionError):
            found.extend(results)
        assert sorted(found) == list(range(200))
        assert list(results) == []

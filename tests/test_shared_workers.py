"""Runs and calls that share workers: a wait, an interrupt or a death of the one harms no other."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.ipc.protocol import WorkerLost
from tests.pools import wait_for_workers
from tests.work.concurrent import Gate, wait_at_gate
from tests.work.loading import Fatal

BOUND = 30.0  # seconds after which a wait counts as a hang
X = np.arange(8.0)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[list[Gate]]:
    """Two gates, in the folders ``0`` and ``1``."""
    made = []
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        made.append(Gate(tmp_path / name))
    yield made
    for one in made:
        one.close()


@pytest.fixture
def two() -> Iterator[shmpar.Pool]:
    """Two worker processes, which are up."""
    with shmpar.Pool(2) as pool:
        wait_for_workers(pool)
        yield pool


def test_a_function_that_kills_its_workers_fails_alone(
    two: shmpar.Pool, gates: list[Gate], tmp_path: Path
) -> None:
    """Another run, in a long chunk, and calls that wait do not give up with it."""
    wait = functools.partial(wait_at_gate, str(tmp_path / "0"))
    long = two.map_blocks(wait, X[:2], chunks=2, wait=False)
    gates[0].wait_for_worker()
    fatal = two.map_blocks(Fatal(), X, chunks=2, wait=False)
    calls = [two.submit(abs, -number) for number in range(4)]
    with pytest.raises(shmpar.WorkerDied, match="before they take a chunk"):
        fatal.result(BOUND)
    assert [one.result(BOUND) for one in calls] == [0, 1, 2, 3]
    assert not long.done()
    gates[0].open()
    assert long.result(BOUND).tolist() == [0, 1]


# Calls behind a chunk

"""Small calls that are made again and again are tried with one worker first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import shmpar
from shmpar.engines.processes import Trial
from tests.pools import wait_for_workers


def test_a_call_is_small_if_it_was_small_the_last_time() -> None:
    """And no longer once it was not."""
    trial = Trial()
    trial.begin(0, call=7)
    assert trial.run is None, "nothing is known of it yet"
    trial.spent(0, 1e-5)
    trial.spent(0, 1e-5)
    trial.end(0, call=7)
    trial.begin(1, call=7)
    assert trial.run == 1
    trial.spent(1, 1.0)
    trial.end(1, call=7)
    trial.begin(2, call=7)
    assert trial.run is None


def test_a_run_that_nobody_reported_on_is_not_small() -> None:
    """As one that was cancelled."""
    trial = Trial()
    trial.end(0, call=7)
    trial.begin(1, call=7)
    assert trial.run is None


def test_calls_are_forgotten() -> None:
    """The oldest first."""
    trial = Trial()
    for run in range(1000):
        trial.spent(run, 0.0)
        trial.end(run, call=run)
    trial.begin(1000, call=0)
    assert trial.run is None
    trial.begin(1001, call=999)
    assert trial.run == 1001


def test_a_function_that_has_become_slow_gets_all_workers(tmp_path: Path) -> None:
    """Its two chunks wait for each other, in two workers, though the call was small before."""
    meeting = tmp_path / "meeting"

    def work(block: Any, block_id: tuple[int]) -> Any:
        if meeting.exists():  # the open of either end waits for the other one
            os.close(os.open(meeting, os.O_WRONLY if block_id[0] else os.O_RDONLY))
        return block + 1

    with shmpar.Pool(2) as pool:
        wait_for_workers(pool)
        for _ in range(20):
            assert pool.map_blocks(work, np.arange(2.0), chunks=1).tolist() == [1, 2]
        os.mkfifo(meeting)
        for _ in range(3):
            run = pool.map_blocks(work, np.arange(2.0), chunks=1, wait=False)
            assert run.result(timeout=60).tolist() == [1, 2]


def test_a_worker_that_dies_at_a_small_call_is_replaced(tmp_path: Path) -> None:
    """The others are sent the plan then, at the latest."""
    once = tmp_path / "once"

    def work(block: Any) -> Any:
        try:
            once.unlink()
        except FileNotFoundError:
            return block + 1
        os._exit(3)

    with shmpar.Pool(2) as pool:
        wait_for_workers(pool)
        for _ in range(20):
            once.unlink(missing_ok=True)
            assert pool.map_blocks(work, np.arange(2.0), chunks=1).tolist() == [1, 2]
        once.touch()
        assert pool.map_blocks(work, np.arange(2.0), chunks=1).tolist() == [1, 2]
        assert not once.exists()

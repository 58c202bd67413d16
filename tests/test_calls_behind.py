"""Calls that are submitted while others wait for a worker, and the results of small calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmpar

BOUND = 60


@pytest.fixture(scope="module", params=["processes", "threads"])
def pool(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool]:
    """Two workers."""
    with shmpar.Pool(2, engine=request.param) as made:
        for one in [made.submit(abs, 0) for _ in range(8)]:
            one.result(BOUND)
        yield made


def same(value: Any) -> Any:
    return value


def read(fifo: str) -> bytes:
    with open(fifo, "rb") as stream:
        return stream.read()


def test_no_call_is_left_behind(pool: shmpar.Pool) -> None:
    """Each of many calls is made, whichever thread submits it while others wait or end."""
    results: list[list[int]] = []

    def submit(first: int) -> None:
        found = []
        for number in range(first, first + 300):
            both = pool.submit(abs, -number), pool.submit(same, number)
            found += [one.result(BOUND) for one in both]
        results.append(found)

    threads = [threading.Thread(target=submit, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    due = [[n for n in range(1000 * k, 1000 * k + 300) for _ in range(2)] for k in range(4)]
    assert sorted(results) == due


def test_a_call_behind_others_can_be_cancelled(tmp_path: Path) -> None:
    """A call that is submitted while others wait is cancelled alone, and the rest is made."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with shmpar.Pool(1) as pool:
        slow = pool.submit(read, fifo)
        waiting = [pool.submit(same, number) for number in range(20)]
        assert waiting[-2].cancel()
        with open(fifo, "wb") as stream:
            stream.write(b"go")
        assert slow.result(BOUND) == b"go"
        made = [one.result(BOUND) for one in waiting if not one.cancelled()]
    assert made == [*range(18), 19]


def test_a_closed_pool_cancels_the_calls_behind_others(tmp_path: Path) -> None:
    """A shutdown with ``cancel_futures`` finds calls that no event has brought to a worker."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    pool = shmpar.Pool(1)
    try:
        slow = pool.submit(read, fifo)
        waiting = [pool.submit(same, number) for number in range(20)]
        with open(fifo, "wb") as stream:  # Opening waits until the call has begun.
            pool.shutdown(wait=False, cancel_futures=True)
            stream.write(b"go")
        assert slow.result(BOUND) == b"go"
    finally:
        pool.shutdown()
    assert all(one.cancelled() for one in waiting[2:])


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1.5,
        2j,
        "\xe9\ud800",
        b"",
        b"x" * 100_000,
        10**4000,
        (1, "a"),
        [None, {1: 2}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_is_the_value_that_was_returned(pool: shmpar.Pool, value: Any) -> None:
    """Small, large and nested results have their type and value."""
    found = pool.submit(same, value).result(BOUND)
    assert (type(found), found) == (type(value), value)


def test_arguments_by_keyword_arrive(pool: shmpar.Pool) -> None:
    """Plain arguments come by position, by keyword, and by both."""
    calls = [pool.submit(int, "ff", base=16), pool.submit(dict, a=1), pool.submit(divmod, 7, 2)]
    assert [one.result(BOUND) for one in calls] == [255, {"a": 1}, (3, 1)]

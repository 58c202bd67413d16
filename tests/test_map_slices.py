"""`Pool.map` with its default chunksize: many items in a call, and the outcome of each item."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

import shmpar
from tests.work.concurrent import Gate, wait_at_gate
from tests.work.map_slices import (
    MANY,
    die,
    hold,
    log,
    mostly_plain,
    mostly_readable,
    nap_or_wait,
    refuse,
    stop,
)

BOUND = 60


@pytest.fixture(scope="module")
def two() -> Iterator[shmpar.Pool]:
    """Two worker processes."""
    with shmpar.Pool(2) as pool:
        pool.parallel_map(abs, range(2))
        yield pool


@pytest.mark.parametrize("count", [0, 1, 2, 33, MANY, 3_001])
def test_each_item_has_its_result_in_order(any_pool: shmpar.Pool, count: int) -> None:
    """Lists, generators and several iterables give the same as the built-in map."""
    due = [-item for item in range(count)]
    assert list(any_pool.map(refuse, range(count), [None] * count)) == due
    assert list(any_pool.map(abs, due)) == list(range(count))
    assert list(any_pool.map(abs, iter(due))) == list(range(count))
    assert list(any_pool.map(pow, range(count), [2] * (count + 5))) == [i * i for i in range(count)]


@pytest.mark.parametrize(
    "items",
    [range(0), range(7, 8), range(40, -40, -1), range(3, 9_000, 7), range(150_000)],
    ids=str,
)
def test_a_range_is_as_the_list_of_its_items(any_pool: shmpar.Pool, items: range) -> None:
    """A range is sent as a range: its items, their order and their type are those of a list."""
    results = list(any_pool.map(abs, items))
    assert results == [abs(item) for item in items]
    assert set(map(type, results)) <= {int}


def test_an_error_of_an_item_of_a_range(any_pool: shmpar.Pool) -> None:
    """The results of the items before it come first."""
    results = any_pool.map(partial(refuse, bad=70), range(0, 3_000, 2))
    assert [next(results) for _ in range(35)] == [-item for item in range(0, 70, 2)]
    with pytest.raises(ValueError) as caught:
        next(results)
    assert caught.value.args == (70,)
    assert list(results) == []


@pytest.mark.parametrize("bad", [0, 1, 57, 58, MANY - 1])
def test_an_error_comes_after_the_results_before_it(any_pool: shmpar.Pool, bad: int) -> None:
    """The iterator yields each earlier result, raises, and is over."""
    results = any_pool.map(refuse, range(MANY), [bad] * MANY)
    assert [next(results) for _ in range(bad)] == [-item for item in range(bad)]
    with pytest.raises(ValueError) as caught:
        next(results)
    assert caught.value.args == (bad,)
    if any_pool.engine == "processes":
        assert "refuse" in caught.value.__notes__[0]
    assert list(results) == []


def test_an_end_of_iteration_is_an_error(any_pool: shmpar.Pool) -> None:
    """No result is left out, and none takes the place of another."""
    results = any_pool.map(stop, range(MANY), [57] * MANY)
    assert [next(results) for _ in range(57)] == [-item for item in range(57)]
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)


@pytest.mark.parametrize("bad", [0, 77])
def test_a_death_comes_at_the_item_to_blame(bad: int) -> None:
    """The items that were sent with it have their results."""
    with shmpar.Pool(2, retries=1) as pool:
        results = pool.map(die, range(MANY), [bad] * MANY)
        assert [next(results) for _ in range(bad)] == [-item for item in range(bad)]
        with pytest.raises(shmpar.WorkerDied) as caught:
            next(results)
    assert caught.value.exitcode == 7


def test_a_result_that_does_not_pickle_comes_at_its_item(two: shmpar.Pool) -> None:
    """The results before it are kept."""
    results = two.map(mostly_plain, range(MANY), [123] * MANY)
    assert [next(results) for _ in range(123)] == list(range(123))
    with pytest.raises(shmpar.PlanError, match="does not pickle"):
        next(results)


def test_a_result_that_does_not_unpickle_comes_at_its_item(two: shmpar.Pool) -> None:
    """The results before it are kept, although they came with it."""
    results = two.map(mostly_readable, range(MANY), [123] * MANY, chunksize=MANY)
    assert [next(results) for _ in range(123)] == list(range(123))
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)


def test_slow_items_are_balanced(two: shmpar.Pool, tmp_path: Path) -> None:
    """Slow items at the begin are shared by both workers, although one call has all of them.

    Items that wait at gates meet in pairs, which they could not in one worker.
    """
    folders = [tmp_path / str(number) for number in range(10)]
    for folder in folders:
        folder.mkdir()
    gates = [Gate(folder) for folder in folders]
    results = two.map(nap_or_wait, ["nap", *map(str, folders), *[""] * MANY])
    try:
        for pair in zip(gates[::2], gates[1::2], strict=True):
            for gate in pair:
                gate.wait_for_worker()
            for gate in pair:
                gate.open()
    finally:
        for gate in gates:
            gate.open()
    pids = list(results)
    for gate in gates:
        gate.close()
    assert sorted(Counter(pids[:11]).values()) == [5, 6]


def test_each_item_is_computed_once(two: shmpar.Pool, tmp_path: Path) -> None:
    """Slices that end early leave no item out and repeat none."""
    path = str(tmp_path / "log")
    assert list(two.map(log, [path] * 2_000, range(2_000))) == list(range(2_000))
    assert sorted(map(int, Path(path).read_text().split())) == list(range(2_000))


@pytest.mark.parametrize("first", [0, 0.5])
def test_closing_the_iterator_stops_the_items_of_a_call(tmp_path: Path, first: float) -> None:
    """No item begins after the close, even of the call that is in progress.

    After a slow `first` item that is a call over the rest of the items.
    """
    fifo, path = str(tmp_path / "fifo"), str(tmp_path / "log")
    os.mkfifo(fifo)
    with shmpar.Pool(1) as pool:

        def work(item: int) -> int:
            with open(path, "a", encoding="ascii") as file:
                file.write(f"{item}\n")
            if item == 0:
                time.sleep(first)
            return hold(fifo, item)

        results = pool.map(work, range(MANY))
        writer = os.open(fifo, os.O_WRONLY)  # returns when the item waits
        results.close()
        os.close(writer)
        assert pool.submit(abs, -1).result(BOUND) == 1
    begun = [int(line) for line in Path(path).read_text().split()]
    # Why 8: the items of one look at the clock are called together.
    assert MANY // 2 <= max(begun) < MANY // 2 + 8
    assert list(results) == []


def test_a_late_result_is_a_timeout(tmp_path: Path) -> None:
    """The timeout counts from the call of map, as in concurrent.futures."""

    def work(folder: str, item: int) -> int:
        return int(wait_at_gate(folder, item)) if item == 3 else item

    with shmpar.Pool(1) as other:
        other.submit(abs, 1).result()
        for seconds in (0.5, 5, BOUND):
            # Why a new gate: the last item is cancelled, and comes to none, if it has not begun.
            folder = tmp_path / str(seconds)
            folder.mkdir()
            gate = Gate(folder)
            began, found = time.monotonic(), []
            results = other.map(work, [str(folder)] * 4, range(4), timeout=seconds)
            with pytest.raises(TimeoutError):
                found.extend(results)
            assert time.monotonic() - began >= seconds
            gate.open()
            assert other.submit(abs, 1).result(BOUND) == 1
            gate.close()
            if len(found) == 3:  # Why: a busy machine may take longer for the first three.
                break
        assert found == [0, 1, 2]


def test_leaving_the_block_computes_all_items(tmp_path: Path) -> None:
    """Items whose results nobody has taken are computed, as in concurrent.futures."""
    path = str(tmp_path / "log")
    with shmpar.Pool(2) as pool:
        results = pool.map(log, [path] * MANY, range(MANY))
    assert sorted(map(int, Path(path).read_text().split())) == list(range(MANY))
    assert list(results) == list(range(MANY))


def test_a_shutdown_that_cancels_is_told(tmp_path: Path) -> None:
    """The results of items that were not computed are errors; none is left out silently."""
    gate = Gate(tmp_path)
    with shmpar.Pool(1) as pool:
        results = pool.map(nap_or_wait, ["nap", str(tmp_path), *["nap"] * 198])
        next(results)
        gate.wait_for_worker()
        pool.shutdown(wait=False, cancel_futures=True)
        gate.open()
        with pytest.raises((CancelledError, RuntimeError)):
            list(results)
    gate.close()


def test_map_inside_of_a_worker(any_pool: shmpar.Pool) -> None:
    """A function may map itself: the items are computed in its own worker."""

    def inner(count: int) -> int:
        return sum(any_pool.map(abs, range(-count, 0)))

    assert list(any_pool.map(inner, [1, 2, 300])) == [1, 3, 45_150]

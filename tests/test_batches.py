"""`parallel_map` over items: lists of any results, errors that name items, tables, completion."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.memory.locate import locate


@dataclasses.dataclass
class Cell:
    """A result of a class of the user's."""

    number: int
    name: str


def equal(one: Any, other: Any) -> bool:
    """Return whether two results have the same type and value, in all of their parts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, BaseException):
        return one.args == other.args
    return bool(one == other)


KINDS: dict[str, Callable[[int], Any]] = {
    "strings": lambda n: "ä" * n,
    "None": lambda n: None,
    "dicts": lambda n: {"n": n, "parts": {"name": str(n), "values": [n, None]}},
    "lists": lambda n: [n] * n,
    "tuples": lambda n: (n, str(n), None)[: n + 1],
    "mixed numbers": lambda n: (n, n / 2, 1j * n, n > 2, np.float32(n), np.int8(n), 2**70)[n],
    "arrays": lambda n: np.full((2,) * n, n, ("f8", "i2", "?", "U3", "M8[s]", "c8", "f4")[n]),
    "paths": lambda n: Path("folder", f"p{n}.tif"),
    "bytes": lambda n: bytes(range(n)),
    "dataclasses": lambda n: Cell(n, "cell"),
    "exceptions": lambda n: (ValueError, OSError)[n % 2](f"number {n}"),
    "zero axes": np.array,
    "a ufunc": np.sqrt,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_has_exactly_the_values_of_the_function(pool: shmpar.Pool, kind: str) -> None:
    """Values of any kind, shape and length are right, in the order of the items."""
    found = pool.parallel_map(KINDS[kind], range(7))
    assert type(found) is list
    due = [KINDS[kind](n) for n in range(7)]
    assert all(map(equal, found, due)), found


class Frames:
    """A sequence without an iterator."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> int:
        if number > 2:
            raise IndexError
        return number


def test_any_iterable_gives_items(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Generators, ranges, globs, sets of one, dicts and sequences; equal arrays stay a list."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("x" * number)
    files = sorted(tmp_path.glob("*.txt"))
    assert pool.parallel_map(lambda path: len(path.read_text()), files) == [0, 1, 2]
    assert set(pool.parallel_map(lambda path: path.name, tmp_path.glob("*"))) == {
        f"{number}.txt" for number in range(3)
    }
    for items in (range(3), (n for n in range(3)), Frames(), {0: "a", 1: "b", 2: "c"}, (0, 1, 2)):
        assert pool.parallel_map(lambda n: n + 1, items) == [1, 2, 3]
    found = pool.parallel_map(np.sum, [np.ones(3), np.ones(3)])
    assert type(found) is list
    assert found == [3.0, 3.0]
    assert pool.parallel_map(pow, [2, 3], (n for n in (5, 2))) == [32, 9]
    assert pool.parallel_map(abs, []) == []
    assert pool.parallel_map(lambda word, n: word * n, ["a", "b"], np.array([1, 2])) == ["a", "bb"]
    rows = pool.parallel_map(lambda n, word: n * len(word), np.array([1, 2]), ["a", "bb"])
    assert type(rows) is np.ndarray


def test_an_array_is_made_on_request(pool: shmpar.Pool) -> None:
    """With dtype= or out= the results of items are put into arrays."""
    out = np.zeros(3)
    assert pool.parallel_map(lambda n: n / 2, range(3), out=out) is out
    assert out.tolist() == [0, 0.5, 1]
    one, other = pool.parallel_map(lambda n: (n, [n, n]), range(3), dtype=(int, "f4"))
    assert (one.tolist(), other.tolist(), other.dtype) == (
        [0, 1, 2],
        [[0, 0], [1, 1], [2, 2]],
        "f4",
    )
    objects = pool.parallel_map(lambda n: [n], range(2), dtype=object)
    assert (type(objects), objects.dtype) == (np.ndarray, object)
    with pytest.raises(shmpar.ChunkError, match=r"item \d \(\d\): the function"):
        pool.parallel_map(lambda n: np.ones(1 + n % 2), [0, 1, 0], dtype=float)


def test_large_arrays_come_back_through_shared_memory() -> None:
    """Also inside of other objects; they stay valid after the pool, and other results do too."""
    with shmpar.Pool(2) as pool:
        found = pool.parallel_map(lambda n: {"image": np.full(20_000 * n, n)}, range(4))
    for number, one in enumerate(found):
        assert one["image"].tolist() == [number] * 20_000 * number
        assert (locate(one["image"]) is not None) == (number > 0)


def test_options_work_for_items(pool: shmpar.Pool) -> None:
    """Keywords, random streams, block_id and progress are as for any verb."""
    shown: list[tuple[int, int]] = []
    draw = lambda n, factor, rng: [factor * rng.integers(100), n]
    options: dict[str, Any] = {"kwargs": {"factor": 2}, "seed": 7}
    options["progress"] = lambda done, total: shown.append((done, total))
    found = pool.parallel_map(draw, range(5), **options)
    streams = [np.random.default_rng(np.random.SeedSequence(7, spawn_key=(n,))) for n in range(5)]
    assert found == [draw(n, 2, rng) for n, rng in enumerate(streams)]
    assert shown[-1] == (5, 5)
    assert pool.parallel_map(lambda n, block_id: block_id, ["a", "b"]) == [(0,), (1,)]
    with pytest.raises(ValueError, match="pass_out=True"):
        pool.parallel_map(lambda n, out: None, range(2), pass_out=True)


def fail_at_two(item: Any) -> Any:
    """Raise for an item, and return None for another."""
    if item == 2:
        raise ValueError("two")
    return None if item == 1 else [item]


def test_failed_items_are_named_collected_and_filled(pool: shmpar.Pool) -> None:
    """The error has the item; a filled place has the fill value, None by default."""
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.parallel_map(fail_at_two, range(4))
    assert str(caught.value) == "parallel_map, item 2 (2): the function raised ValueError: two"
    assert (caught.value.item, caught.value.chunk) == (2, 2)
    with pytest.raises(ExceptionGroup, match=r"^1 item of parallel_map failed") as group:
        pool.parallel_map(fail_at_two, range(4), on_error="collect")
    assert [one.item for one in group.value.exceptions] == [2]
    for more, due in ({}, None), ({"fill_value": ["none"]}, ["none"]):
        with pytest.warns(RuntimeWarning, match="^1 item failed and was filled"):
            found = pool.parallel_map(fail_at_two, range(4), on_error="fill", **more)
        assert found == [[0], None, due, [3]]


class Shy:
    """An item whose text raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Path("p13.tif"), r"PosixPath\('p13.tif'\)"),
        ("x" * 10**6, r"'x+\.\.\.x+'"),
        ([["y" * 1000] * 1000] * 3, r"\[\[.*\]"),
        (np.zeros((50, 60)), r"array of shape \(50, 60\)"),
        (Shy(), ".*Shy.*"),
    ],
)
def test_an_error_names_any_item_in_a_short_text(pool: shmpar.Pool, item: Any, text: str) -> None:
    """The text of an item is bounded, and the item itself is in the error."""
    with pytest.raises(shmpar.ChunkError, match=rf"^parallel_map, item 1 \({text}\): ") as caught:
        pool.parallel_map(lambda one: 1 / (one is None), [None, item])
    assert caught.value.item is item
    assert len(str(caught.value)) < 600
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.args == caught.value.args


def test_an_error_names_the_items_of_several_iterables() -> None:
    """`item` is the tuple of them; an item that does not pickle is left out of a copy."""
    with shmpar.Pool(2, engine="threads") as pool:
        with pytest.raises(shmpar.ChunkError, match=r"item 1 \('b', 0\): ") as caught:
            pool.parallel_map(lambda name, n: 1 / n, ["a", "b"], [1, 0])
        assert caught.value.item == ("b", 0)
        with pytest.raises(shmpar.ChunkError) as caught:
            pool.parallel_map(lambda lock: 1 / 0, [threading.Lock()])
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.item, again.args) == (None, caught.value.args)


def test_dead_and_late_workers_are_errors_of_their_items(tmp_path: Path) -> None:
    """Retries and task_timeout hold per item; no other item is computed twice."""
    log = tmp_path / "log"

    def work(name: str) -> str:
        with log.open("a") as file:
            file.write(name)
        if name == "d":
            os._exit(3)
        if name == "t":
            time.sleep(60)
        return name.upper()

    with shmpar.Pool(2) as pool:
        run = pool.parallel_map(work, "abdetf", on_error="collect", task_timeout=2, wait=False)
        with pytest.raises(ExceptionGroup) as caught:
            run.result(60)
        died, late = caught.value.exceptions
        assert (type(died), died.item) == (shmpar.WorkerDied, "d")
        assert (type(late), late.item) == (shmpar.TaskTimeout, "t")
        assert str(died).startswith("parallel_map, item 2 ('d'): the worker exited with status 3")
        table = run.table()
        assert [one["status"] for one in table] == [
            "done",
            "done",
            "failed",
            "done",
            "failed",
            "done",
        ]
        assert table[2]["worker"] in {0, 1}
        assert 1.9 < table[4]["seconds"] < 60
        assert run.out == ["A", "B", None, "E", None, "F"]
    assert sorted(log.read_text()) == sorted("abefddtt")


# Tables


def test_a_table_has_a_record_of_each_item(pool: shmpar.Pool) -> None:
    """Failures and results that are None stay apart, in input order."""
    run = pool.parallel_map(fail_at_two, range(4), on_error="collect", wait=False)
    assert isinstance(run.exception(60), ExceptionGroup)
    table = run.table()
    assert isinstance(table, list)
    keys = ["item", "status", "result", "error", "seconds", "worker"]
    assert [list(one) for one in table] == [keys] * 4
    assert [(one["item"], one["status"], one["result"]) for one in table] == [
        (0, "done", [0]), (1, "done", None), (2, "failed", None), (3, "done", [3]),
    ]  # fmt: skip
    assert [one["error"] for one in table] == [None, None, run.failed[0], None]
    assert all(one["seconds"] > 0 and one["worker"] < pool.n_workers for one in table)


def test_a_table_becomes_a_frame(pool: shmpar.Pool) -> None:
    """Each record is a row; objects stay as they are."""
    pd = pytest.importorskip("pandas")
    run = pool.parallel_map(fail_at_two, [0, 1, 2], on_error="collect", wait=False)
    run.exception(60)
    frame = run.table().to_frame()
    assert list(frame["status"]) == ["done", "done", "failed"]
    assert list(frame["result"]) == [[0], None, None]
    assert frame["seconds"].dtype == float
    assert pd.isna(frame["worker"]).sum() == 0
    same = pool.parallel_map(np.ones, [3, 3], wait=False)
    same.result(60)
    assert [one.tolist() for one in same.table().to_frame()["result"]] == [[1] * 3] * 2
    none = pool.parallel_map(abs, [], wait=False)
    assert none.result(60) == []
    assert list(none.table().to_frame()) == list(frame)


def test_a_table_of_a_call_that_waited(pool: shmpar.Pool) -> None:
    """It has the results; large arrays of which the caller holds none are None."""
    found = pool.parallel_map(lambda n: np.full(10 ** (2 * n), n), range(3))
    run = pool.last_run
    assert [one["result"].size for one in run.table()] == [1, 100, 10_000]
    assert run.table()[2]["result"] is found[2]
    assert all(map(equal, run.result(), found))
    del found
    assert [one["result"] is None for one in run.table()] == [False, False, True]
    with pytest.raises(shmpar.ShmparError, match="dropped"):
        run.result()
    pairs = pool.parallel_map(lambda n: (n, 2 * n), range(2), dtype=(int, float))
    assert [one["result"] for one in pool.last_run.table()] == [(0, 0.0), (1, 2.0)]
    del pairs
    assert [one["result"] for one in pool.last_run.table()] == [None, None]


def test_a_table_of_a_run_in_progress(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Items that are not done are pending, also after a cancel."""
    if pool.engine == "serial":
        pytest.skip("its pool thread computes, so nobody hears of a value before")
    gate = tmp_path / "gate"

    def work(n: int) -> int:
        while n == 1 and not gate.exists():
            time.sleep(0.001)
        return n

    run = pool.parallel_map(work, range(2), wait=False)
    assert next(iter(run.completed())) == (0, 0)
    assert run.table()[1]["status"] == "pending"
    run.cancel()
    gate.touch()
    with pytest.raises(concurrent.futures.CancelledError):
        run.result(60)
    assert len(run.table()) == 2
    assert run.resume().result(60) == [0, 1]


def test_only_items_have_a_table(pool: shmpar.Pool) -> None:
    """The error names the report."""
    pool.map_blocks(np.negative, np.ones(4))
    with pytest.raises(TypeError, match=r"see run\.report"):
        pool.last_run.table()


# Results as they come


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_pairs_come_in_the_order_of_completion(engine: str, tmp_path: Path) -> None:
    """An item that waits for another one comes after it, unless the order is that of the input."""
    gate = tmp_path / "gate"

    def work(n: int) -> int:
        while n == 0 and not gate.exists():
            time.sleep(0.001)
        if n == 5:
            gate.touch()
        return 10 * n

    with shmpar.Pool(2, engine=engine) as pool:
        run = pool.parallel_map(work, range(2), wait=False)
        pairs = run.completed()
        assert next(pairs) == (1, 10)
        gate.touch()
        assert list(pairs) == [(0, 0)]
        assert list(run.completed(ordered=True)) == [(0, 0), (1, 10)]
        gate.unlink()
        run = pool.parallel_map(work, range(6), wait=False)
        assert list(run.completed(ordered=True)) == [(n, 10 * n) for n in range(6)]


def test_a_value_comes_before_the_end_of_the_run(pool: shmpar.Pool, tmp_path: Path) -> None:
    """The consumer of the first value lets the last item go on."""
    if pool.engine == "serial":
        pytest.skip("its run is over before the caller can look")
    gate = tmp_path / "gate"

    def work(n: int) -> int:
        while n == 1 and not gate.exists():
            time.sleep(0.001)
        return n

    run = pool.parallel_map(work, [0, 1], wait=False)
    pairs = run.completed()
    assert next(pairs) == (0, 0)
    gate.touch()
    assert list(pairs) == [(1, 1)]


@pytest.mark.parametrize("ordered", [False, True])
def test_failed_items_are_left_out(pool: shmpar.Pool, ordered: bool) -> None:
    """The error comes after all values, and an item that failed holds nothing up."""
    run = pool.parallel_map(fail_at_two, range(5), on_error="collect", wait=False)
    found = []
    with pytest.raises(ExceptionGroup):
        found.extend(run.completed(ordered=ordered))
    pairs = run.completed(ordered=ordered)
    seen = [next(pairs) for _ in range(4)]
    assert (seen if ordered else sorted(seen, key=lambda pair: pair[0])) == [
        (0, [0]), (1, None), (3, [3]), (4, [4]),
    ]  # fmt: skip


def test_arrays_give_regions_in_either_order(pool: shmpar.Pool) -> None:
    """Regions are as before; ordered=True sorts them."""
    run = pool.map_blocks(np.negative, np.arange(12.0), chunks=2, wait=False)
    regions = list(run.completed(ordered=True))
    assert regions == [(slice(n, n + 2),) for n in range(0, 12, 2)]
    assert sorted(run.completed(), key=lambda one: one[0].start) == regions
    run = pool.parallel_map(lambda n: n / 2, range(4), dtype=float, wait=False)
    assert list(run.completed(ordered=True)) == [(n, n / 2) for n in range(4)]


def test_a_resumed_run_has_every_item(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Its list, its pairs and its table include the items that were done before."""
    ready = tmp_path / "ready"

    def work(n: int) -> list[int]:
        if n == 2 and not ready.exists():
            raise OSError("not ready")
        return [n]

    run = pool.parallel_map(work, range(4), on_error="collect", wait=False)
    run.exception(60)
    ready.touch()
    again = run.resume()
    assert again.result(60) == [[0], [1], [2], [3]]
    assert list(again.completed(ordered=True)) == [(n, [n]) for n in range(4)]
    assert {one["status"] for one in again.table()} == {"done"}
    assert again.report.computed == 1


def test_a_folder_is_no_list_of_files(tmp_path):
    """The error names the list to pass, since no store opens a folder of files."""
    with shmpar.Pool(1, engine="serial") as pool:
        with pytest.raises(TypeError, match=r"parallel_map: a folder is no array: pass .*glob\("):
            pool.parallel_map(len, tmp_path)
        with pytest.raises(TypeError, match=r"a path is no array: pass shmpar\.open\("):
            pool.parallel_map(len, tmp_path / "x.zarr")

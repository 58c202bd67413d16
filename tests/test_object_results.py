"""Results and copies that belong to the caller, on every engine."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import gc
import pickle
import threading
import time
import typing
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import drop_caches

buffer, items, table = np.zeros(3), [0], {"row": np.zeros(3)}


@dataclasses.dataclass
class Detection:
    """A result with an array in it."""

    row: Any


detection = Detection(np.zeros(3))


def refill(number: int) -> Any:
    """Return the same array again and again."""
    buffer[:] = number
    return buffer


def refill_deep(number: int) -> Any:
    """Return the same objects again and again."""
    buffer[:] = items[0] = table["row"][:] = detection.row[:] = number
    return [buffer], items, table, (buffer, [table]), detection


def test_objects_that_the_function_fills_again_are_all_kept(pool: shmpar.Pool) -> None:
    """Each result has the values of its own chunk, as if it was pickled."""
    rows = np.arange(6)[:, None]
    for found in (
        pool.parallel_map(lambda row: refill(row[0]), rows, dtype=object),
        pool.parallel_map(refill, range(6), dtype=object),
        pool.block_reduce(lambda block: refill(block[0, 0]), rows, chunks=1, dtype=object)[:, 0],
    ):
        assert [one.tolist() for one in found] == [[k] * 3 for k in range(6)]
    deep = pool.parallel_map(refill_deep, range(6), dtype=object)
    for k, (listed, listed_item, mapped, nested, made) in enumerate(deep):
        assert listed[0].tolist() == mapped["row"].tolist() == made.row.tolist() == [k] * 3
        assert listed_item == [k]
        assert nested[0] is listed[0]
        assert nested[1][0] is mapped


def test_objects_without_a_copy_stay_themselves() -> None:
    """On threads a result may be an object that does not pickle."""
    lock = threading.Lock()
    with shmpar.Pool(2, engine="threads") as pool:
        found = pool.parallel_map(lambda _: (lock, [1]), range(3), dtype=object)
        assert all(one[0] is lock for one in found)
        loop: list[Any] = [1]
        loop.append(loop)
        (again,) = pool.parallel_map(lambda _: loop, range(1), dtype=object)
        assert again is not loop
        assert again[1] is again


@pytest.mark.parametrize("engine", ["threads", "serial"])
def test_objects_that_are_too_deep_for_a_copy_stay_themselves(engine: str) -> None:
    """A list of lists of lists is no failure of the function that returned it."""
    deep: list[Any] = []
    for _ in range(3_000):
        deep = [deep]
    with shmpar.Pool(1, engine=engine) as pool:
        (found,) = pool.parallel_map(lambda _: deep, range(1))
    depth = 0
    while found:
        (found,), depth = found, depth + 1
    assert depth == 3_000


class Slow:
    """A result that takes longer to load than to compute."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (0.005,)


def compute_slow(_: int) -> Slow:
    """Return a result after a millisecond."""
    time.sleep(0.001)
    return Slow()


def test_results_that_load_slowly_do_not_hold_up_a_cancel() -> None:
    """A worker that returns results faster than they load leaves time for requests."""
    with shmpar.Pool(1) as pool:
        run = pool.parallel_map(compute_slow, range(1_000), wait=False)
        next(run.completed())
        run.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            run.result()
        assert run.progress[0] < 1_000


def test_shared_arrays_in_results_stay_shared(pool: shmpar.Pool) -> None:
    """A SharedArray is a handle on memory, in a result too."""
    with pool.zeros(3) as a:
        found = pool.parallel_map(lambda _: [a], range(2), dtype=object)
        a[:] = 5
        assert [one[0].tolist() for one in found] == [[5] * 3] * 2
        del found


BIG = 2**70


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", ["f8", "f4", "c16", ("f8", "i8")])
def test_a_large_int_does_not_depend_on_the_first_chunk(
    pool: shmpar.Pool, dtype: Any, first: bool
) -> None:
    """With a declared dtype of floats, an int beyond 64 bits is cast in whichever chunk."""

    def large(item: int) -> Any:
        value = BIG if (item == 0) is first else 1
        return (value, item) if isinstance(dtype, tuple) else value

    rows = np.arange(4)
    for call in (
        lambda: pool.parallel_map(large, range(4), dtype=dtype),
        lambda: pool.parallel_map(lambda row: large(int(row)), rows, dtype=dtype),
        lambda: pool.block_reduce(lambda b: large(int(b[0])), rows, chunks=1, dtype=dtype),
    ):
        result = call()
        due = np.array(
            [large(k) if isinstance(dtype, str) else large(k)[0] for k in range(4)], "f8"
        )
        found = result[0] if isinstance(dtype, tuple) else result
        np.testing.assert_array_equal(found, due.astype(found.dtype))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_a_large_int_that_does_not_fit_is_an_error(
    pool: shmpar.Pool, dtype: Any, first: bool
) -> None:
    """Also where the chunk comes first."""
    with pytest.raises(shmpar.ChunkError, match="the function returned"):
        pool.parallel_map(lambda k: BIG if (k == 0) is first else 1, range(4), dtype=dtype)


class Named(shmpar.SharedArray):
    """A subclass with an attribute."""

    label = "none"

    def __array_finalize__(self, parent: Any) -> None:
        super().__array_finalize__(parent)
        self.label = getattr(parent, "label", "none")


def test_a_subclass_of_shared_array_computes() -> None:
    """Computations are plain arrays, views keep the subclass and its attributes."""
    with shmpar.array(np.arange(6.0).reshape(2, 3)) as base:
        a = base.view(Named)
        a.label = "dark"
        x = np.arange(6.0).reshape(2, 3)
        computations: list[Callable[[Any], Any]] = [
            lambda v: v + 1, lambda v: 2 - v, lambda v: v @ v.T, lambda v: -v, lambda v: v == 3,
            lambda v: v.sum(axis=0), np.add.reduce, np.sqrt,
            lambda v: np.concatenate([v, v]), lambda v: np.where(v > 2, v, 0), lambda v: v.copy(),
            lambda v: v.astype("f4"), lambda v: np.linalg.norm(v, axis=1), lambda v: v[[0, 1]],
        ]  # fmt: skip
        for compute in computations:
            assert type(compute(a)) is np.ndarray
            np.testing.assert_array_equal(compute(a), compute(x))
        for view in (a[1:], a.T, a.reshape(3, 2), a[:, ::2], np.transpose(a), a.view()):
            assert (type(view), view.label) == (Named, "dark")
            assert view.address["key" if "key" in view.address else "name"]
        assert np.add(a, 1, out=a) is a
        a += 1
        assert (type(a), a.label) == (Named, "dark")
        np.testing.assert_array_equal(base, x + 2)
        with shmpar.Pool(1) as pool:
            np.testing.assert_array_equal(pool.map_blocks(np.negative, a), -x - 2)
            assert pool.submit(np.sum, a).result() == (x + 2).sum()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(a)), x + 2)
        del view, a


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda pool: copy.deepcopy([pool])])
def test_a_pool_has_no_copy(pool: shmpar.Pool, copier: Callable[[Any], Any]) -> None:
    """A copy would be a serial pool with another memory; in a worker a pool is a serial one."""
    with pytest.raises(TypeError, match="a pool has workers and memory"):
        copier(pool)
    assert pool.submit(lambda: type(pool).__name__).result() == "Pool"


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_results_that_nobody_holds_are_released_while_the_pool_is_busy(engine: str) -> None:
    """Another thread keeps the pool busy; a finished run ends with its last reference."""
    a = np.arange(20_000.0)
    stop = threading.Event()
    with shmpar.Pool(2, engine=engine) as pool:

        def keep_busy() -> None:
            while not stop.is_set():
                pool.parallel_map(abs, range(50))

        busy = threading.Thread(target=keep_busy)
        busy.start()
        try:
            left = []
            for _ in range(10):
                run = pool.map_blocks(np.negative, a, chunks=1000, dtype="f8", wait=False)
                run.result()
                left += [weakref.ref(run), weakref.ref(run.out), weakref.ref(run.out.base)]
                del run
            for _ in range(5):  # the pool thread looks at its runs at each step
                pool.parallel_map(abs, range(3))
            gc.collect()
            assert [one for one in left if one() is not None] == []
        finally:
            stop.set()
            busy.join()
        drop_caches(pool)


def slotted() -> dict[str, Callable[[], Any]]:
    """Return functions that make equal objects of local classes, which are sent by value."""

    class Equal:
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return type(self) is type(other) and self.values() == other.values()  # type: ignore[attr-defined]

        __hash__ = None  # type: ignore[assignment]

        def values(self) -> list[Any]:
            return [getattr(self, name, None) for name in ("one", "own", "free")]

    class One(Equal):
        __slots__ = "one"  # noqa: PLC0205 - a single name is allowed

    class Own(One):
        __slots__ = ("__own", "__weakref__")

        def __init__(self) -> None:
            self.one, self.__own = 1, 2

        @property
        def own(self) -> int:
            return self.__own

    class Free(Own):
        def __init__(self) -> None:
            super().__init__()
            self.free = 3

    @dataclasses.dataclass(slots=True)
    class Record:
        one: int = 1

    class Pair(typing.NamedTuple):
        one: int = 1

    return {"Own": Own, "Free": Free, "dataclass": Record, "NamedTuple": Pair}


@pytest.mark.parametrize("kind", list(slotted()))
def test_objects_with_slots(pool: shmpar.Pool, kind: str) -> None:
    """They have no dict in a worker either, so they are results and items as any other."""
    make = slotted()[kind]
    expected = make()
    assert pool.submit(make).result() == expected
    assert pool.parallel_map(lambda item: (item, item == make()), [expected]) == [(expected, True)]
    assert pool.submit(lambda: hasattr(make(), "__dict__")).result() is hasattr(
        expected, "__dict__"
    )
    (found,) = pool.block_reduce(lambda _: make(), np.zeros(1), dtype=object)
    assert (type(found), found) == (make, expected)

"""Numbers that no option takes, and those that it must take: infinity, NaN, bool, NumPy's."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.work.bad_numbers import after, double, fails_late, noise, of_dtype

X = np.arange(6.0)
INF, NAN = float("inf"), float("nan")
BOUND = 60


def test_a_task_may_take_any_time(tmp_path: Any) -> None:
    """A run under an endless limit goes on past the next look at the clock."""
    fifo = str(tmp_path / "go")
    os.mkfifo(fifo)

    def check(pool: shmpar.Pool, **keywords: Any) -> None:
        ticked = threading.Event()
        ticks: list[int] = []

        def tick(*_: int) -> None:
            ticks.append(1)
            if len(ticks) > 3:  # several looks at the clock
                ticked.set()

        run = pool.parallel_map(after, [fifo], wait=False, progress=tick, **keywords)
        assert ticked.wait(BOUND), keywords
        with open(fifo, "wb") as stream:
            stream.write(b"1234")
        assert run.result(BOUND) == [4]

    with shmpar.Pool(1) as pool:
        for seconds in (INF, np.float64(INF), 1e300, 10**30, 10**400, np.float32(60), 60):
            check(pool, task_timeout=seconds)
    for seconds in (INF, 10**30):
        with shmpar.Pool(1, task_timeout=seconds) as pool:
            check(pool)


@pytest.mark.parametrize("seconds", [np.int64(7), np.float32(7), Fraction(7, 2), np.float16(3)])
def test_a_time_is_any_real_number(any_pool: shmpar.Pool, seconds: Any) -> None:
    """NumPy's scalars and fractions count as numbers of seconds."""
    assert any_pool.map_blocks(double, X, task_timeout=seconds).tolist() == (2 * X).tolist()


BAD: dict[str, list[Any]] = {
    "task_timeout": [
        NAN,
        -(10**400),
        -INF,
        0,
        -1,
        True,
        np.True_,
        "2",
        "",
        [1],
        np.array([1, 2]),
        2j,
        object(),
    ],
    "retries": [INF, NAN, -1, True, np.True_, 2.0, "2", [1], np.array([1, 2]), 2j],
    "seed": [INF, NAN, -1, 2.0, "2", 2j, [1, -2], np.array(2.5), object()],
    "fill_value": [[1, 2], (1, 2), np.array([1.0, 2]), [], [[1], [2, 3]], np.ones((2, 3))],
}


@pytest.mark.parametrize(("name", "value"), [(name, bad) for name in BAD for bad in BAD[name]])
def test_a_bad_number_is_refused_before_anything_starts(
    any_pool: shmpar.Pool, name: str, value: Any
) -> None:
    """The error names the option, in a verb whose function would not even use it."""
    before, keywords = any_pool.last_run, {name: value, "on_error": "fill"}
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        any_pool.map_blocks(double, X, dtype="f8", chunks=2, **keywords)
    assert any_pool.last_run is before
    if name in {"task_timeout", "retries"}:
        with pytest.raises(ValueError, match=f"^{name}"):
            shmpar.Pool(1, engine=any_pool.engine, **{name: value})


@pytest.mark.parametrize("value", [[1, 2], (1, 2), np.ones(2)])
def test_a_fill_value_is_a_scalar_also_where_the_dtype_comes_late(
    any_pool: shmpar.Pool, value: Any
) -> None:
    """Without dtype= the first result decides the dtype, and the run ends with the error."""
    with pytest.raises(ValueError, match=r"^fill_value=.* is an array; pass a scalar"):
        any_pool.parallel_map(fails_late, X[:, None], on_error="fill", fill_value=value)


def test_objects_are_filled_with_any_object(any_pool: shmpar.Pool) -> None:
    """With dtype=object a list is one value."""
    with pytest.warns(RuntimeWarning, match="3 chunks failed and were filled"):
        got = any_pool.parallel_map(
            fails_late, X[:, None], dtype=object, on_error="fill", fill_value=[1, 2]
        )
    assert got[3:].tolist() == [[1, 2]] * 3


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (10**30, "f8", 1e30),
        (-(10**30), "f4", np.float32(-1e30)),
        (np.array(7), "i4", 7),
        (np.float64(2.5), "f4", 2.5),
        (np.int8(-1), "f8", -1.0),
        (True, "f8", 1.0),
        (-INF, "f4", -INF),
        (np.void((1.0, 2), dtype=[("a", "f8"), ("b", "i4")]), [("a", "f8"), ("b", "i4")], (1.0, 2)),
    ],
)
def test_a_fill_value_that_fits_is_taken(
    any_pool: shmpar.Pool, value: Any, dtype: Any, expected: Any
) -> None:
    """Numbers of any type that the dtype can hold fill the windows."""
    part = functools.partial(of_dtype, dtype=np.dtype(dtype))
    with pytest.warns(RuntimeWarning, match="filled"):
        got = any_pool.map_blocks(part, X, chunks=3, dtype=dtype, on_error="fill", fill_value=value)
    assert got[3:].tolist() == [expected] * 3


@pytest.mark.parametrize("seed", [0, 10**30, np.uint64(7), [1, 2], np.array([3, 4])])
def test_a_seed_is_any_whole_number(any_pool: shmpar.Pool, seed: Any) -> None:
    """Large numbers, NumPy's and sequences repeat the same stream."""
    first = any_pool.map_blocks(noise, X, seed=seed, chunks=2)
    assert first.tolist() == any_pool.map_blocks(noise, X, seed=seed, chunks=2).tolist()


WAITS: dict[str, Callable[[shmpar.Pool, Any], Any]] = {
    "submit": lambda pool, time: pool.submit(double, 4).result(time),
    "exception": lambda pool, time: pool.submit(double, 4).exception(time) or 8,
    "run": lambda pool, time: int(pool.map_blocks(double, X, wait=False).result(time)[4]),
    "map": lambda pool, time: next(iter(pool.map(double, [4], timeout=time))),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_takes_any_time(any_pool: shmpar.Pool, name: str) -> None:
    """Infinity and times that no clock has are no limit."""
    for seconds in (INF, 1e300, 10**30, np.float64(60), np.int64(60), Fraction(60), None):
        assert WAITS[name](any_pool, seconds) == 8


def test_a_lock_waits_for_any_time(any_pool: shmpar.Pool) -> None:
    """So does a lock of a shared array, held by nobody or by another thread."""
    array = any_pool.zeros(3)
    for seconds in (INF, 1e300, 10**30, np.float64(60), None):
        assert array.lock.acquire(seconds)
        array.lock.release()
    with pytest.raises(ValueError, match="NaN"):
        array.lock.acquire(NAN)
    array.lock.acquire()
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(array.lock.acquire(INF)), daemon=True)
    waiting.start()
    array.lock.release()
    waiting.join(BOUND)
    assert got == [True]
    array.lock.release()


@pytest.mark.parametrize("name", ["n_workers", "threads_per_worker", "max_tasks_per_worker"])
@pytest.mark.parametrize("value", [INF, NAN, 0, -1, True, np.True_, 2.0, "2", [1], 2j])
def test_a_pool_takes_whole_numbers(name: str, value: Any) -> None:
    """Bad numbers of workers, threads and tasks are refused by name."""
    with pytest.raises((ValueError, TypeError), match=f"^{name}"):
        shmpar.Pool(**{"n_workers": 1, name: value})


@pytest.mark.parametrize("engine", ["processes", "threads", "serial"])
def test_a_pool_of_too_many_workers_is_refused(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that no machine can start is refused at once, also from the environment."""
    for many in (10**30, 10**6):
        with pytest.raises(ValueError, match="n_workers is at most"):
            shmpar.Pool(many, engine=engine)
        monkeypatch.setenv("SHMPAR_NUM_WORKERS", str(many))
        with pytest.raises(ValueError, match="n_workers is at most"):
            shmpar.Pool(engine=engine)


def test_more_tasks_than_exist_are_all(any_pool: shmpar.Pool) -> None:
    """Numbers beyond any index count as no limit."""
    engine, much = any_pool.engine, 10**30
    assert list(any_pool.map(double, [1, 2], chunksize=much, buffersize=much)) == [2, 4]
    assert list(any_pool.imap(double, [1, 2], chunksize=much)) == [2, 4]
    assert any_pool.map_async(double, [1, 2], chunksize=much).get() == [2, 4]
    with shmpar.Pool(1, engine=engine, max_tasks_per_worker=much, retries=much) as pool:
        assert pool.map_blocks(double, X).tolist() == (2 * X).tolist()
        assert pool.submit(double, 2).result(BOUND) == 4


@pytest.mark.parametrize("ddof", ["2", [1], np.ones(2), 2j, None, object()])
def test_degrees_of_freedom_are_a_number(any_pool: shmpar.Pool, ddof: Any) -> None:
    """A bad ddof is refused before anything starts."""
    before = any_pool.last_run
    for verb in (any_pool.var, any_pool.std):
        with pytest.raises(TypeError, match=r"ddof"):
            verb(X, ddof=ddof)
    assert any_pool.last_run is before


@pytest.mark.parametrize("ddof", [INF, NAN, True, np.float64(1), np.int8(1), -1, 2.5])
def test_any_real_ddof_is_numpys(any_pool: shmpar.Pool, ddof: Any) -> None:
    """Infinity and NaN give NumPy's result."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got, due = any_pool.var(X, ddof=ddof, chunks=2), np.var(X, ddof=ddof)
    assert np.isclose(got, due, equal_nan=True)

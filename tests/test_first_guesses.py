"""The tables of first guesses in the documentation: each call is right, or its error has advice."""

from __future__ import annotations

import itertools
import re
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import delayed

import shmpar
from shmpar.memory.limits import available_cpus
from tests.pools import warm

PAGE = Path(__file__).parent.parent / "docs" / "coming-from.md"
ROW = re.compile(r"(?m)^\| `(.+?)` \| (.+?) \| .+ \|$")


def guesses() -> list[tuple[str, str]]:
    """Return the code and the outcome of each row."""
    text = PAGE.read_text()
    section = text[text.index("## First guesses\n") : text.index("## Two terminals\n")]
    return ROW.findall(section)


def double(block: Any) -> Any:
    return 2 * block


def add(a: Any, b: Any) -> Any:
    return a + b


def mean(block: Any) -> Any:
    return block.mean(keepdims=True)


def names(pool: shmpar.Pool) -> dict[str, Any]:
    """Return the names that the rows use."""
    return {
        "np": np,
        "shmpar": shmpar,
        "pool": pool,
        "x": np.arange(64.0).reshape(8, 8),
        "items": [-3, 1, 2],
        "double": double,
        "add": add,
        "mean": mean,
        "delayed": delayed,
        "cpus": available_cpus(),
    }


def evaluate(code: str, pool: shmpar.Pool) -> Any:
    """Return the value of a row; a pool is closed, and its workers count."""
    value = eval(code, names(pool))  # noqa: S307 - of our own page
    if isinstance(value, shmpar.Pool):
        value.shutdown()
        return value.n_workers
    return value


def test_there_are_forty() -> None:
    """The number of rows is that of the promise, at least, and no row is left out by the parser."""
    assert len(guesses()) >= 40
    text = PAGE.read_text()
    section = text[text.index("## First guesses\n") : text.index("## Two terminals\n")]
    assert len(re.findall(r"(?m)^\| `", section)) == len(guesses())


def check(code: str, outcome: str, pool: shmpar.Pool) -> None:
    """Assert that the value is as expected, or that the error or warning has the text."""
    kind, _, text = outcome.partition(": ")
    if kind == "warning":
        with pytest.warns(RuntimeWarning, match=re.escape(text)):
            evaluate(code, pool)
    elif kind == "error":
        with pytest.raises(
            (AttributeError, TypeError, ValueError, shmpar.ChunkError), match=re.escape(text)
        ):
            evaluate(code, pool)
    else:
        due = eval(outcome.split("`")[1], names(pool))  # noqa: S307 - of our own page
        assert np.array_equal(evaluate(code, pool), due)
    if pool.last_run is not None:
        wait([pool.last_run])
        pool._last_run = None


MAKES_A_POOL = [row for row in guesses() if row[0].startswith("shmpar.Pool(")]


@pytest.mark.parametrize(("code", "outcome"), [row for row in guesses() if row not in MAKES_A_POOL])
def test_a_first_guess(any_pool: shmpar.Pool, code: str, outcome: str) -> None:
    """The outcome is that of the table, on every engine."""
    check(code, outcome, any_pool)


@pytest.mark.parametrize(("code", "outcome"), MAKES_A_POOL)
def test_a_first_guess_of_the_constructor(code: str, outcome: str) -> None:
    """The outcome is that of the table."""
    with warm("serial") as pool:
        check(code, outcome, pool)


CALLBACKS = {
    "apply_async": (lambda pool, **given: pool.apply_async(abs, (-1,), **given), 1),
    "map_async": (lambda pool, **given: pool.map_async(abs, range(9), 2, **given), [*range(9)]),
    "starmap_async": (lambda pool, **given: pool.starmap_async(abs, [(-1,)], **given), [1]),
    "no items": (lambda pool, **given: pool.map_async(abs, [], **given), []),
}


@pytest.mark.parametrize("case", CALLBACKS)
def test_callbacks_get_the_result(any_pool: shmpar.Pool, case: str) -> None:
    call, due = CALLBACKS[case]
    told = threading.Event()
    found: list[Any] = []
    future = call(any_pool, callback=lambda one: (found.append(one), told.set()))
    future.wait(60)
    assert future.ready()
    assert future.successful()
    assert future.get(60) == due
    assert told.wait(60)
    assert found == [due]


@pytest.mark.parametrize("name", ["map_async", "starmap", "imap", "imap_unordered"])
def test_the_function_is_checked_once(any_pool: shmpar.Pool, name: str) -> None:
    """A number is no function; a captured generator gets one warning for all batches."""
    with pytest.raises(TypeError, match="the function comes first; int is not callable"):
        getattr(any_pool, name)(3, [(1,)])
    rng = np.random.default_rng(1)
    with pytest.warns(RuntimeWarning, match="the function holds a Generator") as caught:
        results = getattr(any_pool, name)(lambda _: rng.random(), [(1,)] * 9, 1)
    assert len(list(results.get(60) if name == "map_async" else results)) == 9
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_error_callbacks_get_the_exception(any_pool: shmpar.Pool) -> None:
    """The first exception in the order of the items decides."""
    told = threading.Event()
    found: list[Any] = []

    def invert(number: int) -> float:
        return 1 / number

    tell = lambda error: (found.append(error), told.set())
    future = any_pool.map_async(invert, [1, 0, 2], 1, lambda _: None, tell)
    with pytest.raises(ZeroDivisionError):
        future.get(60)
    assert not future.successful()
    assert told.wait(60)
    assert type(found[0]) is ZeroDivisionError


def test_imap_goes_on_after_an_exception(any_pool: shmpar.Pool) -> None:
    """As in multiprocessing; a timeout loses no result."""

    def invert(number: int) -> float:
        return 1 / number

    results = any_pool.imap(invert, [1, 0, 2])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results) == 0.5
    with pytest.raises(StopIteration):
        next(results)


def test_imap_reads_an_infinite_iterable_in_part(any_pool: shmpar.Pool) -> None:
    """It reads a bounded number of items ahead."""
    read = itertools.count()
    results = any_pool.imap(abs, read, 3)
    assert list(itertools.islice(results, 10)) == list(range(10))
    assert next(read) < 1_000
    while results._calls:  # type: ignore[attr-defined]
        results._calls.popleft().result()  # type: ignore[attr-defined]


@pytest.mark.parametrize("unordered", [False, True])
def test_a_timeout_can_be_waited_for_again(unordered: bool) -> None:
    """`next(timeout)` raises TimeoutError; the result comes later."""
    go = threading.Event()

    def late(number: int) -> int:
        go.wait(60)
        return number

    with shmpar.Pool(1, engine="threads") as pool:
        way = pool.imap_unordered if unordered else pool.imap
        results = way(late, [7])
        with pytest.raises(TimeoutError) as caught:
            results.next(0.01)  # type: ignore[attr-defined]
        if not unordered:  # Why: the others wait for any of several calls.
            assert ".late at" in str(caught.value)
        go.set()
        assert results.next(60) == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ["close", "terminate", "terminate_workers"])
def test_close_terminate_and_join(end: str) -> None:
    """`join` waits; the calls of a closed pool are made, those of a terminated one may not be."""
    pool = shmpar.Pool(2)
    future = pool.map_async(abs, range(-50, 0))
    getattr(pool, end)()
    with pytest.raises(RuntimeError, match="closed"):
        pool.apply_async(abs, (1,))
    pool.join()
    assert future.ready()
    if end == "close":
        assert future.get() == list(range(50, 0, -1))


@pytest.mark.parametrize("jobs", [-1, -2, -1_000])
def test_negative_n_jobs(jobs: int) -> None:
    """As in joblib, and at least one."""
    with shmpar.Pool(n_jobs=jobs, engine="threads") as pool:  # type: ignore[call-arg]
        assert pool.n_workers == max(1, available_cpus() + 1 + jobs)


@pytest.mark.parametrize(
    ("arguments", "keywords", "text"),
    [
        ((2,), {"max_workers": 3}, "got n_workers= twice: max_workers= means the same"),
        ((), {"n_workers": 2, "processes": 3}, "got n_workers= twice"),
        ((2, "threads"), {}, r'name the others, as in Pool\(2, engine="threads"\)'),
        ((2, None, (), 5, 6), {}, "takes n_workers alone by its position"),
        ((), {"n_worker": 2}, "did you mean n_workers="),
        ((), {"colour": 2}, "it takes n_workers, engine, "),
        ((), {"n_jobs": 0}, "n_workers is a number, 1 or more"),
    ],
)
def test_wrong_arguments_of_a_pool(arguments: Any, keywords: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        shmpar.Pool(*arguments, **keywords)


def test_names_that_nobody_knows() -> None:
    """They are missing, as for `hasattr`; a name that is close is suggested."""
    with warm("serial") as pool:
        assert not hasattr(pool, "colour")
        assert not hasattr(pool.asarray([1]), "__dask_graph__")
        with pytest.raises(AttributeError, match="did you mean map_blocks"):
            pool.map_block()
        with pytest.raises(AttributeError, match="did you mean map_overlap"):
            shmpar.map_overlaps()
        assert not hasattr(shmpar, "colour")
        assert not hasattr(pool.submit(abs, 1), "colour")

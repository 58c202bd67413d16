"""Errors of pickling name the object as its user knows it, for deep and for wide objects too."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmpar
from tests import pools

LOCK = threading.Lock()
DEPTH = 100_000


def nested(depth: int = DEPTH) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


DEEP = nested()


class Model:
    """A callable object that holds another one."""

    def __init__(self, held: Any) -> None:
        self.settings = {"held": held}

    def __call__(self, *_: Any) -> int:
        return 1


@pytest.fixture(scope="module")
def pool() -> Iterator[shmpar.Pool]:
    with pools.warm("processes", 1) as made:
        yield made


def keyword(_: Any, held: Any = None) -> int:
    return 1


DEEP_CALLS: dict[str, Callable[[shmpar.Pool], Any]] = {
    "submit": lambda pool: pool.submit(len, DEEP),
    "keyword": lambda pool: pool.submit(keyword, 1, held=DEEP),
    "map": lambda pool: list(pool.map(len, [DEEP])),
    "item": lambda pool: pool.parallel_map(len, [DEEP]),
    "kwargs": lambda pool: pool.block_reduce(keyword, np.ones(2), kwargs={"held": DEEP}),
    "global": lambda pool: pool.map_blocks(lambda block: (block, DEEP), np.ones(2)),
    "attribute": lambda pool: pool.submit(Model(DEEP), 1),
    "partial": lambda pool: pool.submit(functools.partial(keyword, held=DEEP), 1),
    "result": lambda pool: pool.submit(nested).result(),
}


@pytest.mark.parametrize("call", DEEP_CALLS.values(), ids=DEEP_CALLS)
def test_a_deep_object_is_a_plan_error(
    pool: shmpar.Pool, call: Callable[[shmpar.Pool], Any]
) -> None:
    """The recursion of the pickler, or of a repr, does not end the call with its own error."""
    with pytest.raises(shmpar.PlanError, match="recursion") as caught:
        call(pool)
    assert len(str(caught.value)) < 1000


def test_a_deep_result_of_a_verb_names_the_reason(pool: shmpar.Pool) -> None:
    """The chunk's error says why the result cannot be pickled."""
    with pytest.raises(shmpar.ChunkError, match=r"cannot be pickled .*recursion"):
        pool.parallel_map(lambda _: nested(), [1], dtype=object)
    pools.drop_caches(pool)


FAILING: dict[str, tuple[Callable[[], Any], str]] = {
    "object": (lambda: Model(LOCK), r"the callable \S*\.Model to a worker: .*'settings'.*'held'"),
    "partial": (lambda: functools.partial(keyword, held=LOCK), "the callable functools.partial"),
    "vectorized": (
        lambda: np.vectorize(lambda one, more=LOCK: (one, more)),
        "the callable numpy.vectorize",
    ),
    "lambda": (lambda: lambda _: LOCK, "function .*<lambda> to a worker: .*'LOCK'"),
}


@pytest.mark.parametrize(("make", "text"), FAILING.values(), ids=FAILING)
def test_the_function_is_not_called_an_item(
    pool: shmpar.Pool, make: Callable[[], Any], text: str
) -> None:
    """The function has its own name in submit, in map and in a verb."""
    here = sys.modules.pop(__name__)  # Why: a worker cannot import the definitions then.
    try:
        function = make()
        for send in (
            lambda: pool.submit(function, 1),
            lambda: list(pool.map(function, [1])),
            lambda: pool.parallel_map(function, np.ones(2)),
        ):
            with pytest.raises(shmpar.PlanError, match=text) as caught:
                send()
            assert "_thread.lock" in str(caught.value)
            assert "an item" not in str(caught.value)
    finally:
        sys.modules[__name__] = here


def test_an_item_of_map_is_named(pool: shmpar.Pool) -> None:
    """The item is the user's, not the batch that it travels in."""
    with pytest.raises(shmpar.PlanError, match=r"an item such as <unlocked _thread\.lock"):
        list(pool.map(id, [LOCK], chunksize=3))


@pytest.mark.parametrize("name", ["map_async", "starmap_async", "imap", "imap_unordered"])
def test_parts_that_do_not_pickle_are_named(pool: shmpar.Pool, name: str) -> None:
    """The error is that of submit, for the function and for an item, which may be no tuple."""
    lock, single = LOCK, name != "starmap_async"

    def results(func: Any, item: Any) -> list[Any]:
        found = getattr(pool, name)(func, [item if single else (item,)])
        return list(found.get(60) if "async" in name else found)

    with pytest.raises(shmpar.PlanError, match=r"closure variable 'lock' is a _thread\.lock"):
        results(lambda item: lock and item, 1)
    with pytest.raises(shmpar.PlanError, match=r"cannot send an item .*lock"):
        results(str, lock)
    assert results(str, 1) == ["1"]


def test_a_partial_of_a_function_of_this_library_is_explained(pool: shmpar.Pool) -> None:
    """It need not have an argument by position."""
    with pytest.raises(shmpar.PlanError, match=r"the partial's arguments .*_thread\.lock"):
        pool.submit(functools.partial(shmpar.zeros, dtype=LOCK), 3)


def test_an_argument_is_blamed_and_not_a_builtin_class(pool: shmpar.Pool) -> None:
    """The class is sent by its name, so its attributes do not matter."""
    with pytest.raises(shmpar.PlanError, match=r"cannot send .*genexpr.*pickle 'generator'"):
        pool.submit(list, (number for number in range(3)))


def test_an_object_that_cannot_be_shown_is_named(pool: shmpar.Pool) -> None:
    """A repr that raises does not hide the reason."""

    class Shy:
        def __reduce__(self) -> Any:
            raise RuntimeError("not today")

        def __repr__(self) -> str:
            raise RuntimeError("not shown")

    with pytest.raises(shmpar.PlanError, match="not today"):
        pool.submit(id, Shy())

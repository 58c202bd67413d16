"""A table of crashes by place, kind and verb: each row ends with a known error or result.

The default suite runs a few hundred rows of the table, and ``--stress`` runs all of them.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.crashing import (
    DEADLY,
    MILD,
    STATUS,
    CrashingArgument,
    CrashingError,
    CrashingFunction,
    MildError,
    crash,
)
from tests.pools import drop_caches

LIMIT = 20  # seconds in which a row must finish
X = np.arange(24.0).reshape(6, 4)
Y = -X

Make = Callable[[Any], CrashingFunction]
# Each call gets a pool, a wrapper that turns a function into a crashing one, and an argument.
VERBS: dict[str, Callable[[shmpar.Pool, Make, Any], Any]] = {
    "map_blocks": lambda pool, work, argument: pool.map_blocks(
        work(np.negative), X, chunks=2, kwargs={"argument": argument}
    ),
    "map_overlap": lambda pool, work, argument: pool.map_overlap(
        work(np.negative), X, depth=1, chunks=2, kwargs={"argument": argument}
    ),
    "block_reduce": lambda pool, work, argument: pool.block_reduce(
        work(np.sum), X, chunks=(1, -1), kwargs={"argument": argument}
    ).ravel(),
    "block_reduce, objects": lambda pool, work, argument: pool.block_reduce(
        work(np.sum), X, chunks=(1, -1), dtype=object, kwargs={"argument": argument}
    ).ravel(),
    "parallel_map": lambda pool, work, argument: pool.parallel_map(
        work(np.sum), X, kwargs={"argument": argument}
    ),
    "parallel_map, items": lambda pool, work, argument: pool.parallel_map(
        work(abs), range(-6, 0), [argument] * 6
    ),
    "parallel_map, objects": lambda pool, work, argument: pool.parallel_map(
        work(abs), range(-6, 0), [argument] * 6, dtype=object
    ),
    "apply_along_axis": lambda pool, work, argument: pool.apply_along_axis(
        work(np.sum), 1, X, argument=argument
    ),
    "submit": lambda pool, work, argument: [
        pool.submit(work(abs), -6, argument=argument).result(LIMIT)
    ],
    "map": lambda pool, work, argument: list(
        pool.map(functools.partial(work(abs), argument=argument), range(-6, 0))
    ),
}
CALLS = {"submit", "map"}
RIGHT: dict[str, Any] = {
    **dict.fromkeys(VERBS, X.sum(1)),
    **dict.fromkeys(["map_blocks", "map_overlap"], -X),
    **dict.fromkeys(["parallel_map, items", "parallel_map, objects", "map"], range(6, 0, -1)),
    "submit": [6],
}
IN_PARENT = ["function pickle", "argument pickle", "result unpickle", "error unpickle"]
# The verb of each site in the default suite. Why no run for the first and the fourth: it ends after
# many deaths in a row, which tests/test_faults.py checks.
VERB_OF = {
    "function unpickle": "submit",
    "function run": "map_overlap",
    "function del": "block_reduce",
    "argument unpickle": "map",
    "argument del": "parallel_map",
    "result pickle": "parallel_map, items",
    "result del": "block_reduce, objects",
    "error pickle": "apply_along_axis",
    "error text": "map_blocks",
}
IN_WORKER = list(VERB_OF)
ROWS_OF = {
    "result": ["result pickle", "result unpickle", "result del"],
    "error": ["error pickle", "error unpickle", "error text", "error text in parent"],
}
ROWS: list[Any] = [(site, how) for site in [*IN_PARENT, "error text in parent"] for how in MILD]
ROWS += [(site, how) for site in IN_WORKER for how in MILD]
# Why: each crash costs the start of a worker, so the default suite has one kind of crash per site,
# under one verb.
ROWS += [
    (site, how)
    if DEADLY.index(how) == number % len(DEADLY)
    else pytest.param(site, how, marks=pytest.mark.stress)
    for number, site in enumerate(IN_WORKER)
    for how in DEADLY
]


def expected_errors(site: str, how: str, verb: str) -> tuple[type[BaseException], ...]:
    """Return the errors that a row may raise; an empty tuple means a right result."""
    kind, _, step = site.partition(" ")
    own = {"raise": MildError, "exit": SystemExit}.get(how, shmpar.WorkerDied)
    pickled = verb in CALLS or "objects" in verb or "items" in verb
    if kind == "result" and not pickled:
        # Why: such a result is no array of values, so the worker never sends it.
        return (shmpar.ChunkError, shmpar.WorkerDied)[: 1 + (step == "del")]
    if how in DEADLY:
        return (shmpar.WorkerDied,)
    of_verbs: dict[str, type[BaseException]] = {
        "function unpickle": shmpar.PlanError,
        "argument unpickle": shmpar.PlanError,
        "function run": shmpar.ChunkError,
        **dict.fromkeys((*ROWS_OF["result"], *ROWS_OF["error"]), shmpar.ChunkError),
    }
    of_calls: dict[str, type[BaseException]] = {
        **dict.fromkeys(ROWS_OF["error"], CrashingError),
        **dict.fromkeys(["function unpickle", "argument unpickle"], shmpar.PlanError),
        "result pickle": shmpar.PlanError if how == "raise" else own,
    }
    if step == "del":
        return ()
    if site in {"function pickle", "argument pickle"}:  # in this process, before the run
        return (shmpar.PlanError if how == "raise" else SystemExit,)
    return (of_calls.get(site, own) if verb in CALLS else of_verbs[site],)


@pytest.fixture
def pool(
    warm_processes: shmpar.Pool,
    nothing_left: None,
    site: str,
    how: str,
    pytestconfig: pytest.Config,
) -> Iterator[shmpar.Pool]:
    """The pool of the module, or a new pool if the test kills its workers."""
    if how in DEADLY:
        # Why: an object that is deleted late may end a worker during the next call.
        retries = 1 if "del" in site or pytestconfig.getoption("stress") else 0
        with shmpar.Pool(2, retries=retries) as made:
            yield made
    else:
        yield warm_processes
        drop_caches(warm_processes)


@contextmanager
def time_limit(name: str) -> Iterator[None]:
    """Raise an error if a row does not finish in time."""

    def late(*_: object) -> None:
        raise AssertionError(f"{name}: not finished after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(pool: shmpar.Pool, verb: str, work: Make, argument: CrashingArgument) -> Any:
    """Return the result of a call, or its error without the frames."""
    try:
        return VERBS[verb](pool, work, argument)
    except BaseException as error:
        if isinstance(error, AssertionError):
            raise
        return error.with_traceback(None)


def check_row(pool: shmpar.Pool, site: str, how: str, verb: str) -> None:
    """Check the outcome of one row, and that the pool works afterwards."""
    parent_pid = os.getpid()
    work = functools.partial(CrashingFunction, site, how, parent_pid)
    errors = expected_errors(site, how, verb)
    may_be_right = not errors or (site.endswith("del") and not site.startswith("result"))
    row = f"{site}, {how}, {verb}"
    with time_limit(row):
        found = outcome(pool, verb, work, CrashingArgument(site, how, parent_pid))
        if isinstance(found, BaseException):
            assert isinstance(found, errors), f"{row}: {found!r}"
            assert getattr(found, "exitcode", STATUS.get(how)) == STATUS.get(how), row
        elif not site.startswith("result del"):
            assert may_be_right, f"{row}: no error"
            np.testing.assert_array_equal(found, RIGHT[verb], row)
        del found
        del work
        assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1], row
        assert pool.submit(abs, -1).result(LIMIT) == 1, row
        drop_caches(pool)


@pytest.mark.parametrize(("site", "how"), ROWS)
def test_a_row_of_the_table(
    pool: shmpar.Pool, site: str, how: str, pytestconfig: pytest.Config
) -> None:
    """The row raises the expected error or gives the right result, and the next call works."""
    verbs = list(VERBS)
    if how in DEADLY and not pytestconfig.getoption("stress"):
        verbs = [VERB_OF[site]]
    for verb in verbs:
        check_row(pool, site, how, verb)


@pytest.mark.parametrize("engine", ["threads", "serial"])
@pytest.mark.parametrize("site", ["function run", "error text in parent"])
@pytest.mark.parametrize("how", MILD)
def test_a_row_in_this_process(engine: str, site: str, how: str) -> None:
    """Every exception of the function is a failure of its chunk or call."""
    with shmpar.Pool(2, engine=engine) as pool:
        for verb in VERBS:
            check_row(pool, site, how, verb)


@pytest.mark.parametrize(
    ("how", "verb"),
    [
        (how, verb)
        if (how, verb) in {("raise", "submit"), ("segfault", "map_blocks")}
        else pytest.param(how, verb, marks=pytest.mark.stress)
        for how in (*MILD, *DEADLY)
        for verb in ("map_blocks", "submit")
    ],
)
def test_a_worker_that_dies_while_it_exits(how: str, verb: str) -> None:
    """A crash at exit loses no result, and the pool closes normally."""

    def inner(value: Any) -> Any:
        import atexit

        atexit.register(crash, how)
        return -value

    with time_limit(f"exiting, {how}, {verb}"), shmpar.Pool(1) as pool:
        found = VERBS[verb](pool, lambda _: CrashingFunction("", how, os.getpid(), inner), None)
    np.testing.assert_array_equal(found, RIGHT[verb])

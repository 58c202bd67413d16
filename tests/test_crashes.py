"""A table of crashes: what dies, where, how, under each verb; every row ends, in a named way.

A few hundred rows of the table in the default suite; all of it with ``--stress``.
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
from tests.crashing import DEADLY, MILD, STATUS, Deadly, Guest, Struck, Work, strike
from tests.pools import let_go, warm

LIMIT = 20  # seconds in which a row must end
X = np.arange(24.0).reshape(6, 4)
Y = -X

Make = Callable[[Any], Work]
# Each gets a pool, what makes its function of one that does no harm, and an argument for it.
VERBS: dict[str, Callable[[shmpar.Pool, Make, Any], Any]] = {
    "map_blocks": lambda pool, work, guest: pool.map_blocks(
        work(np.negative), X, chunks=2, kwargs={"guest": guest}
    ),
    "map_overlap": lambda pool, work, guest: pool.map_overlap(
        work(np.negative), X, depth=1, chunks=2, kwargs={"guest": guest}
    ),
    "block_reduce": lambda pool, work, guest: pool.block_reduce(
        work(np.sum), X, chunks=(1, -1), kwargs={"guest": guest}
    ).ravel(),
    "block_reduce, objects": lambda pool, work, guest: pool.block_reduce(
        work(np.sum), X, chunks=(1, -1), dtype=object, kwargs={"guest": guest}
    ).ravel(),
    "parallel_map": lambda pool, work, guest: pool.parallel_map(
        work(np.sum), X, kwargs={"guest": guest}
    ),
    "parallel_map, items": lambda pool, work, guest: pool.parallel_map(
        work(abs), range(-6, 0), [guest] * 6
    ),
    "parallel_map, objects": lambda pool, work, guest: pool.parallel_map(
        work(abs), range(-6, 0), [guest] * 6, dtype=object
    ),
    "apply_along_axis": lambda pool, work, guest: pool.apply_along_axis(
        work(np.sum), 1, X, guest=guest
    ),
    "submit": lambda pool, work, guest: [pool.submit(work(abs), -6, guest=guest).result(LIMIT)],
    "map": lambda pool, work, guest: list(
        pool.map(functools.partial(work(abs), guest=guest), range(-6, 0))
    ),
}
CALLS = {"submit", "map"}
RIGHT: dict[str, Any] = {
    **dict.fromkeys(VERBS, X.sum(1)),
    **dict.fromkeys(["map_blocks", "map_overlap"], -X),
    **dict.fromkeys(["parallel_map, items", "parallel_map, objects", "map"], range(6, 0, -1)),
    "submit": [6],
}
AT_HOME = ["function pickle", "argument pickle", "result unpickle", "error unpickle"]
ELSEWHERE = ["function unpickle", "function run", "function del", "argument unpickle"]
ELSEWHERE += ["argument del", "result pickle", "result del", "error pickle", "error text"]
ROWS_OF = {
    "result": ["result pickle", "result unpickle", "result del"],
    "error": ["error pickle", "error unpickle", "error text", "error text home"],
}
ROWS: list[Any] = [(site, how) for site in [*AT_HOME, "error text home"] for how in MILD]
ROWS += [(site, how) for site in ELSEWHERE for how in MILD]
# Each death costs the start of a worker, so a site has one kind of death in the default suite,
# under one verb.
ROWS += [
    (site, how)
    if DEADLY.index(how) == number % len(DEADLY)
    else pytest.param(site, how, marks=pytest.mark.stress)
    for number, site in enumerate(ELSEWHERE)
    for how in DEADLY
]


def due(site: str, how: str, verb: str) -> tuple[type[BaseException], ...]:
    """Errors that a row may end with; none: the right answer is due."""
    kind, _, step = site.partition(" ")
    own = {"raise": Struck, "exit": SystemExit}.get(how, shmpar.WorkerDied)
    if kind == "result" and verb not in CALLS and "objects" not in verb:
        # It is no array of values, so it never gets as far as the wire.
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
        "error pickle": shmpar.ShmparError,
        "error unpickle": shmpar.ShmparError,
        "error text": Deadly,
        "error text home": Deadly,
        "result pickle": shmpar.PlanError if how == "raise" else own,
    }
    if step == "del":
        return ()
    if site in {"function pickle", "argument pickle"}:  # in this process, before anything starts
        return (shmpar.PlanError if how == "raise" else SystemExit,)
    return (of_calls.get(site, own) if verb in CALLS else of_verbs[site],)


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[shmpar.Pool]:
    """Two worker processes for the module, which nobody kills."""
    with warm("processes") as made:
        yield made


@pytest.fixture
def pool(
    shared_pool: shmpar.Pool,
    nothing_left: None,
    site: str,
    how: str,
    pytestconfig: pytest.Config,
) -> Iterator[shmpar.Pool]:
    """The module's pool, or one of the test's own if its workers die."""
    if how in DEADLY:
        # What is deleted late may end a worker in the next call.
        retries = 1 if "del" in site or pytestconfig.getoption("stress") else 0
        with shmpar.Pool(2, retries=retries) as made:
            yield made
    else:
        yield shared_pool
        let_go(shared_pool)


@contextmanager
def limit(what: str) -> Iterator[None]:
    """Break off a row that does not end."""

    def late(*_: object) -> None:
        raise AssertionError(f"{what}: no end after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def end(pool: shmpar.Pool, verb: str, work: Make, guest: Guest) -> Any:
    """What a call comes to: its result, or its error without the frames."""
    try:
        return VERBS[verb](pool, work, guest)
    except BaseException as error:
        if isinstance(error, AssertionError):
            raise
        return error.with_traceback(None)


def play(pool: shmpar.Pool, site: str, how: str, verb: str) -> None:
    """Play one row; see how it ends, and that the pool works afterwards."""
    home = os.getpid()
    work = functools.partial(Work, site, how, home)
    errors = due(site, how, verb)
    may_be_right = not errors or (site.endswith("del") and not site.startswith("result"))
    row = f"{site}, {how}, {verb}"
    with limit(row):
        ended = end(pool, verb, work, Guest(site, how, home))
        if isinstance(ended, BaseException):
            assert isinstance(ended, errors), f"{row}: {ended!r}"
            assert getattr(ended, "exitcode", STATUS.get(how)) == STATUS.get(how), row
        elif not site.startswith("result del"):
            assert may_be_right, f"{row}: no error"
            np.testing.assert_array_equal(ended, RIGHT[verb], row)
        del ended
        del work
        assert pool.parallel_map(abs, range(-3, 0)).tolist() == [3, 2, 1], row
        assert pool.submit(abs, -1).result(LIMIT) == 1, row
        let_go(pool)


@pytest.mark.parametrize(("site", "how"), ROWS)
def test_a_row_of_the_table(
    pool: shmpar.Pool, site: str, how: str, pytestconfig: pytest.Config
) -> None:
    """The named error or the right answer, and the next call is right."""
    verbs = list(VERBS)
    if how in DEADLY and not pytestconfig.getoption("stress"):
        verbs = [verbs[ELSEWHERE.index(site)]]
    for verb in verbs:
        play(pool, site, how, verb)


@pytest.mark.parametrize("engine", ["threads", "serial"])
@pytest.mark.parametrize("site", ["function run", "error text home"])
@pytest.mark.parametrize("how", MILD)
def test_a_row_in_this_process(engine: str, site: str, how: str) -> None:
    """Whatever is raised in it is the chunk's failure, or the call's."""
    with shmpar.Pool(2, engine=engine) as pool:
        for verb in VERBS:
            play(pool, site, how, verb)


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
    """Its work was done, and the pool closes as any other."""

    def inner(value: Any) -> Any:
        import atexit

        atexit.register(strike, how)
        return -value

    with limit(f"exiting, {how}, {verb}"), shmpar.Pool(1) as pool:
        found = VERBS[verb](pool, lambda _: Work("", how, os.getpid(), inner), None)
    np.testing.assert_array_equal(found, RIGHT[verb])

"""Logging records of workers reach the handlers of the caller, alike on every engine."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import shmpar

LOG = logging.getLogger("tests.logs.of.workers")
QUIET = logging.getLogger("tests.logs.of.workers.library")
QUIET.addHandler(logging.NullHandler())
POOL: dict[str, Any] = {}  # Why: no other module has changed the loggers of the workers.
X = np.arange(12.0)


class Keeping(logging.Handler):
    """Keeps the records, and the threads that bring them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: set[threading.Thread] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.add(threading.current_thread())
        self.records.append(record)


@pytest.fixture
def handler() -> Iterator[Keeping]:
    """A handler at the logger of this module, which has the level INFO."""
    made, level = Keeping(), LOG.level
    LOG.addHandler(made)
    LOG.setLevel(logging.INFO)
    yield made
    LOG.setLevel(level)
    LOG.removeHandler(made)


def talk(block: Any) -> Any:
    LOG.debug("unseen")
    LOG.info("first %d", block.flat[0], extra={"where": (1, 2), "lock": threading.Lock()})
    QUIET.warning("of a library")
    return block


CALLS: dict[str, Callable[[shmpar.Pool, Any], object]] = {
    "map_blocks": lambda pool, func: pool.map_blocks(func, X, chunks=12),
    "parallel_map": lambda pool, func: pool.parallel_map(func, X[None]),
    "run": lambda pool, func: pool.map_blocks(func, X, chunks=12, wait=False).result(),
    "submit": lambda pool, func: pool.submit(func, X).result(),
    "map": lambda pool, func: list(pool.map(func, [X])),
}


@pytest.mark.parametrize("call", CALLS)
def test_records_are_there_with_the_result(pool: shmpar.Pool, handler: Keeping, call: str) -> None:
    """Text, level, place and attributes are those of the worker, in order."""
    CALLS[call](pool, talk)
    first, library = handler.records
    assert (first.getMessage(), first.levelno, first.name) == ("first 0", 20, LOG.name)
    assert (first.funcName, os.path.basename(first.pathname)) == (
        "talk",
        os.path.basename(__file__),
    )
    assert first.where == (1, 2)  # type: ignore[attr-defined]
    assert (library.getMessage(), library.name) == ("of a library", QUIET.name)
    if pool.engine == "processes":
        assert first.process != os.getpid()
        assert "lock" in first.lock  # type: ignore[attr-defined]


def test_levels_follow_the_caller(pool: shmpar.Pool, handler: Keeping) -> None:
    """A level that changes between two calls holds in the second."""
    try:
        pool.submit(talk, X).result()
        LOG.setLevel(logging.DEBUG)
        pool.submit(talk, X).result()
        QUIET.setLevel(logging.ERROR)
        logging.disable(logging.DEBUG)
        pool.submit(talk, X).result()
    finally:
        QUIET.setLevel(logging.NOTSET)
        logging.disable(logging.NOTSET)
    texts = [record.getMessage() for record in handler.records]
    library = "of a library"
    assert texts == ["first 0", library, "unseen", "first 0", library, "first 0"]


def test_records_of_one_worker_keep_their_order(handler: Keeping) -> None:
    """Handlers get each record once, also those that come while others are handled."""

    def count(number: int) -> int:
        for step in range(50):
            LOG.info("%d", 50 * number + step)
        return number

    with shmpar.Pool(1) as pool:
        list(pool.map(count, range(40)))
    assert [int(record.msg) for record in handler.records] == list(range(2_000))
    assert threading.current_thread() not in handler.threads


def test_an_exception_has_its_traceback(pool: shmpar.Pool, handler: Keeping) -> None:
    def fail(_: Any) -> None:
        try:
            {}["lost"]
        except KeyError:
            LOG.exception("caught")

    pool.submit(fail, 1).result()
    text = logging.Formatter().format(handler.records[0])
    assert text.startswith("caught\nTraceback (most recent call last):\n")
    assert text.endswith("KeyError: 'lost'")


def test_functions_of_the_root_logger(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    """`logging.warning` in a worker configures no handler there; without one here it is printed."""
    done = run_python(
        """
        import logging, sys, shmpar
        def work(x):
            logging.warning("loud %d", x)
            logging.getLogger("lib").info("quiet %d", x)
        with shmpar.Pool(1) as pool:
            for number in range(2):
                pool.submit(work, number).result()
            form = "%(name)s %(message)s"
            logging.basicConfig(level=logging.INFO, stream=sys.stdout, format=form)
            pool.submit(work, 2).result()
        """
    )
    assert (done.stdout, done.stderr) == ("root loud 2\nlib quiet 2\n", "loud 0\nloud 1\n")


def test_handlers_of_the_worker_come_first(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    """A pool whose initializer configures logging keeps its records, and so does the opt-out."""
    done = run_python(
        """
        import functools, logging, sys, shmpar
        logging.basicConfig(stream=sys.stdout, format="here %(message)s")
        def work():
            logging.getLogger("lib").error("text")
        configure = functools.partial(logging.basicConfig, format="there %(message)s")
        for options in {}, {"initializer": configure}, {"forward_logs": False}:
            with shmpar.Pool(1, **options) as pool:
                pool.submit(work).result()
        """
    )
    assert (done.stdout, done.stderr) == ("here text\n", "there text\ntext\n")


def test_a_handler_may_use_the_pool(handler: Keeping) -> None:
    """A handler that waits for a call delays nothing for ever."""
    found = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(pool.submit(abs, -5).result())

    asking = Asking()
    LOG.addHandler(asking)
    try:
        with shmpar.Pool(2) as pool:
            pool.submit(talk, X).result()
    finally:
        LOG.removeHandler(asking)
    assert found == [5, 5]
    assert len(handler.records) == 2


def test_a_record_with_a_wrong_format(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """It harms no call; logging reports it, as without a pool."""
    done = run_python(
        """
        import logging, shmpar
        def wrong(x):
            logging.getLogger("lib").error("%d %d", x)
            return x
        with shmpar.Pool(1) as pool:
            print(pool.submit(wrong, 3).result())
        """
    )
    assert done.stdout == "3\n"
    assert "--- Logging error ---" in done.stderr
    assert "not enough arguments for format string" in done.stderr

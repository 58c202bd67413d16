"""Warnings of the function reach the caller as warnings, alike on every engine."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import wait
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.worker.environment import MOST_WARNINGS

POOL: dict[str, Any] = {}  # Why: the workers have warned of nothing in other modules.
X = np.arange(40.0)
HERE = __file__


class Unusual(UserWarning):
    """A category of the user's, with an attribute."""

    def __init__(self, text: str, held: object = None) -> None:
        super().__init__(text)
        self.held = held


def line_of(function: Callable[..., Any], text: str) -> int:
    """Return the number of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return next(first + number for number, line in enumerate(lines) if text in line)


def recorded(
    action: str, call: Callable[[], object], category: type[Warning] = Warning
) -> list[tuple[Any, ...]]:
    """Return category, text, file and line of each warning of a call."""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter(action, category)  # type: ignore[arg-type]
        call()
    return [(type(one.message), str(one.message), one.filename, one.lineno) for one in log]


def noisy(block: Any) -> Any:
    warnings.warn("noisy", Unusual)  # noqa: B028 - the line itself is tested
    return block


def divided(block: Any) -> Any:
    return 1 / (block - block)


CALLS: dict[str, Callable[[shmpar.Pool, Any], object]] = {
    "map_blocks": lambda pool, func: pool.map_blocks(func, X, chunks=2),
    "map_overlap": lambda pool, func: pool.map_overlap(func, X, depth=1, chunks=10),
    "parallel_map": lambda pool, func: pool.parallel_map(func, X[:, None]),
    "items": lambda pool, func: pool.parallel_map(func, [1, 2, 3] * 5),
    "apply_along_axis": lambda pool, func: pool.apply_along_axis(func, 0, X.reshape(10, 4)),
    "run": lambda pool, func: pool.map_blocks(func, X, chunks=2, wait=False).result(),
    "submit": lambda pool, func: pool.submit(func, X).result(),
    "map": lambda pool, func: list(pool.map(func, [X])),
}


@pytest.mark.parametrize("action", ["default", "once"])
@pytest.mark.parametrize("call", CALLS)
def test_a_warning_has_its_category_text_file_and_line(
    pool: shmpar.Pool, call: str, action: str
) -> None:
    """A call shows it once, though many chunks have it, and the next call again."""
    warnings.onceregistry.clear()  # type: ignore[attr-defined]
    expected = [(Unusual, "noisy", HERE, line_of(noisy, "warn("))]
    assert recorded(action, lambda: CALLS[call](pool, noisy)) == expected
    if action == "default":
        assert recorded(action, lambda: CALLS[call](pool, noisy)) == expected


def test_a_warning_of_numpy_in_a_function_that_is_sent_by_value(pool: shmpar.Pool) -> None:
    """The file and the line are those of the function."""

    def divide(block: Any) -> Any:
        return 1 / block

    found = recorded("default", lambda: pool.map_blocks(divide, X, chunks=2))
    line = line_of(divide, "1 / block")
    assert found == [(RuntimeWarning, "divide by zero encountered in divide", HERE, line)]


def test_ignored_warnings_are_none(pool: shmpar.Pool) -> None:
    assert recorded("ignore", lambda: pool.map_blocks(noisy, X, chunks=2)) == []


def test_a_filter_of_a_module_applies(pool: shmpar.Pool) -> None:
    """The warning belongs to the module of the function."""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        pool.map_blocks(noisy, X, chunks=2)
        assert log == []


def test_a_warning_that_is_an_error_is_the_function_s(pool: shmpar.Pool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(shmpar.ChunkError, match="Unusual: noisy") as caught:
            pool.map_blocks(noisy, X, chunks=2)
        assert type(caught.value.__cause__) is Unusual
        with pytest.raises(Unusual):
            pool.submit(noisy, 1).result()


def test_warnings_of_a_run_that_fails(pool: shmpar.Pool) -> None:
    """They are shown, and the error is raised."""

    def fail(block: Any) -> Any:
        warnings.warn("first", Unusual)  # noqa: B028
        raise KeyError(1)

    def call() -> None:
        with pytest.raises(shmpar.ChunkError):
            pool.map_blocks(fail, X, chunks=20)
        with pytest.raises(KeyError):
            pool.submit(fail, 1).result()

    texts = [text for _, text, _, _ in recorded("default", call)]
    assert set(texts) == {"first"}


def test_a_warning_of_a_worker_that_dies() -> None:
    """It is shown, and so is that of its successor."""

    def fail(row: Any) -> Any:
        warnings.warn(f"before {row[0]}", Unusual)  # noqa: B028
        if row[0] == 3:
            os._exit(5)
        return row

    def call(pool: shmpar.Pool) -> None:
        with pytest.raises(shmpar.WorkerDied):
            pool.parallel_map(fail, X[:4, None], retries=1)
        pool._last_run = None

    with shmpar.Pool(1) as pool:
        found = [text for _, text, _, _ in recorded("always", lambda: call(pool))]
    assert sorted(found) == [f"before {number}.0" for number in range(4)]


def test_a_function_that_warns_in_threads_of_its_own(pool: shmpar.Pool) -> None:
    """Many threads warn at once; each warning arrives."""

    def spread(row: Any) -> Any:
        texts = [f"thread {number}" for number in range(8)]
        warn = lambda text: warnings.warn(text, Unusual)  # noqa: B028
        threads = [threading.Thread(target=warn, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return row

    found = recorded("default", lambda: pool.parallel_map(spread, X[:4, None]))
    assert sorted(text for _, text, _, _ in found) == [f"thread {number}" for number in range(8)]


def test_a_function_that_records_its_warnings(pool: shmpar.Pool) -> None:
    """It gets them; its caller does not."""

    def count(block: Any) -> int:
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            noisy(block)
            noisy(block)
        return len(log)

    found = []
    call = lambda: found.append(pool.parallel_map(count, X[:6, None]).tolist())
    assert recorded("always", call) == []
    assert found == [[2] * 6]


def test_a_warning_keeps_its_attributes(pool: shmpar.Pool) -> None:
    def warn(block: Any) -> Any:
        warnings.warn(Unusual("held", held=[1, 2]))  # noqa: B028
        return block

    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("default")
        pool.map_blocks(warn, X)
    (one,) = log
    assert isinstance(one.message, Unusual)
    assert one.message.held == [1, 2]


def test_a_warning_without_a_pickle_keeps_its_text() -> None:
    """It becomes a warning of its base class in Python."""

    def warn(block: Any) -> Any:
        warnings.warn(Unusual("locked", held=threading.Lock()))  # noqa: B028
        return block

    with shmpar.Pool(1) as pool:
        (found,) = recorded("default", lambda: pool.map_blocks(warn, X))
    assert found == (UserWarning, "locked", HERE, line_of(warn, "locked"))


def test_the_thread_that_wants_the_result_shows_the_warnings(
    pool: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processes, the user's `showwarning` runs in no other thread, and not before."""
    seen: list[threading.Thread] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = lambda *_: seen.append(threading.current_thread())
        monkeypatch.setattr(warnings, "showwarning", show)
        run = pool.map_blocks(noisy, X, chunks=2, wait=False)
        call = pool.submit(divided, X)
        wait([run, call])
        if pool.engine == "processes":
            assert seen == []
        run.result()
        call.result()
        pool.map_blocks(divided, X)
        monkeypatch.undo()
    assert len(seen) == 3 if pool.engine == "processes" else seen
    if pool.engine == "processes":
        assert set(seen) == {threading.current_thread()}


def test_a_look_at_a_run_leaves_its_warnings(process_pool: shmpar.Pool) -> None:
    """A debugger shows the run, and the result issues the warnings later."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run = process_pool.map_blocks(noisy, X, chunks=20, wait=False)
        wait([run])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert repr(run) == "<shmpar.Run: map_blocks(noisy), done, 2 of 2 chunks>"
        with pytest.warns(Unusual):
            run.result()


def test_many_different_warnings_are_bounded() -> None:
    """Worker processes send a bounded number, each one once."""

    def warn(row: Any) -> Any:
        for _ in range(3):
            warnings.warn(f"row {row[0]}", Unusual)  # noqa: B028
        return row[0]

    rows = np.arange(10.0 * MOST_WARNINGS)[:, None]
    with shmpar.Pool(2) as pool:
        found = recorded("always", lambda: pool.parallel_map(warn, rows))
        assert len(set(found)) == len(found) == MOST_WARNINGS
        # Why again: the count begins anew with each call.
        assert len(recorded("always", lambda: pool.parallel_map(warn, rows))) == MOST_WARNINGS


async def awaited(pool: shmpar.Pool, func: Callable[..., Any], kind: str) -> None:
    loop = asyncio.get_running_loop()
    if kind == "run":
        await pool.map_blocks(func, X, wait=False)
    else:
        await loop.run_in_executor(pool, func, X)


@pytest.mark.parametrize("kind", ["run", "call"])
def test_a_coroutine_that_awaits_the_result_gets_the_warnings(pool: shmpar.Pool, kind: str) -> None:
    """Also if the function raised."""

    def fail(block: Any) -> Any:
        warnings.warn("first", Unusual)  # noqa: B028
        raise KeyError(1)

    def call() -> None:
        with pytest.raises((shmpar.ChunkError, KeyError)):
            asyncio.run(awaited(pool, fail, kind))

    assert [text for _, text, _, _ in recorded("default", call)] == ["first"]
    found = recorded("default", lambda: asyncio.run(awaited(pool, noisy, kind)))
    assert [text for _, text, _, _ in found] == ["noisy"]


@pytest.mark.parametrize("kind", ["run", "call"])
def test_a_coroutine_gets_a_warning_that_became_an_error(kind: str) -> None:
    """The filters have changed since the call; the coroutine does not wait for ever."""

    async def call(pool: shmpar.Pool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            task = asyncio.ensure_future(awaited(pool, noisy, kind))
            await asyncio.sleep(0)  # Why: the task makes the call now.
            warnings.simplefilter("error")
            with pytest.raises(Unusual, match="noisy"):
                await asyncio.wait_for(task, 30)

    with shmpar.Pool(1) as pool:
        asyncio.run(call(pool))
        pool._last_run = None


@pytest.mark.parametrize("first", ["map_blocks", "submit"])
def test_warnings_of_the_initializer(first: str) -> None:
    """The first result brings them."""

    def initialize() -> None:
        warnings.warn("beginning", Unusual)  # noqa: B028

    with shmpar.Pool(1, initializer=initialize) as pool:
        found = recorded("default", lambda: CALLS[first](pool, np.negative))
    assert [one[:2] for one in found] == [(Unusual, "beginning")]


def test_a_warning_is_printed_once(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """Without filters of the user, two workers and several calls print it as one process would."""
    done = run_python(
        """
        import numpy as np, shmpar
        def work(row):
            return np.log(row[0])
        with shmpar.Pool(2) as pool:
            for _ in range(3):
                pool.parallel_map(work, np.zeros((200, 1)))
        """
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("RuntimeWarning: divide by zero encountered in log") == 1
    assert "<string>:4: RuntimeWarning" in done.stderr

"""A child that the user's function forks writes nothing, marks nothing and claims nothing."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import ENGINES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

X = np.arange(400.0)
Z = X.reshape(20, 20)


class Late:
    """The forks of a function: each child comes back after its call, and notes its process.

    Parameters
    ----------
    folder : Path
        Empty; each child notes its number there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        os.mkfifo(folder / "gate")
        self._gate = os.open(folder / "gate", os.O_RDWR)

    def wrap(self, function: Any, back: Callable[[Any], Any]) -> Any:
        """Return a function that forks; its child waits for the release, then goes `back`."""
        folder = str(self._folder)

        def forking(*args: Any, **kwargs: Any) -> Any:
            if os.fork():
                return function(*args, **kwargs)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            gate = os.open(f"{folder}/gate", os.O_RDONLY)
            with open(f"{folder}/{os.getpid()}.new", "w"):
                os.rename(f"{folder}/{os.getpid()}.new", f"{folder}/{os.getpid()}.child")
            select.select([gate], [], [])  # Why not read: a child of the child waits too
            return back(*args, **kwargs)

        return forking

    def release(self, count: int) -> None:
        """Wait until so many children wait, let them go on, and wait until they are gone."""
        deadline = time.monotonic() + 30
        while len(found := list(self._folder.glob("*.child"))) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} children"
            select.select([], [], [], 0.005)
        fds = []
        for path in found:
            try:
                fds.append(os.pidfd_open(int(path.stem)))
            except ProcessLookupError:
                continue
        os.write(self._gate, b"x")
        for fd in fds:
            assert select.select([fd], [], [], 30)[0], "a child does not exit"
            with suppress(ChildProcessError):  # it may be a worker's
                os.waitid(os.P_PIDFD, fd, os.WEXITED)
            os.close(fd)

    def close(self) -> None:
        os.close(self._gate)


@pytest.fixture
def late(tmp_path: Path) -> Iterator[Late]:
    made = Late(tmp_path)
    yield made
    made.close()


def _exit(*_: Any, **__: Any) -> None:
    sys.exit(3)


def _fail(*_: Any, **__: Any) -> None:
    raise KeyError("child")


def _yield(block: Any, **_: Any) -> Any:
    return (value for value in [block * 100])


BACK = {
    "result": lambda block, **_: block * 100,
    "wrong shape": lambda _block, **__: np.zeros(7777),
    "exception": _fail,
    "exit": _exit,
    "generator": _yield,
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def calls(late: Late, pool: shmpar.Pool, back: Any, some: slice) -> list[tuple[Any, Any, int]]:
    """Make some of the calls; return each result, the right one, and the number of its children."""

    def same(block: Any) -> Any:
        return block + 0.0

    def total(block: Any) -> Any:
        return float(np.sum(block))

    def flat(block: Any, **kwargs: Any) -> Any:
        return np.float64(np.sum(back(block, **kwargs)))

    fork = late.wrap(same, back)
    numbers = late.wrap(total, flat if back is BACK["result"] else back)
    sums = Z.reshape(2, 10, 2, 10).sum((1, 3))
    made: list[tuple[Callable[[], Any], Any, int]] = [
        (lambda: pool.map_blocks(fork, X, chunks=100), X, 4),
        (lambda: pool.map_blocks(fork, X, chunks=100, dtype="f8"), X, 4),
        (lambda: pool.map_blocks(fork, Z, chunks=10, out=np.zeros_like(Z)), Z, 4),
        (lambda: pool.map_overlap(fork, X, depth=3, boundary="reflect", chunks=200), X, 2),
        (lambda: pool.parallel_map(fork, Z[:3]), Z[:3], 3),
        (lambda: pool.parallel_map(numbers, Z[:3]), Z[:3].sum(1), 3),
        (lambda: pool.parallel_map(numbers, Z[:3], dtype="f8"), Z[:3].sum(1), 3),
        (lambda: pool.block_reduce(numbers, Z, chunks=10), sums, 4),
        (lambda: pool.apply_along_axis(fork, 1, Z[:2]), Z[:2], 2),
        (lambda: pool.parallel_map(fork, X[:3], dtype=object), X[:3], 3),
        (lambda: pool.submit(fork, 5.0).result(60), 5.0, 1),
    ]
    # Why: each fork copies the tables of this process, which takes longer than any call.
    return [(call(), due, count) for call, due, count in made[some]]


@pytest.mark.parametrize(("back", "check"), [(name, name == "generator") for name in BACK])
def test_a_child_that_comes_back_later_changes_no_result(
    engine: str, late: Late, back: str, check: bool
) -> None:
    """The parent has its results long before; they stay as they are."""
    with shmpar.Pool(2, engine=engine, check=check) as pool:
        # Why not all: each call is made with some way back, and with a result by processes.
        few = engine != "processes" or back != "result"
        found = calls(late, pool, BACK[back], slice(list(BACK).index(back), None, 5 if few else 1))
        late.release(sum(count for _, _, count in found))
        for number, (result, expected, _) in enumerate(found):
            assert np.array_equal(np.asarray(result, float), expected), number
        assert np.array_equal(pool.map_blocks(np.negative, X, chunks=7), -X)
        assert pool.last_run.report.deaths == 0


def test_a_child_cannot_write_to_the_window_of_its_function(engine: str, late: Late) -> None:
    """With pass_out the kernel ends the child at its first write."""

    def negate(block: Any, out: Any) -> None:
        np.negative(block, out=out)

    def spoil(_block: Any, out: Any) -> None:
        out[...] = 100

    with shmpar.Pool(2, engine=engine) as pool:
        work, out = late.wrap(negate, spoil), pool.zeros(X.shape)
        got = pool.map_blocks(work, X, chunks=100, pass_out=True, out=out)
        late.release(4)
        assert got is out
        assert np.array_equal(out, -X)


def test_a_child_of_the_function_claims_no_tickets(engine: str) -> None:
    """A child that returns at once does so while chunks are left; each is computed once."""
    computed, children = [], []

    def work(number: int) -> int:
        if number % 5 == 0:
            child = os.fork()
            if child == 0:
                return -1
            children.append(child)
        computed.append(number)
        return number

    with shmpar.Pool(2, engine=engine) as pool:
        assert pool.parallel_map(work, range(150), dtype=int).tolist() == list(range(150))
        if engine != "processes":
            assert sorted(computed) == list(range(150))
    for child in children:  # of this process, without those of workers
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


SEVERAL = {
    "apply_along_axis": lambda pool, work: pool.apply_along_axis(work, 1, X[:10].reshape(10, 1)),
    "map": lambda pool, work: list(pool.map(work, X[:10], chunksize=5)),
    "map of pairs": lambda pool, work: list(pool.map(work, X[:10], X[:10], chunksize=5)),
    "starmap": lambda pool, work: pool.starmap(work, [(x,) for x in X[:10]], chunksize=5),
    "imap": lambda pool, work: list(pool.imap(work, X[:10], chunksize=5)),
    "rows": lambda pool, work: pool.parallel_map(work, X[:10]),
}


@pytest.mark.parametrize("verb", SEVERAL)
def test_a_child_calls_the_function_no_further(
    any_pool: shmpar.Pool, verb: str, tmp_path: Path
) -> None:
    """The lines, items or rows after its own are left to the worker."""
    log = str(tmp_path / "calls")

    def work(value: Any, _more: Any = None) -> Any:
        number = int(np.ravel(value)[0])
        with open(log, "a") as file:
            file.write(f"{number} ")
        if number in {1, 5}:  # Why not all: a child that went on would fork again, and so on.
            if os.fork() == 0:
                return -1.0
            os.wait()
        return float(number)

    assert np.array_equal(np.ravel(SEVERAL[verb](any_pool, work)), X[:10])
    assert sorted(map(int, Path(log).read_text().split())) == list(range(10))


def test_a_child_may_call_verbs_and_write_to_a_captured_array(engine: str) -> None:
    """Only the work that it came from is closed to it."""
    with shmpar.Pool(1, engine=engine) as pool:
        shared = pool.zeros(2)

        def work(block: Any) -> Any:
            child = os.fork()
            if child == 0:
                shared[0] = shmpar.map_blocks(np.negative, X, chunks=10).sum()
                shared[1] = pool.submit(abs, -4).result()
                return block * 100
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return block + status

        assert np.array_equal(pool.map_blocks(work, X, chunks=400), X)
        assert shared.tolist() == [-X.sum(), 0]


def test_text_that_waits_is_written_once(run_python: Any) -> None:
    """The child does not write the text again that its parent has printed before."""
    source = """
        import os, shmpar, warnings

        # Python 3.12 and later warn of each fork beside threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

        def work(value):
            print(value, end=" ")
            if os.fork() == 0:
                print("child")
                return -value
            os.wait()
            return value

        for engine in ("serial", "threads", "processes"):
            with shmpar.Pool(1, engine=engine) as pool:
                print(engine, end=" ", flush=True)
                assert pool.map_blocks(work, 3).tolist() == 3
                print(pool.submit(work, 4).result(), flush=True)
    """
    done = run_python(source)
    words = "3 child\n4 child\n4\n"
    assert done.stdout == "".join(f"{name} {words}" for name in ("serial", "threads", "processes"))
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_child_exits_with_the_text_of_its_exit(run_python: Any) -> None:
    """As in a program, a text is written to standard error, if it can be, and the status is 1."""
    source = """
        import os, sys, shmpar

        def work(code):
            if os.fork() == 0:
                if code == "closed":
                    sys.stderr.close()
                sys.exit(code)
            return os.waitstatus_to_exitcode(os.wait()[1])

        with shmpar.Pool(1) as pool:
            print([pool.submit(work, code).result() for code in (None, 3, "the text", "closed")])
    """
    done = run_python(source)
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 3, 1, 1]\n", "the text\n", 0)

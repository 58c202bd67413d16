"""Errors of functions, workers and arguments, as the user sees them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.crashing import CrashingFunction
from tests.pools import wait_for_workers
from tests.processes import wait_for_exit
from tests.work.faults import DoesNotLoad, NotUnpicklable, Poison, X, at_bad, crash, raising, spin


@pytest.fixture
def pool(process_pool: shmpar.Pool) -> shmpar.Pool:
    """Two worker processes; the pool replaces those that tests kill."""
    return process_pool


@pytest.fixture
def mortal_pool() -> Iterator[shmpar.Pool]:
    """A new pool, whose workers may be killed."""
    with shmpar.Pool(2, env={"PYTHONFAULTHANDLER": ""}) as made:
        yield made


class TestExceptions:
    """Exceptions of the function are reported on every engine."""

    def test_raise_names_chunk_region_and_cause(self, any_pool: shmpar.Pool) -> None:
        """The error has the position of the chunk, and its cause is the original exception."""
        with pytest.raises(shmpar.ChunkError) as caught:
            any_pool.map_blocks(raising, X, chunks=2)
        error = caught.value
        assert (error.chunk, error.region) == (6, (slice(2, 4), slice(2, 4)))
        assert error.shape == (2, 2)
        assert error.run is any_pool.last_run
        assert isinstance(error.__cause__, ValueError)
        assert "map_blocks, chunk 6 at [2:4, 2:4]" in str(error)
        assert any_pool.last_run.failed == [error]
        del error, caught

    def test_collect_computes_the_rest_and_raises_all_errors(self, any_pool: shmpar.Pool) -> None:
        """An ExceptionGroup has the errors in chunk order; the other windows are filled."""
        out = np.full_like(X, -1)

        def odd(block: Any) -> Any:
            if block.flat[0] in (22.0, 66.0):
                raise KeyError(block.flat[0])
            return block

        with pytest.raises(ExceptionGroup) as caught:
            any_pool.map_blocks(odd, X, chunks=2, on_error="collect", out=out)
        assert [error.chunk for error in caught.value.exceptions] == [6, 18]
        del caught
        expected = X.copy()
        expected[2:4, 2:4] = expected[6:8, 6:8] = -1
        np.testing.assert_array_equal(out, expected)

    def test_fill_writes_a_value_and_warns_once(self, any_pool: shmpar.Pool) -> None:
        """Windows of failed chunks get NaN or fill_value, and run.failed lists the errors."""
        with pytest.warns(RuntimeWarning, match="1 chunk failed"):
            got = any_pool.map_blocks(raising, X, chunks=2, on_error="fill")
        assert np.isnan(got[2:4, 2:4]).all()
        assert np.isnan(got).sum() == 4
        assert [error.chunk for error in any_pool.last_run.failed] == [6]
        with pytest.warns(RuntimeWarning):
            got = any_pool.map_blocks(raising, X, chunks=2, on_error="fill", fill_value=-7)
        assert (got[2:4, 2:4] == -7).all()

    def test_fill_of_integers_needs_a_value(self, any_pool: shmpar.Pool) -> None:
        """An integer dtype has no NaN, so fill_value is required."""
        with pytest.raises(ValueError, match="fill_value"):
            any_pool.map_blocks(raising, X.astype(int), chunks=2, on_error="fill", dtype=int)

    def test_sys_exit_is_a_failure_of_its_chunk(self, any_pool: shmpar.Pool) -> None:
        """SystemExit ends neither the worker nor the caller."""
        with pytest.raises(shmpar.ChunkError, match="SystemExit"):
            any_pool.parallel_map(lambda _: sys.exit(3), range(3))
        assert any_pool.parallel_map(abs, range(3)) == [0, 1, 2]

    def test_finished_windows_reach_a_plain_out(self, any_pool: shmpar.Pool) -> None:
        """A failed run has written the chunks that it computed."""
        out = np.zeros(4)
        with shmpar.Pool(1, engine=any_pool.engine) as pool, pytest.raises(shmpar.ChunkError):
            pool.map_blocks(
                lambda b: b / b if b[0] else 1 // 0, np.arange(3.0, -1, -1), chunks=1, out=out
            )
        assert out.tolist() == [1, 1, 1, 0]


def test_an_exception_that_does_not_unpickle_is_reported(pool: shmpar.Pool) -> None:
    """The ChunkError has its type, message and traceback as text."""

    def fails(_: int) -> None:
        raise NotUnpicklable(1, 2)

    with pytest.raises(shmpar.ChunkError, match="NotUnpicklable: 1") as caught:
        pool.parallel_map(fails, range(3))
    assert "in fails" in caught.value.__cause__.__notes__[0]


def test_a_result_that_does_not_pickle_is_reported(pool: shmpar.Pool) -> None:
    """With dtype=object, the error names the type of the result."""
    with pytest.raises(shmpar.ChunkError, match="lock"):
        pool.parallel_map(lambda _: threading.Lock(), range(3), dtype=object)


def test_a_result_that_does_not_unpickle_is_reported(pool: shmpar.Pool) -> None:
    """The error tells that the function has returned, and has that of the unpickling."""
    text = r"returned an object that was pickled, but does not load here \(ValueError: .*no number"
    with pytest.raises(shmpar.ChunkError, match=r"item 1 .*" + text):
        pool.parallel_map(lambda i: DoesNotLoad() if i else i, range(2))
    with pytest.raises(shmpar.ChunkError, match=text):
        pool.block_reduce(lambda _: DoesNotLoad(), X, dtype=object)
    with pytest.raises(ValueError, match="no number") as caught:
        pool.submit(DoesNotLoad).result()
    assert "does not load here" in caught.value.__notes__[0]


def test_a_function_that_does_not_pickle_is_explained(pool: shmpar.Pool) -> None:
    """The error names the closure variable or keyword, and the pool goes on."""
    lock = threading.Lock()
    with pytest.raises(shmpar.PlanError, match="closure variable 'lock'"):
        pool.map_blocks(lambda block: lock and block, X)
    with pytest.raises(shmpar.PlanError, match="keyword argument 'lock'"):
        pool.map_blocks(lambda block, lock: block, X, kwargs={"lock": lock})
    assert pool.parallel_map(abs, range(3)) == [0, 1, 2]


def test_a_function_that_pickles_but_does_not_load_is_a_plan_error(pool: shmpar.Pool) -> None:
    """The error of the worker is in the message, for a verb and for submit."""
    held = DoesNotLoad()
    with pytest.raises(shmpar.PlanError, match=r"does not load in a worker \(ValueError"):
        pool.parallel_map(lambda item: (item, held), range(3))
    with pytest.raises(shmpar.PlanError, match=r"does not load in a worker \(ValueError"):
        pool.submit(lambda: held).result()
    assert pool.parallel_map(abs, range(3)) == [0, 1, 2]


def test_warning_filters_that_do_not_load_are_left_out(
    mortal_pool: shmpar.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other filters hold in the workers, and no worker exits."""
    here = f"import os\nassert os.getpid() == {os.getpid()}\n"
    (tmp_path / "parent_alone.py").write_text(f"{here}class Lost(UserWarning): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    category = importlib.import_module("parent_alone").Lost
    wait_for_workers(mortal_pool)
    workers = mortal_pool._loop.engine.pids()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "mine")
        warnings.simplefilter("ignore", category)
        try:
            for _ in range(2):  # Why: the workers get the filters only once
                with pytest.raises(shmpar.ChunkError, match="UserWarning: mine"):
                    mortal_pool.parallel_map(lambda _: warnings.warn("mine"), range(3))  # noqa: B028
        finally:
            del sys.modules["parent_alone"]
    assert mortal_pool.parallel_map(abs, range(3)) == [0, 1, 2]
    assert mortal_pool._loop.engine.pids() == workers


@pytest.mark.parametrize(
    ("func", "match"),
    [
        (lambda b: b.sum(), "block_reduce"),
        (lambda b: b[0], "drop_axis"),
        (lambda b: b[None], "new_axis"),
        (lambda b: b[:1] if at_bad(b) else b, r"\(1, 2\) where \(2, 2\)"),
        (lambda b: b.astype("f4") if at_bad(b) else b, r"float\d\d here but float\d\d.*dtype="),
        (np.ma.masked_array, "masked"),
        (lambda b: {"a": 1}, "dtype=object"),
        (lambda b: (b, b) if at_bad(b) else b, "tuple"),
        (lambda b: None if at_bad(b) else b, "None"),
    ],
    ids=["scalar", "axis-less", "axis-more", "shape", "dtype", "masked", "dict", "tuple", "none"],
)
def test_a_result_that_does_not_fit_is_explained(pool: shmpar.Pool, func: Any, match: str) -> None:
    """The message has the found and the expected value, and the keyword that helps."""
    with pytest.raises(shmpar.ChunkError, match=match) as caught:
        pool.map_blocks(func, X, chunks=2)
    assert caught.value.chunk is not None


def test_different_dtypes_of_two_workers_are_an_error(pool: shmpar.Pool) -> None:
    """Every chunk must have the same dtype, although workers do not wait for small outputs."""

    def by_parity(n: int) -> Any:
        time.sleep(0.01)
        return np.float32(n) if n % 2 else np.float64(n)

    for _ in range(5):
        with pytest.raises(shmpar.ChunkError, match=r"float32.*float64|float64.*float32"):
            pool.parallel_map(by_parity, np.arange(2))


# Workers that die


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("exit", 3),
        ("segfault", -11),
        ("SIGKILL", -9),
        pytest.param("SIGTERM", -15, marks=pytest.mark.stress),
        pytest.param("SIGABRT", -6, marks=pytest.mark.stress),
    ],
)
def test_a_chunk_that_kills_its_workers_fails_the_run(
    mortal_pool: shmpar.Pool, how: str, code: int
) -> None:
    """After the retries, WorkerDied has the chunk and the signal or exit status."""
    with pytest.raises(shmpar.WorkerDied) as caught:
        mortal_pool.map_blocks(lambda b: crash(how) if at_bad(b) else b, X, chunks=2)
    assert (caught.value.chunk, caught.value.exitcode) == (6, code)
    assert "[2:4, 2:4]" in str(caught.value)
    del caught
    np.testing.assert_array_equal(mortal_pool.map_blocks(np.negative, X, chunks=2), -X)


def test_a_worker_that_dies_once_does_not_fail_the_run(
    mortal_pool: shmpar.Pool, tmp_path: Path
) -> None:
    """Other workers compute its chunks again."""
    flag = tmp_path / "died"

    def once(block: Any) -> Any:
        if at_bad(block) and not flag.exists():
            flag.touch()
            crash("SIGKILL")
        return -block

    np.testing.assert_array_equal(mortal_pool.map_blocks(once, X, chunks=2), -X)
    assert mortal_pool.last_run.report.deaths == 1


def test_collected_objects_are_not_lost_with_their_worker(
    mortal_pool: shmpar.Pool, tmp_path: Path
) -> None:
    """Chunks whose results were not sent are computed again."""
    flag = tmp_path / "died"

    def f(number: int) -> Any:
        if number == 3_000 and not flag.exists():
            flag.touch()
            os._exit(3)
        return ("value", number)

    got = mortal_pool.parallel_map(f, range(8_000), dtype=object)
    assert got.tolist() == [("value", number) for number in range(8_000)]


def test_small_results_of_a_dead_worker_must_have_the_same_dtype(
    mortal_pool: shmpar.Pool, tmp_path: Path
) -> None:
    """Bytes of a dead worker are never read as another dtype."""
    flag = tmp_path / "died"

    def f(number: int) -> Any:
        if number == 0:
            while not flag.exists():
                time.sleep(0.001)
            return np.float64(1)
        if number == 20:
            flag.touch()
            os._exit(1)
        return np.float32(number)

    with pytest.raises(shmpar.ChunkError, match="float32"):
        mortal_pool.parallel_map(f, np.arange(40), retries=3)


def test_different_numbers_of_outputs_of_two_workers_are_an_error(pool: shmpar.Pool) -> None:
    """A tuple and a number are refused, even if each is the first result of its worker."""

    def f(number: int) -> Any:
        time.sleep(0.05 * number)
        return (1.0, 2.0) if number == 0 else 3.0

    with pytest.raises(shmpar.ChunkError):
        pool.parallel_map(f, np.arange(2))
    run = pool.parallel_map(f, np.arange(2), wait=False)
    with pytest.raises(shmpar.ChunkError):
        run.result(timeout=60)


def test_without_retries_a_death_fails_the_run(mortal_pool: shmpar.Pool, tmp_path: Path) -> None:
    """With retries=0, no chunk is computed again."""
    with pytest.raises(shmpar.WorkerDied):
        mortal_pool.map_blocks(
            lambda b: crash("SIGKILL") if at_bad(b) else b, X, chunks=2, retries=0
        )
    assert mortal_pool.last_run.report.deaths == 1


def test_deaths_can_be_collected_and_filled(mortal_pool: shmpar.Pool) -> None:
    """on_error applies to dead workers as to exceptions."""

    def poison(block: Any) -> Any:
        return crash("SIGKILL") if at_bad(block) else block

    with pytest.raises(ExceptionGroup) as caught:
        mortal_pool.map_blocks(poison, X, chunks=2, on_error="collect")
    assert [type(error) for error in caught.value.exceptions] == [shmpar.WorkerDied]
    del caught
    with pytest.warns(RuntimeWarning):
        got = mortal_pool.map_blocks(poison, X, chunks=2, on_error="fill")
    assert np.isnan(got).sum() == 4


def test_a_chunk_computed_in_place_is_not_tried_again(mortal_pool: shmpar.Pool) -> None:
    """The error names the chunk, and no chunk is computed twice."""
    shared = mortal_pool.array(X)
    with pytest.raises(shmpar.WorkerDied, match="in place"):
        mortal_pool.map_blocks(
            lambda b: crash("SIGKILL") if at_bad(b) else b + 1000, shared, chunks=2, out=shared
        )
    assert set(np.unique((shared - X) // 1)) <= {0.0, 1000.0}
    np.testing.assert_array_equal(shared[2:4, 2:4], X[2:4, 2:4])


def test_workers_that_die_while_loading_the_plan_are_not_replaced_for_ever(
    mortal_pool: shmpar.Pool,
) -> None:
    """An argument whose unpickling kills the process is an error."""
    with pytest.raises(shmpar.WorkerDied, match="status 7"):
        mortal_pool.parallel_map(lambda n, poison: n, range(3), kwargs={"poison": Poison()})
    assert mortal_pool.parallel_map(abs, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_while_it_reports_a_failure_is_a_death(workers: int) -> None:
    """The chunk is computed again and then fails; it never counts as done."""
    work = CrashingFunction("error pickle", "_exit", os.getpid(), np.negative)
    with shmpar.Pool(workers, retries=1) as pool:
        with pytest.raises(shmpar.WorkerDied, match="status 7"):
            pool.map_blocks(work, X[:2], chunks=2)
        with pytest.raises(ExceptionGroup) as caught:
            pool.map_blocks(work, X[:2], chunks=5, on_error="collect")
        assert [type(error) for error in caught.value.exceptions] == [shmpar.WorkerDied] * 2
        del caught


def test_a_chunk_that_takes_too_long_is_a_timeout(mortal_pool: shmpar.Pool) -> None:
    """TaskTimeout names the chunk, and is also a TimeoutError."""
    out = np.zeros_like(X)
    began = time.monotonic()
    with pytest.raises(shmpar.TaskTimeout) as caught:
        mortal_pool.map_blocks(
            lambda b: time.sleep(60) if at_bad(b) else b,
            X,
            chunks=2,
            task_timeout=2,  # Why so long: it is a limit of the other chunks too.
            retries=0,
            on_error="raise",
            out=out,
        )
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.chunk == 6
    assert time.monotonic() - began < 30


def test_an_initializer_that_fails_fails_each_run() -> None:
    """On each engine, the cause of the error is that of the initializer, whatever its class is."""

    @dataclasses.dataclass(frozen=True)
    class Odd(Exception):
        reason: str

        def __repr__(self) -> str:
            raise ValueError

    def fails() -> None:
        raise Odd("no licence")

    for engine in ("threads", "processes"):
        with shmpar.Pool(1, engine=engine, initializer=fails) as pool:
            for _ in range(2):
                with pytest.raises(BrokenExecutor, match="Odd: no licence") as caught:
                    pool.parallel_map(abs, range(3))
                assert type(caught.value.__cause__).__name__ == "Odd"
            pool._last_run = None


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_no_call_runs_after_a_failed_initializer(engine: str, tmp_path: Path) -> None:
    """Calls that were submitted before the failure was known do not run either."""

    def fails() -> None:
        raise OSError("no licence")

    futures: list[Any] = []
    with shmpar.Pool(2, engine=engine, initializer=fails) as pool:
        with contextlib.suppress(BrokenExecutor):
            futures.extend(pool.submit((tmp_path / str(n)).touch) for n in range(6))
        for future in futures:
            assert isinstance(future.exception(60), BrokenExecutor)
            assert isinstance(future.exception().__cause__, OSError)
        with pytest.raises(BrokenExecutor, match="no licence"):
            pool.submit(abs, -1).result(60)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_interpreter_is_an_error_at_once() -> None:
    """Pool() raises FileNotFoundError, and no process or file is left."""
    with pytest.raises(FileNotFoundError):
        shmpar.Pool(1, python="/nowhere/python")


def test_runs_survive_workers_killed_at_random(stress_seed: int) -> None:
    """The default suite runs a few runs of the campaign below."""
    kill_at_random(6, stress_seed)


@pytest.mark.stress
def test_1000_runs_survive_workers_killed_at_random(stress_seed: int) -> None:
    """1,000 runs are right although a worker dies at a random moment of each run."""
    deaths = kill_at_random(1000, stress_seed)
    print(f"1,000 runs, 1,000 right results; {deaths} deaths hit a chunk in progress")


def test_runs_in_place_never_compute_a_chunk_twice(stress_seed: int) -> None:
    """The default suite runs a few runs of the campaign below."""
    kill_in_place(3, stress_seed)


@pytest.mark.stress
def test_300_runs_in_place_never_compute_a_chunk_twice(stress_seed: int) -> None:
    """A worker dies at a random moment of each run, perhaps while it writes a chunk."""
    named, cut = kill_in_place(300, stress_seed)
    print(f"300 runs in place: {named} errors name a chunk, {cut} of them half written; none twice")


WAYS = ("SIGKILL", "SIGSEGV", "exit")


def kill(pid: int, how: str) -> None:
    """Kill a worker unless it has exited."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, getattr(signal, how))


@contextlib.contextmanager
def random_death(pool: shmpar.Pool, rng: random.Random, chunks: int) -> Iterator[Any]:
    """Kill a worker at a random moment of the block, from outside or from a function.

    Yields a function to be called in each chunk, which may exit the worker in one of the chunks.
    """
    how, fatal = rng.choice(WAYS), pool.zeros(1, int)
    if how == "exit":
        fatal[0] = rng.randrange(1, chunks)

    def perhaps() -> None:
        if fatal[0]:
            # Why: two workers may race here; then a later chunk exits the worker, or no chunk.
            fatal[0] -= 1
            if not fatal[0]:
                os._exit(3)

    if how == "exit":
        yield perhaps
        return
    pid = rng.choice(pool._loop.engine.pids())
    killer = threading.Timer(rng.uniform(0, 0.06), kill, (pid, how))
    killer.start()
    try:
        yield perhaps
    finally:
        killer.join()


def kill_at_random(runs: int, seed: int) -> int:
    """Kill a worker at a random moment of each run; return the number of deaths in a chunk."""
    rng = random.Random(seed)
    deaths = 0
    with shmpar.Pool(2, retries=5) as pool:
        shared = pool.array(np.arange(40_000.0).reshape(200, 200))
        for number in range(runs):
            with random_death(pool, rng, chunks=100) as perhaps:

                def slow(block: Any, add: int = number, perhaps: Any = perhaps) -> Any:
                    spin(5e-4)
                    perhaps()
                    return block + add

                got = pool.map_blocks(slow, shared, chunks=20)
            np.testing.assert_array_equal(got, shared + number)
            deaths += pool.last_run.report.deaths
            del got, slow, perhaps
        pool._last_run = None
    return deaths


def kill_in_place(runs: int, seed: int) -> tuple[int, int]:
    """Kill a worker in each run in place; count the errors and the half-written chunks."""
    rng = random.Random(seed)
    named = cut = 0
    with shmpar.Pool(2, retries=5) as pool:
        shared = pool.zeros((100, 10_000))
        for _ in range(runs):
            shared[:] = 0
            with random_death(pool, rng, chunks=100) as perhaps:

                def add(block: Any, perhaps: Any = perhaps) -> Any:
                    spin(3e-4)
                    perhaps()
                    return block + 1

                error = error_of(pool.map_blocks, add, shared, out=shared, chunks=(1, -1))
            least, most = shared.min(axis=1), shared.max(axis=1)
            assert set(np.unique((least, most))) <= {0, 1}, "a chunk was computed twice"
            half = np.flatnonzero(least != most).tolist()
            if error is None:
                assert least.all(), "no error, although a chunk is missing"
            else:
                assert "in place" in str(error)
                assert half in ([], [error.chunk])
            named, cut = named + (error is not None), cut + len(half)
            del add, perhaps, error
        pool._last_run = None
        del shared
    return named, cut


def error_of(call: Any, *args: Any, **options: Any) -> Any:
    """Return the WorkerDied of a call without its frames, or None if the call succeeds."""
    try:
        call(*args, **options)
    except shmpar.WorkerDied as error:
        return error.with_traceback(None)
    return None


# Invalid arguments


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: p.map_blocks(abs, X, sigma=3), TypeError, r"kwargs=\{'sigma': 3\}"),
        (lambda p: p.map_blocks(3, X), TypeError, "callable"),
        (lambda p: p.map_blocks(abs), TypeError, "at least one array"),
        (lambda p: p.map_blocks(abs, np.array([{}])), TypeError, "pointers"),
        (lambda p: p.map_blocks(abs, np.ma.masked_array(X)), TypeError, "second input"),
        (lambda p: p.map_blocks(abs, X, chunks=0), ValueError, "0"),
        (lambda p: p.map_blocks(abs, X, chunks=(2, 2, 2)), ValueError, "chunks"),
        (lambda p: p.map_blocks(abs, X, chunks=((5, 6), 10)), ValueError, "11|sum"),
        (lambda p: p.map_blocks(abs, X, np.zeros(3)), ValueError, "broadcast"),
        (lambda p: p.map_blocks(abs, X, out=np.zeros(3)), ValueError, "shape"),
        (lambda p: p.map_blocks(abs, X, out=np.zeros(X.shape, object)), TypeError, "object"),
        (
            lambda p: p.map_blocks(abs, X, out=np.broadcast_to(0.0, X.shape)),
            ValueError,
            "read-only",
        ),
        (lambda p: p.map_blocks(abs, X, dtype=object), TypeError, "block_reduce"),
        (lambda p: p.map_blocks(abs, X, on_error="ignore"), ValueError, "'collect'"),
        (lambda p: p.map_blocks(abs, X, retries=-1), ValueError, "retries"),
        (lambda p: p.map_blocks(abs, X, task_timeout=0), ValueError, "task_timeout"),
        (lambda p: p.map_blocks(abs, X, progress=3), TypeError, "progress"),
        (lambda p: p.parallel_map(abs, X, range(3)), ValueError, "10 and 3"),
        (lambda p: p.parallel_map(abs, X, axis=2), ValueError, "axis 2"),
        (lambda p: p.parallel_map(abs, 3), TypeError, "items"),
    ],
)
def test_invalid_arguments_are_refused_before_the_run(
    pool: shmpar.Pool, call: Any, error: type[Exception], match: str
) -> None:
    """The call raises a clear error and makes no run."""
    before = pool.last_run
    with pytest.raises(error, match=match):
        call(pool)
    assert pool.last_run is before


def test_an_output_may_not_be_the_same_file_mapped_twice(pool: shmpar.Pool, tmp_path: Path) -> None:
    """The files are compared, since the addresses differ."""
    path = tmp_path / "x.npy"
    np.save(path, X)
    one, other = np.load(path, mmap_mode="r"), np.load(path, mmap_mode="r+")
    with pytest.raises(ValueError, match="shares memory with an input"):
        pool.map_overlap(np.negative, one, depth=1, chunks=3, out=other)


def test_an_output_without_elements_is_returned(pool: shmpar.Pool) -> None:
    """A call without elements returns its output."""
    out = np.zeros((4, 0))
    assert pool.map_blocks(np.negative, np.zeros((4, 0)), out=out) is out


def test_an_output_may_not_overlap_an_input(pool: shmpar.Pool) -> None:
    """Shifted views, and outputs of calls that cannot work in place, are refused."""
    shared = pool.array(X)
    with pytest.raises(ValueError, match="shares memory with an input"):
        pool.map_blocks(np.negative, shared[1:], chunks=2, out=shared[:-1])
    with pytest.raises(ValueError, match="shares memory with an input"):
        pool.block_reduce(np.sum, shared, chunks=1, out=shared)
    with pytest.raises(ValueError, match="shares memory with an input"):
        pool.map_blocks(lambda b: b.T, shared, chunks=(-1, 1), drop_axis=0, new_axis=1, out=shared)
    with pytest.raises(ValueError, match="two outputs share memory"):
        pool.map_blocks(lambda b: (b, b), X, out=(shared, shared))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"n_workers": 0}, ValueError),
        ({"n_workers": 1.5}, TypeError),
        ({"engine": "gpu"}, ValueError),
        ({"initializer": 3}, TypeError),
        ({"threads_per_worker": 0}, ValueError),
        ({"env": {"A": 1}}, TypeError),
        ({"env": "A=1"}, TypeError),
        ({"env": {"A=": "1"}}, ValueError),
        ({"env": {"A": "1\0"}}, ValueError),
        ({"retries": -1}, ValueError),
        ({"on_error": "x"}, ValueError),
    ],
)
def test_invalid_arguments_of_a_pool_are_refused(arguments: Any, error: type[Exception]) -> None:
    """Pool() raises an error that names the argument, or its value, and starts no worker."""
    (name,) = arguments
    with pytest.raises(error, match=rf"{name}|gpu"):
        shmpar.Pool(**arguments)


def test_a_closed_pool_refuses_calls() -> None:
    """Verbs and array functions of a closed pool raise RuntimeError; its results stay valid."""
    with shmpar.Pool(1) as pool:
        result = pool.map_blocks(np.negative, X)
        kept = pool.array(X)
    np.testing.assert_array_equal(result, -X)
    np.testing.assert_array_equal(kept, X)
    for call in (lambda: pool.map_blocks(abs, X), lambda: pool.zeros(3), pool.__enter__):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    with pytest.raises(shmpar.SegmentGone):
        kept.address  # noqa: B018
    with shmpar.Pool(1) as other:
        np.testing.assert_array_equal(other.map_blocks(np.negative, result), X)
    pool.shutdown()


def test_a_pool_that_is_never_closed_warns() -> None:
    """The workers exit after the pool is deleted; the deletion does not wait for them."""
    pool = shmpar.Pool(1)
    pids = pool._loop.engine.pids()
    with pytest.warns(ResourceWarning, match="never closed"):
        del pool
    assert wait_for_exit(pids, 30)

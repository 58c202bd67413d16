"""Callbacks, futures, interrupts, forks and memory of a pool whose engine has one thread."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import signal
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import interpreter, run_python
from tests.pools import ENGINES, wait_for_workers
from tests.test_interrupt import PIPES, read, script, tell

BOUND = 60.0  # seconds after which a wait counts as a hang
FAR_LESS = 5.0  # seconds; a cancelled run would take longer
REACTION = 3.0  # seconds from Ctrl-C to its KeyboardInterrupt; far less than any call takes

# `sys.argv[1]` is the engine; a hang ends the program and shows where each thread is.
PREAMBLE = f"""
import contextlib, faulthandler, os, signal, sys, threading
import numpy as np
import shmpar

BOUND = {BOUND}
faulthandler.dump_traceback_later(BOUND, exit=True)
engine = sys.argv[1]
array = np.arange(40.0)
"""


def run_script(source: str, *args: str) -> str:
    """Run a script after the preamble, and return its standard output."""
    done = run_python(PREAMBLE + textwrap.dedent(source), *args, timeout=2 * BOUND)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def wait_until(condition: Callable[[], Any], seconds: float = BOUND) -> None:
    """Ask again and again until the condition holds; fail after that many seconds."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        pause.wait(0.005)


OWN_DESCRIPTORS = 2  # of a gate itself


class Gate:
    """Holds a call in a worker until the test lets it finish."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        for name in ("begun", "go"):
            os.mkfifo(folder / name)
        # Why: a FIFO that is open for both directions never blocks the other end.
        self._begun, self._go = (os.open(folder / name, os.O_RDWR) for name in ("begun", "go"))
        self._opened = False

    def wait_until_begun(self) -> None:
        """Return when a worker is in the call."""
        assert select.select([self._begun], [], [], BOUND)[0], "the call never began"
        os.read(self._begun, 1)

    def open(self) -> None:
        """Let the call finish."""
        self._opened = True
        os.write(self._go, b"!")

    def descriptors(self) -> int:
        """Return how many descriptors of this process refer to the FIFOs."""
        count = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/self/fd/{name}").startswith(self.folder)
        return count

    def close(self) -> None:
        """Let the call finish, and close both FIFOs."""
        if not self._opened:
            self.open()
        os.close(self._begun)
        os.close(self._go)


def hold(folder: str, *_: Any) -> int:
    """Wait for the gate; return the thread that did so."""
    begun, go = (os.open(f"{folder}/{name}", os.O_RDWR) for name in ("begun", "go"))
    os.write(begun, b"!")
    if select.select([go], [], [], BOUND)[0]:
        os.read(go, 1)
    os.close(begun)
    os.close(go)
    return threading.get_ident()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is open when the test ends."""
    made = Gate(tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def kept_busy(pool: shmpar.Pool) -> Iterator[None]:
    """Have another thread call the pool without a pause while the block runs."""
    stop, works, failed = threading.Event(), threading.Event(), []

    def call() -> None:
        try:
            while not stop.is_set():
                assert pool.map_blocks(np.negative, np.arange(50.0), chunks=5)[-1] == -49
                works.set()
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=call, daemon=True)
    other.start()
    try:
        assert works.wait(BOUND)
        yield
    finally:
        stop.set()
        other.join(BOUND)
    assert not other.is_alive()
    assert not failed


# Callbacks

CALLBACK = """
fifo = sys.argv[2]
used = []

def wait(*args):
    with open(fifo) as file:
        file.read()
    return 0

def release():
    with open(fifo, "w"):
        pass

def use():
    assert pool.submit(abs, -1).result() == 1
    assert pool.map_blocks(np.negative, array, chunks=10)[-1] == -39
    assert pool.map_blocks(np.negative, array, chunks=10, wait=False).result()[-1] == -39
    used.append(threading.get_ident())

def let_another_use():
    other = threading.Thread(target=use)
    other.start()
    other.join()

def progress(how):
    called = []
    def callback(*numbers):
        if not called:
            called.append(numbers)
            how()
    result = pool.map_blocks(np.negative, array, chunks=1, progress=callback)
    assert result[-1] == -39

def progress_in_the_background(how):
    called = []
    def callback(*numbers):
        if not called:
            called.append(numbers)
            how()
    run = pool.map_blocks(np.negative, array, chunks=1, progress=callback, wait=False)
    assert run.result()[-1] == -39

def done_callback(future, how):
    finished = threading.Event()
    def callback(_):
        how()
        finished.set()
    future.add_done_callback(callback)
    release()
    assert finished.wait(BOUND)

def run(how):
    done_callback(pool.parallel_map(wait, range(1), dtype=object, wait=False), how)

def call(how):
    done_callback(pool.submit(wait), how)

with shmpar.Pool(2, engine=engine) as pool:
    for kind in (progress, progress_in_the_background, run, call):
        faulthandler.dump_traceback_later(BOUND, exit=True)
        for how in (use, let_another_use):
            kind(how)
assert len(used) == 8
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_callback_may_use_the_pool_and_wait_for_a_thread_that_does(
    engine: str, tmp_path: Path
) -> None:
    """A callback may call its pool, and may wait for another thread that calls it."""
    os.mkfifo(tmp_path / "fifo")
    run_script(CALLBACK, engine, str(tmp_path / "fifo"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_callback_that_exits_disturbs_no_other_call(engine: str, tmp_path: Path) -> None:
    """A done-callback that raises SystemExit fails neither another call nor the pool."""
    source = """
        fifo = sys.argv[2]

        def wait():
            with open(fifo) as file:
                return file.read()

        def leave(_):
            called.set()
            raise SystemExit(3)

        called = threading.Event()
        with shmpar.Pool(1, engine=engine) as pool:
            first, second = pool.submit(wait), pool.submit(abs, -2)
            first.add_done_callback(leave)
            with open(fifo, "w"):
                pass
            assert second.result(BOUND) == 2
            assert called.wait(BOUND)
            assert first.result(BOUND) == ""
            assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]
        print("the end")
    """
    os.mkfifo(tmp_path / "fifo")
    arguments = engine, str(tmp_path / "fifo")
    done = run_python(PREAMBLE + textwrap.dedent(source), *arguments, timeout=2 * BOUND)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


# Futures of submit


def test_a_call_is_running_until_it_ends(any_pool: shmpar.Pool, gate: Gate) -> None:
    """running() is true while the function runs, and false after its end."""
    future = any_pool.submit(hold, gate.folder)
    gate.wait_until_begun()
    assert future.running()
    assert not future.done()
    gate.open()
    wait_until(lambda: not future.running())
    assert future.done()


def test_a_call_runs_and_calls_back_though_nobody_waits(any_pool: shmpar.Pool, gate: Gate) -> None:
    """A submitted call runs to its end and fires its done-callback without any waiting thread."""
    called = threading.Event()
    future = any_pool.submit(hold, gate.folder)
    gate.wait_until_begun()
    future.add_done_callback(lambda _: called.set())
    gate.open()
    assert called.wait(BOUND)
    assert future.result(0)


def test_a_call_without_any_future_runs(any_pool: shmpar.Pool, gate: Gate) -> None:
    """A submitted call runs although its Future was dropped at once."""
    any_pool.submit(hold, gate.folder)
    gate.wait_until_begun()
    gate.open()
    # Why: on serial and threads the call has descriptors of this process until it ends.
    wait_until(lambda: gate.descriptors() == OWN_DESCRIPTORS)


def test_done_does_not_run_the_function(any_pool: shmpar.Pool, gate: Gate) -> None:
    """done() returns at once, and never runs the function in the calling thread."""
    future = any_pool.submit(hold, gate.folder)
    began = time.monotonic()
    assert not future.done()
    assert time.monotonic() - began < REACTION
    gate.wait_until_begun()
    assert not future.done()
    gate.open()
    ident = future.result(BOUND)
    if any_pool.engine != "processes":
        assert ident != threading.get_ident()


def test_a_result_that_is_late_is_a_timeout_on_each_engine(
    any_pool: shmpar.Pool, gate: Gate
) -> None:
    """result(timeout) and exception(timeout) raise TimeoutError while the function runs."""
    future = any_pool.submit(hold, gate.folder)
    for wait in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            wait(timeout=0.05)
    gate.open()
    assert future.result(BOUND)


def test_a_call_is_cancelled_before_it_begins_on_each_engine(
    any_pool: shmpar.Pool, gate: Gate, tmp_path: Path
) -> None:
    """A call that waits for a worker can be cancelled, and then never runs."""
    others = []
    for number in range(any_pool.n_workers - 1):
        (tmp_path / str(number)).mkdir()
        others.append(Gate(tmp_path / str(number)))
        any_pool.submit(hold, others[-1].folder)
        others[-1].wait_until_begun()
    first = any_pool.submit(hold, gate.folder)
    gate.wait_until_begun()
    second = any_pool.submit((tmp_path / "ran").touch)
    try:
        assert not first.cancel()
        assert second.cancel()
    finally:
        gate.open()
        for other in others:
            other.close()
    assert first.result(BOUND)
    assert any_pool.submit(abs, -1).result(BOUND) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_leaving_the_block_after_a_cancelled_call_raises_nothing(
    engine: str, tmp_path: Path
) -> None:
    """A pool that closes leaves a cancelled Future alone."""
    source = """
        fifo = sys.argv[2]

        def wait():
            with open(fifo) as file:
                return file.read()

        for _ in range(3):
            with shmpar.Pool(1, engine=engine) as pool:
                future = pool.submit(abs, -1)
                cancelled = future.cancel()  # a process worker is not up yet
            assert future.cancelled() == cancelled
            assert cancelled or future.result(0) == 1

        with shmpar.Pool(1, engine=engine) as pool:
            first, second = pool.submit(wait), pool.submit(abs, -2)
            assert second.cancel()
            with open(fifo, "w"):
                pass
        assert first.result(0) == ""
        assert second.cancelled()
    """
    os.mkfifo(tmp_path / "fifo")
    run_script(source, engine, str(tmp_path / "fifo"))


# Plans that are equal and differ

ZEROS = {
    "0.0, -0.0": (0.0, -0.0),
    "-0.0, 0.0": (-0.0, 0.0),
    "0, -0.0": (0, -0.0),
    "-0.0, 0": (-0.0, 0),
    "False, -0.0": (False, -0.0),
    "constant, -0.0": ("constant", -0.0),
    "-0.0, constant": (-0.0, "constant"),
    "scalars": (np.float64(-0.0), np.float64(0.0)),
    "a pair": (((0.0, -0.0),), ((-0.0, 0.0),)),
}


@pytest.mark.parametrize("name", ZEROS)
def test_the_sign_of_a_zero_beyond_the_border_is_kept(any_pool: shmpar.Pool, name: str) -> None:
    """Each call pads with the zero that it was given, though an equal one came before."""
    length = 40 + 2 * list(ZEROS).index(name)  # Why: no other test has made an equal plan
    for boundary in ZEROS[name]:
        before, after = boundary[0] if isinstance(boundary, tuple) else (boundary, boundary)
        expected = np.zeros((2, 2), bool)
        expected[0, 0], expected[1, 1] = _is_negative(before), _is_negative(after)
        signs = any_pool.block_reduce(
            lambda block: np.signbit(block[[0, -1]]),
            np.ones(length),
            chunks=length // 2,
            depth=1,
            boundary=boundary,
        )
        assert signs.tolist() == expected.tolist()
        signs = any_pool.map_overlap(
            lambda block: np.signbit(block[:-2]) | np.signbit(block[2:]),
            np.ones(length),
            chunks=length // 2,
            depth=1,
            boundary=boundary,
            trim=False,
        )
        assert (signs[0], signs[-1]) == (_is_negative(before), _is_negative(after))
        assert not signs[1:-1].any()


def _is_negative(boundary: Any) -> bool:
    return not isinstance(boundary, str) and bool(np.signbit(float(boundary)))


COMPLEX_ZEROS = [complex(0.0, 0.0), complex(0.0, -0.0), complex(-0.0, 0.0), complex(-0.0, -0.0)]


@pytest.mark.parametrize("order", [1, -1])
def test_the_signs_of_a_complex_zero_are_kept(any_pool: shmpar.Pool, order: int) -> None:
    """Each call pads with the real and imaginary sign that it was given."""
    length = 70 + order
    for boundary in COMPLEX_ZEROS[::order]:
        found = any_pool.block_reduce(
            lambda block: np.signbit([block[0].real, block[0].imag]),
            np.ones(length, complex),
            depth=1,
            chunks=length,
            boundary=boundary,
        )
        signs = [bool(np.signbit(boundary.real)), bool(np.signbit(boundary.imag))]
        assert found.ravel().tolist() == signs


@pytest.mark.parametrize("order", [1, -1])
def test_the_sign_of_a_nan_beyond_the_border_is_kept(any_pool: shmpar.Pool, order: int) -> None:
    """Each call pads with the NaN that it was given, sign included."""
    length = 80 + order
    for boundary in (np.nan, -np.nan, np.nan)[::order]:
        found = any_pool.block_reduce(
            lambda block: np.signbit(block[0]),
            np.ones(length),
            depth=1,
            chunks=length,
            boundary=boundary,
        )
        assert found.tolist() == [np.signbit(boundary)]


@pytest.mark.parametrize("order", [1, -1])
def test_the_metadata_of_a_dtype_is_kept(any_pool: shmpar.Pool, order: int) -> None:
    """A result has the metadata of the dtype that was asked for, and no other call's."""
    plain = np.dtype("f8")
    dtypes = [plain, np.dtype("f8", metadata={"unit": "m"}), np.dtype("f8", metadata={"unit": "s"})]
    for dtype in [*dtypes[::order], plain]:
        found = any_pool.map_blocks(
            lambda block: block + 1, np.arange(90.0 + order), chunks=30, dtype=dtype
        )
        assert found.dtype.metadata == dtype.metadata


@pytest.mark.parametrize("order", [1, -1])
def test_a_block_has_the_metadata_of_its_input(any_pool: shmpar.Pool, order: int) -> None:
    """The function sees the metadata of this call's input, not of one before."""
    dtypes = [np.dtype("f8"), np.dtype("f8", metadata={"unit": "m"})]
    for dtype in [*dtypes[::order], *dtypes]:
        found = any_pool.block_reduce(
            lambda block: {"metadata": block.dtype.metadata and dict(block.dtype.metadata)},
            np.zeros(20, dtype),
            chunks=10,
            dtype=object,
        )
        expected = dtype.metadata and dict(dtype.metadata)
        assert [one["metadata"] for one in found] == [expected] * 2


def test_results_with_other_metadata_before_do_not_disagree(any_pool: shmpar.Pool) -> None:
    """Workers agree on a dtype, whatever metadata a worker has seen with an equal one before."""

    def tag(block: Any) -> Any:
        unit = {"unit": str(threading.get_native_id())}
        return block.astype(np.dtype("f8", metadata=unit))

    for _ in range(3):
        any_pool.map_blocks(tag, np.arange(10.0), chunks=10)  # in one worker
        found = any_pool.map_blocks(lambda block: block * 2, np.arange(64.0), chunks=1)
        assert found.tolist() == list(range(0, 128, 2))


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_the_sign_of_a_fill_value_is_kept(any_pool: shmpar.Pool, value: float) -> None:
    """Windows of failed chunks get the zero that was given."""

    def fail(block: Any) -> Any:
        raise ValueError(block)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = any_pool.map_blocks(
            fail, np.ones(4), chunks=2, on_error="fill", fill_value=value, dtype="f8"
        )
    assert np.signbit(found).tolist() == [np.signbit(value)] * 4


# Time limits


def test_the_wait_for_an_output_is_no_time_of_a_chunk(tmp_path: Path) -> None:
    """task_timeout does not count the time in which a worker waits for its output."""
    # The parent is stopped from the first result on until long after the limit.
    source = """
        import os, signal, sys
        import numpy as np
        import shmpar

        parent, marker, limit = os.getpid(), sys.argv[1], float(sys.argv[2])

        def work(block):
            if not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(parent, signal.SIGSTOP)
            return block[:, :-1] * 2.0  # a shape and dtype that only the result tells

        image = np.ones((512, 513), "f4")
        with shmpar.Pool(1, task_timeout=limit, retries=0) as pool:
            pool.submit(abs, -1).result()
            result = pool.map_blocks(work, image, chunks=(64, -1))
            assert result.shape == (512, 512) and (result == 2).all()
            assert pool.last_run.report.deaths == 0
    """
    limit = 1.0
    arguments = str(tmp_path / "stopped"), str(limit)
    with interpreter(source, *arguments, text=True, **PIPES) as process:
        wait_until(lambda: _has_stopped(process.pid) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        threading.Event().wait(1.5 * limit)
        os.kill(process.pid, signal.SIGCONT)
        status, said = process.wait(BOUND), process.stderr.read()
        assert (status, said) == (0, ""), said


def _has_stopped(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def test_a_slow_progress_callback_is_no_time_of_a_chunk() -> None:
    """task_timeout does not count the time that a progress callback takes."""
    first = []

    def slow(*numbers: int) -> None:
        if not first:
            first.append(numbers)
            threading.Event().wait(1.5)

    image = np.ones((512, 513), "f4")
    with shmpar.Pool(1, task_timeout=1.0, retries=0) as pool:
        wait_for_workers(pool)
        result = pool.map_blocks(
            lambda block: time.sleep(0.02) or block[:, :-1] * 2.0,
            image,
            chunks=(64, -1),
            progress=slow,
        )
        assert (result == 2).all()
        assert pool.last_run.report.deaths == 0


# The caller's state


def reciprocal(block: Any) -> Any:
    """Divide by a block."""
    return 1.0 / block


CALLS: dict[str, Callable[[shmpar.Pool], Any]] = {
    "map_blocks": lambda pool: pool.map_blocks(reciprocal, np.zeros(8), chunks=2),
    "a ufunc": lambda pool: pool.map_blocks(np.reciprocal, np.zeros(8), chunks=2),
    "parallel_map": lambda pool: pool.parallel_map(reciprocal, np.zeros((8, 2))),
    "later": lambda pool: pool.map_blocks(reciprocal, np.zeros(8), chunks=2, wait=False),
    "submit": lambda pool: pool.submit(reciprocal, np.zeros(8)),
}


def _result(given: Any) -> Any:
    return given.result(BOUND) if hasattr(given, "result") else given


@pytest.mark.parametrize("name", CALLS)
def test_a_division_by_zero_raises_where_the_caller_says_so(
    any_pool: shmpar.Pool, name: str
) -> None:
    """np.errstate(divide="raise") around a call fails a function that divides by zero."""
    call = CALLS[name]
    with np.errstate(divide="ignore"):
        assert np.isinf(_result(call(any_pool))).all()
    error = FloatingPointError if name == "submit" else shmpar.ChunkError
    with np.errstate(divide="raise"):
        made = None
        with contextlib.suppress(shmpar.ChunkError):
            made = call(any_pool)
    if made is not None:
        with pytest.raises(error):
            assert not _result(made)
    with np.errstate(divide="ignore"):
        assert np.isinf(_result(call(any_pool))).all()


@pytest.mark.parametrize("name", CALLS)
def test_a_division_by_zero_is_silent_where_the_caller_says_so(
    any_pool: shmpar.Pool, name: str
) -> None:
    """np.errstate(divide="ignore") around a call gives infinity, without a warning."""
    with warnings.catch_warnings(record=True) as caught, np.errstate(divide="ignore"):
        warnings.simplefilter("always")
        assert np.isinf(_result(CALLS[name](any_pool))).all()
    assert not caught


def test_two_threads_have_each_its_own_error_state(any_pool: shmpar.Pool) -> None:
    """Calls of two threads at once are computed under the error state of their own thread."""
    ended: dict[str, list[str]] = {"raise": [], "ignore": []}

    def call(state: Any) -> None:
        for _ in range(10):
            with np.errstate(divide=state):
                try:
                    any_pool.map_blocks(reciprocal, np.zeros(8), chunks=2)
                    ended[state].append("result")
                except shmpar.ChunkError:
                    ended[state].append("error")

    others = [threading.Thread(target=call, args=(state,), daemon=True) for state in ended]
    for other in others:
        other.start()
    for other in others:
        other.join(BOUND)
    assert ended == {"raise": ["error"] * 10, "ignore": ["result"] * 10}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_path_in_sys_path_is_taken(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pathlib.Path in sys.path breaks neither a new pool nor a call of an old one."""
    paths = sys.path
    monkeypatch.setattr(sys, "path", [tmp_path, *paths])
    with shmpar.Pool(1, engine=engine) as pool:
        assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]
        monkeypatch.setattr(sys, "path", [*paths, tmp_path / "more"])
        assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]
        assert pool.submit(abs, -1).result(BOUND) == 1


# Progress bars


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_ends_though_its_bar_fails(engine: str) -> None:
    """A run whose progress bar raises ends at once, with its result or the bar's error."""
    source = """
        import time
        import tqdm.auto

        def fail(self, *args):
            raise OSError("no bar")

        class Closes(tqdm.auto.tqdm):
            close = fail
            __del__ = lambda self: None

        class Updates(tqdm.auto.tqdm):
            update = fail
            __del__ = lambda self: None

        def call(**options):
            return pool.map_blocks(np.negative, array, chunks=10, progress="bar", **options)

        with shmpar.Pool(1, engine=engine) as pool:
            assert pool.submit(abs, -1).result() == 1
            for bar in (Closes, Updates) * 2:
                tqdm.auto.tqdm = bar
                for how in (call, lambda: call(wait=False).result(BOUND / 3)):
                    began = time.monotonic()
                    try:
                        assert how()[-1] == -39
                    except OSError as error:
                        assert "no bar" in str(error), repr(error)
                    assert time.monotonic() - began < BOUND / 3
            assert pool.submit(abs, -1).result() == 1
        print("the end")
    """
    done = run_python(PREAMBLE + textwrap.dedent(source), engine, timeout=2 * BOUND)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


# Systems without fcntl


def test_it_works_without_fcntl() -> None:
    """Where Python has no fcntl, serial and threads give right results."""
    source = """
        import sys
        sys.modules["fcntl"] = None
        import numpy as np
        import shmpar

        image = np.arange(100.0).reshape(10, 10)
        for engine in ("serial", "threads"):
            with shmpar.Pool(2, engine=engine) as pool:
                assert (pool.map_blocks(lambda b: b + 1, image, chunks=3) == image + 1).all()
                assert (pool.map_blocks(np.negative, pool.array(image), chunks=3) == -image).all()
                sums = pool.block_reduce(np.sum, image, chunks=5)
                assert sums.tolist() == [[550, 675], [1800, 1925]]
                assert pool.parallel_map(np.max, image).tolist() == image.max(axis=1).tolist()
                assert pool.mean(image) == image.mean()
                assert pool.submit(abs, -1).result() == 1
                assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
    """
    done = run_python(source, timeout=2 * BOUND)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# Ctrl-C

INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np
import shmpar

image = np.arange(2_000.0)
stop, wrong = threading.Event(), []


def slow(block):
    if block[0] == 0:
        os.write(1, b"at work\\n")
    time.sleep(0.02)
    return -block


def use():
    # Call the pool in another thread until the end.
    try:
        while not stop.is_set():
            assert pool.map_blocks(np.negative, image, chunks=100)[-1] == -1999
            assert pool.submit(abs, -1).result() == 1
    except BaseException as error:
        wrong.append(error)


def be_interrupted():
    # Why: there are two signals at most, and the second may arrive after the call.
    try:
        try:
            pool.map_blocks(slow, image, chunks=2)
            wrong.append("no KeyboardInterrupt")
        except KeyboardInterrupt:
            pass
        signal.signal(signal.SIGINT, lambda *_: None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, lambda *_: None)


pool = shmpar.Pool(2, engine=sys.argv[1])
threads = [threading.Thread(target=use, daemon=True) for _ in range(int(sys.argv[2]))]
assert pool.submit(abs, -1).result() == 1
for thread in threads:
    thread.start()
for _ in sys.stdin:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    be_interrupted()
    print("interrupted", flush=True)
    assert sys.stdin.readline() == "go on\\n"
    assert pool.map_blocks(np.negative, image, chunks=100)[-1] == -1999
    assert pool.submit(abs, -1).result() == 1
    print("right", wrong, flush=True)
stop.set()
for thread in threads:
    thread.join()
pool.shutdown()
print("closed", wrong, flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [0, 2])
def test_interrupts_end_the_call_of_the_main_thread_alone(engine: str, threads: int) -> None:
    """One or two Ctrl-C end the main thread's call within a second, and no other thread's."""
    with script(INTERRUPTED, engine, str(threads)) as process:
        watch = threading.Timer(2 * BOUND, process.kill)
        watch.start()
        try:
            for presses in (1, 2, 1, 2, 2):
                tell(process, "begin")
                assert read(process) == "at work"
                for press in range(presses):
                    if press:
                        select.select([], [], [], 0.03)
                    pressed = time.monotonic()
                    os.killpg(process.pid, signal.SIGINT)
                assert read(process) == "interrupted"
                assert time.monotonic() - pressed < REACTION
                tell(process, "go on")
                told = time.monotonic()
                assert read(process) == "right []"
                assert time.monotonic() - told < FAR_LESS
            process.stdin.close()
            assert read(process) == "closed []"
        finally:
            watch.cancel()
            watch.join()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_while_waiting_for_a_result_ends_the_wait(engine: str, tmp_path: Path) -> None:
    """Ctrl-C in result() of a submitted call raises KeyboardInterrupt; the call goes on."""
    source = """
        fifo = sys.argv[2]

        def wait():
            os.write(1, b"at work\\n")
            with open(fifo) as file:
                return file.read()

        with shmpar.Pool(2, engine=engine) as pool:
            future = pool.submit(wait)
            try:
                os.write(1, b"waiting\\n")
                future.result()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            assert not future.done()
            with open(fifo, "w") as file:
                file.write("told")
            assert future.result(BOUND) == "told"
            assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]
        sys.exit(7)
    """
    os.mkfifo(tmp_path / "fifo")
    arguments = engine, str(tmp_path / "fifo")
    with script(PREAMBLE + textwrap.dedent(source), *arguments) as process:
        assert {read(process), read(process)} == {"at work", "waiting"}
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert read(process) == "interrupted"
        assert time.monotonic() - pressed < REACTION


# The pool's thread


def _threads_of_ours() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("shmpar")]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_thread_lives_from_the_first_call_to_the_end(engine: str) -> None:
    """A pool has a daemon thread from its first call on, and none after its block."""
    others = set(_threads_of_ours())
    with shmpar.Pool(2, engine=engine) as pool:
        if engine != "threads":
            assert set(_threads_of_ours()) == others
        assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]
        assert pool.submit(abs, -1).result(BOUND) == 1
        ours = set(_threads_of_ours()) - others
        assert len(ours) == (3 if engine == "threads" else 1)
        assert all(one.daemon for one in ours)
    assert set(_threads_of_ours()) == others


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_without_a_call_has_no_thread(engine: str) -> None:
    """A pool that is never called closes without a thread of its own left."""
    others = set(threading.enumerate())
    with shmpar.Pool(2, engine=engine):
        pass
    assert set(threading.enumerate()) == others


OPEN = {
    "no call": "",
    "a call": "assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]",
    "a run": "run = pool.map_blocks(lambda b: time.sleep(0.01) or b, array, chunks=1, wait=False)",
    "a run that nobody holds": (
        "pool.map_blocks(lambda b: time.sleep(0.01) or b, array, chunks=1, wait=False)"
    ),
    "submitted": "future = pool.submit(time.sleep, 0.1)",
    "a thread that calls": """
def call():
    with contextlib.suppress(BaseException):
        while True:
            pool.map_blocks(np.negative, array, chunks=1)
            begun.set()
begun = threading.Event()
threading.Thread(target=call, daemon=True).start()
assert begun.wait(BOUND)
""",
}


# Why: with serial and threads the interpreter ends alike, whatever is open.
@pytest.mark.parametrize(
    ("engine", "what"),
    [
        *((engine, what) for engine in ENGINES for what in ("a run", "a thread that calls")),
        *(("processes", what) for what in OPEN if what not in ("a run", "a thread that calls")),
    ],
)
def test_a_program_ends_though_its_pool_is_open(engine: str, what: str) -> None:
    """A program that never closes its pool exits by itself, in silence, with nothing left."""
    source = "import time\npool = shmpar.Pool(2, engine=engine)\n" + OPEN[what]
    run_script(source, engine)


FORKS = """
import time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
begun, stop = threading.Event(), threading.Event()


def use():
    while not stop.is_set():
        pool.map_blocks(np.negative, array, chunks=1)
        pool.submit(abs, -1).result()
        begun.set()


def child():
    names = [one.name for one in threading.enumerate() if one.name.startswith("shmpar")]
    assert not names, names
    try:
        pool.submit(abs, -1)
    except RuntimeError as error:
        assert "fork" in str(error)
    else:
        raise AssertionError("the parent's pool took a call")
    with shmpar.Pool(1, engine=engine) as own:
        assert own.map_blocks(np.negative, array, chunks=10)[-1] == -39
        assert own.submit(abs, -1).result() == 1
        assert own.map_blocks(np.negative, array, chunks=10, wait=False).result()[-1] == -39
    names = [one.name for one in threading.enumerate() if one.name.startswith("shmpar")]
    assert not names, names


with shmpar.Pool(2, engine=engine) as pool:
    other = threading.Thread(target=use, daemon=True)
    other.start()
    assert begun.wait(BOUND)
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            # Why: faulthandler's own watchdog thread is not in a child, which would wait for it.
            signal.alarm(int(BOUND / 2))
            status = 1
            try:
                child()
                status = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert pool.submit(abs, -1).result() == 1
    stop.set()
    other.join()
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_has_no_thread_and_may_have_a_pool(engine: str) -> None:
    """A child that is forked beside a busy pool has none of its threads, and makes its own pool."""
    run_script(FORKS, engine)


# Memory


def _watched(values: Any) -> tuple[Any, threading.Event]:
    """An array, and an event that is set when it is gone."""
    gone = threading.Event()
    array = np.array(values)
    weakref.finalize(array, gone.set).atexit = False
    return array, gone


WAYS: dict[str, Callable[[shmpar.Pool, Any], Any]] = {
    "waited for": lambda pool, array: pool.map_blocks(np.negative, array, chunks=10),
    "a result": lambda pool, array: pool.map_blocks(
        np.negative, array, chunks=10, wait=False
    ).result(BOUND),
    "rows": lambda pool, array: pool.parallel_map(np.sum, array[:, None]),
    "captured": lambda pool, array: pool.parallel_map(lambda n: array[n], range(len(array))),
    "a call": lambda pool, array: pool.submit(np.negative, array).result(BOUND),
    "a map": lambda pool, array: list(pool.map(np.negative, [array])),
}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("way", WAYS)
def test_a_finished_call_keeps_no_input(any_pool: shmpar.Pool, way: str, busy: bool) -> None:
    """The input of a finished call is released, though another thread keeps the pool busy."""
    with kept_busy(any_pool) if busy else contextlib.nullcontext():
        array, gone = _watched(np.arange(100.0))
        WAYS[way](any_pool, array)
        del array
        wait_until(lambda: gc.collect() < 0 or gone.wait(0.05))


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_finished_run_that_nobody_holds_keeps_no_result(
    any_pool: shmpar.Pool, busy: bool
) -> None:
    """A run with wait=False that is done releases its result with its last holder."""
    gone = threading.Event()
    with kept_busy(any_pool) if busy else contextlib.nullcontext():
        run = any_pool.map_blocks(np.negative, np.arange(100.0), chunks=10, wait=False)
        weakref.finalize(run.result(BOUND), gone.set).atexit = False
        if not busy:  # Why: last_run holds the latest run
            any_pool.map_blocks(np.negative, np.arange(3.0))
        del run
        wait_until(lambda: gc.collect() < 0 or gone.wait(0.05))


def test_a_finished_call_keeps_no_result(any_pool: shmpar.Pool) -> None:
    """The result of a submitted call is released with its last holder."""
    gone = threading.Event()
    weakref.finalize(any_pool.submit(np.ones, 10).result(BOUND), gone.set).atexit = False
    wait_until(lambda: gc.collect() < 0 or gone.wait(0.05))


def test_a_call_that_failed_keeps_no_input(any_pool: shmpar.Pool) -> None:
    """A call that raised releases its argument when its error is dropped."""
    array, gone = _watched(np.arange(100.0))
    future = any_pool.submit(functools.partial(_fail, array))
    assert isinstance(future.exception(BOUND), ZeroDivisionError)
    del array, future
    wait_until(lambda: gc.collect() < 0 or gone.wait(0.05))


def _fail(array: Any) -> None:
    raise ZeroDivisionError(len(array))

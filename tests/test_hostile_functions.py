"""Functions that attack their worker: descriptors, process groups, signals, programs, crashes."""

from __future__ import annotations

import ctypes
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.hostile import (
    ACTS,
    CHUNK,
    DESCRIPTORS,
    KEEPERS,
    attacking,
    close_all,
    crash_at_one,
    replace_by_sockets,
    starting,
)
from tests.interpreters import interpreter

Run = Callable[..., CompletedProcess[str]]

X = np.arange(60.0)


def gone(pid: int, seconds: float = 10) -> bool:
    """Return whether a process ends in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def check_call(pool: shmpar.Pool, kind: str, work: Any) -> str:
    """Call a verb with a hostile function; return "right" or "died"."""
    try:
        match kind:
            case "blocks":
                assert np.array_equal(pool.map_blocks(work, X, chunks=CHUNK), X * 2)
            case "known":
                got = pool.map_blocks(work, X, chunks=CHUNK, dtype="f8")
                assert np.array_equal(got, X * 2)
            case "rows":
                rows = X.reshape(-1, CHUNK)
                assert np.array_equal(pool.parallel_map(work, rows), rows * 2)
            case "objects":
                rows = X.reshape(-1, CHUNK)
                got = np.stack(list(pool.parallel_map(work, rows, dtype=object)))
                assert np.array_equal(got, rows * 2)
            case "reduction":
                got = pool.block_reduce(lambda block: work(block).sum(), X, chunks=CHUNK)
                assert np.array_equal(got, (X * 2).reshape(-1, CHUNK).sum(1))
            case "submit":
                futures = [pool.submit(work, part) for part in X.reshape(-1, CHUNK)]
                got = np.concatenate([future.result(60) for future in futures])
                assert np.array_equal(got, X * 2)
            case "map":
                got = np.concatenate(list(pool.map(work, X.reshape(-1, CHUNK), timeout=60)))
                assert np.array_equal(got, X * 2)
    except shmpar.WorkerDied:
        return "died"
    return "right"


KINDS = ("blocks", "known", "rows", "objects", "reduction", "submit", "map")


LOST = [
    *zip(DESCRIPTORS, 2 * ("blocks", "rows", "objects", "submit"), strict=True),
    *(("replace_by_sockets", kind) for kind in ("blocks", "objects")),
]


def test_lost_descriptors_give_a_right_result_or_a_dead_worker() -> None:
    """No call hangs or gives a wrong value, and the pool works afterwards."""
    with shmpar.Pool(1, retries=0) as pool:
        for name, kind in LOST:
            check_call(pool, kind, attacking([name], 3))
            got = pool.map_blocks(np.negative, X, chunks=CHUNK)
            assert np.array_equal(got, -X), (name, kind)


def test_the_error_says_that_the_descriptors_are_lost() -> None:
    """It tells the user what a function may close."""
    with shmpar.Pool(1) as pool:
        with pytest.raises(shmpar.WorkerDied, match="may close only the descriptors that it has"):
            pool.submit(close_all).result(60)
        with pytest.raises(shmpar.WorkerDied, match="may close only the descriptors that it has"):
            pool.submit(replace_by_sockets).result(60)


def test_lost_descriptors_are_the_fault_of_a_chunk(tmp_path: Path) -> None:
    """The chunk has its retries, and no worker more is started, whatever the verb."""
    log = tmp_path / "log"

    def work(block: Any) -> Any:
        with log.open("a") as file:
            file.write("begun\n")
        close_all()
        return block

    for retries in (0, 1):
        with shmpar.Pool(2, retries=retries) as pool:
            log.write_text("")
            with pytest.raises(shmpar.WorkerDied, match=r"chunk 0 at \[0:60\].*status 113"):
                pool.map_blocks(work, X, chunks=60)
            assert log.read_text() == "begun\n" * (1 + retries)
            log.write_text("")
            with pytest.raises(shmpar.WorkerDied, match=r"chunk 0 .*status 113"):
                list(pool.parallel_map(work, X[:1], dtype=object))
            assert log.read_text() == "begun\n" * (1 + retries)


PARENT = """
import os, sys, time
import shmpar
from tests import hostile

def work(_):
    for name in sys_argv[1:]:
        hostile.ACTS[name]()
    os.write(1, f"{os.getpid()}\\n".encode())
    while True:
        time.sleep(0.01) if sys_argv[0] == "idle" else None

sys_argv = sys.argv[1:]
with shmpar.Pool(1) as pool:
    pool.parallel_map(work, range(1), dtype=object)
"""


@pytest.mark.parametrize(
    "names",
    [
        *([name] for name in (*KEEPERS, "close_all", "replace_by_zeros", "start_a_program")),
        ["leave_the_group", "ignore_signals", "block_signals", "reset_death_signal", "close_all"],
        ["close_and_open_files", "make_a_session", "leave_a_thread"],
    ],
    ids=" ".join,
)
def test_a_worker_ends_with_its_parent(names: list[str]) -> None:
    """No act of its function keeps it, or a program that it has started, alive."""
    # The context manager fails if a process outlives the parent by two seconds.
    with interpreter(PARENT, "busy", *names, stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        assert gone(worker, 2)


def noted(path: Path) -> list[int]:
    """Wait for the processes that a function has noted."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.005)
    return list(map(int, path.read_text().split()))


STARTS = ["program", "shell", "multiprocessing", "futures"]


def test_started_programs_end_with_the_task_timeout(tmp_path: Path) -> None:
    """Each worker that is killed takes its process group with it."""
    paths = {how: tmp_path / how for how in STARTS}
    with shmpar.Pool(len(STARTS), task_timeout=3, retries=0) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            pool.parallel_map(
                lambda how: starting(how)(paths[how]), STARTS, dtype=object, on_error="collect"
            )
        assert [type(one) for one in caught.value.exceptions] == [shmpar.TaskTimeout] * len(STARTS)
        assert all(gone(pid) for path in paths.values() for pid in noted(path))
        pool._last_run = None


@pytest.mark.parametrize("how", STARTS)
def test_started_programs_end_with_the_pool(how: str, tmp_path: Path) -> None:
    """A pool whose block ends by an exception leaves nothing."""
    path = tmp_path / "pids"
    pool = shmpar.Pool(1)
    pool.submit(starting(how), path)
    pids = noted(path)
    pool.__exit__(KeyError, KeyError(), None)
    assert all(gone(pid) for pid in pids)


def test_started_programs_end_with_an_idle_worker() -> None:
    """A program that the function left running ends when its worker exits by itself."""

    def leave() -> int:
        return subprocess.Popen(["sleep", "600"]).pid

    def leave_apart() -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    with shmpar.Pool(1) as pool:
        ours, apart = pool.submit(leave).result(60), pool.submit(leave_apart).result(60)
        crashed = pool.submit(lambda: (leave(), os._exit(3)))
        with pytest.raises(shmpar.WorkerDied):
            crashed.result(60)
    assert gone(ours)
    os.kill(apart, signal.SIGKILL)  # a session of its own is the way out
    assert gone(apart)


def test_started_programs_end_at_ctrl_c(tmp_path: Path) -> None:
    """After the grace the worker of the interrupted chunk is ended with its programs."""
    source = """
        import sys
        from pathlib import Path
        import shmpar
        from tests.hostile import starting

        with shmpar.Pool(1) as pool:
            try:
                pool.parallel_map(starting("program"), [Path(sys.argv[1])], dtype=object)
            except KeyboardInterrupt:
                print(pool.submit(abs, -4).result())
    """
    path = tmp_path / "pids"
    with interpreter(source, str(path), stdout=subprocess.PIPE) as parent:
        pids = noted(path)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == b"4\n"
        assert all(gone(pid) for pid in pids)
        assert parent.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE])
def test_the_error_of_a_crash_has_its_python_stack(number: int) -> None:
    """It names the file and line of the user's function, and no line of this package."""

    def die(block: Any) -> Any:
        os.kill(os.getpid(), number)
        return block

    with shmpar.Pool(1, retries=0) as pool:
        with pytest.raises(shmpar.WorkerDied) as caught:
            pool.map_blocks(die, X)
        text = str(caught.value)
        assert "Python stack of the worker, most recent call first:\n  File " in text
        assert text.count("in die") == 1
        assert "shmpar/worker" not in text
        del caught
        pool._last_run = None


def test_the_error_of_a_submitted_crash_has_its_python_stack(capfd: Any) -> None:
    """The stack of a deep function is short, and the text is bounded."""

    def deep(n: int) -> int:
        return ctypes.string_at(0) if n == 0 else deep(n - 1)

    with shmpar.Pool(1, retries=0) as pool:
        with pytest.raises(shmpar.WorkerDied, match="in string_at") as caught:
            pool.submit(deep, 500).result(60)
        assert len(str(caught.value)) < 4000
        with pytest.raises(shmpar.WorkerDied, match="in crash_at_one"):
            pool.submit(crash_at_one, X).result(60)


@pytest.mark.parametrize("how", ["signal.SIG_IGN", "reap"])
def test_an_exit_status_that_cannot_be_known_is_not_made_up(run_python: Run, how: str) -> None:
    """With SIGCHLD ignored, the error of a killed worker does not say status 0."""
    source = f"""
        import os, signal
        import shmpar

        def reap(*_):
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, {how})

        def die(_):
            os.kill(os.getpid(), signal.SIGKILL)

        with shmpar.Pool(1, retries=0) as pool:
            try:
                pool.parallel_map(die, range(1))
            except shmpar.WorkerDied as error:
                known = "SIGKILL" in str(error) and error.exitcode == -9
                unknown = "its status is unknown" in str(error) and error.exitcode is None
                print(known or unknown or error)
            print(pool.submit(abs, -4).result())
    """
    done = run_python(source)
    assert (done.stdout, done.stderr) == ("True\n4\n", "")


def test_workers_have_names_of_their_own(tmp_path: Path) -> None:
    """The names of multiprocessing and of log records tell the workers apart."""

    def names(_: Any) -> Any:
        (tmp_path / str(os.getpid())).touch()
        while len(os.listdir(tmp_path)) < 2:  # until both workers take part
            time.sleep(0.001)
        import logging
        import multiprocessing

        record = logging.LogRecord("name", 10, "path", 1, "text", (), None)
        own, parent = multiprocessing.current_process(), multiprocessing.parent_process()
        child = multiprocessing.Process()
        assert parent.is_alive()
        return own.name, record.processName, parent.pid, child.name, os.getpid()

    def of_record(_: Any) -> Any:
        import logging

        return logging.makeLogRecord({}).processName, logging.getLogRecordFactory().__name__

    with shmpar.Pool(2) as pool:
        assert {name for name, _ in pool.map(of_record, range(8))} <= {
            "ShmparWorker-0",
            "ShmparWorker-1",
        }
        found = set(pool.parallel_map(names, range(40), dtype=object))
        assert {pid for _, _, _, _, pid in found} == set(pool._loop.engine.pids())
        assert {(own, logged) for own, logged, _, _, _ in found} == {
            ("ShmparWorker-0", "ShmparWorker-0"),
            ("ShmparWorker-1", "ShmparWorker-1"),
        }
        assert {parent for _, _, parent, _, _ in found} == {os.getpid()}
        assert len({child for _, _, _, child, _ in found}) == 40


def test_finalizers_of_a_worker_find_their_modules(run_python: Run, tmp_path: Path) -> None:
    """Objects of a script end before the interpreter does, after the exit functions."""
    source = """
        import sys
        import numpy as np
        import shmpar

        LOG = sys.argv[1]

        class Resource:
            def __del__(self):
                import textwrap, json
                with open(LOG, "a") as file:
                    file.write(json.dumps("del") + " ")

        def work(block):
            if "kept" not in globals():
                import atexit
                global kept
                kept = Resource()
                kept.itself = kept
                atexit.register(lambda: open(LOG, "a").write(f"exit {kept is not None} "))
            return block

        with shmpar.Pool(1) as pool:
            pool.map_blocks(work, np.arange(9.0), chunks=3)
    """
    log = tmp_path / "log"
    done = run_python(source, str(log))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert log.read_text() == 'exit True "del" '


@pytest.mark.stress
def test_hostile_functions_at_random(stress_seed: int) -> None:
    """Each call gives a right result or WorkerDied, and no process is left."""
    rng = random.Random(stress_seed)
    until, counts = time.monotonic() + 60, {"right": 0, "died": 0}
    while time.monotonic() < until:
        workers, check = rng.choice([1, 2, 3]), rng.random() < 0.3
        # Why: a program that a worker starts in its parent's group is not the pool's to end.
        left_out = rng.choice(["leave_the_group", "start_a_program"])
        acts = [name for name in ACTS if name != left_out]
        with shmpar.Pool(workers, retries=rng.choice([0, 1]), check=check) as pool:
            for _ in range(3):
                names = rng.sample(acts, rng.choice([1, 1, 2, 3]))
                kind, late = rng.choice(KINDS), rng.random() < 0.5
                print(names, kind, late)
                work = attacking(names, rng.randrange(len(X) // CHUNK), late=late)
                counts[check_call(pool, kind, work)] += 1
            assert np.array_equal(pool.map_blocks(np.negative, X, chunks=CHUNK), -X)
            pool._last_run = None
    print(f"hostile functions: {counts['right']} right, {counts['died']} died, 0 wrong")


@pytest.mark.stress
def test_parents_killed_under_hostile_functions(stress_seed: int) -> None:
    """After two seconds none of their processes is left."""
    rng = random.Random(stress_seed)
    until, count = time.monotonic() + 50, 0
    names = [*DESCRIPTORS, *KEEPERS, "leave_a_thread", "fork_and_return"]
    while time.monotonic() < until:
        acts = rng.sample(names, rng.choice([1, 2, 3, 4]))
        print(acts)
        load = rng.choice(["busy", "idle"])
        with interpreter(PARENT, load, *acts, stdout=subprocess.PIPE) as parent:
            assert parent.stdout.readline()
            parent.send_signal(signal.SIGKILL)
            parent.wait(10)
        count += 1
    print(f"{count} parents killed under hostile functions: 0 processes after 2 s")

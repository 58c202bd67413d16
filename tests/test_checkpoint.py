"""``ledger=``: what was done outlives the process, and is believed only if it is still there."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import interpreter

X = np.arange(1000.0).reshape(100, 10)


class Work:
    """Doubles a block, and counts its calls in a file; fails while it is told to."""

    def __init__(self, folder: Path) -> None:
        self.log, self.failing = folder / "log", folder / "failing"

    def __call__(self, block: Any) -> Any:
        with self.log.open("a") as log:
            log.write("x")
        if block.flat[0] >= 500 and self.failing.exists():
            raise OSError("not now")
        return block * 2

    @property
    def calls(self) -> int:
        """How often it was called since this was asked for last."""
        found = self.log.stat().st_size if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    """The keywords of a call whose results stay."""
    return {"chunks": (10, -1), "out": tmp_path / "out.npy", "ledger": tmp_path / "a.ledger"}


def test_only_what_is_not_done_is_computed(pool: shmpar.Pool, work: Work, kept: Any) -> None:
    """By a call after one that has failed, and by none after one that has not."""
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.map_blocks(work, X, on_error="collect", **kept)
    assert work.calls == 10
    work.failing.unlink()
    for calls in (5, 0):
        result = pool.map_blocks(work, X, **kept)
        assert isinstance(result, np.memmap)
        np.testing.assert_array_equal(result, 2 * X)
        assert work.calls == calls
    assert sorted(os.listdir(work.log.parent)) == ["a.ledger", "out.npy"]


def test_a_run_resumes_and_a_later_call_sees_it(pool: shmpar.Pool, work: Work, kept: Any) -> None:
    """The run has its ledger while it is in progress, and nobody else."""
    work.failing.touch()
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.map_blocks(work, X, **kept)
    work.failing.unlink()
    run = caught.value.run.resume()
    np.testing.assert_array_equal(run.result(60), 2 * X)
    assert 10 < work.calls <= 12, "one worker or both had failed"
    pool.map_blocks(work, X, **kept)
    assert work.calls == 0


def test_what_was_changed_since_is_computed_again(pool: shmpar.Pool, work: Work, kept: Any) -> None:
    """A warning says how many chunks it is."""
    result = pool.map_blocks(work, X, **kept)
    result[37, 3] += 1
    result.flush()
    del result
    assert work.calls == 10
    with pytest.warns(RuntimeWarning, match="of 10 chunks .* 1 are not in the output"):
        np.testing.assert_array_equal(pool.map_blocks(work, X, **kept), 2 * X)
    assert work.calls == 1


@pytest.mark.parametrize("how", ["removed", "emptied", "zeroed", "other shape", "other dtype"])
def test_an_output_that_is_gone_is_made_anew(
    pool: shmpar.Pool, work: Work, kept: Any, how: str
) -> None:
    """Never zeros that the ledger calls done."""
    pool.map_blocks(work, X, **kept)
    assert work.calls == 10
    new = {"zeroed": np.zeros_like(X), "other shape": X[:50], "other dtype": X.astype("f4")}
    if how == "removed":
        kept["out"].unlink()
    elif how == "emptied":
        kept["out"].write_bytes(b"")
    else:
        np.save(kept["out"], new[how])
    with pytest.warns(RuntimeWarning, match="of 10 chunks .* 10 are not in the output"):
        np.testing.assert_array_equal(pool.map_blocks(work, X, **kept), 2 * X)
    assert work.calls == 10


def test_several_outputs_of_shapes_that_the_results_say(
    pool: shmpar.Pool, work: Work, tmp_path: Path
) -> None:
    """A chunk is done when it is in all of them."""

    def both(block: Any) -> Any:
        return work(block).sum(), block.max(axis=0)

    kept = {
        "chunks": (10, -1),
        "out": (tmp_path / "sums.npy", tmp_path / "most.npy"),
        "ledger": tmp_path / "a.ledger",
    }
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.block_reduce(both, X, on_error="collect", **kept)
    work.failing.unlink()
    assert work.calls == 10
    sums, most = pool.block_reduce(both, X, **kept)
    assert work.calls == 5
    np.testing.assert_array_equal(sums[:, 0], 2 * X.reshape(10, -1).sum(1))
    np.testing.assert_array_equal(most[:, 0], X.reshape(10, 10, 10).max(1))
    most[4] = 0
    with pytest.warns(RuntimeWarning, match="1 are not"):
        _, most = pool.block_reduce(both, X, **kept)
    np.testing.assert_array_equal(most[:, 0], X.reshape(10, 10, 10).max(1))


def test_a_batch_of_files_needs_no_output(pool: shmpar.Pool, work: Work, tmp_path: Path) -> None:
    """A function that returns None is called for what it does."""

    def process(number: int) -> None:
        work(np.full(1, 100.0 * number))

    ledger = tmp_path / "batch.ledger"
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.parallel_map(process, range(10), ledger=ledger, on_error="collect")
    work.failing.unlink()
    assert work.calls == 10
    assert pool.parallel_map(process, range(10), ledger=ledger) is None
    assert work.calls == 5


def test_the_random_streams_are_those_of_the_first_process(
    pool: shmpar.Pool, work: Work, kept: Any
) -> None:
    """Though nobody chose a seed."""

    def noise(block: Any, rng: Any) -> Any:
        return work(block) + rng.normal(size=block.shape)

    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.map_blocks(noise, X, on_error="collect", **kept)
    work.failing.unlink()
    result = pool.map_blocks(noise, X, **kept)
    seed = pool.last_run.report.seed
    np.testing.assert_array_equal(result, pool.map_blocks(noise, X, chunks=(10, -1), seed=seed))


def test_a_ledger_of_another_call_is_refused(pool: shmpar.Pool, work: Work, kept: Any) -> None:
    """By what differs; unless nothing was done, for then it does not matter."""
    factor = 3

    def times(block: Any) -> Any:
        return block * factor

    result = pool.map_blocks(times, X, **kept)
    factor = 4
    for part, func, arrays, more in [
        ("function", times, X, {}),
        ("function", work, X, {}),
        ("inputs", None, X + 1, {}),
        ("chunks", None, X, {"chunks": (20, -1)}),
        ("dtype", None, X, {"dtype": "f8"}),
    ]:
        if func is None:
            factor = 3
        with pytest.raises(ValueError, match=f"another call.*differs in: .*{part}"):
            pool.map_blocks(func or times, arrays, **{**kept, **more})
    with pytest.raises(ValueError, match=r"another call.*differs in: .*verb"):
        pool.map_overlap(times, X, depth=1, **kept)
    np.testing.assert_array_equal(result, 3 * X)
    assert work.calls == 0

    def fails(block: Any) -> Any:
        raise OSError

    other = {**kept, "ledger": kept["ledger"].with_name("b.ledger")}
    with pytest.raises(shmpar.ChunkError):
        pool.map_blocks(fails, X, **other)
    np.testing.assert_array_equal(pool.map_blocks(times, X, **other), 3 * X)


def test_one_run_at_a_time_has_a_ledger(work: Work, kept: Any, tmp_path: Path) -> None:
    """In this process, or in any other."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def wait(block: Any) -> Any:
        if block.flat[0] == 0:
            gate.read_bytes()
        return block

    with shmpar.Pool(2) as pool:
        run = pool.map_blocks(wait, X, wait=False, **kept)
        with pytest.raises(RuntimeError, match="in use by another run"):
            pool.map_blocks(wait, X, **kept)
        gate.write_bytes(b"!")
        np.testing.assert_array_equal(run.result(60), X)
        np.testing.assert_array_equal(pool.map_blocks(wait, X, **kept), X)


def test_what_cannot_be_kept_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """And no file is made."""
    ledger, out = tmp_path / "a.ledger", tmp_path / "out.npy"
    shared = shmpar.array(X)
    private = np.memmap(tmp_path / "private", "f8", "w+", shape=X.shape)
    private = np.memmap(tmp_path / "private", "f8", "c", shape=X.shape)
    before = sorted(os.listdir(tmp_path))
    with shmpar.Pool(2, engine="threads") as pool:
        for wrong in (
            {"out": None},
            {"out": np.empty_like(X)},
            {"out": shmpar.empty_like(shared)},
            {"out": private},
            {"out": shared},  # in place
            {"out": ledger.with_suffix(".npy"), "ledger": ledger.with_suffix(".npy")},
            {"out": out, "ledger": tmp_path},
            {"out": out, "ledger": tmp_path / "no" / "folder"},
        ):
            with pytest.raises(ValueError, match="ledger="):
                pool.map_blocks(np.negative, shared, **{"ledger": ledger, **wrong})
        with pytest.raises(TypeError, match="path of a file, not int"):
            pool.map_blocks(np.negative, X, out=out, ledger=3)
        with pytest.raises(ValueError, match="Python objects"):
            pool.block_reduce(repr, X, dtype=object, ledger=ledger)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("at", [0, 3, 16, 17, 23, 24, 30, 60])
def test_a_ledger_that_was_damaged_is_refused(
    at: int, work: Work, kept: Any, tmp_path: Path
) -> None:
    """It is neither believed nor replaced."""
    with shmpar.Pool(1, engine="serial") as pool:
        pool.map_blocks(work, X, **kept)
        text = bytearray(kept["ledger"].read_bytes())
        text[at] ^= 0x55
        kept["ledger"].write_bytes(text)
        with pytest.raises(ValueError, match="ledger="):
            pool.map_blocks(work, X, **kept)
        assert kept["ledger"].read_bytes() == text
        for size in (0, 10, 20, 4096, len(text) - 1):
            kept["ledger"].write_bytes(text[:size])
            with pytest.raises(ValueError, match=r"no ledger .* remove it to begin anew"):
                pool.map_blocks(work, X, **kept)


def test_a_ledger_is_its_users_alone(work: Work, kept: Any) -> None:
    """And no link is followed."""
    with shmpar.Pool(1, engine="serial") as pool:
        pool.map_blocks(work, X, **kept)
        assert kept["ledger"].stat().st_mode & 0o777 == 0o600
        target = kept["ledger"].with_name("target")
        kept["ledger"].rename(target)
        kept["ledger"].symlink_to(target)
        with pytest.raises(OSError, match="symbolic"):
            pool.map_blocks(work, X, **kept)


def test_chunks_of_a_worker_that_died_are_done_once(work: Work, kept: Any) -> None:
    """What it had finished is in the ledger."""
    first = work.log.with_name("first")

    def dies(block: Any) -> Any:
        if block.flat[0] == 500 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work(block)

    with shmpar.Pool(2) as pool:
        np.testing.assert_array_equal(pool.map_blocks(dies, X, **kept), 2 * X)
        assert work.calls == 10
        pool.map_blocks(dies, X, **kept)
        assert work.calls == 0


PROGRAM = """
import os, sys
import numpy as np
import shmpar

folder, values = sys.argv[1], np.arange(200.0).reshape(100, 2)
os.chdir(folder)

def work(row):
    log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b"%d\\n" % (row[0] // 2))
    os.close(log)
    for _ in range(500):
        row = np.sqrt(row * row)
    told = os.open("told", os.O_WRONLY)  # here: a worker inherits no descriptor
    os.write(told, b".")
    os.close(told)
    return row + 1

with shmpar.Pool(2) as pool:
    mapped = os.path.exists("mapped.npy")
    out = np.load("mapped.npy", mmap_mode="r+") if mapped else "out.npy"
    pool.parallel_map(work, values, out=out, ledger="run.ledger")
"""
WORKERS = 2


def test_a_refused_resume_leaves_the_ledger(tmp_path: Path) -> None:
    """A new pool computes what is left."""
    kept = {"chunks": 2, "out": tmp_path / "out.npy", "ledger": tmp_path / "ledger"}
    ready = tmp_path / "ready"

    def work(block: Any) -> Any:
        if block[0] == 4 and not ready.exists():
            raise ValueError
        return block * 2

    with shmpar.Pool(1) as pool:
        run = pool.map_blocks(work, np.arange(8), on_error="collect", wait=False, **kept)
        with pytest.raises(ExceptionGroup):
            run.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        run.resume()
    ready.touch()
    with shmpar.Pool(1) as pool:
        assert pool.map_blocks(work, np.arange(8), **kept).tolist() == list(range(0, 16, 2))


def kill_and_resume(folder: Path, rng: random.Random, *, mapped: bool) -> int:
    """Kill a process at work, twice; let a third one end. Return the chunks computed twice."""
    os.mkfifo(folder / "told")
    told = os.open(folder / "told", os.O_RDWR)
    if mapped:
        np.save(folder / "mapped.npy", np.zeros((100, 2)))
    for _ in range(2):
        with interpreter(PROGRAM, str(folder), stderr=subprocess.PIPE) as process:
            for _ in range(rng.randrange(1, 40)):
                while not select.select([told], [], [], 0.1)[0]:
                    assert process.poll() in {None, 0}
                    if process.poll() == 0:  # it was quicker than we have read
                        break
                else:
                    os.read(told, 1)
            process.send_signal(signal.SIGKILL)
            assert process.wait(10) in {-signal.SIGKILL, 0}
        while select.select([told], [], [], 0)[0]:
            os.read(told, 1000)
    with interpreter(PROGRAM, str(folder), stderr=subprocess.PIPE) as process:
        _, complaints = process.communicate(timeout=60)
        assert (process.returncode, complaints) == (0, b"")
    os.close(told)
    done = [int(line) for line in (folder / "log").read_text().split()]
    assert set(done) == set(range(100))
    result = np.load(folder / ("mapped.npy" if mapped else "out.npy"))
    np.testing.assert_array_equal(result, np.arange(200.0).reshape(100, 2) + 1)
    return len(done) - 100


@pytest.mark.parametrize("mapped", [False, True], ids=["path", "memmap"])
def test_a_process_that_is_killed_is_resumed(mapped: bool, tmp_path: Path) -> None:
    """Nothing is computed twice but what was in progress."""
    twice = kill_and_resume(tmp_path, random.Random(0), mapped=mapped)
    assert twice <= 2 * WORKERS


@pytest.mark.stress
def test_many_processes_that_are_killed_are_resumed(stress_seed: int, tmp_path: Path) -> None:
    """50 kills at random moments."""
    rng, twice = random.Random(stress_seed), []
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        twice.append(kill_and_resume(folder, rng, mapped=bool(number % 2)))
        assert twice[-1] <= 2 * WORKERS
    print(
        f"\n50 kills resumed, results right; chunks computed twice: {sum(twice)} in all, at most "
        f"{max(twice)} by two kills with {WORKERS} workers"
    )

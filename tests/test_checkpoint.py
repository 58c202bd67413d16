"""``ledger=``: a later call computes only the chunks whose output is not on disk."""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.worker import verify
from tests.interpreters import interpreter

X = np.arange(1000.0).reshape(100, 10)


class Work:
    """Double a block and count the calls in a file; raise while a marker file exists."""

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
        """Return the number of calls since the last time."""
        found = self.log.stat().st_size if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Return the keywords of a call whose results are on disk."""
    return {"chunks": (10, -1), "out": tmp_path / "out.npy", "ledger": tmp_path / "a.ledger"}


def test_a_later_call_computes_only_unfinished_chunks(
    pool: shmpar.Pool, work: Work, files: Any
) -> None:
    """After a failure the rest is computed; after a success nothing is."""
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.map_blocks(work, X, on_error="collect", **files)
    assert work.calls == 10
    work.failing.unlink()
    for calls in (5, 0):
        result = pool.map_blocks(work, X, **files)
        assert isinstance(result, np.memmap)
        np.testing.assert_array_equal(result, 2 * X)
        assert work.calls == calls
    assert sorted(os.listdir(work.log.parent)) == ["a.ledger", "out.npy"]


def test_a_run_resumes_and_a_later_call_uses_its_ledger(
    pool: shmpar.Pool, work: Work, files: Any
) -> None:
    """The resumed run writes to the same file."""
    work.failing.touch()
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.map_blocks(work, X, **files)
    work.failing.unlink()
    run = caught.value.run.resume()
    np.testing.assert_array_equal(run.result(60), 2 * X)
    assert 10 < work.calls <= 12, "one worker or both workers had failed"
    pool.map_blocks(work, X, **files)
    assert work.calls == 0


def test_a_changed_output_is_computed_again(pool: shmpar.Pool, work: Work, files: Any) -> None:
    """A warning at the user's line counts the chunks."""
    result = pool.map_blocks(work, X, **files)
    result[37, 3] += 1
    result.flush()
    del result
    assert work.calls == 10
    with pytest.warns(RuntimeWarning, match="of 10 chunks .* 1 is not in the output") as caught:
        np.testing.assert_array_equal(pool.map_blocks(work, X, **files), 2 * X)
    assert [one.filename for one in caught] == [__file__]
    assert work.calls == 1


@pytest.mark.parametrize("how", ["removed", "emptied", "zeroed", "other shape", "other dtype"])
def test_a_lost_output_is_computed_again(
    pool: shmpar.Pool, work: Work, files: Any, how: str
) -> None:
    """A chunk of zeros never counts as done."""
    pool.map_blocks(work, X, **files)
    assert work.calls == 10
    new = {"zeroed": np.zeros_like(X), "other shape": X[:50], "other dtype": X.astype("f4")}
    if how == "removed":
        files["out"].unlink()
    elif how == "emptied":
        files["out"].write_bytes(b"")
    else:
        np.save(files["out"], new[how])
    with pytest.warns(RuntimeWarning, match="of 10 chunks .* 10 are not in the output"):
        np.testing.assert_array_equal(pool.map_blocks(work, X, **files), 2 * X)
    assert work.calls == 10


def test_two_outputs_whose_shapes_follow_from_the_results(
    pool: shmpar.Pool, work: Work, tmp_path: Path
) -> None:
    """A chunk is done when it is in both outputs."""

    def both(block: Any) -> Any:
        return work(block).sum(), block.max(axis=0)

    files = {
        "chunks": (10, -1),
        "out": (tmp_path / "sums.npy", tmp_path / "most.npy"),
        "ledger": tmp_path / "a.ledger",
    }
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.block_reduce(both, X, on_error="collect", **files)
    work.failing.unlink()
    assert work.calls == 10
    sums, most = pool.block_reduce(both, X, **files)
    assert work.calls == 5
    np.testing.assert_array_equal(sums[:, 0], 2 * X.reshape(10, -1).sum(1))
    np.testing.assert_array_equal(most[:, 0], X.reshape(10, 10, 10).max(1))
    most[4] = 0
    with pytest.warns(RuntimeWarning, match="1 is not"):
        _, most = pool.block_reduce(both, X, **files)
    np.testing.assert_array_equal(most[:, 0], X.reshape(10, 10, 10).max(1))


def test_a_batch_of_files_needs_no_output(pool: shmpar.Pool, work: Work, tmp_path: Path) -> None:
    """A function that returns None may write its own files; the ledger notes that it returned."""

    def process(number: int) -> None:
        work(np.full(1, 100.0 * number))

    ledger = tmp_path / "batch.ledger"
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.parallel_map(process, range(10), ledger=ledger, on_error="collect")
    work.failing.unlink()
    assert work.calls == 10
    assert pool.parallel_map(process, range(10), ledger=ledger) == [None] * 10
    assert work.calls == 5


def test_random_streams_are_those_of_the_first_call(
    pool: shmpar.Pool, work: Work, files: Any
) -> None:
    """The ledger keeps the fresh seed."""

    def noise(block: Any, rng: Any) -> Any:
        return work(block) + rng.normal(size=block.shape)

    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.map_blocks(noise, X, on_error="collect", **files)
    work.failing.unlink()
    result = pool.map_blocks(noise, X, **files)
    seed = pool.last_run.report.seed
    np.testing.assert_array_equal(result, pool.map_blocks(noise, X, chunks=(10, -1), seed=seed))


def test_a_ledger_of_another_call_is_refused(pool: shmpar.Pool, work: Work, files: Any) -> None:
    """The error names the differences; a ledger without finished chunks is replaced."""
    factor = 3

    def times(block: Any, shift: int = 0) -> Any:
        return block * factor + shift

    result = pool.map_blocks(times, X, **files)
    factor = 4
    for part, func, arrays, more in [
        ("function", times, X, {}),
        ("function", work, X, {}),
        ("inputs", None, X + 1, {}),
        ("kwargs", None, X, {"kwargs": {"shift": 1}}),
        ("chunks", None, X, {"chunks": (20, -1)}),
        ("dtype", None, X, {"dtype": "f8"}),
    ]:
        if func is None:
            factor = 3
        with pytest.raises(ValueError, match=f"another call.*differs in: {part};"):
            pool.map_blocks(func or times, arrays, **{**files, **more})
    with pytest.raises(ValueError, match=r"another call.*differs in: .*verb"):
        pool.map_overlap(times, X, depth=1, **files)
    np.testing.assert_array_equal(result, 3 * X)
    assert work.calls == 0

    def fails(block: Any) -> Any:
        raise OSError

    other = {**files, "ledger": files["ledger"].with_name("b.ledger")}
    with pytest.raises(shmpar.ChunkError):
        pool.map_blocks(fails, X, **other)
    np.testing.assert_array_equal(pool.map_blocks(times, X, **other), 3 * X)


def test_a_ledger_is_used_by_one_run_at_a_time(work: Work, files: Any, tmp_path: Path) -> None:
    """The lock is free when the run is done."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def wait(block: Any) -> Any:
        if block.flat[0] == 0:
            gate.read_bytes()
        return block

    with shmpar.Pool(2) as pool:
        run = pool.map_blocks(wait, X, wait=False, **files)
        with pytest.raises(RuntimeError, match="in use by another run"):
            pool.map_blocks(wait, X, **files)
        gate.write_bytes(b"!")
        np.testing.assert_array_equal(run.result(60), X)
        np.testing.assert_array_equal(pool.map_blocks(wait, X, **files), X)


def test_a_ledger_that_cannot_serve_the_call_is_refused_at_once(tmp_path: Path) -> None:
    """No file is created."""
    ledger, out = tmp_path / "a.ledger", tmp_path / "out.npy"
    shared = shmpar.array(X)
    private = np.memmap(tmp_path / "private", "f8", "w+", shape=X.shape)
    private = np.memmap(tmp_path / "private", "f8", "c", shape=X.shape)
    (tmp_path / "link").symlink_to(".")
    before = sorted(os.listdir(tmp_path))
    with shmpar.Pool(2, engine="threads") as pool:
        for wrong in (
            {"out": None},
            {"out": np.empty_like(X)},
            {"out": shmpar.empty_like(shared)},
            {"out": private},
            {"out": shared},  # in place
            {"out": ledger.with_suffix(".npy"), "ledger": ledger.with_suffix(".npy")},
            {"out": out, "ledger": tmp_path / "out.npy.partial"},
            {"out": out, "ledger": tmp_path / "link" / "out.npy"},
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
def test_a_damaged_ledger_is_refused(at: int, work: Work, files: Any, tmp_path: Path) -> None:
    """The damaged ledger is neither used nor replaced."""
    with shmpar.Pool(1, engine="serial") as pool:
        pool.map_blocks(work, X, **files)
        text = bytearray(files["ledger"].read_bytes())
        text[at] ^= 0x55
        files["ledger"].write_bytes(text)
        with pytest.raises(ValueError, match="ledger="):
            pool.map_blocks(work, X, **files)
        assert files["ledger"].read_bytes() == text


@pytest.mark.parametrize("size", [0, 10, 20, 24, 100, -41, -40, -1, 1])
def test_a_ledger_of_another_length_is_refused(work: Work, files: Any, size: int) -> None:
    """The ledger may be shorter, by a part of its header or of its checksums, or longer."""
    with shmpar.Pool(1, engine="serial") as pool:
        pool.map_blocks(work, X, **files)
        text = files["ledger"].read_bytes()
        files["ledger"].write_bytes(text + b"\0" if size == 1 else text[:size])
        with pytest.raises(ValueError, match=r"no ledger .* remove it to begin anew"):
            pool.map_blocks(work, X, **files)


def test_a_ledger_of_another_version_is_refused(work: Work, files: Any) -> None:
    """The error says so."""
    head = b'{"chunks": 10, "seed": null, "call": {}}'
    text = b"shmpar ledger 1\n" + struct.pack("<QI", len(head), zlib.crc32(head)) + head
    files["ledger"].write_bytes(text.ljust(4096, b"\0") + bytes(40))
    with (
        shmpar.Pool(1, engine="serial") as pool,
        pytest.raises(ValueError, match="another version wrote it; pass another name, or remove"),
    ):
        pool.map_blocks(work, X, **files)


def test_a_fifo_is_no_ledger(work: Work, files: Any) -> None:
    """The call does not wait for a writer."""
    os.mkfifo(files["ledger"])
    with (
        shmpar.Pool(1, engine="serial") as pool,
        pytest.raises(ValueError, match="is no ledger"),
    ):
        pool.map_blocks(work, X, **files)


def test_an_interrupt_releases_the_ledger(
    work: Work, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback of the interrupt keeps the file open, but not locked."""

    def interrupt(_windows: Any) -> int:
        raise KeyboardInterrupt

    with shmpar.Pool(1, engine="serial") as pool:
        pool.map_blocks(work, X, **files)
        assert work.calls == 10
        with monkeypatch.context() as patch:
            patch.setattr(verify, "checksum", interrupt)
            with pytest.raises(KeyboardInterrupt) as caught:
                pool.map_blocks(work, X, **files)
        np.testing.assert_array_equal(pool.map_blocks(work, X, **files), 2 * X)
        assert work.calls == 0
    assert caught.tb is not None


SEEDS = [np.int64(3), np.array([1, 2]), [np.int64(3), 2**70], True, []]
SEEDS += [[[1, 2], [3]]] * (np.lib.NumpyVersion(np.__version__) < "2.5.0")  # refused since then


@pytest.mark.parametrize("seed", SEEDS, ids=str)
def test_a_seed_may_be_any_of_numpy_s(pool: shmpar.Pool, files: Any, seed: Any) -> None:
    """Both calls give the numbers of a call without a ledger."""

    def noise(block: Any, rng: Any) -> Any:
        return block + rng.normal(size=block.shape)

    expected = pool.map_blocks(noise, X, chunks=(10, -1), seed=seed)
    for _ in range(2):
        np.testing.assert_array_equal(pool.map_blocks(noise, X, seed=seed, **files), expected)


def test_a_ledger_is_private_to_its_user(work: Work, files: Any) -> None:
    """A symbolic link is not followed."""
    with shmpar.Pool(1, engine="serial") as pool:
        pool.map_blocks(work, X, **files)
        assert files["ledger"].stat().st_mode & 0o777 == 0o600
        target = files["ledger"].with_name("target")
        files["ledger"].rename(target)
        files["ledger"].symlink_to(target)
        with pytest.raises(OSError, match="symbolic"):
            pool.map_blocks(work, X, **files)


def test_finished_chunks_of_a_dead_worker_are_not_repeated(work: Work, files: Any) -> None:
    """The ledger has them."""
    first = work.log.with_name("first")

    def dies(block: Any) -> Any:
        if block.flat[0] == 500 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work(block)

    with shmpar.Pool(2) as pool:
        np.testing.assert_array_equal(pool.map_blocks(dies, X, **files), 2 * X)
        assert work.calls == 10
        pool.map_blocks(dies, X, **files)
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


def test_a_refused_resume_releases_the_ledger(tmp_path: Path) -> None:
    """A new pool computes the rest."""
    files = {"chunks": 2, "out": tmp_path / "out.npy", "ledger": tmp_path / "ledger"}
    ready = tmp_path / "ready"

    def work(block: Any) -> Any:
        if block[0] == 4 and not ready.exists():
            raise ValueError
        return block * 2

    with shmpar.Pool(1) as pool:
        run = pool.map_blocks(work, np.arange(8), on_error="collect", wait=False, **files)
        with pytest.raises(ExceptionGroup):
            run.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        run.resume()
    ready.touch()
    with shmpar.Pool(1) as pool:
        assert pool.map_blocks(work, np.arange(8), **files).tolist() == list(range(0, 16, 2))


def kill_and_resume(folder: Path, rng: random.Random, *, mapped: bool) -> int:
    """Kill a process at work, twice; let a third finish. Return the count of repeated chunks."""
    os.mkfifo(folder / "told")
    told = os.open(folder / "told", os.O_RDWR)
    if mapped:
        np.save(folder / "mapped.npy", np.zeros((100, 2)))
    for _ in range(2):
        with interpreter(PROGRAM, str(folder), stderr=subprocess.PIPE) as process:
            for _ in range(rng.randrange(1, 40)):
                while not select.select([told], [], [], 0.1)[0]:
                    assert process.poll() in {None, 0}
                    if process.poll() == 0:  # it finished before this loop had read everything
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
    """Only chunks in progress are computed twice."""
    twice = kill_and_resume(tmp_path, random.Random(0), mapped=mapped)
    assert twice <= 2 * WORKERS


@pytest.mark.stress
def test_many_processes_that_are_killed_are_resumed(stress_seed: int, tmp_path: Path) -> None:
    """There are 50 kills at random moments."""
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

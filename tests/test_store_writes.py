"""Runs into stores that are cut short: faults, deaths, resumed calls, outputs that are inputs."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import shmpar
from shmpar.stores.recognise import wrap
from tests.interpreters import interpreter, output_after_setup
from tests.work.concurrent import Gate, wait_at_gate

X = np.arange(4800, dtype="i4").reshape(60, 80)
CUT = (20, 40)


@pytest.fixture
def workers(process_pool):
    """The worker processes of the module."""
    return process_pool


@pytest.fixture
def made(zarr, tmp_path):
    """A function that makes a zarr array like `X`, with units of 20 x 20."""

    def make(name="x.zarr", values=None, **how):
        out = zarr.create_array(
            tmp_path / name, shape=X.shape, dtype=X.dtype, chunks=(20, 20), **how
        )
        if values is not None:
            out[...] = values
        return out

    return make


# In place


def test_a_store_is_changed_in_place_where_no_chunk_reads_the_results_of_another(workers, made):
    """Blocks and rows are replaced in a store, by the array itself or by another handle."""
    store = made(values=X)
    for chunks, out in (
        (CUT, store),
        ("auto", shmpar.open(store.store_path.store.root, mode="r+")),
    ):
        before = store[...]
        assert workers.map_blocks(lambda b: b + 1, store, chunks=chunks, out=out) is out
        np.testing.assert_array_equal(store[...], before + 1)
    workers.map_blocks(lambda b, c: b + c, store, store, chunks=CUT, out=store)
    np.testing.assert_array_equal(store[...], 2 * (X + 2))


def test_a_store_in_place_is_refused_with_a_halo_and_for_other_axes(workers, made, zarr, tmp_path):
    """Another handle, a path and a link are the same store."""
    store = made(values=X)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "x.zarr")
    text = "is the store of an input, so chunks would read the results of others"
    for out in (
        store,
        zarr.open_array(tmp_path / "x.zarr", mode="r+"),
        zarr.open_array(tmp_path / "link.zarr", mode="r+"),
        str(tmp_path / "x.zarr"),
        shmpar.open(tmp_path / "x.zarr", mode="r+"),
    ):
        with pytest.raises(ValueError, match=text):
            workers.map_overlap(lambda w: w, store, depth=1, chunks=CUT, out=out)
    with pytest.raises(ValueError, match=text):
        workers.block_reduce(np.max, store, chunks=CUT, out=made("r.zarr") and store)
    square = zarr.create_array(tmp_path / "s.zarr", shape=(4, 4), chunks=(1, 4), dtype="i4")
    with pytest.raises(ValueError, match=text):
        workers.parallel_map(np.negative, square, axis=1, out=square)
    workers.parallel_map(lambda row: row + 3, square, out=square)
    assert (square[...] == 3).all()


def test_an_output_is_not_held_by_the_function(workers, made):
    """A handle of the output in a closure or a keyword is refused, as an array in memory is."""
    out = made(values=X)
    store = shmpar.open(out.store_path.store.root)
    text = r"out= is the store of an array \(shape \(60, 80\)\) that the function holds"
    for func, how in (
        (lambda b: b + out[0, 0], {}),
        (lambda b: b + store[0, 0], {}),
        (lambda b, other: b + other[0, 0], {"kwargs": {"other": out}}),
    ):
        with pytest.raises(ValueError, match=text):
            workers.map_blocks(func, X, chunks=CUT, out=out, **how)
    held = made("other.zarr", values=X)
    workers.map_blocks(lambda b: b + held[0, 1], X, chunks=CUT, out=out)
    np.testing.assert_array_equal(out[...], X + 1)


MOUNTED = """
import numpy as np, shmpar, zarr
with shmpar.Pool(engine="serial") as pool:
    first, second = (zarr.open_array(f"/mnt/{k}/x.zarr", mode="r+") for k in "ab")
    try:
        pool.map_overlap(lambda w: w, first, depth=1, chunks=2, out=second)
    except ValueError as error:
        print("is the store of an input" in str(error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder needs root")
def test_a_folder_that_is_mounted_twice_is_one_store(zarr, tmp_path):
    """The identity of the folder tells it, not its path."""
    zarr.create_array(tmp_path / "x.zarr", shape=(4,), chunks=(2,), dtype="i4")
    mounts = [f"mkdir /mnt/{k} && mount --bind {tmp_path} /mnt/{k}" for k in "ab"]
    setup = " && ".join(["mount -t tmpfs tmpfs /mnt", *mounts])
    assert output_after_setup(["unshare", "-m", "sh"], setup, MOUNTED) == "True\n"


def test_a_dataset_is_changed_in_place(workers, tmp_path):
    """A mapped dataset may be input and output, without a halo."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", data=X)
        assert workers.map_blocks(lambda b: b[::-1], data, chunks=CUT, out=data) is data
        due = X.reshape(3, 20, 80)[:, ::-1].reshape(60, 80)
        np.testing.assert_array_equal(data[...], due)
        with pytest.raises(ValueError, match="shares memory with an input"):
            workers.map_overlap(lambda w: w, data, depth=1, chunks=CUT, out=data)


def test_a_worker_that_dies_in_place_ends_the_run(made):
    """A chunk that was begun is not computed again, since its input may be overwritten."""
    store = made(values=X)

    def die(block):
        if block[0, 0] == X[20, 40]:
            os.kill(os.getpid(), signal.SIGKILL)
        return block + 1

    with shmpar.Pool(1) as pool, pytest.raises(shmpar.WorkerDied, match="computed in place"):
        pool.map_blocks(die, store, chunks=CUT, out=store)


# Faults of the store


class Failing:
    """A mapped array whose first writes fail, in whatever process, as often as a file has bytes."""

    def __init__(self, path, number):
        self.memory = np.load(path, mmap_mode="r+")
        self.shape, self.dtype = self.memory.shape, self.memory.dtype
        self.left, self.number = Path(f"{path}.left"), number

    def __getitem__(self, key):
        return self.memory[key]

    def __setitem__(self, key, value):
        left = self.left.stat().st_size
        if left:
            os.truncate(self.left, left - 1)
            raise OSError(self.number, os.strerror(self.number))
        self.memory[key] = value


@pytest.fixture
def failing(tmp_path):
    """A function that makes a store whose first writes fail with an error of the system."""

    def make(times, number):
        np.save(tmp_path / "x.npy", np.zeros_like(X))
        (tmp_path / "x.npy.left").write_bytes(bytes(times))
        return shmpar.opened(Failing, str(tmp_path / "x.npy"), number)

    return make


def test_a_fault_that_may_pass_is_tried_again(workers, failing):
    """A write is repeated `io_retries` times, 2 by default."""
    out = failing(2, errno.EIO)
    workers.map_blocks(np.negative, X, chunks=(60, 80), out=out)
    np.testing.assert_array_equal(out[...], -X)
    out = failing(4, errno.ETIMEDOUT)
    workers.map_blocks(np.negative, X, chunks=(60, 80), out=out, io_retries=4)
    np.testing.assert_array_equal(out[...], -X)
    with pytest.raises(shmpar.ChunkError, match="cannot write"):
        workers.map_blocks(np.negative, X, chunks=(60, 80), out=failing(1, errno.EIO), io_retries=0)


def test_a_fault_that_stays_is_the_cause_of_the_error(workers, failing):
    """The chunk fails at once, with the window, the store and the error of the system."""
    out = failing(1, errno.EROFS)
    with pytest.raises(shmpar.ChunkError) as caught:
        workers.map_blocks(np.negative, X, chunks=(60, 80), out=out)
    text = str(caught.value)
    assert text.startswith("map_blocks, chunk 0 at [0:60, 0:80], block of shape (60, 80): cannot ")
    assert "write [0:60, 0:80] of Failing(" in text
    assert "Read-only file system" in text
    assert isinstance(caught.value.__cause__, shmpar.StoreError)
    assert caught.value.__cause__.errno == errno.EROFS
    assert (caught.value.run.resume().result()[...] == -X).all()


def test_a_store_that_is_removed_under_the_run(workers, made, tmp_path):
    """The next write, or else the end of the run, notices that the folder is gone."""
    path = str(tmp_path / "x.zarr")

    def remove(block, block_id, at):
        if block_id == at:
            os.rename(path, f"{path}.{at}")  # at once, whatever the other worker writes
        return block

    for at in ((1, 0), (2, 1)):
        out = made()
        with pytest.raises((shmpar.ChunkError, shmpar.StoreError), match=r"is gone: .*was removed"):
            workers.map_blocks(remove, X, chunks=CUT, out=out, kwargs={"at": at})
        shutil.rmtree(path, ignore_errors=True)


def test_a_store_that_is_removed_before_a_process_opens_it(made, zarr, tmp_path):
    """A worker opens a store with its first chunk, which may be after the removal."""
    made()
    path = tmp_path / "x.zarr"
    for store in (shmpar.open(path), wrap(zarr.open_array(path, mode="r+"))):
        sent = pickle.dumps(store)
        os.rename(path, tmp_path / "moved")
        with pytest.raises(shmpar.StoreError, match=r"is gone: .*x\.zarr/zarr\.json was"):
            pickle.loads(sent)[...]
        os.rename(tmp_path / "moved", path)


def test_a_damaged_store_is_not_called_gone(made, zarr, tmp_path, monkeypatch):
    """A process may work in another folder than the one from which the path was given."""
    made()
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(wrap(zarr.open_array("x.zarr", mode="r+")))
    (tmp_path / "x.zarr" / "zarr.json").write_text("{")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(shmpar.StoreError, match="JSONDecodeError"):
        pickle.loads(sent)[...]


def test_a_store_that_changes_its_shape_under_the_run(workers, made, zarr, tmp_path):
    """The end of the run compares the shape with that of the call; finished chunks are kept."""
    out, path, gate = made(), str(tmp_path / "x.zarr"), Gate(tmp_path)

    def shrink(block, block_id):
        if block_id == (2, 1):
            wait_at_gate(str(tmp_path), block)
            zarr.open_array(path, mode="r+").resize((40, 80))
        return block

    run = workers.map_blocks(shrink, X, chunks=CUT, out=out, wait=False)
    first_rows = (region for region in run.completed() if region[0].start == 0)
    try:
        assert len(list(itertools.islice(first_rows, 2))) == 2
    finally:
        gate.open()
    with pytest.raises(shmpar.StoreError, match=r"has shape \(40, 80\).*had \(60, 80\)"):
        run.result(60)
    gate.close()
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:20], X[:20])


def test_a_store_that_has_other_units_by_now(workers, made, zarr, tmp_path):
    """The units of the array in the file count, not those of a handle from before."""
    for opens in (lambda out: out, lambda _: shmpar.open(tmp_path / "x.zarr", mode="r+")):
        out = opens(made())
        shutil.rmtree(tmp_path / "x.zarr")
        new = zarr.create_array(tmp_path / "x.zarr", shape=X.shape, dtype=X.dtype, chunks=(40, 40))
        with pytest.raises(shmpar.StoreError, match=r"is stored \(40, 40\) .* was \(20, 20\)"):
            workers.map_blocks(np.invert, X, chunks=20, out=out)
        assert not new[...].any()
        shutil.rmtree(tmp_path / "x.zarr")


FULL = """
import os, numpy as np, shmpar, zarr
x = np.random.default_rng(0).integers(0, 1 << 30, (64, 1 << 16), "i4")  # 16 MB that do not shrink
out = zarr.create_array("/mnt/x.zarr", shape=x.shape, dtype=x.dtype, chunks=(4, 1 << 16))
with shmpar.Pool(2) as pool:
    try:
        pool.map_blocks(np.negative, x, chunks=(4, -1), out=out)
    except shmpar.ChunkError as error:
        print(type(error.__cause__).__name__, "No space left on device" in str(error))
        run = error.run
    done = [k for k in range(16) if (out[4 * k : 4 * k + 4] == -x[4 * k : 4 * k + 4]).all()]
    print(len(done) >= 1, sorted(set(range(16)) - set(done)) == list(run.execution.unfinished))
    os.system("mount -o remount,size=64m /mnt")
    print((run.resume().result()[...] == -x).all())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_an_error_and_finished_chunks_are_kept(zarr):
    """The run ends with the error of the disk; with room again, it goes on."""
    setup = "mount -t tmpfs -o size=6m tmpfs /mnt"
    output = output_after_setup(["unshare", "-m", "sh"], setup, FULL)
    assert output == "StoreError True\nTrue True\nTrue\n"


# Resumed calls


class Work:
    """Add 1 to a block, and count the calls in a file; raise while a marker file exists."""

    def __init__(self, folder):
        self.log, self.failing = folder / "log", folder / "failing"

    def __call__(self, block):
        with self.log.open("a") as log:
            log.write("x")
        if block.flat[0] >= X[40, 0] and self.failing.exists():
            raise ValueError("not now")
        return block + 1

    @property
    def calls(self):
        """Return the number of calls since the last time."""
        found = self.log.stat().st_size if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return found


@pytest.mark.parametrize("kind", ["array", "path", "mixed"])
def test_a_later_call_computes_only_unfinished_chunks(kind, workers, made, zarr, tmp_path):
    """After a failure the rest is computed, and then nothing; workers verify what is there."""
    work, source = Work(tmp_path), made("in.zarr", X)
    out = str(tmp_path / "new.zarr") if kind == "path" else made("out.zarr")
    func = work
    if kind == "mixed":
        out = (out, tmp_path / "second.npy")
        func = Both(work)
    call = {"chunks": CUT, "out": out, "ledger": tmp_path / "a.ledger"}
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        workers.map_blocks(func, source, on_error="collect", **call)
    assert work.calls == 6
    work.failing.unlink()
    for calls in (2, 0):
        result = workers.map_blocks(func, source, **call)
        first = result[0] if kind == "mixed" else result
        np.testing.assert_array_equal(first[...], X + 1)
        assert work.calls == calls
    if kind == "mixed":
        np.testing.assert_array_equal(result[1], -(X + 1))


class Both:
    """Return the result of a function, and its negative."""

    def __init__(self, func):
        self.func = func

    def __call__(self, block):
        value = self.func(block)
        return value, -value


def test_a_changed_output_is_noticed_and_a_changed_input_is_not(workers, made, tmp_path):
    """Chunks that were overwritten, lost or cut off are computed again, with a warning."""
    work, source, out = Work(tmp_path), made("in.zarr", X), made("out.zarr")
    call = {"chunks": CUT, "out": out, "ledger": tmp_path / "a.ledger"}
    workers.map_blocks(work, source, **call)
    assert work.calls == 6
    out[3, 5] = -1
    (tmp_path / "out.zarr" / "c" / "1" / "3").unlink()
    piece = tmp_path / "out.zarr" / "c" / "2" / "0"
    piece.write_bytes(piece.read_bytes()[:-9])
    with pytest.warns(RuntimeWarning, match="of 6 chunks .* 3 are not in the output as written"):
        workers.map_blocks(work, source, **call)
    assert work.calls == 3
    np.testing.assert_array_equal(out[...], X + 1)
    source[...] = 7
    workers.map_blocks(work, source, **call)
    assert work.calls == 0
    with pytest.raises(ValueError, match="differs in: inputs"):
        workers.map_blocks(work, made("other.zarr", X), **call)


# Deaths


def kill_workers(times, seed, made):
    """Kill a worker in each of many runs from zarr to zarr; return the deaths at work."""
    rng, deaths = random.Random(seed), 0
    source = made("in.zarr", X)
    out = made("out.zarr")
    with shmpar.Pool(2) as pool:
        for number in range(times):
            source[...] = X + number
            out[...] = 0
            deaths += kill_a_worker(pool, source, out, rng)
            np.testing.assert_array_equal(out[...], X + number + 1)
    return deaths


def kill_a_worker(pool, source, out, rng):
    """Map one store to the other while a worker is killed at a random moment."""

    def add(block):
        time.sleep(0.005)  # so that most kills hit a chunk
        return block + 1

    run = pool.map_blocks(add, source, chunks=(20, 20), out=out, wait=False)
    time.sleep(rng.uniform(0, 0.06))
    os.kill(rng.choice(pool._loop.engine.pids()), signal.SIGKILL)
    assert run.result(60) is out
    return run.report.deaths


def test_runs_survive_workers_killed_at_random(stress_seed, made):
    """The default suite runs a few runs of the campaign below."""
    kill_workers(3, stress_seed, made)


@pytest.mark.stress
def test_200_runs_survive_workers_killed_at_random(stress_seed, made):
    """200 stores are right although a worker dies at a random moment of each run."""
    deaths = kill_workers(200, stress_seed, made)
    print(f"\n200 runs, 200 right stores; {deaths} deaths hit a chunk in progress")


PROGRAM = """
import sys, time
import numpy as np, shmpar
folder = sys.argv[1]
def add(block):
    with open(folder + "/log", "a") as log:
        log.write(f"{block.flat[0]}\\n")
    time.sleep(0.004)
    return block + 1
with shmpar.Pool(2) as pool:
    source = shmpar.open(folder + "/in.zarr")
    pool.map_blocks(add, source, chunks=(10, 20), out=folder + "/out.zarr", ledger=folder + "/led")
"""


def kill_and_resume(folder, rng, zarr):
    """Kill a process at a random moment; let a second one finish. Return the chunks done twice."""
    source = zarr.create_array(folder / "in.zarr", shape=X.shape, dtype=X.dtype, chunks=(20, 20))
    source[...] = X
    with interpreter(PROGRAM, str(folder), stderr=subprocess.PIPE) as process:
        begun = rng.randrange(0, 24)
        while process.poll() is None and _lines(folder / "log") < begun:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with interpreter(PROGRAM, str(folder), stderr=subprocess.PIPE) as process:
        _, complaints = process.communicate(timeout=60)
        assert (process.returncode, complaints) == (0, b"")
    np.testing.assert_array_equal(zarr.open_array(folder / "out.zarr", mode="r")[...], X + 1)
    assert len(set((folder / "log").read_text().split())) == 24
    return _lines(folder / "log") - 24


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_parent_that_is_killed_is_resumed(zarr, tmp_path):
    """Only chunks in progress are computed twice."""
    assert kill_and_resume(tmp_path, random.Random(0), zarr) <= 2


@pytest.mark.stress
@pytest.mark.parametrize("half", [1, 2])
def test_50_parents_that_are_killed_are_resumed(half, stress_seed, zarr, tmp_path):
    """There are 2 x 25 kills at random moments, and 50 right stores."""
    rng, twice = random.Random(stress_seed), 0
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        more = kill_and_resume(folder, rng, zarr)
        assert more <= 2
        twice += more
    print(f"\n25 parents killed and resumed, 25 right stores; {twice} chunks computed twice")

"""Faults of stores: gone, replaced, changed, half written, or for a time."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")

import shmpar  # noqa: E402
from shmpar.stores.recognise import wrap  # noqa: E402
from tests import store_formats  # noqa: E402

X = np.arange(24 * 18, dtype="f4").reshape(24, 18)


def double(block: np.ndarray) -> np.ndarray:
    """A function that needs no more than its block."""
    return block * 2


def test_a_folder_that_vanished(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A missing chunk reads as the fill value; a missing array is an error."""
    path = str(tmp_path / "x.zarr")
    z = zarr.create_array(path, shape=X.shape, chunks=(6, 6), dtype="f4", fill_value=7)
    np.testing.assert_array_equal(pool.map_blocks(double, z), np.full(X.shape, 14, "f4"))
    store = shmpar.open(path)
    shutil.rmtree(path)
    with pytest.raises(shmpar.StoreError, match="is gone"):
        pool.map_blocks(double, z)
    with pytest.raises(shmpar.StoreError, match="cannot be opened"):
        pool.map_blocks(double, store)
    np.testing.assert_array_equal(pool.map_blocks(double, X), X * 2)


def test_a_folder_that_vanishes_in_the_run(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A chunk of an array that is gone by now fails, with the error as its cause.

    A worker that comes late cannot open it, which ends the run.
    """
    path = store_formats.zarr3(str(tmp_path), X, (6, 6)).store.root

    def remove(block: np.ndarray) -> np.ndarray:
        shutil.rmtree(path, ignore_errors=True)
        return block

    errors = shmpar.ChunkError, shmpar.StoreError
    with pytest.raises(
        errors, match=r"is gone: .*zarr\.json was removed|cannot be opened"
    ) as caught:
        pool.map_blocks(remove, shmpar.open(path), chunks=3)
    error: Any = caught.value
    assert isinstance(error.__cause__ if isinstance(error, errors[0]) else error, errors[1])


@pytest.mark.parametrize("name", ["x.h5:/x", "x.tif", "x.zarr", "x.npy"])
def test_a_file_that_was_replaced(pool: shmpar.Pool, tmp_path: Path, name: str) -> None:
    """A store reads the file that has its path at the time of the call."""

    def write(values: np.ndarray) -> None:
        path = str(tmp_path / name.partition(":")[0])
        if name == "x.zarr":
            shutil.rmtree(path, ignore_errors=True)
            zarr.create_array(path, data=values, chunks=(6, 6))
            return
        new = str(tmp_path / f"new-{os.path.basename(path)}")
        if name == "x.tif":
            tifffile.imwrite(new, values, compression="zlib")
        elif name == "x.npy":
            np.save(new, values)
        else:
            with h5py.File(new, "w") as file:
                file.create_dataset("x", data=values, chunks=(6, 6))
        os.replace(new, path)

    write(X)
    where = str(tmp_path / name)
    store = shmpar.open(where) if name != "x.npy" else shmpar.opened(np.load, where, mmap_mode="r")
    np.testing.assert_array_equal(pool.map_blocks(double, store), X * 2)
    write(X + 1)
    np.testing.assert_array_equal(pool.map_blocks(double, store), (X + 1) * 2)
    if name != "x.npy":
        np.testing.assert_array_equal(store[3:5], X[3:5] + 1)
    write(X[:20])
    with pytest.raises(shmpar.StoreError, match=r"has changed: it has shape \(20, 18\)"):
        pool.map_blocks(double, store)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("chunks", [None, (5, 4)], ids=str)
def test_a_file_that_is_open_for_writing(
    pool: shmpar.Pool, tmp_path: Path, libver: str, chunks: Any
) -> None:
    """Values that were just written are flushed, or the file is refused; none is missing."""
    path = str(tmp_path / "x.h5")
    with h5py.File(path, "w", libver=libver) as file:
        held = file.create_dataset("x", X.shape, "f4", chunks=chunks)
        for value in (1, 2):
            held[...] = X + value
            for given in (held, f"{path}:/x"):
                try:
                    store = shmpar.open(given) if isinstance(given, str) else given
                    got = pool.map_blocks(double, store)
                except shmpar.StoreError as error:
                    refused = "open for writing in another process, or was not closed"
                    assert refused in str(error)  # noqa: PT017 - a flushed file is right too
                else:
                    np.testing.assert_array_equal(got, (X + value) * 2)
    np.testing.assert_array_equal(pool.map_blocks(double, shmpar.open(f"{path}:/x")), (X + 2) * 2)


def test_a_file_that_another_process_writes(tmp_path: Path, run_python: Any) -> None:
    """A file that another process has open for writing is refused."""
    path = str(tmp_path / "x.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(5, 4))
        file.flush()
        run_python(
            "import shmpar\n"
            f"try: shmpar.open({path + ':/x'!r})\n"
            "except shmpar.StoreError as error: assert 'in another process' in str(error), error\n"
            "else: raise AssertionError('it was opened')\n"
        )


def test_a_store_is_flushed_at_each_call(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A file that was opened for writing after the store was made is flushed too."""
    store = shmpar.open(f"{store_formats.hdf5(str(tmp_path), X, (5, 4)).file.filename}:/x")
    with h5py.File(store.where.rpartition(":")[0], "r+") as file:
        file["x"][...] = X + 5
        np.testing.assert_array_equal(pool.map_blocks(double, store), (X + 5) * 2)


def test_an_open_file_that_was_replaced(tmp_path: Path) -> None:
    """A dataset of a file that has another file in its place by now is refused."""
    path = str(tmp_path / "x.h5")
    for number in range(2):
        with h5py.File(f"{path}{number}", "w") as file:
            file.create_dataset("x", data=X + number, chunks=(5, 4))
    os.replace(f"{path}0", path)
    with h5py.File(path) as file:
        os.replace(f"{path}1", path)
        with pytest.raises(shmpar.StoreError, match="removed or replaced after it was opened"):
            wrap(file["x"])


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    """A contiguous dataset whose file is too short is an error, never SIGBUS."""
    path = store_formats.contiguous(str(tmp_path), X, ()).file.filename
    with h5py.File(path) as file:
        os.truncate(path, 2100)
        with pytest.raises(shmpar.StoreError, match="is shorter than its dataset"):
            wrap(file["x"])


def test_a_chunk_that_cannot_be_decoded(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A corrupt chunk fails the blocks that have it, and the error names the window."""
    z = store_formats.zarr3(str(tmp_path), X, (6, 6))
    Path(z.store.root, "c", "1", "2").write_bytes(b"nothing")
    with pytest.raises(shmpar.ChunkError, match=r"cannot read \[6:12, 12:18\] of ") as caught:
        pool.map_blocks(double, z, chunks=(6, 6))
    assert caught.value.chunk == 5
    assert isinstance(caught.value.__cause__, shmpar.StoreError)
    with pytest.warns(RuntimeWarning, match="1 chunk failed and was filled"):
        got = pool.map_blocks(double, z, chunks=(6, 6), on_error="fill", fill_value=-1)
    due = X * 2
    due[6:12, 12:18] = -1
    np.testing.assert_array_equal(got, due)


class Full:
    """An array whose first rows cannot be written."""

    def __init__(self, path: str) -> None:
        self.array = np.load(path, mmap_mode="r+")
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.array[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if key[0].start == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.array[key] = value


def test_a_store_that_takes_no_fill_value(pool: shmpar.Pool, tmp_path: Path) -> None:
    """The error is that of the store; a plain output beside it has its finished windows."""
    path, plain = str(tmp_path / "x.npy"), np.full(X.shape, -1.0)
    np.save(path, np.zeros_like(X))
    out = shmpar.opened(Full, path), plain
    with pytest.raises(shmpar.StoreError, match=r"cannot write \[0:6, .*No space left"):
        pool.map_blocks(lambda b: (b, b), X, chunks=(6, -1), out=out, on_error="fill", fill_value=7)
    assert [error.chunk for error in pool.last_run.failed] == [0]
    assert (plain[:6] == -1).all()
    for found in (plain, np.load(path)):
        np.testing.assert_array_equal(found[6:], X[6:])


class Flaky:
    """An array whose reads fail so often; a file counts them, in all processes."""

    def __init__(self, path: str, faults: int, error: type[Exception]) -> None:
        self.path, self.faults, self.error = path, faults, error
        self.shape, self.dtype = X.shape, X.dtype
        note(path, "o")

    def __getitem__(self, key: Any) -> np.ndarray:
        note(self.path, "r")
        if Path(self.path).read_text().count("r") <= self.faults:
            raise self.error(5, "the network is slow")
        return X[key]


def note(path: str, text: str) -> None:
    """Append to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def test_faults_that_pass(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A read is tried again after a fault that may pass, `io_retries` times."""
    path = str(tmp_path / "log")
    store = shmpar.opened(Flaky, path, 2, OSError)
    np.testing.assert_array_equal(pool.map_blocks(double, store, chunks=-1), X * 2)
    assert Path(path).read_text().count("r") == 3
    for options, reads in (({"io_retries": 0}, 1), ({}, 3), ({"io_retries": 4}, 5)):
        Path(path).write_text("")
        store = shmpar.opened(Flaky, path, 99, OSError)
        with pytest.raises(shmpar.ChunkError, match="the network is slow"):
            pool.sum(store, chunks=-1, **options)
        assert Path(path).read_text().count("r") == reads
    Path(path).write_text("")
    with pytest.raises(shmpar.ChunkError, match="the network is slow"):
        pool.sum(shmpar.opened(Flaky, path, 99, ValueError), chunks=-1)
    assert Path(path).read_text().count("r") == 1
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="io_retries is a number of times"):
            pool.map_blocks(double, X, io_retries=wrong)


def test_a_store_is_opened_once(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Each worker opens a store once per run, however many inputs it is."""
    path = str(tmp_path / "log")
    store = shmpar.opened(Flaky, path, 0, OSError)
    for _ in range(2):
        Path(path).write_text("")
        pool.map_blocks(np.add, store, store, chunks=2)
        assert 1 <= Path(path).read_text().count("o") <= pool.n_workers


def test_a_store_stays_open_while_the_function_calls_a_verb(
    pool: shmpar.Pool, tmp_path: Path
) -> None:
    """The end of a call in a chunk closes no store of the run."""
    path = str(tmp_path / "log")
    store = shmpar.opened(Flaky, path, 0, OSError)
    Path(path).write_text("")
    pool.map_blocks(lambda block: block + shmpar.sum(block), store, chunks=6)
    assert 1 <= Path(path).read_text().count("o") <= pool.n_workers


def test_a_worker_without_a_chunk_opens_nothing(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Of a call with one chunk, one worker opens the store."""
    path = str(tmp_path / "log")
    store = shmpar.opened(Flaky, path, 0, OSError)
    Path(path).write_text("")
    pool.map_blocks(double, store, chunks=-1)
    assert Path(path).read_text().count("o") == 1


def test_a_file_can_be_written_right_after_a_run_that_failed(
    pool: shmpar.Pool, tmp_path: Path
) -> None:
    """No worker has the file open, not even one that is late."""
    given = store_formats.opened_hdf5(str(tmp_path), X, (5, 4))
    path = given.where.rpartition(":")[0]

    def fail(block: np.ndarray) -> np.ndarray:
        raise ValueError(block.shape)

    for _ in range(5):
        with pytest.raises(shmpar.ChunkError):
            pool.map_blocks(fail, given, chunks=-1)
        h5py.File(path, "r+").close()


def test_an_opener_that_exits(pool: shmpar.Pool, tmp_path: Path) -> None:
    """SystemExit of an opener is the failure of the run, and not the end of the program."""
    path, flag = str(tmp_path / "x.npy"), tmp_path / "flag"
    np.save(path, X)

    def opens(path: str) -> Any:
        if flag.exists():
            raise SystemExit(3)
        return np.load(path, mmap_mode="r")

    store = shmpar.opened(opens, path)
    flag.touch()
    with pytest.raises(shmpar.StoreError, match="cannot be opened: SystemExit: 3"):
        pool.map_blocks(double, store)


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_opener_that_raises_what_is_no_error(tmp_path: Path, error: type[BaseException]) -> None:
    """It fails the run, and kills no worker."""
    path, parent = str(tmp_path / "x.npy"), os.getpid()
    np.save(path, X)

    def opens(path: str) -> Any:
        if os.getpid() != parent:
            raise error("at the opening")
        return np.load(path, mmap_mode="r")

    with shmpar.Pool(1) as pool:
        with pytest.raises(shmpar.PlanError, match=f"{error.__name__}: at the opening"):
            pool.map_blocks(double, shmpar.opened(opens, path))
        assert not pool.last_run.report.deaths


@pytest.mark.parametrize(
    ("ends", "error", "text"),
    [
        ("hangs", shmpar.TaskTimeout, r"task_timeout=0\.2 s, which includes the access to test_"),
        ("dies", shmpar.WorkerDied, "the worker exited with status 3"),
    ],
)
def test_an_opener_that_hangs_or_dies(
    tmp_path: Path, ends: str, error: type[Exception], text: str
) -> None:
    """The opening counts for the first chunk of a worker; the error names the chunk."""
    path = str(tmp_path / "x.npy")
    np.save(path, X)
    parent = os.getpid()

    def opens(path: str) -> Any:
        if os.getpid() != parent:
            threading.Event().wait() if ends == "hangs" else os._exit(3)
        return np.load(path, mmap_mode="r")

    store = shmpar.opened(opens, path)
    limit = 0.2 if ends == "hangs" else None
    limited = shmpar.Pool(1, task_timeout=limit, retries=0)
    with limited as pool, pytest.raises(error, match=f"chunk 0 at .*{text}"):
        pool.map_blocks(double, store, chunks=-1)


@pytest.mark.parametrize("library", ["h5py", "missing"])
def test_the_library_of_a_format_is_imported_before_a_store_is_open(
    run_python: Any, library: str
) -> None:
    """``task_timeout``, which begins with the first claim, need not cover its import.

    The opening tells the error of a library that is missing.
    """
    run_python(f"""
        import sys
        from shmpar.stores import store
        store._LIBRARIES["hdf5"] = {library!r},
        store.OpenStores().bind(store.Store(b"", (1,), "u1", None, "hdf5", "x.h5:x"))
        assert ("h5py" in sys.modules) == ({library!r} == "h5py")
    """)


def test_a_store_is_closed_when_the_run_ends(pool: shmpar.Pool, tmp_path: Path) -> None:
    """No worker has the file of a store open after the run."""
    given = store_formats.opened_hdf5(str(tmp_path), X, (5, 4))
    path = given.where.rpartition(":")[0]
    pool.map_blocks(double, given)
    own = [os.getpid()] * 4
    pids = own if pool.engine != "processes" else pool.map_blocks(
        lambda: np.array([os.getpid()]), chunks=((1,) * 4,)
    )  # fmt: skip
    for pid in set(map(int, pids)):
        folder = f"/proc/{pid}/fd"
        links = [os.readlink(f"{folder}/{one}") for one in os.listdir(folder)[:200] if one.isdigit()
                 and os.path.lexists(f"{folder}/{one}")]  # fmt: skip
        assert path not in links


def test_an_opener_that_fails_in_workers(tmp_path: Path) -> None:
    """If a worker cannot open a store, the run ends at once with a StoreError."""
    path = str(tmp_path / "x.npy")
    np.save(path, X)
    parent = os.getpid()

    def opens(path: str) -> Any:
        if os.getpid() != parent:
            raise PermissionError(13, "not here", path)
        return np.load(path, mmap_mode="r")

    store = shmpar.opened(opens, path)
    with shmpar.Pool(2) as pool:
        with pytest.raises(shmpar.StoreError, match="cannot be opened: PermissionError") as caught:
            pool.map_blocks(double, store)
        assert caught.value.where.startswith("test_an_opener_that_fails_in_workers")
        np.testing.assert_array_equal(pool.map_blocks(double, X), X * 2)
        held = store_formats.hdf5(str(tmp_path), X, (5, 4))
        with pytest.raises(shmpar.PlanError, match="pass it to the verb as an array"):
            pool.map_blocks(lambda block: block + held[0, 0], X)


def test_a_worker_that_dies_over_a_store(tmp_path: Path) -> None:
    """The chunks of a worker that died are read and computed again."""
    z = store_formats.zarr3(str(tmp_path), X, (6, 6))
    flag = str(tmp_path / "died")

    def die_once(block: np.ndarray) -> np.ndarray:
        if block[0, 0] == X[6, 6] and not os.path.exists(flag):
            Path(flag).touch()
            os._exit(3)
        return block * 2

    with shmpar.Pool(2) as pool:
        np.testing.assert_array_equal(pool.map_blocks(die_once, z, chunks=(6, 6)), X * 2)
        assert pool.last_run.report.deaths == 1


def test_threads_of_codecs_are_capped(tmp_path: Path) -> None:
    """A worker decodes with `threads_per_worker` threads."""
    z = store_formats.zarr3(str(tmp_path), X, (3, 3))

    def threads(_block: np.ndarray) -> int:
        import zarr

        return int(zarr.config.get("threading.max_workers"))

    for most in (1, 2):
        with shmpar.Pool(1, threads_per_worker=most) as pool:
            found = pool.block_reduce(threads, z, chunks=-1)
        assert found.ravel().tolist() == [most]


def test_rows_are_read_in_bands(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A worker reads the rows of a unit at once, not the unit once per row."""
    x = np.arange(6000.0).reshape(1000, 6)
    for make in (store_formats.zarr3, store_formats.hdf5):
        z = make(str(tmp_path), x, (200, 6))
        np.testing.assert_array_equal(pool.parallel_map(np.sum, z), x.sum(1))
        assert x.nbytes <= pool.last_run.report.store_read <= 2 * (pool.n_workers + 1) * x.nbytes
        np.testing.assert_array_equal(pool.parallel_map(np.sum, z, axis=1), x.sum(0))


def test_a_checked_run_and_a_ledger_over_a_store(tmp_path: Path) -> None:
    """`check=True` verifies a run over a store; a ledger knows the store by its place."""
    z = store_formats.zarr3(str(tmp_path), X, (6, 6))
    how: dict[str, Any] = {
        "out": str(tmp_path / "y.npy"), "ledger": str(tmp_path / "y.ledger"), "dtype": "f4",
        "chunks": (6, 6),
    }  # fmt: skip

    def fails_once(block: np.ndarray) -> np.ndarray:
        if block[0, 0] == X[12, 6] and not Path(flag).exists():
            Path(flag).touch()
            raise ValueError("once")
        return block * 2

    flag = str(tmp_path / "flag")
    with shmpar.Pool(2, engine="threads", check=True) as pool:
        np.testing.assert_array_equal(pool.map_blocks(double, z, chunks=5), X * 2)
        with pytest.raises(shmpar.ChunkError, match="once"):
            pool.map_blocks(fails_once, z, **how)
        np.testing.assert_array_equal(pool.map_blocks(fails_once, z, **how), X * 2)
        assert 0 < pool.last_run.report.computed < 12
        with pytest.raises(ValueError, match="inputs"):
            pool.map_blocks(fails_once, store_formats.zarr3(str(tmp_path), X, (6, 6)), **how)

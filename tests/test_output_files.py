"""A path as ``out=``: the file appears whole, or the older one stays."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar

OLD, X = np.arange(3.0), np.arange(40.0)


@pytest.fixture(params=["nameless", "named"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of an older result, on a system with or without nameless files."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    np.save(tmp_path / "good.npy", OLD)
    return tmp_path / "good.npy"


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file without which the function fails."""
    return tmp_path_factory.mktemp("gate") / "open"


def doubling(gate: Path) -> Any:
    """Return a function that fails on its last block until a file exists."""

    def double(block: Any) -> Any:
        if block[-1] == X[-1] and not gate.exists():
            raise OSError("not yet")
        return block * 2

    return double


def names(out: Path) -> list[str]:
    """Return the files beside an output, when nobody holds a run any more."""
    gc.collect()
    return sorted(os.listdir(out.parent))


@pytest.mark.parametrize("dtype", [None, "f8"])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_a_failed_run_keeps_the_older_result(
    pool: shmpar.Pool, out: Path, gate: Path, dtype: str | None, on_error: str
) -> None:
    """The old values stay, and no other file is left."""
    try:
        pool.map_blocks(doubling(gate), X, chunks=4, out=out, dtype=dtype, on_error=on_error)
    except (shmpar.ChunkError, ExceptionGroup):
        failed = True
    assert failed
    np.testing.assert_array_equal(np.load(out), OLD)
    pool._last_run = None
    assert names(out) == ["good.npy"]


def test_the_file_appears_when_the_last_chunk_is_done(pool: shmpar.Pool, out: Path) -> None:
    """Until then its path leads to the older result; then the call returns it as a np.memmap."""

    def look(block: Any) -> Any:
        return block + np.load(out).sum()

    result = pool.map_blocks(look, X, chunks=4, out=out, dtype="f8")
    assert isinstance(result, np.memmap)
    assert Path(result.filename) == out
    np.testing.assert_array_equal(np.load(out), X + OLD.sum())
    np.testing.assert_array_equal(result, X + OLD.sum())
    result[0] = -1
    assert np.load(out)[0] == -1
    assert names(out) == ["good.npy"]


def test_a_resumed_run_completes_the_file(pool: shmpar.Pool, out: Path, gate: Path) -> None:
    """The chunks of the failed run are kept, and the path gets the whole result."""
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.map_blocks(doubling(gate), X, chunks=4, out=out, dtype="f8")
    gate.touch()
    result = caught.value.run.resume().result()
    np.testing.assert_array_equal(result, X * 2)
    np.testing.assert_array_equal(np.load(out), X * 2)
    assert names(out) == ["good.npy"]


def test_a_cancelled_run_keeps_the_older_result(pool: shmpar.Pool, out: Path) -> None:
    """Chunks that were done before the cancel do not replace the file."""
    with shmpar.Pool(1, engine="threads") as other:
        run = other.map_blocks(run_and_cancel, X, chunks=4, out=out, dtype="f8", wait=False)
        canceller.append(run)
        with pytest.raises(Exception, match=r"^$"):  # CancelledError has no text
            run.result()
    canceller.clear()
    np.testing.assert_array_equal(np.load(out), OLD)


canceller: list[shmpar.Run] = []


def run_and_cancel(block: Any) -> Any:
    """Cancel the run from its own function, as soon as the caller has it."""
    while not canceller:
        pass
    canceller[0].cancel()
    return block


def test_filled_chunks_complete_the_file(pool: shmpar.Pool, out: Path, gate: Path) -> None:
    """With ``on_error="fill"`` a run with failures has a result, and so a file."""
    with pytest.warns(RuntimeWarning):
        pool.map_blocks(doubling(gate), X, chunks=4, out=out, dtype="f8", on_error="fill")
    due = X * 2
    due[-4:] = np.nan
    np.testing.assert_array_equal(np.load(out), due)


def test_several_files_appear_together(pool: shmpar.Pool, out: Path, gate: Path) -> None:
    """If a chunk fails, neither is made."""
    paths = out, out.with_name("other.npy")

    def both(block: Any) -> Any:
        return doubling(gate)(block), block

    with pytest.raises(shmpar.ChunkError):
        pool.map_blocks(both, X, chunks=4, out=paths)
    np.testing.assert_array_equal(np.load(out), OLD)
    assert not paths[1].exists()
    gate.touch()
    pool.map_blocks(both, X, chunks=4, out=paths)
    np.testing.assert_array_equal(np.load(out), X * 2)
    np.testing.assert_array_equal(np.load(paths[1]), X)


def test_a_ledger_keeps_the_unfinished_file(pool: shmpar.Pool, out: Path, gate: Path) -> None:
    """Its name ends in ``.partial``, until the same call completes it."""
    options: Any = {"chunks": 4, "out": out, "ledger": out.with_name("ledger")}
    with pytest.raises(shmpar.ChunkError):
        pool.map_blocks(doubling(gate), X, **options)
    np.testing.assert_array_equal(np.load(out), OLD)
    assert names(out) == ["good.npy", "good.npy.partial", "ledger"]
    gate.touch()
    result = pool.map_blocks(doubling(gate), X, **options)
    np.testing.assert_array_equal(result, X * 2)
    assert Path(result.filename) == out
    np.testing.assert_array_equal(np.load(out), X * 2)
    assert names(out) == ["good.npy", "ledger"]
    np.testing.assert_array_equal(pool.map_blocks(doubling(gate), X, **options), X * 2)


def test_a_removed_unfinished_file_is_an_error(pool: shmpar.Pool, out: Path) -> None:
    """The older result is not passed off as the new one."""
    partial, ledger = out.with_name("good.npy.partial"), out.with_name("ledger")

    def remove(block: Any) -> Any:
        partial.unlink(missing_ok=True)
        return block

    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        pool.map_blocks(remove, X, chunks=4, out=out, dtype="f8", ledger=ledger)
    np.testing.assert_array_equal(np.load(out), OLD)


def test_a_read_only_file_is_not_replaced(pool: shmpar.Pool, out: Path, tmp_path: Path) -> None:
    """The call is refused before the function is called, also for the superuser."""
    out.chmod(0o444)
    calls = tmp_path / "calls"
    with pytest.raises(ValueError, match="read-only, so it is not replaced"):
        pool.map_blocks(lambda block: calls.touch(), X, out=out)
    assert not calls.exists()
    np.testing.assert_array_equal(np.load(out), OLD)


LATE = """
import os, sys, threading, numpy as np, shmpar
from numpy.lib.format import open_memmap

folder, engine = sys.argv[1:]
path, gate = folder + "/out.npy", folder + "/gate"
os.mkfifo(gate)

def wait(item):
    with open(gate) as file:
        return file.read()

def double(block):
    return block * 2

a = np.ones((400, 100))
with shmpar.Pool(2, engine=engine) as pool:
    while len(set(pool.parallel_map(lambda item: os.getpid(), range(64)))) < 2 and engine[0] == "p":
        pass
    run = pool.parallel_map(wait, range(1), wait=False)
    with open(gate, "w") as file:  # it is open for reading, so a worker is busy
        out = open_memmap(path, "w+", "f8", a.shape)
        pool.map_blocks(double, a, out=out, chunks=50, dtype="f8")
        assert (np.load(path) == 2).all()
        open_memmap(path, "w+", "f8", (2, 3))[...] = 7
        file.write("open")
    print(run.result(), run.report.deaths, (np.load(path) == 7).all())
    print(pool.parallel_map(abs, range(-3, 0)), pool.last_run.report.deaths)
"""


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_a_worker_that_is_late_survives_a_new_output_file(
    engine: str, tmp_path: Path, run_python: Any
) -> None:
    """The file of an earlier call was made anew, and shorter, before a busy worker came to it."""
    done = run_python(LATE, str(tmp_path), engine)
    assert done.stdout == "['open'] 0 True\n[3, 2, 1] 0\n"
    assert done.stderr == ""


def test_a_link_leads_to_the_file_that_is_replaced(
    pool: shmpar.Pool, out: Path, gate: Path
) -> None:
    """The link stays, and a link to nothing gets its file."""
    link, dangling = out.with_name("link.npy"), out.with_name("none.npy")
    link.symlink_to(out.name)
    dangling.symlink_to("made.npy")
    with pytest.raises(shmpar.ChunkError):
        pool.map_blocks(doubling(gate), X, chunks=4, out=link)
    assert np.array_equal(np.load(out), OLD)
    for path in (link, dangling):
        pool.map_blocks(np.negative, X, chunks=4, out=path)
        assert np.array_equal(np.load(path.resolve()), -X)
        assert path.is_symlink()
    assert names(out) == ["good.npy", "link.npy", "made.npy", "none.npy"]


def test_a_private_file_stays_private(pool: shmpar.Pool, out: Path) -> None:
    """The new file has the mode of the file that it replaces."""
    for mode in (0o600, 0o660):
        out.chmod(mode)
        pool.map_blocks(np.negative, X, chunks=4, out=out)
        assert out.stat().st_mode & 0o777 == mode


def test_names_of_fields_in_any_script(pool: shmpar.Pool, tmp_path: Path) -> None:
    """A dtype whose fields have names beyond Latin-1 is written as by NumPy."""
    due = np.zeros(8, [("Δx", "f4"), ("温度", "i2")])
    pool.map_blocks(lambda b: b.copy(), due, chunks=4, out=tmp_path / "x.npy")
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == due.dtype
    np.testing.assert_array_equal(found, due)

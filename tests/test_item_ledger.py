"""`ledger=` for items: a later call computes only the items without a result on disk."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import interpreter


class Work:
    """Return an object per item and log the calls; fail on one item while a file exists."""

    def __init__(self, folder: Path) -> None:
        self.log, self.failing = folder / "log", folder / "failing"

    def __call__(self, item: Any, factor: int = 1) -> Any:
        with self.log.open("a") as log:
            log.write(f"{item}\n")
        if item == 3 and self.failing.exists():
            raise OSError("not now")
        return {"item": item, "text": "x" * (item * factor)}

    def calls(self) -> list[int]:
        """Return the sorted items of the calls since the last time."""
        found = sorted(map(int, self.log.read_text().split())) if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


def due(items: Any, factor: int = 1) -> list[Any]:
    return [{"item": item, "text": "x" * (item * factor)} for item in items]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "a.ledger"


def test_a_later_call_computes_only_what_is_missing(
    pool: shmpar.Pool, work: Work, ledger: Path
) -> None:
    """Failed and new items are computed; equal items have a result each; order does not matter."""
    work.failing.touch()
    with pytest.raises(ExceptionGroup):
        pool.parallel_map(work, range(5), ledger=ledger, on_error="collect")
    assert work.calls() == [0, 1, 2, 3, 4]
    work.failing.unlink()
    for items, computed in (
        (range(5), [3]),
        (range(5), []),
        ([7, 4, 0, 7, 1], [7, 7]),
        ([7, 7, 7], [7]),
        ([], []),
    ):
        assert pool.parallel_map(work, items, ledger=ledger) == due(items)
        assert work.calls() == computed
    assert sorted(os.listdir(ledger.parent)) == ["a.ledger", "a.ledger.results"]
    assert {path.stat().st_mode & 0o777 for path in ledger.parent.iterdir()} == {0o600}


def test_known_items_are_in_the_table_and_come_first(
    pool: shmpar.Pool, work: Work, ledger: Path
) -> None:
    """Their seconds and workers are not known."""
    pool.parallel_map(work, [1, 2], ledger=ledger)
    run = pool.parallel_map(work, [0, 1, 2], ledger=ledger, wait=False)
    assert [item for item, _ in run.completed()] == [1, 2, 0]
    assert list(run.completed(ordered=True)) == list(zip(range(3), due(range(3)), strict=True))
    table = run.table()
    assert [one["status"] for one in table] == ["done"] * 3
    assert [one["seconds"] is None for one in table] == [False, True, True]
    assert [one["worker"] is None for one in table] == [False, True, True]
    assert run.progress == (3, 3)
    run = pool.parallel_map(work, [0, 1, 2], ledger=ledger, wait=False)
    assert run.result(60) == due(range(3))
    assert run.report.computed == 0


def test_another_call_is_refused(pool: shmpar.Pool, work: Work, ledger: Path) -> None:
    """The error names the difference; without the ledger the call begins anew."""
    pool.parallel_map(work, range(3), ledger=ledger)
    with pytest.raises(ValueError, match="with items, that differs in: function; pass another"):
        pool.parallel_map(work, range(3), ledger=ledger, kwargs={"factor": 2})
    with pytest.raises(ValueError, match="differs in"):
        pool.parallel_map(lambda item: None, range(3), ledger=ledger)
    with pytest.raises(ValueError, match="differs in"):
        pool.map_blocks(np.negative, np.ones(3), ledger=ledger, out=ledger.parent / "out.npy")
    work.calls()
    ledger.unlink()
    assert pool.parallel_map(work, range(3), ledger=ledger) == due(range(3))
    assert work.calls() == [0, 1, 2]
    ledger.unlink()
    assert pool.parallel_map(work, [2], ledger=ledger, kwargs={"factor": 2}) == due([2], 2)
    with pytest.raises(ValueError, match="arrays of Python objects"):
        pool.parallel_map(work, range(3), ledger=ledger, dtype=object)


def test_a_resumed_run_uses_the_ledger(pool: shmpar.Pool, work: Work, ledger: Path) -> None:
    """Its results are recorded too, and the ledger is locked meanwhile."""
    work.failing.touch()
    run = pool.parallel_map(work, range(5), ledger=ledger, on_error="collect", wait=False)
    run.exception(60)
    work.failing.unlink()
    assert run.resume().result(60) == due(range(5))
    work.calls()
    assert pool.parallel_map(work, range(5), ledger=ledger) == due(range(5))
    assert work.calls() == []


def test_random_numbers_belong_to_the_position(pool: shmpar.Pool, ledger: Path) -> None:
    """The stream of the first call goes on; an item that moves is computed anew."""

    def draw(item: str, rng: Any) -> tuple[str, float]:
        return item, float(rng.random())

    first = pool.parallel_map(draw, "abc", ledger=ledger)
    assert pool.parallel_map(draw, "abc", ledger=ledger) == first
    more = pool.parallel_map(draw, "abcd", ledger=ledger)
    assert more[:3] == first
    seed = pool.last_run.report.seed
    moved = pool.parallel_map(draw, "dabc", ledger=ledger)
    assert moved == pool.parallel_map(draw, "dabc", seed=seed)
    assert [one[0] for one in moved] == list("dabc")


@pytest.mark.parametrize("cut", ["tail", "middle", "all", "garbage"])
def test_a_damaged_file_of_results_costs_only_its_records(
    pool: shmpar.Pool, work: Work, ledger: Path, cut: str
) -> None:
    """A part of a record is skipped; each other result counts, and the list is right."""
    pool.parallel_map(work, range(20), ledger=ledger)
    work.calls()
    path = Path(f"{ledger}.results")
    content, rng = bytearray(path.read_bytes()), random.Random(cut)
    match cut:
        case "tail":
            del content[-rng.randrange(1, 40) :]
        case "middle":
            content[rng.randrange(len(content))] ^= 0xFF
        case "all":
            content.clear()
        case "garbage":
            content = bytearray(rng.randbytes(1000)) + content[:300] + content
    path.write_bytes(content)
    for expected in ({"tail": 1, "all": 20, "garbage": 0}.get(cut), 0):
        assert pool.parallel_map(work, range(20), ledger=ledger) == due(range(20))
        count = len(work.calls())
        assert count == expected or (expected is None and count <= 2)


@pytest.mark.stress
def test_any_cut_of_the_file_of_results(work: Work, ledger: Path, stress_seed: int) -> None:
    """At each length of the file the list is right, and no damaged record is taken."""
    with shmpar.Pool(engine="serial") as pool:
        pool.parallel_map(work, range(6), ledger=ledger)
        path = Path(f"{ledger}.results")
        content, rng = path.read_bytes(), random.Random(stress_seed)
        for length in range(len(content)):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            for damaged in (content[:length], bytes(changed)):
                path.write_bytes(damaged)
                assert pool.parallel_map(work, range(6), ledger=ledger) == due(range(6))


class Brittle:
    """A result that loads unless a switch of the environment is on."""

    def __reduce__(self) -> Any:
        return _load_brittle, ()


def _load_brittle() -> Brittle:
    if "NO_BRITTLE" in os.environ:
        raise ImportError("gone")
    return Brittle()


def test_a_result_that_does_not_load_is_computed_again(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call warns and counts them."""
    with shmpar.Pool(engine="serial") as pool:
        make = lambda n: Brittle() if n else "plain"
        pool.parallel_map(make, range(3), ledger=ledger)
        monkeypatch.setenv("NO_BRITTLE", "1")
        with pytest.warns(RuntimeWarning, match="2 results in .* cannot be read any more"):
            found = pool.parallel_map(make, range(3), ledger=ledger)
        assert [type(one) for one in found] == [str, Brittle, Brittle]


def test_a_result_that_cannot_be_recorded_fails_its_item(pool: shmpar.Pool, ledger: Path) -> None:
    """The error says so, and the other items are kept."""
    with pytest.raises(ExceptionGroup) as caught:
        pool.parallel_map(lambda n: (x for x in "a") if n else 5, [0, 1], ledger=ledger,
                          on_error="collect")  # fmt: skip
    assert "cannot be pickled, so it cannot be recorded" in str(caught.value.exceptions[0])
    results = Path(f"{ledger}.results")
    results.rename(ledger.parent / "other")
    results.mkdir()
    with pytest.raises((shmpar.ChunkError, OSError)):
        pool.parallel_map(lambda n: (x for x in "a") if n else 5, [0], ledger=ledger)
    results.rmdir()


def test_large_results_are_recorded_whole(pool: shmpar.Pool, ledger: Path) -> None:
    """Arrays in the file are those of the function."""
    make = lambda n: [np.arange(50_000) * n, "text"]
    pool.parallel_map(make, range(3), ledger=ledger)
    found = pool.parallel_map(make, range(3), ledger=ledger)
    assert pool.last_run.report.computed == 0
    assert all(np.array_equal(one[0], np.arange(50_000) * n) for n, one in enumerate(found))


BATCH = """
import os, sys, time, zlib
from pathlib import Path
import numpy as np
import shmpar

folder, engine, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def measure(path):
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{path.stem}\\n".encode())
    os.close(log)
    values = np.load(path)
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end:
        pass
    return {"name": path.stem, "mean": float(values.mean()), "values": values}

with shmpar.Pool(workers, engine=engine) as pool:
    found = pool.parallel_map(measure, sorted(folder.glob("*.npy")), ledger=folder / "a.ledger")
for number, one in enumerate(found):
    assert one["name"] == f"p{number:04}", one["name"]
    assert one["mean"] == number
    assert (one["values"] == np.full(one["values"].shape, number)).all()
print(len(found))
"""
WORKERS = 2


def kill_once(folder: Path, files: int, rng: random.Random, engine: str) -> tuple[int, int]:
    """Kill a batch at a random moment, and run it again; return the calls before, and those twice.

    The moment is a number of calls, and then some of the time of a call.
    """
    folder.mkdir()
    for number in range(files):
        np.save(folder / f"p{number:04}.npy", np.full(rng.choice([10, 20_000]), number))
    log, workers = folder / "log", WORKERS if engine != "serial" else 1
    with interpreter(BATCH, os.fspath(folder), engine, str(workers)) as process:
        moment = rng.randrange(1, files)
        while process.poll() is None and not (
            log.exists() and log.read_text().count("\n") >= moment
        ):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.004)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    before = Counter(log.read_text().split())
    with interpreter(BATCH, os.fspath(folder), engine, str(workers)) as process:
        assert process.wait(120) == 0
    calls = Counter(log.read_text().split())
    assert len(calls) == files, "each file was measured"
    assert max(before.values()) == 1, "without a kill nothing is computed twice"
    twice = sum(calls.values()) - files
    assert twice <= workers, f"{twice} were in progress"
    return sum(before.values()), twice


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_a_batch_that_is_killed_computes_the_rest(tmp_path: Path, engine: str) -> None:
    """Nothing is computed twice but the items in progress."""
    kill_once(tmp_path / "batch", 40, random.Random(engine), engine)


@pytest.mark.stress
@pytest.mark.parametrize("part", range(4))
def test_batches_of_200_files_that_are_killed(tmp_path: Path, stress_seed: int, part: int) -> None:
    """There are 20 kills at random moments."""
    rng = random.Random(stress_seed)
    found = [kill_once(tmp_path / f"{part}-{k}", 200, rng, "processes") for k in range(5)]
    moments, twice = sorted(one[0] for one in found), sum(one[1] for one in found)
    print(f"\n5 batches of 200 files killed after {moments} calls; {twice} computed twice in all")

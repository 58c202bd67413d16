"""The same call gives the same bytes, whatever computes it and whatever dies meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmpar
from tests import naive_verbs as naive

WORKERS = (1, 2, 3, 7)
# Each start of a worker takes time: the default suite has one number of processes.
MORTAL = [n if n == 2 else pytest.param(n, marks=pytest.mark.stress) for n in WORKERS]
CHUNKS = (7, 8)
CHOSEN = 17  # the number of the chunk whose first computation ends its worker
SEED = 20
#: Values of many magnitudes: another order of additions would show.
IMAGE = np.random.default_rng(3).lognormal(sigma=9, size=(60, 45)) * (-1.0) ** np.arange(45)
CELL = list(naive.cells(IMAGE.shape, CHUNKS))[CHOSEN]
MARK = IMAGE[CELL].flat[0]


def smooth(window: np.ndarray) -> np.ndarray:
    """Means over three rows, where there are three."""
    out = window.copy()
    out[1:-1] = (window[:-2] + window[1:-1] + window[2:]) / 3
    return out


def noisy(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return block + rng.normal(size=block.shape)


def draw(row: np.ndarray, rng: np.random.Generator) -> Any:
    return rng.permutation(row)[:3], np.float32(row.sum())


def moments(block: np.ndarray, rng: np.random.Generator) -> Any:
    return np.array([block.mean(), block.std(), rng.random()])


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

#: A call of every verb on a pool; `wrap` may add to the function what it likes.
CALLS: dict[str, Callable[[shmpar.Pool, Wrap], Any]] = {
    "map_blocks": lambda pool, wrap: pool.map_blocks(wrap(noisy), IMAGE, chunks=CHUNKS, seed=SEED),
    "map_overlap": lambda pool, wrap: pool.map_overlap(
        wrap(smooth), IMAGE, depth=(1, 0), boundary="mirror", chunks=CHUNKS
    ),
    "map_overlap with rng": lambda pool, wrap: pool.map_overlap(
        wrap(noisy), IMAGE, depth=2, chunks=CHUNKS, seed=SEED
    ),
    "block_reduce": lambda pool, wrap: pool.block_reduce(
        wrap(moments), IMAGE, chunks=CHUNKS, seed=SEED
    ),
    "parallel_map": lambda pool, wrap: pool.parallel_map(wrap(draw), IMAGE, seed=SEED),
    "objects": lambda pool, wrap: pool.parallel_map(wrap(draw), IMAGE, seed=SEED, dtype=object),
}

REDUCTIONS: dict[str, Callable[[shmpar.Pool], Any]] = {
    "sum": lambda pool: pool.sum(IMAGE, chunks=CHUNKS),
    "mean": lambda pool: pool.mean(IMAGE, chunks=CHUNKS),
    "mean along an axis": lambda pool: pool.mean(IMAGE, axis=0, chunks=CHUNKS),
    "std": lambda pool: pool.std(IMAGE, ddof=1, chunks=CHUNKS),
    "var along an axis": lambda pool: pool.var(IMAGE, axis=-1, chunks=CHUNKS),
    "histogram": lambda pool: pool.histogram(np.log(np.abs(IMAGE)), 20, chunks=CHUNKS),
}


def as_bytes(result: Any) -> Any:
    """All that there is of a result, so that equal is identical."""
    if isinstance(result, tuple):
        return tuple(as_bytes(part) for part in result)
    if isinstance(result, np.ndarray) and result.dtype == object:
        return [as_bytes(part) for part in result.flat]
    array = np.asarray(result)
    return array.dtype.str, array.shape, array.tobytes()


def unchanged(func: Callable[..., Any]) -> Callable[..., Any]:
    return func


@pytest.fixture(scope="module")
def due() -> dict[str, Any]:
    """What one thread computes, in the order of the chunks."""
    with shmpar.Pool(1, engine="serial") as pool:
        results = {name: as_bytes(call(pool, unchanged)) for name, call in CALLS.items()}
        return results | {name: as_bytes(call(pool)) for name, call in REDUCTIONS.items()}


def test_one_thread_computes_what_a_loop_does(due: dict[str, Any]) -> None:
    """The bytes that all others are compared with are right themselves."""
    noise = naive.noise(IMAGE.shape, CHUNKS, SEED)
    assert due["map_blocks"] == as_bytes(IMAGE + noise)
    padded = np.pad(IMAGE, ((1, 1), (0, 0)), "reflect")
    assert due["map_overlap"] == as_bytes((padded[:-2] + padded[1:-1] + padded[2:]) / 3)
    sums = naive.block_reduce(np.sum, IMAGE, CHUNKS)
    assert due["sum"] == as_bytes(np.sum(sums))
    assert due["mean"] == as_bytes(np.sum(sums) / IMAGE.size)


@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        (engine, workers)
        if engine != "processes" or workers == 3
        else pytest.param(engine, workers, marks=pytest.mark.stress)
        for engine in ("serial", "threads", "processes")
        for workers in WORKERS
    ],
)
def test_every_engine_and_number_of_workers(engine: str, workers: int, due: dict[str, Any]) -> None:
    """One after the other, and all at once."""
    with shmpar.Pool(workers, engine=engine) as pool:
        for name, call in CALLS.items():
            assert as_bytes(call(pool, unchanged)) == due[name], name
        for name, reduce in REDUCTIONS.items():
            assert as_bytes(reduce(pool)) == due[name], name
        runs = [
            pool.map_blocks(noisy, IMAGE, chunks=CHUNKS, seed=SEED, wait=False) for _ in range(3)
        ]
        assert {as_bytes(run.result(timeout=60)) for run in runs} == {due["map_blocks"]}


def die_once(marker: Path) -> None:
    """End this process, unless this or another one was ended here before."""
    with contextlib.suppress(FileExistsError):
        marker.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(func: Callable[..., Any], marker: Path) -> Callable[..., Any]:
    """The function, whose worker dies when it first gets the mark of the chosen chunk."""

    @functools.wraps(func)
    def wrapper(block: np.ndarray, *args: Any, **keywords: Any) -> Any:
        if MARK in block:
            die_once(marker)
        return func(block, *args, **keywords)

    return wrapper


@pytest.mark.parametrize("workers", MORTAL)
def test_a_worker_that_is_killed_on_the_way(
    workers: int, due: dict[str, Any], tmp_path: Path
) -> None:
    """What it had computed is kept or computed again; its successor's streams are the same."""
    with shmpar.Pool(workers) as pool:
        for name, call in CALLS.items():
            marker = tmp_path / name
            got = call(pool, lambda func, marker=marker: mortal(func, marker))
            assert as_bytes(got) == due[name], name
            assert pool.last_run.report.deaths == 1, name


def watch_for_the_chosen_block(folder: Path) -> None:
    """In a worker: die the first time that a reduction reduces the chosen chunk.

    Its functions are none of ours, so they are seen from a profile hook.
    """

    def hook(frame: FrameType, event: str, _arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in {"sum", "_moments"}:
            block = frame.f_locals[code.co_varnames[0]]
            if isinstance(block, np.ndarray) and block.size and block.flat[0] == MARK:
                die_once(folder / code.co_name)

    sys.setprofile(hook)


@pytest.mark.parametrize("workers", MORTAL)
def test_a_worker_that_is_killed_in_a_reduction(
    workers: int, due: dict[str, Any], tmp_path: Path
) -> None:
    """Partial results are folded in the order of the chunks, whoever computed them."""
    watching = {"initializer": watch_for_the_chosen_block, "initargs": (tmp_path,)}
    with shmpar.Pool(workers, **watching) as pool:
        for name in ("mean", "std"):
            for seen in ("sum", "_moments"):
                (tmp_path / seen).unlink(missing_ok=True)
            assert as_bytes(REDUCTIONS[name](pool)) == due[name], name
            assert pool.last_run.report.deaths == 1, name

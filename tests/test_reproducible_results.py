"""A call gives the same bytes on every engine and number of workers, even if workers die."""

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
from tests.work.reproducible import draw, moments, noisy, smooth

WORKERS = (1, 2, 3, 7)
# Why: each start of a worker takes time, so the default suite has one number of processes.
MORTAL = [n if n == 2 else pytest.param(n, marks=pytest.mark.stress) for n in WORKERS]
CHUNKS = (7, 8)
FATAL = 17  # number of the chunk whose first computation ends its worker
SEED = 20
#: Values of many magnitudes, so that another order of additions gives another sum.
IMAGE = np.random.default_rng(3).lognormal(sigma=9, size=(60, 45)) * (-1.0) ** np.arange(45)
CELL = list(naive.cells(IMAGE.shape, CHUNKS))[FATAL]
MARK = IMAGE[CELL].flat[0]


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

#: Calls of the verbs on a pool; `wrap` may replace the function.
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
    """Return the dtype, shape and bytes of a result for an exact comparison."""
    if isinstance(result, tuple):
        return tuple(as_bytes(part) for part in result)
    if isinstance(result, np.ndarray) and result.dtype == object:
        return [as_bytes(part) for part in result.flat]
    array = np.asarray(result)
    return array.dtype.str, array.shape, array.tobytes()


def unchanged(func: Callable[..., Any]) -> Callable[..., Any]:
    return func


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Results of the serial engine, which computes the chunks in order."""
    with shmpar.Pool(1, engine="serial") as pool:
        results = {name: as_bytes(call(pool, unchanged)) for name, call in CALLS.items()}
        return results | {name: as_bytes(call(pool)) for name, call in REDUCTIONS.items()}


def test_the_serial_engine_equals_a_loop(expected: dict[str, Any]) -> None:
    """The results that all others are compared with are right."""
    noise = naive.noise(IMAGE.shape, CHUNKS, SEED)
    assert expected["map_blocks"] == as_bytes(IMAGE + noise)
    padded = np.pad(IMAGE, ((1, 1), (0, 0)), "reflect")
    assert expected["map_overlap"] == as_bytes((padded[:-2] + padded[1:-1] + padded[2:]) / 3)
    sums = naive.block_reduce(np.sum, IMAGE, CHUNKS)
    assert expected["sum"] == as_bytes(np.sum(sums))
    assert expected["mean"] == as_bytes(np.sum(sums) / IMAGE.size)


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
def test_every_engine_and_number_of_workers(
    engine: str, workers: int, expected: dict[str, Any]
) -> None:
    """Consecutive and concurrent runs give the same bytes."""
    with shmpar.Pool(workers, engine=engine) as pool:
        for name, call in CALLS.items():
            assert as_bytes(call(pool, unchanged)) == expected[name], name
        for name, reduce in REDUCTIONS.items():
            assert as_bytes(reduce(pool)) == expected[name], name
        runs = [
            pool.map_blocks(noisy, IMAGE, chunks=CHUNKS, seed=SEED, wait=False) for _ in range(3)
        ]
        assert {as_bytes(run.result(timeout=60)) for run in runs} == {expected["map_blocks"]}


def die_once(marker: Path) -> None:
    """Kill this process, unless this function has already killed one."""
    with contextlib.suppress(FileExistsError):
        marker.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(func: Callable[..., Any], marker: Path) -> Callable[..., Any]:
    """Wrap the function, so that the first worker that gets the fatal chunk dies."""

    @functools.wraps(func)
    def wrapper(block: np.ndarray, *args: Any, **keywords: Any) -> Any:
        if MARK in block:
            die_once(marker)
        return func(block, *args, **keywords)

    return wrapper


@pytest.mark.parametrize("workers", MORTAL)
def test_the_result_after_the_death_of_a_worker(
    workers: int, expected: dict[str, Any], tmp_path: Path
) -> None:
    """The chunks of a dead worker are computed again with the same random numbers."""
    with shmpar.Pool(workers) as pool:
        for name, call in CALLS.items():
            marker = tmp_path / name
            got = call(pool, lambda func, marker=marker: mortal(func, marker))
            assert as_bytes(got) == expected[name], name
            assert pool.last_run.report.deaths == 1, name


def die_in_the_fatal_chunk(folder: Path) -> None:
    """Let a worker die when a reduction first reduces the fatal chunk.

    A profile hook detects the chunk, since a test cannot wrap the functions of a reduction.
    """

    def hook(frame: FrameType, event: str, _arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in {"sum", "_moments"}:
            block = frame.f_locals[code.co_varnames[0]]
            if isinstance(block, np.ndarray) and block.size and block.flat[0] == MARK:
                die_once(folder / code.co_name)

    sys.setprofile(hook)


@pytest.mark.parametrize("workers", MORTAL)
def test_the_result_of_a_reduction_after_the_death_of_a_worker(
    workers: int, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Partial results are combined in the order of the chunks, on any workers."""
    watching = {"initializer": die_in_the_fatal_chunk, "initargs": (tmp_path,)}
    with shmpar.Pool(workers, **watching) as pool:
        for name in ("mean", "std"):
            for seen in ("sum", "_moments"):
                (tmp_path / seen).unlink(missing_ok=True)
            assert as_bytes(REDUCTIONS[name](pool)) == expected[name], name
            assert pool.last_run.report.deaths == 1, name

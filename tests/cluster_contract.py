"""Calls of all verbs that must give the same bytes on a cluster and on a local pool."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import shmpar

Call = Callable[[shmpar.Pool], Any]

IMAGE = np.random.default_rng(7).random((70, 53))
WIDE = np.random.default_rng(8).normal(size=(6, 40, 30)).astype("f4")


def processes(count: int) -> ProcessPoolExecutor:
    """Make an executor whose processes inherit nothing."""
    made = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("forkserver"))
    # Why: a test in which they start would seem to leave them behind.
    for call in [made.submit(os.getpid) for _ in range(count)]:
        call.result()
    return made


def smooth(block: np.ndarray) -> np.ndarray:
    """Add the neighbours along both axes, in an order in which floats do not commute."""
    total = block.copy()
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            total += np.roll(block, shift, axis) / 3
    return total


def placed(block: np.ndarray, block_id: Any, block_info: Any) -> np.ndarray:
    """Return numbers that tell the chunk and its place."""
    start = block_info[0]["array-location"][0][0]
    chunks = block_info[None]["num-chunks"]
    return block + 1000 * block_id[0] + 100 * block_id[1] + start + chunks[0]


def noisy(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise of the chunk's stream."""
    return block + rng.normal(size=block.shape)


def extremes(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two outputs."""
    return block.min(axis=0), block > 0.5


def described(block: np.ndarray, block_id: Any) -> dict[str, Any]:
    """Return an object."""
    return {"id": block_id, "sum": float(block.sum()), "large": block[:1].copy()}


def nothing(row: np.ndarray) -> None:
    """Return nothing."""


def warned(block: np.ndarray) -> np.ndarray:
    """Emit a warning."""
    warnings.warn("cluster says so", RuntimeWarning, stacklevel=1)
    return block


def often_bad(block: np.ndarray, block_id: Any) -> np.ndarray:
    """Raise on every third chunk."""
    if sum(block_id) % 3 == 1:
        raise ValueError(f"bad {block_id}")
    return block * 2


def failures(pool: shmpar.Pool) -> Any:
    """Return the texts of collected errors."""
    try:
        pool.map_blocks(often_bad, IMAGE, chunks=20, on_error="collect")
    except ExceptionGroup as group:
        return [str(error) for error in group.exceptions]
    raise AssertionError


def with_out(pool: shmpar.Pool) -> Any:
    """Write into a plain array, a shared array and a file."""
    plain, shared = np.zeros(IMAGE.shape), pool.zeros(IMAGE.shape)
    pool.map_blocks(np.sqrt, IMAGE, chunks=20, out=plain)
    pool.map_blocks(np.exp, IMAGE, chunks=20, out=shared)
    return plain, np.array(shared)


def captured(pool: shmpar.Pool) -> Any:
    """Use a large array that the function has captured, and change it."""
    table = np.arange(100_000.0)

    def look_up(block: np.ndarray) -> np.ndarray:
        table[0] = 5
        return table[(block * 1000).astype(int)] + table[0]

    return pool.map_blocks(look_up, IMAGE, chunks=20)


def divided(pool: shmpar.Pool) -> Any:
    """Apply the caller's error state."""
    with np.errstate(divide="ignore", invalid="raise"):
        return pool.map_blocks(lambda block: 1 / (block - block), np.ones((4, 4)), chunks=2)


def filled(pool: shmpar.Pool) -> Any:
    """Fill the windows of failed chunks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pool.map_blocks(often_bad, IMAGE, chunks=20, on_error="fill", fill_value=-1.0)


CALLS: dict[str, Call] = {
    "map_blocks": lambda p: p.map_blocks(smooth, IMAGE, chunks=(16, 9)),
    "map_blocks, Fortran": lambda p: p.map_blocks(smooth, np.asfortranarray(IMAGE), chunks=17),
    "map_blocks, backward": lambda p: p.map_blocks(smooth, IMAGE[::-1, ::2], chunks=17),
    "map_blocks, two inputs": lambda p: p.map_blocks(np.add, IMAGE, IMAGE[:1], chunks=17),
    "map_blocks, broadcast": lambda p: p.map_blocks(
        np.multiply, IMAGE, np.broadcast_to(2.5, IMAGE.shape), chunks=17
    ),
    "map_blocks, drop": lambda p: p.map_blocks(
        lambda b: b.sum(axis=0), WIDE, chunks=(-1, 9, 7), drop_axis=0
    ),
    "map_blocks, new": lambda p: p.map_blocks(
        lambda b: np.stack([b, -b], -1), IMAGE, chunks=20, new_axis=2
    ),
    "map_blocks, dtype": lambda p: p.map_blocks(np.round, IMAGE, chunks=20, dtype="f4"),
    "map_blocks, ids": lambda p: p.map_blocks(placed, IMAGE, chunks=(16, 9)),
    "map_blocks, rng": lambda p: p.map_blocks(noisy, IMAGE, chunks=(16, 9), seed=5),
    "map_blocks, kwargs": lambda p: p.map_blocks(
        np.clip, IMAGE, chunks=20, kwargs={"a_min": 0.2, "a_max": 0.4}
    ),
    "map_blocks, several": lambda p: p.map_blocks(
        lambda b: (b + 1, b > 0.5), IMAGE, chunks=(16, 9), dtype=(float, bool)
    ),
    "map_blocks, no axes": lambda p: p.map_blocks(np.negative, np.array(3.0)),
    "map_blocks, one chunk": lambda p: p.map_blocks(np.sort, IMAGE, chunks=-1),
    "map_overlap": lambda p: p.map_overlap(smooth, IMAGE, depth=2, chunks=(16, 9)),
    **{
        f"map_overlap, {mode}": lambda p, mode=mode: p.map_overlap(
            smooth, IMAGE, depth=(3, 2), boundary=mode, chunks=(11, 13)
        )
        for mode in ("reflect", "mirror", "nearest", "periodic", 4.5)
    },
    "map_overlap, deep": lambda p: p.map_overlap(
        smooth, IMAGE[:9], depth=20, boundary="reflect", chunks=4
    ),
    "block_reduce": lambda p: p.block_reduce(np.sum, IMAGE, chunks=(16, 9)),
    "block_reduce, several": lambda p: p.block_reduce(
        lambda b: (b.mean(), b.std()), WIDE, chunks=(2, 9, 7)
    ),
    "block_reduce, objects": lambda p: p.block_reduce(
        described, IMAGE, chunks=(16, 19), dtype=object
    ).tolist(),
    "parallel_map": lambda p: p.parallel_map(np.linalg.norm, IMAGE),
    "parallel_map, rows": lambda p: p.parallel_map(np.sort, IMAGE, axis=1),
    "parallel_map, scalars": lambda p: p.parallel_map(
        lambda one: str(type(one)), np.arange(5.0), dtype=object
    ).tolist(),
    "parallel_map, items": lambda p: p.parallel_map(lambda n: [n, str(n)], range(40)),
    "parallel_map, nothing": lambda p: p.parallel_map(nothing, IMAGE),
    "apply_along_axis": lambda p: p.apply_along_axis(np.cumsum, 1, WIDE),
    **{
        f"reduction, {name}": lambda p, name=name: getattr(p, name)(WIDE, axis=1)
        for name in ("sum", "mean", "var", "std", "min", "max")
    },
    "reduction, all axes": lambda p: p.mean(IMAGE, chunks=9),
    "histogram": lambda p: p.histogram(IMAGE, bins=11),
    "failures": failures,
    "filled": filled,
    "out": with_out,
    "captured": captured,
    "error state": divided,
    "submit": lambda p: [f.result() for f in [p.submit(pow, n, 2) for n in range(9)]],
    "map": lambda p: list(p.map(divmod, range(20), [3] * 20, chunksize=4)),
    "empty": lambda p: p.map_blocks(np.negative, np.empty((0, 3)), dtype=float),
}


def leaves(value: Any) -> Iterator[Any]:
    """Yield the parts of a result in which two results can differ."""
    if isinstance(value, np.ndarray | np.generic):
        yield value.shape, value.dtype.str, np.ascontiguousarray(value).tobytes()
    elif isinstance(value, tuple | list):
        yield type(value), len(value)
        for one in value:
            yield from leaves(one)
    elif isinstance(value, dict):
        yield list(value)
        for one in value.values():
            yield from leaves(one)
    else:
        yield value


def check_call(name: str, cluster: shmpar.Pool, local: shmpar.Pool) -> None:
    """Compare the results of a call bit by bit."""
    found, due = list(leaves(CALLS[name](cluster))), list(leaves(CALLS[name](local)))
    assert found == due, name


def wait_for_hosts(pool: shmpar.Pool, hosts: int) -> None:
    """Make calls until so many hosts have taken part."""
    seen: set[int] = set()
    while len(seen) < hosts:
        seen.update(pool.parallel_map(_host, range(40), dtype=object))
    pool._last_run = None


def _host(_: int) -> int:
    time.sleep(0.01)  # Why: a host that is slower to start takes part too.
    return os.getppid()


def lose_host(
    pool: shmpar.Pool,
    folder: Path,
    chance: random.Random,
    lose: Callable[[], object],
    out: str | None = None,
) -> tuple[bool, int]:
    """Lose a host at a random moment of a run of 128 chunks, and check the result.

    Parameters
    ----------
    folder : Path
        Made if it is not there; hosts see it.
    lose : callable
        Takes the host away.
    out : str or None
        A store for the result.

    Returns
    -------
    (bool, int)
        Whether the run was not over at that moment, and the calls of its function.
    """
    folder.mkdir(exist_ok=True)
    record = folder / "calls"
    record.unlink(missing_ok=True)
    image = np.arange(256 * 16.0).reshape(256, 16)

    def work(block: np.ndarray, block_id: Any) -> np.ndarray:
        with open(record, "a", encoding="ascii") as file:
            file.write(f"{block_id[0]}\n")
        time.sleep(0.02)
        return block + 1

    run = pool.map_blocks(work, image, chunks=(2, 16), dtype=float, wait=False, out=out)
    until = chance.random() * 96
    while run.progress[0] < until:
        time.sleep(0.005)
    running = not run.done()
    lose()
    found = run.result(60)
    assert np.array_equal(found[...], image + 1)
    calls = record.read_text().split()
    assert len(set(calls)) == 128
    # Why this bound: with two hosts a span has an eighth of the chunks that are left.
    assert len(calls) <= 128 + 128 // 8, len(calls)
    return running, len(calls)


def kill_one(client: Any, chance: random.Random) -> None:
    """Kill the process of a worker of Dask that is there."""
    pids = list(client.run(os.getpid, on_error="ignore").values())
    os.kill(chance.choice(pids), signal.SIGKILL)


def kill_host(_block: Any = None) -> None:
    """Kill the process that is the host of this worker."""
    os.kill(os.getppid(), 9)

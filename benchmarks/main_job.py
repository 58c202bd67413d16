"""The main job against bare processes and ``multiprocessing.Pool``, in one run each."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory

import numpy as np

import shmpar
from benchmarks.bare import bare
from benchmarks.pss import peak_pss, pss
from benchmarks.timing import alternate, ratio, table

WORKERS = 2

_shared: dict[str, np.ndarray] = {}


@contextmanager
def _fork_pool():
    """A warm pool of the standard library, forked now: it sees what `_shared` holds."""
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        pool.map(abs, range(WORKERS))
        yield pool


def copy_in(*, quick: bool) -> None:
    """shmpar.array(x) against view[:] = x into a fresh SharedMemory (aim: 1.75x or more)."""
    source = np.ones((10 if quick else 800) * 125_000)

    def idiom() -> None:
        memory = SharedMemory(create=True, size=source.nbytes)
        try:
            view = np.ndarray(source.shape, source.dtype, buffer=memory.buf)
            view[:] = source
            del view
        finally:
            memory.close()
            memory.unlink()

    def ours() -> None:
        with shmpar.array(source):
            pass

    times = alternate({"view[:] = x": idiom, "shmpar.array(x)": ours}, 3 if quick else 9)
    print(table(times))
    print(f"  bandwidth: {ratio(times, 'view[:] = x', 'shmpar.array(x)'):.2f}x")


def _sum_row(number: int) -> float:
    return np.sum(_shared["rows"][number])


def tiny_rows(*, quick: bool) -> None:
    """parallel_map(np.sum) on 20,000 rows of 16 against Pool.map over a shared array."""
    rows = shmpar.array(np.random.default_rng(0).normal(size=(2_000 if quick else 20_000, 16)))
    _shared["rows"] = rows.view(np.ndarray)
    numbers = range(len(rows))
    out = shmpar.empty(len(rows))
    plain, plain_out = rows.view(np.ndarray), out.view(np.ndarray)

    def loop(worker: int, workers: int) -> None:
        for number in range(worker, len(plain), workers):
            plain_out[number] = np.sum(plain[number])

    with _fork_pool() as theirs, bare(loop, WORKERS) as ceiling, shmpar.Pool(WORKERS) as pool:
        systems = {
            "shmpar": lambda: pool.parallel_map(np.sum, rows),
            "Pool.map": lambda: theirs.map(_sum_row, numbers),
            "bare processes": ceiling,
        }
        batches = {f"Pool.map, {len(rows) // n:,} a batch": len(rows) // n for n in (100, 20, 4, 2)}
        for name, size in batches.items():
            systems[name] = lambda size=size: theirs.map(_sum_row, numbers, size)
        assert np.array_equal(systems["shmpar"](), systems["Pool.map"]())
        times = alternate(systems, 5 if quick else 45)
    print(table(times))
    print(f"  faster than Pool.map: {ratio(times, 'Pool.map', 'shmpar'):.2f}x")
    best = min(("Pool.map", *batches), key=lambda name: statistics.median(times[name]))
    print(f"  faster than {best}, its best: {ratio(times, best, 'shmpar'):.2f}x")
    print(f"  of the ceiling: {ratio(times, 'bare processes', 'shmpar'):.3f}")


def _tile(image: np.ndarray, number: int, side: int) -> tuple[float, float]:
    across = image.shape[1] // side
    top, left = side * (number // across), side * (number % across)
    block = image[top : top + side, left : left + side]
    return block.mean(), block.std()


def _shared_tile(number: int) -> tuple[float, float]:
    return _tile(_shared["image"], number, 100)


def tiles(*, quick: bool) -> None:
    """block_reduce of mean and std over 10,000 tiles of 100 x 100 (aim: 0.93 of the ceiling)."""
    side = 1_000 if quick else 10_000
    image = shmpar.array(np.random.default_rng(0).normal(size=(side, side)))
    _shared["image"] = plain = image.view(np.ndarray)
    count = (side // 100) ** 2
    out = shmpar.empty((2, count)).view(np.ndarray)

    def loop(worker: int, workers: int) -> None:
        for number in range(worker * count // workers, (worker + 1) * count // workers):
            out[:, number] = _tile(plain, number, 100)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return pool.block_reduce(lambda tile: (tile.mean(), tile.std()), image, chunks=(100, 100))

    with _fork_pool() as theirs, bare(loop, WORKERS) as ceiling, shmpar.Pool(WORKERS) as pool:
        systems: dict[str, Callable[[], object]] = {
            "shmpar": ours,
            "Pool.map": lambda: theirs.map(_shared_tile, range(count)),
            "bare processes": ceiling,
        }
        ceiling()
        assert np.array_equal(np.stack(ours()).reshape(2, -1), out)
        times = alternate(systems, 3 if quick else 21)
    print(table(times))
    print(f"  of the ceiling: {ratio(times, 'bare processes', 'shmpar'):.3f}")
    print(f"  faster than Pool.map: {ratio(times, 'Pool.map', 'shmpar'):.2f}x")


def uneven_rows(*, quick: bool) -> None:
    """Rows whose cost varies 500-fold and clusters at the end (aim: 0.96 of the ceiling)."""
    count = 400 if quick else 4_000
    work = np.ones(count, dtype=np.int64)
    work[-count // 10 :] = 500
    costs = shmpar.array(work[:, None])
    plain = costs.view(np.ndarray)
    out = shmpar.empty(count).view(np.ndarray)

    def burn(row: np.ndarray) -> float:
        total = 0.0
        for step in range(int(row[0]) * 40):
            total += step * 1e-9
        return total

    def loop(worker: int, workers: int) -> None:
        for number in range(worker, count, workers):
            out[number] = burn(plain[number])

    with bare(loop, WORKERS) as ceiling, shmpar.Pool(WORKERS) as pool:
        ceiling()
        assert np.array_equal(pool.parallel_map(burn, costs), out)
        systems = {"shmpar": lambda: pool.parallel_map(burn, costs), "bare processes": ceiling}
        times = alternate(systems, 3 if quick else 25)
    print(table(times))
    print(f"  of the ceiling: {ratio(times, 'bare processes', 'shmpar'):.3f}")


def floor(*, quick: bool) -> None:
    """A warm call on an array of two chunks, in bursts of 50 (aim: 0.5 ms or less).

    Where other guests share the processors, a loop of plain Python takes up to twice its time:
    one runs in each round, to tell a slow call from a slow moment.
    """
    burst = 50  # what is warm is not what follows a rest
    with _fork_pool() as theirs, shmpar.Pool(WORKERS) as pool:
        array = pool.array(np.arange(10.0))

        def ours() -> None:
            for _ in range(burst):
                pool.map_blocks(np.negative, array, chunks=5)

        def plain() -> None:
            for number in range(100_000):
                str(number)

        def pool_map() -> None:
            for _ in range(burst):
                theirs.map(abs, (1, 2), chunksize=1)

        systems = {"plain Python": plain, "shmpar": ours, "Pool.map": pool_map}
        times = alternate(systems, 5 if quick else 100)
    print(table(times, 1e6 / burst, "us a call"))
    print(f"  faster than Pool.map: {ratio(times, 'Pool.map', 'shmpar'):.2f}x")
    fastest = min(times["plain Python"])
    full_speed = fastest * ratio(times, "shmpar", "plain Python")
    print(
        "  shmpar while this machine runs at its full speed, by the loop of plain Python in the "
        f"same round: {full_speed * 1e6 / burst:.0f} us"
    )


def memory(*, quick: bool) -> None:
    """Proportional set size of all processes of a run, beyond input and output, a worker."""
    array = np.ones((20 if quick else 400, 125_000))
    before = pss([os.getpid()]) - array.nbytes
    with shmpar.Pool(WORKERS) as pool:
        shared = pool.array(array)
        del array
        everything = [os.getpid(), *pool._driver.engine.pids()]  # noqa: SLF001
        run = pool.map_blocks(lambda block: block + 1, shared, chunks=(1, -1), wait=False)
        peak = peak_pss(run, everything)
        due = 2 * shared.nbytes
    print(
        f"  input + output {due / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, parent before "
        f"{before / 1e6:.0f} MB"
    )
    print(f"  beyond both: {(peak - due - before) / WORKERS / 1e6:.1f} MB a worker")


ALL = {
    "copy_in": copy_in,
    "tiny_rows": tiny_rows,
    "tiles": tiles,
    "uneven_rows": uneven_rows,
    "floor": floor,
    "memory": memory,
}

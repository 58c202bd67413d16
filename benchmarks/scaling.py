"""Measurements with one worker up to one per core."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import shmpar
from benchmarks.harness import alternate, cores

BUSY = 0.002  # seconds of the processor for a chunk
BAND = 64  # rows of a chunk of the square roots
COLUMNS = ("efficiency", "mp.Pool's", "sqrt GB/s", "threads'", "us a row", "us an item", "floor us")


def scaling(*, quick: bool) -> None:
    """Chunks of 2 ms, square roots, small rows, items and the floor, with 1, 2, 4, ... workers."""
    chunks, rows, width, count = (64, 256, 256, 1_000) if quick else (512, 4_096, 65_536, 100_000)
    small = shmpar.array(np.zeros((chunks, 8)))
    large = shmpar.array(np.random.default_rng(0).random((rows, width)))
    many = shmpar.array(np.zeros((3 * count, 16)))
    ideal, moved = chunks * BUSY, 2 * large.nbytes / 1e9
    print(f"  efficiency: chunks of {BUSY * 1e3:.0f} ms, ideal time / time")
    print(f"  square roots of {large.nbytes / 1e6:.0f} MB into a fresh output, read and written")
    print("  workers" + "".join(f"{name:>12}" for name in COLUMNS))
    workers = 1
    while workers <= cores():
        with shmpar.Pool(workers) as pool:
            pool.map_blocks(np.negative, small, chunks=(1, 8))
            figures = [
                ideal / workers / _seconds(lambda: pool.map_blocks(_work, small, chunks=(1, 8)))
            ]
            with multiprocessing.get_context("fork").Pool(workers) as theirs:
                spent = _seconds(lambda: theirs.map(_work, range(chunks), chunksize=1))
            figures.append(ideal / workers / spent)
            roots = partial(pool.map_blocks, np.sqrt, large, chunks=(BAND, width))
            figures.append(moved / _seconds(roots))
            with ThreadPoolExecutor(workers) as threads:
                figures.append(moved / _seconds(partial(_roots, threads, large)))
            figures.append(_seconds(lambda: pool.parallel_map(np.sum, many)) / len(many) * 1e6)
            figures.append(_seconds(lambda: list(pool.map(abs, range(count)))) / count * 1e6)
            nothing = partial(pool.map_blocks, np.negative, small, chunks=(chunks // workers, 8))
            figures.append(_seconds(nothing, 300) * 1e6)
        print(f"  {workers:7}" + "".join(f"{one:12.4g}" for one in figures), flush=True)
        workers *= 2


def _work(value: np.ndarray | int) -> np.ndarray | int:
    """Use the processor for a while; return the value."""
    end = time.thread_time() + BUSY
    while time.thread_time() < end:
        pass
    return value


def _roots(threads: ThreadPoolExecutor, array: np.ndarray) -> np.ndarray:
    """Write the square roots into a new array, a band of rows at a time."""
    out = np.empty_like(array)
    bands = [slice(first, first + BAND) for first in range(0, len(array), BAND)]
    list(threads.map(lambda band: np.sqrt(array[band], out=out[band]), bands))
    return out


def _seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Return the median time of a call, after a first one."""
    return statistics.median(alternate({"call": call}, rounds)["call"])

"""Chunks of known cost: the part of the ceiling's speed that is left, and growth with workers."""

from __future__ import annotations

import functools
import time
import zlib

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near

CHUNKS = {  # microseconds per chunk: number of chunks
    "smoke": {10: 40},
    "quick": {10: 4_000, 100: 1_000, 1_000: 100},
    "full": {1: 20_000, 10: 20_000, 100: 4_000, 1_000: 400, 10_000: 80, 100_000: 20},
}
WORKERS = {  # workers: number of chunks
    "smoke": dict.fromkeys((1, 3), 8),
    "quick": dict.fromkeys((1, 4), 100),
    "full": dict.fromkeys((1, 2, 4, 8, 16), 400),
}
PEERS = ("threads", "pool", "executor", "joblib", "mpire", "dask_threads")

_BUFFER = memoryview(bytes(1 << 16))


def burn(amount: int) -> int:
    """Return the checksum of so many bytes of a small buffer.

    This is work of known length that needs no memory bandwidth and lets other threads run.
    """
    whole, rest = divmod(amount, len(_BUFFER))
    value = 0
    for _ in range(whole):
        value = zlib.crc32(_BUFFER, value)
    return zlib.crc32(_BUFFER[:rest], value)


def burn_block(block: np.ndarray) -> int:
    """Burn the amount that the block's number gives."""
    return burn(int(block[0, 0]))


@functools.cache
def bytes_per_microsecond() -> float:
    """Return how many bytes `burn` does in a microsecond on this machine, undisturbed."""
    amount, best = 1 << 16, float("inf")
    for _ in range(300):
        began = time.perf_counter()
        burn(amount)
        best = min(best, time.perf_counter() - began)
    return amount / best / 1e6


def point(cost: int, chunks: int) -> Point:
    """Return the point of so many chunks of so many microseconds."""
    amount = round(cost * bytes_per_microsecond())
    return {"cost_us": cost, "chunks": chunks, "amount": amount}


def job(point: Point) -> Job:
    """Make each number a chunk; the number is the amount of work."""
    return Job(
        "chunk_cost", "tiles", (burn_block,), (point["chunks"], 1), (1, 1), "i8", out_dtype="i8"
    )


def fill(array: np.ndarray, point: Point) -> None:
    """Give all chunks the same amount of work."""
    array.fill(point["amount"])


def verify(answer: np.ndarray, _: np.ndarray, point: Point) -> None:
    """Compare with the known checksum."""
    near(answer, np.full(point["chunks"], burn(point["amount"])))


WORKLOADS = {
    "chunk_cost": Workload(
        "cost of a chunk from 1 µs to 100 ms",
        lambda size: [point(cost, chunks) for cost, chunks in CHUNKS[size].items()],
        job,
        fill,
        verify,
        per_chunk=True,
        ways=("same",),
        rounds=30,
        seconds=3.0,
    ),
    "workers": Workload(
        "1 to 16 workers, chunks of 1 ms",
        lambda size: [{"workers": n, **point(1_000, WORKERS[size][n])} for n in WORKERS[size]],
        job,
        fill,
        verify,
        systems=("ours", "ceiling", *PEERS),
        others="start a cluster per number of workers, or have no workers of their own",
        ways=("same",),
        rounds=7,
        seconds=0.6,
    ),
}

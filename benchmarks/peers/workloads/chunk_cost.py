"""Overhead against the cost of a chunk: how much of the ceiling is left."""

from __future__ import annotations

import functools
import time

import numpy as np

from benchmarks.peers.functions import burn, burn_block
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near

CHUNKS = {  # microseconds a chunk: how many
    "smoke": {10: 40},
    "quick": {10: 4_000, 100: 1_000, 1_000: 100},
    "full": {1: 20_000, 10: 20_000, 100: 4_000, 1_000: 400, 10_000: 80, 100_000: 20},
}


@functools.cache
def bytes_a_microsecond() -> float:
    """How many bytes `burn` does in a microsecond here, undisturbed."""
    amount, best = 1 << 16, float("inf")
    for _ in range(300):
        began = time.perf_counter()
        burn(amount)
        best = min(best, time.perf_counter() - began)
    return amount / best / 1e6


def points(size: str) -> list[Point]:
    """From a microsecond to a tenth of a second."""
    rate = bytes_a_microsecond()
    return [
        {"cost_us": cost, "chunks": chunks, "amount": round(cost * rate)}
        for cost, chunks in CHUNKS[size].items()
    ]


def job(point: Point) -> Job:
    """A number is a chunk, and says how long."""
    return Job(
        "chunk_cost", "tiles", (burn_block,), (point["chunks"], 1), (1, 1), "i8", out_dtype="i8"
    )


def fill(array: np.ndarray, point: Point) -> None:
    """All alike."""
    array.fill(point["amount"])


def verify(answer: np.ndarray, _: np.ndarray, point: Point) -> None:
    """The checksum is known."""
    near(answer, np.full(point["chunks"], burn(point["amount"])))


THIS = Workload(
    "cost of a chunk from 1 µs to 100 ms",
    points,
    job,
    fill,
    verify,
    per_chunk=True,
    ways=("same",),
    rounds=30,
    seconds=3.0,
)

"""What every workload says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.job import Job

Point = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A map, at one or several points (sizes, costs), and how to know the right answer.

    ``points`` gives what is measured at a size ("smoke", "quick", "full"); a point is JSON, has
    the number of "chunks" and whatever else ``job``, ``fill`` and ``verify`` need to know.
    """

    title: str
    points: Callable[[str], list[Point]]
    job: Callable[[Point], Job] | None = None
    fill: Callable[[np.ndarray, Point], None] | None = None
    verify: Callable[[np.ndarray, np.ndarray, Point], None] | None = None
    systems: tuple[str, ...] | None = None  # None: all
    others: str = ""  # why not all
    ways: tuple[str, ...] = ("same", "own")  # those that mean the same work
    per_chunk: bool = False  # the figure is the cost a chunk: slow systems get fewer chunks
    how: str = "time"  # or "memory" or "cold": what is measured
    rounds: int = 15  # at most
    seconds: float = 1.0  # that a system's rounds may take, in a full run
    sittings: int = 1  # with new processes each, in a full run
    longest: float = 0.0  # a call that is made however long others of the run may take


def pattern(array: np.ndarray, _: Point) -> None:
    """Fill with positive numbers that differ from row to row, in little time."""
    columns = (np.arange(array.shape[1]) * 7919 % 1009 / 1009).astype(array.dtype)
    for number, row in enumerate(array):
        np.add(columns, number % 97, out=row)


def near(answer: np.ndarray, expected: np.ndarray) -> None:
    """Complain if an answer is not right, to rounding."""
    if answer.shape != expected.shape:
        raise AssertionError(f"the answer has shape {answer.shape}, not {expected.shape}")
    tolerance = 1e-9 if answer.dtype.itemsize == 8 else 1e-4
    if not np.allclose(answer, expected, rtol=tolerance, atol=tolerance):
        raise AssertionError("the answer is wrong")

"""The measured workloads: files with a dict of `WORKLOADS`, and their common records."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# In the order of a run. Small workloads come before others have filled the memory, and the
# memory of a system is measured in processes that have done nothing else.
MODULES = {
    "floor": "nothing",
    "cold": "cold",
    "memory": "halo",
    "chunk_cost": "chunk_cost",
    "many_chunks": "nothing",
    "tiny_rows": "row_sums",
    "row_sums": "row_sums",
    "tiles": "blocks",
    "python_rows": "python_rows",
    "uneven_rows": "python_rows",
    "gaussian": "halo",
    "ufunc": "blocks",
    "chain": "blocks",
    "copy_in": "blocks",
    "workers": "chunk_cost",
    "bytes": "row_sums",
}
NAMES = tuple(MODULES)

Region = tuple[slice, slice]
Point = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The request of a workload to a system: a map over a two-dimensional array.

    ``kind`` is "rows" (a value per row), "tiles" (one or several values per chunk), "blocks" (a
    block per chunk, by each function of `funcs` in turn), "halo" (the same with neighbours) or
    "copy". A job can be pickled, so that workers can have it.
    """

    name: str
    kind: str
    funcs: tuple[Callable[..., Any], ...]
    shape: tuple[int, int]
    chunks: tuple[int, int]
    dtype: str = "f8"
    out_dtype: str = "f8"
    outputs: int = 1
    depth: int = 0
    whole: Callable[[np.ndarray], Any] | None = None  # an expression for the whole array
    banded: bool = False  # a program by hand would use that expression for a band of rows too

    def __len__(self) -> int:
        """Return the number of chunks or rows."""
        high, wide = self.grid
        return high * wide

    @property
    def grid(self) -> tuple[int, int]:
        """Chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the input and of all outputs."""
        stages = 0 if self.kind == "copy" else len(self.funcs)
        output = math.prod(self.out_shape) * np.dtype(self.out_dtype).itemsize
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize + stages * output

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the answer, in which all systems' answers are compared."""
        if self.kind in {"rows", "tiles"}:
            return (len(self),) if self.outputs == 1 else (self.outputs, len(self))
        return self.shape

    def in_bands(self, workers: int) -> Job:
        """Return the same job in four bands of rows per worker, as one would cut it by hand."""
        return replace(self, chunks=(max(1, -(-self.shape[0] // (4 * workers))), self.shape[1]))

    def spans(self, workers: int) -> list[range]:
        """Return all chunk numbers in four ranges per worker."""
        step = max(1, -(-len(self) // (4 * workers)))
        return [range(at, min(at + step, len(self))) for at in range(0, len(self), step)]

    def regions(self, number: int) -> tuple[Region, Region, Region]:
        """Return the region that a chunk reads, the one it writes, and its place in the first."""
        reads, writes, inner = [], [], []
        place = divmod(number, self.grid[1])
        for index, size, length in zip(place, self.chunks, self.shape, strict=True):
            first, last = index * size, min((index + 1) * size, length)
            low = max(0, first - self.depth)
            reads.append(slice(low, min(length, last + self.depth)))
            writes.append(slice(first, last))
            inner.append(slice(first - low, last - low))
        return tuple(reads), tuple(writes), tuple(inner)

    def valuer(self, array: np.ndarray) -> Callable[[int], Any]:
        """Return a function of a number that gives the value of that row or tile."""
        (func,) = self.funcs
        if self.kind == "rows":
            return lambda number: func(array[number])
        (high, wide), across = self.chunks, self.grid[1]

        def value(number: int) -> Any:
            top, left = number // across * high, number % across * wide
            return func(array[top : top + high, left : left + wide])

        return value

    def spanner(
        self, array: np.ndarray, out: np.ndarray, stage: int = 0, way: str = "same"
    ) -> Callable[[Iterable[int]], None]:
        """Return a function that computes all chunks of a range, in the shortest possible loop."""
        func = self.funcs[stage]

        def band(numbers: range) -> None:
            rows = slice(numbers.start, numbers.stop)
            out[rows] = self.whole(array[rows])

        def rows(numbers: Iterable[int]) -> None:
            for number in numbers:
                out[number] = func(array[number])

        def tiles(numbers: Iterable[int]) -> None:
            (high, wide), across = self.chunks, self.grid[1]
            into = out if self.outputs == 1 else out.T
            for number in numbers:
                top, left = number // across * high, number % across * wide
                into[number] = func(array[top : top + high, left : left + wide])

        def blocks(numbers: Iterable[int]) -> None:
            for number in numbers:
                read, write, inner = self.regions(number)
                if isinstance(func, np.ufunc):
                    func(array[read], out=out[write])
                else:
                    out[write] = func(array[read])[inner]

        if self.banded and way == "own":
            return band
        return {"rows": rows, "tiles": tiles}.get(self.kind, blocks)


@dataclass(frozen=True)
class Workload:
    """A map at one or several points (sizes, costs), and a check of its answers.

    ``points`` returns the points of a size ("smoke", "quick", "full"). A point is JSON; it has the
    number of "chunks" and everything else that ``job``, ``fill`` and ``verify`` need.
    """

    title: str
    points: Callable[[str], list[Point]]
    job: Callable[[Point], Job] | None = None
    fill: Callable[[np.ndarray, Point], None] | None = None
    verify: Callable[[np.ndarray, np.ndarray, Point], None] | None = None
    systems: tuple[str, ...] | None = None  # None: all
    others: str = ""  # the reason if systems are left out
    ways: tuple[str, ...] = ("same", "own")  # those that mean the same work
    per_chunk: bool = False  # the figure is the cost per chunk: slow systems get fewer chunks
    how: str = "time"  # or "memory" or "cold"
    rounds: int = 15  # at most
    seconds: float = 1.0  # time that a system's rounds may take, in a full run
    restarts: int = 1  # starts of all processes in a full run
    longest: float = 0.0  # a call of so many seconds is made although others would be skipped


def sizes(
    point: Callable[[Any], Point],
    *,
    smoke: Sequence[Any],
    quick: Sequence[Any],
    full: Sequence[Any],
) -> Callable[[str], list[Point]]:
    """Return the points of each size: a point for each value."""
    values = {"smoke": smoke, "quick": quick, "full": full}
    return lambda size: [point(value) for value in values[size]]


def rows(count: int) -> Point:
    """Return the point of so many rows, each of them a chunk."""
    return {"chunks": count}


# Inputs and checks ----------------------------------------------------------------------------


def pattern(array: np.ndarray, _: Point) -> None:
    """Fill an array fast with positive numbers that differ from row to row."""
    numbers = (np.arange(array.shape[1]) * 7919 % 1009 / 1009).astype(array.dtype)
    for number, row in enumerate(array):
        np.add(numbers, number % 97, out=row)


def near(answer: np.ndarray, expected: np.ndarray) -> None:
    """Raise an error unless the answer is right, apart from rounding."""
    if answer.shape != expected.shape:
        raise AssertionError(f"the answer has shape {answer.shape}, not {expected.shape}")
    tolerance = 1e-9 if answer.dtype.itemsize == 8 else 1e-4
    if not np.allclose(answer, expected, rtol=tolerance, atol=tolerance):
        raise AssertionError("the answer is wrong")


def columns(values: Any) -> np.ndarray:
    """Return values of rows or tiles as an array with a line for each output."""
    if isinstance(values, tuple):
        return np.stack([np.ravel(one) for one in values])
    array = np.asarray(values)
    return array.T if array.ndim == 2 else array


# Functions of several workloads; all systems can send a module's function by name --------------


def corner(block: np.ndarray) -> float:
    """Return the first element of a block, as a function that costs next to nothing."""
    return block[0, 0]


def sum_rows(array: np.ndarray) -> np.ndarray:
    """Sum all rows in one expression."""
    return array.sum(axis=1)


def logistic(row: np.ndarray) -> float:
    """Iterate a map in pure Python; the row gives the start and the number of steps."""
    x = float(row[0])
    for _ in range(int(row[1])):
        x = 3.7 * x * (1.0 - x)
    return x


def load(name: str) -> Workload:
    """Return the workload of that name."""
    return importlib.import_module(f"benchmarks.workloads.{MODULES[name]}").WORKLOADS[name]

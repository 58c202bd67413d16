"""What a workload asks of a system: a function, an array's shape, and how it is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Region = tuple[slice, slice]


@dataclass(frozen=True)
class Job:
    """One map over a two-dimensional array; it pickles, so that workers can have it.

    ``kind`` is "rows" (a value a row), "tiles" (a value, or several, a chunk), "blocks" (a block
    a chunk, by each function of `funcs` in turn), "halo" (the same with neighbours) or "copy".
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
    whole: Callable[[np.ndarray], Any] | None = None  # one expression for all of it, if there is
    banded: bool = False  # that expression is also how one would do a band of rows

    def __len__(self) -> int:
        """How many chunks, or rows, there are."""
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
        of_one = math.prod(self.out_shape) * np.dtype(self.out_dtype).itemsize
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize + stages * of_one

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the answer, as all systems' answers are compared."""
        if self.kind in {"rows", "tiles"}:
            return (len(self),) if self.outputs == 1 else (self.outputs, len(self))
        return self.shape

    def in_bands(self, workers: int) -> Job:
        """The same in a few bands of rows a worker, as one would cut it by hand."""
        return replace(self, chunks=(max(1, -(-self.shape[0] // (4 * workers))), self.shape[1]))

    def spans(self, workers: int) -> list[range]:
        """All numbers in a few ranges a worker."""
        step = max(1, -(-len(self) // (4 * workers)))
        return [range(at, min(at + step, len(self))) for at in range(0, len(self), step)]

    def regions(self, number: int) -> tuple[Region, Region, Region]:
        """Where a chunk reads, where it writes, and where in what it read that lies."""
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
        """Return a function that computes all of a range, in a loop as short as one can write."""
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


def columns(values: Any) -> np.ndarray:
    """Values of rows or tiles as one array, a line an output."""
    if isinstance(values, tuple):
        return np.stack([np.ravel(one) for one in values])
    array = np.asarray(values)
    return array.T if array.ndim == 2 else array

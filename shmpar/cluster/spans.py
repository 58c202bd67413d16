"""Spans: the chunks that a host is given at once, as boxes of the grid. Pure arithmetic.

Guarantees
----------
- The boxes of a span hold each of its chunks once, and nothing else.
- The window that is read of an input holds every element that a chunk of the box reads, also those
  that a boundary repeats.
- The cuts of the chunks follow from the data alone, so no result depends on the spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from shmpar.grid import Grid, Mode
from shmpar.grid.halo import fold
from shmpar.plan import Blocks, Plan, Rows, Shape, window_around

Slices = tuple[slice, ...]

SPAN_SECONDS = 0.5
"""Time of a host that a span takes at most."""
LEAST_SECONDS = 0.02  # Why: a shorter span costs more to send than to compute.
SPAN_BYTES = 64 << 20
"""Inputs and outputs in memory that a span takes along at most, in bytes."""
_SHARE = 4  # A span takes at most 1 / (4 x hosts) of the remaining chunks.
_GROWTH = 64  # Why: the first measured time may be that of an exceptional chunk.
_STRIPS = 8  # strips of chunks along an axis with a halo


class Box(NamedTuple):
    """Chunks whose indices fill a box: ``low[k] <= index[k] < high[k]`` on each axis.

    Attributes
    ----------
    low, high : tuple of int
        Bounds of the indices, half-open.
    """

    low: Shape
    high: Shape

    @property
    def size(self) -> int:
        """Number of chunks."""
        return prod([high - low for low, high in zip(self.low, self.high, strict=True)])

    def chunks(self, grid: Grid) -> Sequence[int]:
        """Return the numbers of the chunks, in C order; a range if they are consecutive.

        Examples
        --------
        >>> Box((1, 0), (2, 3)).chunks(Grid.cut((10, 7), (4, 3)))
        range(3, 6)
        >>> Box((0, 1), (2, 3)).chunks(Grid.cut((10, 7), (4, 3)))
        [1, 2, 4, 5]
        """
        if not self.low:
            return range(1)
        first, last = grid.number(self.low), grid.number([high - 1 for high in self.high])
        if last - first + 1 == self.size:
            return range(first, last + 1)
        heads = product(*[range(a, b) for a, b in zip(self.low[:-1], self.high[:-1], strict=True)])
        width = self.high[-1] - self.low[-1]
        found: list[int] = []
        for head in heads:
            start = grid.number((*head, self.low[-1]))
            found.extend(range(start, start + width))
        return found


def boxes(grid: Grid, chunks: Sequence[int]) -> list[Box]:
    """Divide chunks into boxes of the grid.

    Notes
    -----
    Cost: consecutive numbers take a few steps, other chunks some steps each.

    Examples
    --------
    >>> boxes(Grid.cut((10, 7), (4, 3)), range(2, 9))
    [Box(low=(0, 2), high=(1, 3)), Box(low=(1, 0), high=(3, 3))]
    """
    blocks = grid.numblocks
    if not blocks:
        return [Box((), ())]
    first, stop = chunks[0], chunks[0] + len(chunks)
    if isinstance(chunks, range) or [*chunks] == [*range(first, stop)]:
        return [*_consecutive(blocks, first, stop)]
    left = {grid.index(chunk) for chunk in chunks}
    return [_grow(left, start) for start in sorted(left) if start in left]


def _consecutive(blocks: Shape, first: int, stop: int) -> Iterator[Box]:
    """Yield the boxes of the chunks ``first <= number < stop``, in C order."""
    if len(blocks) == 1:
        yield Box((first,), (stop,))
        return
    inner = prod(blocks[1:])
    row, end = -(-first // inner), stop // inner  # those that are whole
    if first < row * inner:
        yield from _within(blocks, row - 1, first, min(stop, row * inner))
    if row < end:
        zeros = (0,) * (len(blocks) - 1)
        yield Box((row, *zeros), (end, *blocks[1:]))
    if row <= end and end * inner < stop:
        yield from _within(blocks, end, end * inner, stop)


def _within(blocks: Shape, row: int, first: int, stop: int) -> Iterator[Box]:
    """Yield the boxes of chunks that lie in one row."""
    begin = row * prod(blocks[1:])
    for low, high in _consecutive(blocks[1:], first - begin, stop - begin):
        yield Box((row, *low), (row + 1, *high))


def _grow(left: set[Shape], start: Shape) -> Box:
    """Return the box of chunks that grows from `start`, and take its chunks from `left`."""
    low, high = list(start), [i + 1 for i in start]
    for axis in reversed(range(len(start))):
        while True:
            sides = [range(a, b) for a, b in zip(low, high, strict=True)]
            sides[axis] = range(high[axis], high[axis] + 1)
            if not left.issuperset(product(*sides)):
                break
            high[axis] += 1
    left.difference_update(product(*[range(a, b) for a, b in zip(low, high, strict=True)]))
    return Box(tuple(low), tuple(high))


def order(plan: Plan) -> tuple[int, ...] | None:
    """Return the chunks in an order in which consecutive ones lie close together.

    None is C order, which is best without a halo: its boxes are runs of memory. With a halo the
    chunks are taken in strips, so that a span is less long and its halo has fewer elements.
    """
    grid, blocks = plan.grid, plan.grid.numblocks
    strips = _strips(plan)
    if not strips:
        return None
    along = max(k for k, count in enumerate(blocks) if count > 1)
    numbers = np.arange(grid.size).reshape(blocks)
    found: list[int] = []
    for begin in product(*[range(0, blocks[k], side) for k, side in strips.items()]):
        where: list[slice] = [slice(None)] * len(blocks)
        for k, first in zip(strips, begin, strict=True):
            where[k] = slice(first, first + strips[k])
        found.extend(np.moveaxis(numbers[tuple(where)], along, 0).reshape(-1).tolist())
    return tuple(found)


def _strips(plan: Plan) -> dict[int, int]:
    """Return the chunks of a strip along each axis but the last that is cut; none for C order."""
    blocks = plan.grid.numblocks
    cut = [k for k, count in enumerate(blocks) if count > 1]
    return {k: max(1, blocks[k] // _STRIPS) for k in cut[:-1]} if plan.halo else {}


def period(plan: Plan) -> int:
    """Return after how many chunks of the order a row or column of chunks is complete."""
    if strips := _strips(plan):
        return prod(strips.values())
    return (plan.grid.numblocks or (1,))[-1]


class Measured(NamedTuple):
    """The measurements by which the size of a span is chosen.

    Attributes
    ----------
    seconds : float or None
        Time of a host per chunk; None before the first span.
    latest : int
        Chunks of the largest span that came back.
    remaining : int
        Chunks that are not done.
    hosts, workers : int
        Number of hosts, and of the workers of each.
    nbytes : float
        Bytes of inputs and outputs that a chunk takes along.
    most : int
        Bytes that a span may take along.
    """

    seconds: float | None
    latest: int
    remaining: int
    hosts: int
    workers: int
    nbytes: float = 0.0
    most: int = SPAN_BYTES


def span_size(now: Measured) -> int:
    """Return the number of chunks of the next span.

    Examples
    --------
    >>> span_size(Measured(None, 0, 1000, 3, 2)), span_size(Measured(0.01, 20, 1000, 3, 2))
    (2, 50)
    >>> span_size(Measured(0.01, 20, 30, 3, 2)), span_size(Measured(1e-4, 50, 100, 3, 1))
    (2, 100)
    """
    most = max(1, int(now.most // max(1.0, now.nbytes)))
    if now.seconds is None:
        return max(1, min(now.workers, most, now.remaining // (_SHARE * now.hosts)))
    wanted = int(SPAN_SECONDS / max(now.seconds, 1e-9))
    least = int(LEAST_SECONDS / max(now.seconds, 1e-9))
    share = max(least, now.remaining // (_SHARE * now.hosts))
    return max(1, min(wanted, share, most, _GROWTH * max(1, now.latest), now.remaining))


def align(first: int, size: int, row: int) -> int:
    """Return the end of a span that begins at `first`: the end of a row, if it reaches one.

    Examples
    --------
    >>> align(3, 10, 8), align(3, 4, 8), align(8, 20, 8)
    (8, 7, 24)
    """
    stop = first + size
    end = stop - stop % row
    return end if end > first else stop


def input_window(plan: Plan, argument: Blocks | Rows, shape: Sequence[int], box: Box) -> Slices:
    """Return the window of an input that the chunks of a box read."""
    if isinstance(argument, Rows):
        return (slice(box.low[0], box.high[0]), *[slice(0, n) for n in shape[1:]])
    window = []
    for number, (axis, size) in enumerate(zip(argument.axes, shape, strict=True)):
        if axis is None:
            window.append(slice(0, size))
            continue
        cut = plan.grid.axes[axis]
        start, stop = cut.span(box.low[axis])[0], cut.span(box.high[axis] - 1)[1]
        if argument.halo is not None:
            (before, after), modes = argument.halo.depth[number], argument.halo.boundary[number]
            start, stop = _with_halo(start - before, stop + after, size, modes)
        window.append(slice(start, stop))
    return tuple(window)


def _with_halo(start: int, stop: int, size: int, modes: Sequence[object]) -> tuple[int, int]:
    """Return the elements that a window reads, as far as it lies beyond the array too."""
    low, high = max(0, start), min(size, stop)
    beyond = ((start, 0, modes[0]), (size, stop, modes[1]))
    for first, last, mode in beyond:
        if first < last and isinstance(mode, Mode) and mode is not Mode.NONE:
            read = fold(np.arange(first, last), size, mode)
            low, high = min(low, int(read.min())), max(high, int(read.max()) + 1)
    return low, high


def output_window(plan: Plan, shape: Sequence[int], box: Box) -> Slices:
    """Return the window of an output of this shape that the chunks of a box write."""
    window_of = plan.placement.windows(plan.grid, tuple(shape))
    first, last = plan.grid.number(box.low), plan.grid.number([high - 1 for high in box.high])
    return window_around(window_of(first), window_of(last), shape)

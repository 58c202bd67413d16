"""Reserve and map the memory of outputs per claim, before the chunks are written.

The memory of an output that a run allocates is reserved by the workers, all at once and a page
before it is written: the page still lies in the cache then. Pages that are reserved already are
mapped, since a write to a page that is not mapped is a fault.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from shmpar.memory.allocate import LazyPages
from shmpar.memory.huge import KINDS
from shmpar.memory.layout import address_of, byte_bounds
from shmpar.memory.segment import Mapping, find_mapping
from shmpar.plan import Plan

Array = np.ndarray[Any, Any]
Reserve = Callable[[Sequence[int]], None]

_MIN_OUTPUT: Final = 1 << 20  # bytes; a smaller output does not gain
_pages: weakref.WeakKeyDictionary[Mapping, LazyPages] = weakref.WeakKeyDictionary()


def reserver(plan: Plan, outputs: Sequence[Array], share: float) -> Reserve | None:
    """Return the function that reserves the windows of the chunks of a claim; None if none gains.

    Parameters
    ----------
    share : float
        The part of the pages of a claim that this worker leaves to others at first.

    Notes
    -----
    Cost of a call: two system calls for each 2 MiB that this process has not written to before.
    """
    pairs = [(output, _shared_mapping(output)) for output in outputs]
    parts = [_reserve_output(plan, output, found, share) for output, found in pairs if found]

    def reserve(chunks: Sequence[int]) -> None:
        for part in parts:
            part(chunks)

    return reserve if parts else None


def _shared_mapping(output: Any) -> Mapping | None:
    """Return the mapping of an output that gains from it."""
    if not isinstance(output, np.ndarray) or output.nbytes < _MIN_OUTPUT:
        return None
    mapping = find_mapping(address_of(output))
    if mapping is None or mapping.segment.private or mapping.segment.kind not in KINDS:
        return None
    return mapping


def _reserve_output(plan: Plan, output: Array, mapping: Mapping, share: float) -> Reserve:
    window_of, itemsize = plan.placement.windows(plan.grid, output.shape), output.itemsize
    segment, start = mapping.segment, mapping.start
    if mapping not in _pages:
        _pages[mapping] = LazyPages(start, segment.size)
    pages = _pages[mapping]
    memory = np.ndarray(segment.size, np.uint8, mapping, mapping.lead)

    def reserve(chunks: Sequence[int]) -> None:
        ends = [(chunks[0], chunks[-1])]
        if chunks[-1] - chunks[0] != len(chunks) - 1:
            # Why: the chunks of a retry lie anywhere, so they have no box of reasonable size.
            ends = [(chunk, chunk) for chunk in chunks]
        for first, last in ends:
            box = output[_box(window_of(first), window_of(last), output.shape)]
            low, high = byte_bounds(box.shape, box.strides, itemsize)
            begin = address_of(box) - start
            for page in pages.missing(begin + low, begin + high, share):
                if not segment.reserved:
                    segment.huge_bytes += pages.reserve(segment.fileno(), page)
                pages.map(memory, page)

    return reserve


def _box(
    first: Sequence[slice | int], last: Sequence[slice | int], shape: Sequence[int]
) -> tuple[slice, ...]:
    """Return the smallest box that contains two windows, on the axes that they name."""
    sides = []
    for one, other, length in zip(first, last, shape, strict=False):
        (low, high), (other_low, other_high) = _bounds(one, length), _bounds(other, length)
        sides.append(slice(min(low, other_low), max(high, other_high)))
    return tuple(sides)


def _bounds(part: slice | int, length: int) -> tuple[int, int]:
    return (part, part + 1) if isinstance(part, int) else part.indices(length)[:2]

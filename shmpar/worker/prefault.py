"""Map the pages of outputs per claim, before the chunks are written.

A process that writes to a page of shared memory for the first time pays a page fault for each page
of 4 KiB. A process that reads pays a single fault for the 64 KiB around the page, as far as they
hold data, and may then write to all of them. So this module reads an element of each 64 KiB first.
That helps on Linux for memory without a disk behind it. A page of a file must be made writable by
itself, and private memory would be mapped twice.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from shmpar.memory.segment import Mapping, address_of, find_mapping
from shmpar.plan import Plan

Array = np.ndarray[Any, Any]
Prefault = Callable[[Sequence[int]], None]

_FAULT_AROUND: Final = 64 << 10  # bytes that a fault on reading maps: the kernel's default
_MIN_OUTPUT: Final = 1 << 20  # bytes; a smaller output does not gain
_MAX_SPARSITY: Final = 2  # bytes of a box per byte of the windows in it
# For each mapping: its latest output, and which chunks of it this process has mapped.
_mapped: weakref.WeakKeyDictionary[Mapping, tuple[Any, bytearray]] = weakref.WeakKeyDictionary()


def prefaulter(plan: Plan, outputs: Sequence[Array]) -> Prefault | None:
    """Return the function that maps the windows of the chunks of a claim; None if none gains.

    Notes
    -----
    Cost of a call: a fault for each 64 KiB that was not mapped before.
    """
    pairs = [(output, _gaining_mapping(output)) for output in outputs]
    parts = [_prefault_output(plan, output, found) for output, found in pairs if found]

    def prefault(chunks: Sequence[int]) -> None:
        for part in parts:
            part(chunks)

    return prefault if parts else None


def _gaining_mapping(output: Array) -> Mapping | None:
    """Return the mapping of an output that gains from it."""
    if output.nbytes < _MIN_OUTPUT or sys.platform != "linux":
        return None
    mapping = find_mapping(address_of(output))
    if mapping is None or mapping.segment.private or mapping.segment.kind not in {"shm", "memfd"}:
        return None
    return mapping


def _prefault_output(plan: Plan, output: Array, mapping: Mapping) -> Prefault:
    window_of = plan.placement.windows(plan.grid, output.shape)
    steps = (max(1, _FAULT_AROUND // abs(stride or 1)) for stride in output.strides)
    samples = tuple(slice(None, None, step) for step in steps)
    where = address_of(output), output.shape, output.strides, output.dtype
    layout = plan.grid, plan.placement, where
    if mapping not in _mapped or _mapped[mapping][0] != layout:
        _mapped[mapping] = layout, bytearray(plan.chunks)
    mapped = _mapped[mapping][1]

    def prefault(chunks: Sequence[int]) -> None:
        first, last, count = chunks[0], chunks[-1], len(chunks)
        # Why: the chunks of a retry lie anywhere, so they have no box of reasonable size.
        if last - first != count - 1 or mapped.find(0, first, last + 1) < 0:
            return
        box = output[_box(window_of(first), window_of(last), output.shape)]
        if count == 1 or box.size <= _MAX_SPARSITY * count * output[window_of(first)].size:
            box[samples].copy()
        mapped[first : last + 1] = b"\1" * count

    return prefault


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

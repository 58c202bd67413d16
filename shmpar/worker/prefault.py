"""The pages of outputs, mapped a claim at a time before they are written.

Imports plan and segment.

Why: a process that writes to a page of shared memory which it has not touched yet pays a fault for
each page of 4 KiB (1 to 2 us). One that reads from it pays once for the 64 KiB around it, as far
as they hold something, and may write to all of them from then on. So an element of each 64 KiB is
read first. That holds on Linux for memory without a disk behind it; a page of a file must be made
writable by itself, and private memory would be mapped twice.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from shmpar.memory.segment import Mapping, address_of, find_mapping
from shmpar.plan import Plan

__all__ = ["mapper"]

Array = np.ndarray[Any, Any]
Map = Callable[[Sequence[int]], None]

_AROUND: Final = 64 << 10  # what a fault on reading maps: fault_around_bytes of the kernel
_LEAST: Final = 1 << 20  # bytes of an output that is worth it
_SPARSE: Final = 2  # a box may hold so many times what is written in it
# Which chunks of the latest output in each mapping this process has mapped.
_known: weakref.WeakKeyDictionary[Mapping, tuple[Any, bytearray]] = weakref.WeakKeyDictionary()


def mapper(plan: Plan, outputs: Sequence[Array]) -> Map | None:
    """Make the function that maps the windows of the chunks of a claim; None if none is due.

    Notes
    -----
    Cost of a call: 5 us, and a fault (5 us) for each 64 KiB; 0.3 us where all is mapped.
    """
    maps = [_mapper(plan, output, found) for output in outputs if (found := _gains(output))]
    if not maps:
        return None

    def every(chunks: Sequence[int]) -> None:
        for one in maps:
            one(chunks)

    return maps[0] if len(maps) == 1 else every


def _gains(output: Array) -> Mapping | None:
    """The mapping of an output that gains from it."""
    if output.nbytes < _LEAST or sys.platform != "linux":
        return None
    mapping = find_mapping(address_of(output))
    if mapping is None or mapping.segment.private:
        return None
    return mapping if mapping.segment.kind in {"shm", "memfd"} else None


def _mapper(plan: Plan, output: Array, mapping: Mapping) -> Map:
    window_of = plan.placement.windows(plan.grid, output.shape)
    samples = tuple(slice(None, None, max(1, _AROUND // abs(step or 1))) for step in output.strides)
    known = _chunks_known(plan, output, mapping)

    def read(chunks: Sequence[int]) -> None:
        first, last, count = chunks[0], chunks[-1], len(chunks)
        if last - first != count - 1 or known.find(0, first, last + 1) < 0:
            return  # a retry, whose chunks lie anywhere; or mapped already
        box = output[_box(window_of(first), window_of(last), output.shape)]
        if count == 1 or box.size <= _SPARSE * count * output[window_of(first)].size:
            box[samples].copy()
        known[first : last + 1] = b"\1" * count

    return read


def _chunks_known(plan: Plan, output: Array, mapping: Mapping) -> bytearray:
    call = plan.grid, plan.placement, address_of(output), output.shape, output.strides, output.dtype
    if mapping not in _known or _known[mapping][0] != call:
        _known[mapping] = call, bytearray(plan.chunks)
    return _known[mapping][1]


def _box(
    first: Sequence[slice | int], last: Sequence[slice | int], shape: Sequence[int]
) -> tuple[slice, ...]:
    """The smallest box with two windows in it; axes that they do not name are whole."""
    return tuple(
        slice(min(one.start, other.start), max(one.stop, other.stop))
        for one, other in zip(_ranges(first, shape), _ranges(last, shape), strict=True)
    )


def _ranges(window: Sequence[slice | int], shape: Sequence[int]) -> list[slice]:
    named = [slice(part, part + 1) if isinstance(part, int) else part for part in window]
    return [slice(*part.indices(length)) for part, length in zip(named, shape, strict=False)]

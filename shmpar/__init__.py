"""Parallel map over shared NumPy arrays.

One copy of the data, the speed of the hardware, nothing left behind::

    with shmpar.Pool() as pool:
        result = pool.map_blocks(func, image, chunks=(1024, 1024), progress=True)

Names are imported when they are first used: a worker imports a few modules, not all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmpar.lazy import attach as _attach
from shmpar.version import __version__

if TYPE_CHECKING:
    from shmpar.arrays import (
        SharedArray,
        array,
        asarray,
        attach,
        empty,
        empty_like,
        full,
        ones,
        zeros,
        zeros_like,
    )
    from shmpar.errors import (
        ChunkError,
        PlanError,
        SegmentError,
        SegmentFull,
        SegmentGone,
        ShmparError,
        TaskTimeout,
        WorkerDied,
    )
    from shmpar.pool import Pool
    from shmpar.pool.default import (
        apply_along_axis,
        block_reduce,
        histogram,
        map_blocks,
        map_overlap,
        max,
        mean,
        min,
        parallel_map,
        std,
        sum,
        var,
    )
    from shmpar.run import Run

__all__ = [
    "ChunkError",
    "PlanError",
    "Pool",
    "Run",
    "SegmentError",
    "SegmentFull",
    "SegmentGone",
    "SharedArray",
    "ShmparError",
    "TaskTimeout",
    "WorkerDied",
    "__version__",
    "apply_along_axis",
    "array",
    "asarray",
    "attach",
    "block_reduce",
    "empty",
    "empty_like",
    "full",
    "histogram",
    "map_blocks",
    "map_overlap",
    "max",
    "mean",
    "min",
    "ones",
    "parallel_map",
    "std",
    "sum",
    "var",
    "zeros",
    "zeros_like",
]

_HOMES = {
    "shmpar.arrays": (
        "SharedArray array asarray attach empty empty_like full ones zeros zeros_like"
    ),
    "shmpar.errors": (
        "ChunkError PlanError SegmentError SegmentFull SegmentGone ShmparError TaskTimeout "
        "WorkerDied"
    ),
    "shmpar.pool": "Pool",
    "shmpar.pool.default": (
        "apply_along_axis block_reduce histogram map_blocks map_overlap max mean min parallel_map "
        "std sum var"
    ),
    "shmpar.run": "Run",
}
__getattr__ = _attach(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)

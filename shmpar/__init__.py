"""Parallel map over shared NumPy arrays.

One copy of the data, the speed of the hardware, nothing left behind::

    with shmpar.Pool() as pool:
        result = pool.map_blocks(func, image, chunks=(1024, 1024), progress=True)

Names are imported when they are first used: a worker imports a few modules, not all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    from shmpar.pool import (
        Pool,
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
    from shmpar.runtime.run import Run

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
    "shmpar.pool": (
        "Pool apply_along_axis block_reduce histogram map_blocks map_overlap max mean min "
        "parallel_map std sum var"
    ),
    "shmpar.runtime.run": "Run",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

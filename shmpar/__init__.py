"""Parallel map over shared NumPy arrays.

One copy of the data, the speed of the hardware, nothing left behind::

    with shmpar.Pool() as pool:
        result = pool.map_blocks(func, image, chunks=(1024, 1024), progress=True)

Names are imported when they are first used: a worker imports a few modules, not all.
"""
# ruff: noqa: F403, F405 (the modules of the names list them)

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shmpar.integrations.registration import watch
from shmpar.version import __version__

if TYPE_CHECKING:
    from shmpar.arrays import *
    from shmpar.errors import *
    from shmpar.pool import *
    from shmpar.runtime.run import Run

__all__ = [
    "ChunkError", "PlanError", "Pool", "Run", "SegmentError", "SegmentFull", "SegmentGone",
    "SharedArray", "ShmparError", "TaskTimeout", "WorkerDied", "__version__", "all", "any",
    "apply_along_axis", "array", "asarray", "attach", "block_reduce", "empty", "empty_like",
    "full", "histogram", "map_blocks", "map_overlap", "max", "mean", "min", "nanmax", "nanmin",
    "nansum", "ones", "parallel_map", "prod", "std", "sum", "var", "zeros", "zeros_like",
]  # fmt: skip


watch()


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name in __all__:
        for home in ("errors", "arrays", "pool"):  # Why: the modules that import the least go first
            module = importlib.import_module(f"shmpar.{home}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

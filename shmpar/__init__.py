"""Parallel map over shared NumPy arrays.

One copy of the data, the speed of the hardware, nothing left behind::

    with shmpar.Pool() as pool:
        result = pool.map_blocks(func, image, chunks=(1024, 1024), progress=True)

Names are imported when they are first used: a worker imports a few modules, not all.
"""
# ruff: noqa: F403, F405 (the modules of the names list them)

from __future__ import annotations

import importlib
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from shmpar.integrations.registration import watch
from shmpar.version import __version__

if TYPE_CHECKING:
    from shmpar.arrays import *
    from shmpar.defaults import *
    from shmpar.engines.environments import environment
    from shmpar.errors import *
    from shmpar.pickling.files import from_file
    from shmpar.pool import Pool
    from shmpar.runtime.run import Run
    from shmpar.stores.recognise import open, opened
    from shmpar.stores.store import Store

    last_run: Run | None

__all__ = [
    "ChunkError", "FailedChunks", "HostsLost", "PlanError", "Pool", "Run", "SecurityWarning",
    "SegmentError", "SegmentFull", "SegmentGone", "SharedArray", "ShmparError", "Store",
    "StoreError", "TaskTimeout", "WorkerDied", "__version__", "all", "any", "apply_along_axis",
    "argmax", "argmin", "array", "asarray", "attach", "bincount", "block_reduce", "default_pool",
    "empty", "empty_like", "environment", "from_file", "full", "histogram", "map_blocks",
    "map_overlap", "max", "mean", "median", "min", "nanmax", "nanmean", "nanmedian", "nanmin",
    "nanpercentile", "nanquantile", "nanstd", "nansum", "nanvar", "ones", "open", "opened",
    "parallel_map", "percentile", "prod", "quantile", "std", "sum", "unique", "var", "zeros",
    "zeros_like",
]  # fmt: skip


_HOMES = {
    "Store": ("stores.store",),
    "environment": ("engines.environments",),
    "from_file": ("pickling.files",),
    "open": ("stores.recognise",),
    "opened": ("stores.recognise",),
}
watch()


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name == "last_run":  # Why not kept: it changes.
        return importlib.import_module("shmpar.defaults").last_default_run()
    if name in __all__:
        # Why: the modules that import the least go first.
        for home in _HOMES.get(name, ("errors", "arrays", "pool", "defaults")):
            module = importlib.import_module(f"shmpar.{home}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    text = ""
    # Why the finder: an import asks for a module of this package as an attribute first.
    if not (name.startswith("_") or PathFinder.find_spec(f"{__name__}.{name}", __path__)):
        from shmpar.pool import Pool  # Why here: the name does not exist.
        from shmpar.verbs.other_names import advice

        of_pool = f"write shmpar.default_pool().{name}, or pool = shmpar.Pool() and pool.{name}"
        found = of_pool if hasattr(Pool, name) else advice(name, __all__)
        text = f"; {found}" if found else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{text}")


def __dir__() -> list[str]:
    return sorted([*__all__, "last_run"])

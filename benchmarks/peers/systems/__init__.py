"""Who computes: a file each, with a class `This`."""

from __future__ import annotations

import importlib

from benchmarks.peers.systems.system import System

# In the order in which they take turns and are shown: ours, the limits, the peers.
NAMES = (
    "ours",
    "ceiling",
    "private",
    "numba",
    "whole",
    "threads",
    "pool",
    "executor",
    "joblib",
    "mpire",
    "dask_threads",
    "dask_processes",
    "dask_distributed",
    "skimage",
    "ray",
)


def load(name: str) -> type[System]:
    """Return the class of a system; its package is imported when it is opened."""
    return importlib.import_module(f"benchmarks.peers.systems.{name}").This

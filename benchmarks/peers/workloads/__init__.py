"""What is computed: a file each, with one `Workload` named `THIS`."""

from __future__ import annotations

import importlib

from benchmarks.peers.workloads.workload import Workload

# In the order in which they are measured: small things before others have filled the memory, and
# what memory a system takes in processes that have done nothing else.
NAMES = (
    "floor",
    "cold",
    "memory",
    "chunk_cost",
    "many_chunks",
    "tiny_rows",
    "row_sums",
    "tiles",
    "python_rows",
    "uneven_rows",
    "gaussian",
    "ufunc",
    "chain",
    "copy_in",
    "workers",
    "bytes",
)


def load(name: str) -> Workload:
    """Return the workload of that name."""
    return importlib.import_module(f"benchmarks.peers.workloads.{name}").THIS

"""Cold start: a fresh process, from `import` to the first result, and from the pool on."""

from __future__ import annotations

from benchmarks.peers.workloads.workload import Point, Workload


def points(_: str) -> list[Point]:
    """What is printed by each script: the systems' files have them."""
    return [{"chunks": 8}]


THIS = Workload("cold start: sums of 8 rows", points, how="cold", rounds=7)

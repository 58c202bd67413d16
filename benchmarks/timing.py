"""Timing: systems take turns within one run, so that noise hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(systems: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each system took in each round, after one round that does not count."""
    for call in systems.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, call in systems.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """Median over the rounds of how many times longer one took than the other."""
    pairs = zip(times[slower], times[faster], strict=True)
    return statistics.median(one / other for one, other in pairs)


def table(times: Mapping[str, list[float]], unit: float = 1e3, name: str = "ms") -> str:
    """Medians and spreads, a line a system."""
    width = max(map(len, times))
    return "\n".join(
        f"  {system:{width}}  median {statistics.median(seconds) * unit:9.3f} {name}"
        f"   fastest {min(seconds) * unit:9.3f}   slowest {max(seconds) * unit:9.3f}"
        for system, seconds in times.items()
    )

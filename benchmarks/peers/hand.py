"""What a worker of a hand-made parallel map runs: tasks over arrays that it has already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.job import Job

_value: Callable[[int], Any]
_spanners: dict[tuple[str, int], Callable[[Iterable[int]], None]]


def attach(job: Job, workers: int, arrays: Sequence[np.ndarray]) -> None:
    """Have the input and the outputs of all stages at hand, as a pool's initializer does."""
    global _value, _spanners  # noqa: PLW0603 - the idiom that is measured
    if job.kind in {"rows", "tiles"}:
        _value = job.valuer(arrays[0])
    cuts = {"same": job, "own": job.in_bands(workers)}
    if job.kind in {"rows", "tiles"}:
        cuts["own"] = job
    _spanners = {
        (way, stage): cut.spanner(arrays[stage], arrays[stage + 1], stage, way)
        for way, cut in cuts.items()
        for stage in range(len(arrays) - 1)
    }


def value(number: int) -> Any:
    """The value of a row or tile."""
    return _value(number)


def span(task: tuple[str, int, range]) -> None:
    """Write all of a range."""
    way, stage, numbers = task
    _spanners[way, stage](numbers)

"""What a run was: its numbers.

Imports nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """The numbers of one run.

    Attributes
    ----------
    verb : str
        What was called.
    engine : str
        What ran it.
    workers : int
        How many workers the engine has.
    chunks, done, failed : int
        How many there are, were computed, and failed.
    deaths : int
        Workers that ended while they had a chunk of this run.
    seconds : float
        From the call to the end.
    memory : tuple of str
        Where each input and output was: ``shm``, ``memfd``, ``tempfile`` or ``file``; ``private``
        for memory of this process alone.
    seed : int, sequence of int or None
        Entropy of the random streams, if the function was passed one.
    """

    verb: str
    engine: str
    workers: int
    chunks: int
    done: int
    failed: int
    deaths: int
    seconds: float
    memory: tuple[str, ...]
    seed: Any

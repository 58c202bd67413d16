"""Shared arrays: creation, attaching, and the SharedArray class."""

from __future__ import annotations

from shmpar.arrays.creation import array, asarray, empty, empty_like, full, ones, zeros, zeros_like
from shmpar.arrays.lock import Lock
from shmpar.arrays.sharedarray import SharedArray, attach

__all__ = [
    "Lock", "SharedArray", "array", "asarray", "attach", "empty", "empty_like", "full", "ones",
    "zeros", "zeros_like",
]  # fmt: skip

"""Functions of a number, for `tests/test_bad_numbers.py`."""

from __future__ import annotations

from typing import Any

import numpy as np


def double(block: Any) -> Any:
    return block * 2


def noise(block: Any, rng: Any) -> Any:
    return block + rng.random()


def after(path: str) -> int:
    """Return when the pipe has been opened at its other end."""
    with open(path, "rb") as stream:
        return len(stream.read())


def fails_late(block: Any) -> Any:
    if block[0] > 2:
        raise KeyError(float(block[0]))
    return np.array([block])


def of_dtype(block: Any, dtype: Any) -> Any:
    if block[0] > 2:
        raise KeyError
    return np.zeros(block.shape, dtype)

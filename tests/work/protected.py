"""Writes into a protected block, for `tests/test_protected_inputs.py`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


def unlock(block: np.ndarray) -> None:
    block.setflags(write=True)
    block[...] = 7


def unlock_flag(block: np.ndarray) -> None:
    block.flags.writeable = True
    block[...] = 7


def add_at(block: np.ndarray) -> None:
    """Write as `numpy.ufunc.at`, which looks at the flag since NumPy 2.5."""
    np.add.at(block, (0,) * block.ndim, 7)


def assign(block: np.ndarray) -> None:
    block[...] = 7


def as_strided(block: np.ndarray) -> None:
    np.lib.stride_tricks.as_strided(block, writeable=True)[...] = 7


def through_memoryview(block: np.ndarray) -> None:
    memoryview(block).cast("B")[0] = 7


def through_base(block: np.ndarray) -> None:
    base: Any = block
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    np.frombuffer(base, "u1")[0] = 7


def by_pointer(block: np.ndarray) -> None:
    """Write as compiled code does, which ignores flags."""
    ctypes.memset(block.ctypes.data, 7, block.itemsize)


COMPILED = [by_pointer, *[add_at] * (np.lib.NumpyVersion(np.__version__) < "2.5.0")]
"""The writes that do not look at the flag."""

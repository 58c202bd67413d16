"""Compiled functions that every process knows by the same name, like ``np.sum`` and ``math.sqrt``.

Imports nothing of the package.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np

__all__ = ["is_named"]

_COMPILED = (types.BuiltinFunctionType, type(np.sum))  # the latter looks for __array_function__
_OWNERS = (types.NoneType, types.ModuleType)


def is_named(call: Any) -> bool:
    """Whether it is a compiled function of a module, which has it under its name.

    Such a function lives as long as its module, and is pickled as its name.

    Examples
    --------
    >>> is_named(np.sum), is_named(np.ones(3).sum), is_named(lambda row: row)
    (True, False, False)
    """
    if type(call) not in _COMPILED or type(getattr(call, "__self__", None)) not in _OWNERS:
        return False  # a method, whose object has a state: np.random.normal is one
    home = sys.modules.get(call.__module__ or "")
    return getattr(home, call.__name__, None) is call

"""Results that the pickler of the standard library sends as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from shmpar.ipc.protocol import UNCHANGING

_NUMBERS: set[type] = {np.dtype(kind).type for kind in "?bBhHiIlLqQefdgFDG"}
_DEEPEST = 5  # containers in containers


def is_plain(value: Any, depth: int = _DEEPEST) -> bool:
    """Return whether a value is made of numbers, strings, and containers of these alone.

    Examples
    --------
    >>> is_plain({"a": [1, "b", None]}), is_plain(object())
    (True, False)
    """
    kind = type(value)
    if kind in UNCHANGING or kind in _NUMBERS:
        return True
    if depth == 0 or kind not in {dict, list, tuple, set}:
        return False
    parts = [*value, *value.values()] if kind is dict else value
    return all(is_plain(one, depth - 1) for one in parts)

"""Plain values: numbers, text, None, and containers of them.

Most arguments and results of small calls are plain. The pickler in C writes them without a question
to Python code, and any process reads them without an import.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from shmpar.ipc.protocol import UNCHANGING

_NUMBERS: set[type] = {np.dtype(kind).type for kind in "?bBhHiIlLqQefdgFDG"}
_DEEPEST = 5  # containers in containers


class _NotPlainError(Exception):
    """There is another object in the value."""


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        raise _NotPlainError


def pack_plain(value: Any) -> bytes | None:
    """Return the pickle of a plain value; None for any other value.

    Examples
    --------
    >>> pack_plain((1, {"a": [None, 2.5]})) is None, pack_plain((1, len)) is None
    (False, True)
    """
    if type(value) is tuple and UNCHANGING.issuperset(map(type, value)):
        return pickle.dumps(value, 5)  # Why: most arguments are so simple, and this is quicker.
    file = io.BytesIO()
    try:
        _PlainPickler(file, 5).dump(value)
    except (_NotPlainError, RecursionError):
        return None
    return file.getvalue()


def is_plain(value: Any, depth: int = _DEEPEST) -> bool:
    """Return whether a value is made of plain values, and scalars of NumPy, alone.

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

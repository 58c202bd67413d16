"""Pickle plain values: numbers, text, None, and containers of them.

Most arguments and results of small calls are plain. The pickler in C writes them without a question
to Python code, and any process reads them without an import.
"""

from __future__ import annotations

import io
import pickle
from typing import Any


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
    file = io.BytesIO()
    try:
        _PlainPickler(file, 5).dump(value)
    except (_NotPlainError, RecursionError):
        return None
    return file.getvalue()

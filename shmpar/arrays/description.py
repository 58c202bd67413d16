"""Dtypes as plain JSON, and back.

Imports NumPy.

Guarantees
----------
``rebuild(describe(dtype)) == dtype``, with offsets, titles, alignment, byte order and record type,
or ``describe`` raises.
``rebuild`` hands NumPy nothing but type strings of one item and dicts of them.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any, Final

import numpy as np

__all__ = ["describe", "rebuild", "shown"]

Description = str | dict[str, Any]

_SIMPLE: Final = re.compile(r"[<>|=]([biufcSUV]\d{1,9}|[mM]8(\[\d{0,9}[a-zA-Zμ]{1,7}\])?)")
_DEEPEST: Final = 32
_LONGEST: Final = 200  # characters


def describe(dtype: np.dtype[Any]) -> Description:
    """Describe a dtype.

    Raises
    ------
    TypeError
        It holds Python objects, or NumPy could not rebuild it from a description.

    Examples
    --------
    >>> describe(np.dtype("<f8")), describe(np.dtype([("x", "<i2"), ("y", "<f4", (3,))]))["names"]
    ('<f8', ['x', 'y'])
    """
    found = _describe(dtype)
    if dtype.hasobject or rebuild(found) != dtype:
        raise TypeError(f"dtype {dtype!r} has no address: view the array as a builtin dtype first")
    return found


def _describe(dtype: np.dtype[Any]) -> Description:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _describe(base), "shape": list(shape)}
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],  # noqa: PLR2004
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "record": issubclass(dtype.type, np.record),
    }


def rebuild(found: Any, depth: int = 0) -> np.dtype[Any]:
    """Make the dtype that a description describes.

    Raises
    ------
    ValueError, TypeError
        It describes none.
    """
    if depth > _DEEPEST:
        raise ValueError("dtype nested too deeply")
    if isinstance(found, str):
        return _simple(found)
    if not isinstance(found, dict):
        raise TypeError(f"no description of a dtype: {shown(found)}")
    try:
        return _subarray(found, depth) if "base" in found else _structured(found, depth)
    except (KeyError, OverflowError, MemoryError) as error:
        raise ValueError(f"no description of a dtype: {shown(found)}") from error


def _simple(text: str) -> np.dtype[Any]:
    if not _SIMPLE.fullmatch(text):
        raise ValueError(f"no description of a dtype: {shown(text)}")
    dtype: np.dtype[Any] = np.dtype(text)
    return dtype


def _subarray(found: dict[str, Any], depth: int) -> np.dtype[Any]:
    shape = tuple(_counts(found["shape"]))
    return np.dtype((rebuild(found["base"], depth + 1), shape))


def _structured(found: dict[str, Any], depth: int) -> np.dtype[Any]:
    names, titles = found["names"], found["titles"]
    if not all(isinstance(text, str) for text in [*names, *filter(None, titles)]):
        raise TypeError(f"dtype with names {shown(names)}")
    dtype = np.dtype(
        {
            "names": list(names),
            "formats": [rebuild(each, depth + 1) for each in found["formats"]],
            "offsets": _counts(found["offsets"]),
            "titles": list(titles),
            "itemsize": _counts([found["itemsize"]])[0],
        },
        align=found["aligned"] is True,
    )
    return np.dtype((np.record, dtype)) if found["record"] is True else dtype


def _counts(values: Any) -> list[int]:
    """Check a list of numbers of bytes or elements."""
    if not isinstance(values, list):
        raise TypeError(f"dtype with {shown(values)}")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in values):
        raise ValueError(f"dtype with {shown(values)}")
    return values


def shown(value: Any) -> str:
    """What an error says of something that may be of any length and depth."""
    try:
        text = reprlib.repr(value)
    except Exception:  # noqa: BLE001 - a number of too many digits, or an object of the user's
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."

"""``out=`` and ``dtype=``: what the user says of the results, checked before anything starts.

Imports outputs, policy and segment.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.masked import is_masked
from shmpar.outputs import NpyFile, Outputs, filler
from shmpar.policy import Policy
from shmpar.segment import extent, locate

__all__ = ["Targets", "check_overlap", "parse_targets"]

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]


class Targets(NamedTuple):
    """What is declared of the outputs.

    Attributes
    ----------
    given : tuple of (ndarray or NpyFile) or None
        ``out=``, one an output.
    dtypes : tuple of (dtype or None) or None
        Declared dtypes, one an output.
    several : bool or None
        Whether a tuple was declared; None: nothing was.
    collects : bool
        ``dtype=object``.
    """

    given: tuple[Array | NpyFile, ...] | None
    dtypes: tuple[DType | None, ...] | None
    several: bool | None
    collects: bool

    def outputs(self, policy: Policy) -> Outputs:
        """The run's outputs.

        Raises
        ------
        ValueError
            If failed chunks are to be filled with what a declared output cannot hold.
        """
        fills = policy.on_error == "fill"
        fill = functools.partial(filler, policy.fill_value) if fills else None
        outputs = Outputs(self.given, collects=self.collects, fill=fill)
        outputs.check_fill(self.dtypes or ())
        return outputs


def parse_targets(verb: str, out: Any, dtype: Any, *, objects: bool = False) -> Targets:
    """Read ``out=`` and ``dtype=``; a tuple is several outputs.

    Parameters
    ----------
    objects : bool
        Whether the verb collects objects with ``dtype=object``.

    Raises
    ------
    TypeError, ValueError
        For what cannot be written to, or what disagrees.
    """
    declared = None if dtype is None else _dtypes(dtype)
    given = None if out is None else _arrays(verb, out)
    collects = declared is not None and any(one is not None and one.hasobject for one in declared)
    if collects:
        _check_objects(verb, declared or (), given, objects=objects)
    if given is not None:
        declared = _agreed(verb, given, declared)
    several = None
    if dtype is not None or out is not None:
        several = isinstance(out if out is not None else dtype, tuple)
    return Targets(given, declared, several, collects)


def _dtypes(dtype: Any) -> tuple[DType | None, ...]:
    parts = dtype if isinstance(dtype, tuple) else (dtype,)
    found = tuple(None if part is None else np.dtype(part) for part in parts)
    for part in found:
        if part is not None and part.kind in "SUV" and part.itemsize == 0:
            raise ValueError(
                f"dtype={part.type.__name__} says no length, and no value is shortened: say it, as "
                f"in dtype='{part.kind}10'"
            )
    return found


def _arrays(verb: str, out: Any) -> tuple[Array | NpyFile, ...]:
    parts = out if isinstance(out, tuple) else (out,)
    return tuple(_array_or_file(verb, part) for part in parts)


def _array_or_file(verb: str, out: Any) -> Array | NpyFile:
    if isinstance(out, str | os.PathLike):
        return NpyFile.parse(out, f"{verb}: out={out!r}")
    _check_array(verb, out)
    found: Array = out
    return found


def _check_array(verb: str, out: Any) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(
            f"{verb}: out= is an array, the path of a .npy file or a tuple of these, not "
            f"{type(out).__name__}"
        )
    if is_masked(out):
        raise TypeError(f"{verb}: out= is a masked array; pass out.data, and out.mask as another")
    if not out.flags.writeable:
        raise ValueError(f"{verb}: out= (shape {out.shape}) is read-only")
    if out.dtype.hasobject or out.dtype.kind == "T":
        raise TypeError(f"{verb}: out= has dtype {out.dtype}, which workers cannot write")
    if out.size and _overlaps_itself(out):
        raise ValueError(
            f"{verb}: out= is broadcast, or made of windows that overlap: several of its elements "
            "are one in memory"
        )


def _overlaps_itself(array: Array) -> bool:
    """Whether an axis steps over less than what the axes of smaller steps span."""
    span = array.itemsize
    axes = [(abs(step), n) for step, n in zip(array.strides, array.shape, strict=True) if n > 1]
    for step, length in sorted(axes):
        if step < span:
            return True
        span += step * (length - 1)
    return False


def _check_objects(
    verb: str, declared: Sequence[DType | None], given: Any, *, objects: bool
) -> None:
    if not objects:
        raise TypeError(
            f"{verb}: blocks of Python objects cannot be shared; block_reduce and parallel_map "
            "collect objects with dtype=object"
        )
    if len(declared) > 1 or given is not None or declared[0] != np.dtype(object):
        raise TypeError(f"{verb}: dtype=object stands alone, without out= or other dtypes")


def _agreed(
    verb: str, given: Sequence[Array | NpyFile], declared: Sequence[DType | None] | None
) -> tuple[DType | None, ...]:
    if declared is None:
        declared = (None,) * len(given)
    if len(declared) != len(given):
        raise ValueError(f"{verb}: out= has {len(given)} arrays, dtype= {len(declared)}")
    for array, dtype in zip(given, declared, strict=True):
        if isinstance(array, np.ndarray) and dtype is not None and dtype != array.dtype:
            raise ValueError(f"{verb}: out= has dtype {array.dtype}, dtype= says {dtype}")
    return tuple(
        array.dtype if isinstance(array, np.ndarray) else dtype
        for array, dtype in zip(given, declared, strict=True)
    )


def check_overlap(
    verb: str, given: Sequence[Array | NpyFile] | None, arrays: Sequence[Array], *, in_place: bool
) -> bool:
    """Refuse outputs that share memory with an input or with one another.

    Parameters
    ----------
    in_place : bool
        Whether the verb allows an output to be the very input.

    Returns
    -------
    bool
        Whether one is.

    Raises
    ------
    ValueError
        For any other overlap.
    """
    files = [one.path for one in given or () if isinstance(one, NpyFile)]
    if len(set(files)) < len(files):
        raise ValueError(f"{verb}: two outputs are one file")
    outputs = [array for array in given or () if isinstance(array, np.ndarray)]
    same = False
    for number, output in enumerate(outputs):
        for other in outputs[:number]:
            if _overlap(output, other):
                raise ValueError(f"{verb}: two outputs share memory")
        for array in arrays:
            if in_place and _is_same(output, array):
                same = True
            elif _overlap(output, array):
                raise ValueError(
                    f"{verb}: out= (shape {output.shape}) shares memory with an input (shape "
                    f"{array.shape}), so chunks would read what others have written; pass another "
                    "output" + (", or the very input to work in place" if in_place else "")
                )
    return same


def _is_same(one: Array, other: Array) -> bool:
    return (
        one.__array_interface__["data"][0] == other.__array_interface__["data"][0]
        and one.shape == other.shape
        and one.strides == other.strides
        and one.dtype == other.dtype
    )


def _overlap(one: Array, other: Array) -> bool:
    return _share_addresses(one, other) or _share_file(one, other)


def _share_file(one: Array, other: Array) -> bool:
    """Whether both lie in one mapped file, in bytes that overlap, though it is mapped twice."""
    places = locate(one), locate(other)
    if places[0] is None or places[1] is None or places[0].segment == places[1].segment:
        return False
    mine, theirs = (place.segment.backing.identity() for place in places if place is not None)
    if mine != theirs:
        return False
    (low, high), (other_low, other_high) = (
        [place.offset + end for end in extent.span(array.shape, array.strides, array.itemsize)]
        for place, array in zip(places, (one, other), strict=True)
        if place is not None
    )
    return low < other_high and other_low < high


def _share_addresses(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True

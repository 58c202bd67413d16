"""What the function returned: is it what is due, and into its window with it.

Imports grid and plan.  The rules (design: "dtype and shape"): nothing is broadcast into a window;
without a declared dtype each result has the dtype of the first; with one it is cast as a ufunc
casts into ``out``; strings are never shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.grid import Mode
from shmpar.memory.copying import is_masked
from shmpar.plan import Announcement, InBlocks, Output, PerItem, Plan, ResultError

__all__ = ["announce", "as_arrays", "numbers", "storer", "wrong_overlap"]

Array = np.ndarray[Any, Any]
Store = Callable[[int, Any], None]

_WEAK = (bool, int, float, complex)
_KINDS = {bool: "biufc", int: "iufc", float: "fc", complex: "c"}


def as_arrays(plan: Plan, value: Any, is_tuple: bool | None) -> tuple[Array, ...]:
    """Make one array of each output in a result; a tuple is several outputs.

    Raises
    ------
    ResultError
        If the number of outputs is not the declared one, or one is no array of values.
    """
    returned_tuple = isinstance(value, tuple)
    if is_tuple is False and returned_tuple:
        raise ResultError(
            f"the function returned a tuple of {len(value)} where one output is declared, by out= "
            "or dtype= or the first chunk"
        )
    if is_tuple is True and not returned_tuple:
        raise ResultError(
            f"the function returned {type(value).__name__} where a tuple of outputs is due"
        )
    parts = value if returned_tuple else (value,)
    if not parts:
        raise ResultError("the function returned an empty tuple, which is no output; return None")
    if plan.dtypes is not None and len(parts) != len(plan.dtypes):
        raise ResultError(
            f"the function returned {len(parts)} outputs, but {len(plan.dtypes)} are declared "
            "by out= or dtype="
        )
    return tuple([_as_array(part) for part in parts])


def _as_array(value: Any) -> Array:
    if type(value) is np.ndarray:
        array = value
    elif is_masked(value):
        raise ResultError(
            "the function returned a masked array, whose mask would be lost; return "
            "(values.filled(...), values.mask) as a tuple of two outputs"
        )
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ResultError(f"the function returned no array of values: {error}") from error
    if array.dtype.hasobject or array.dtype.kind == "T":
        raise ResultError(
            f"the function returned {type(value).__name__}, which is no array of plain values; "
            "block_reduce and parallel_map collect any objects with dtype=object"
        )
    return array


def announce(plan: Plan, chunk: int, value: Any) -> Announcement:
    """Say what the outputs are, from the first result."""
    if value is None and isinstance(plan.placement, PerItem):
        return Announcement((), is_tuple=False, chunk=chunk)
    if value is None:
        raise ResultError(
            "the function returned None where a value is due; only parallel_map takes functions "
            "that return nothing"
        )
    arrays = as_arrays(plan, value, plan.is_tuple)
    for array in arrays:
        if plan.verb == "map_overlap" and array.shape != _chunk_shape(plan, chunk):
            raise ResultError(wrong_overlap(plan, chunk, array.shape))
    index = plan.grid.index(chunk)
    dtypes = plan.dtypes or (None,) * len(arrays)
    outputs = tuple(
        Output(plan.placement.shape(plan.grid, index, array.shape), dtype or array.dtype)
        for array, dtype in zip(arrays, dtypes, strict=True)
    )
    return Announcement(outputs, is_tuple=isinstance(value, tuple), chunk=chunk)


def storer(plan: Plan, outputs: Sequence[Array], is_tuple: bool) -> Store:
    """Make the function that checks a chunk's result and writes it into its window."""
    if not outputs:
        return _store_none
    dtypes = plan.dtypes or (None,) * len(outputs)
    declared = [dtype is not None for dtype in dtypes]
    stores = [_store_array(plan, *one) for one in zip(outputs, declared, strict=True)]
    scalars = [_scalars(plan, *one) for one in zip(outputs, declared, strict=True)]
    if not is_tuple:
        return stores[0] if scalars[0] is None else _store_scalar(*scalars[0], stores[0])
    tuples = _store_tuple(plan, stores, outputs)
    found = [one for one in scalars if one is not None]
    return tuples if len(found) < len(scalars) else _store_scalars(found, tuples)


def _store_none(_chunk: int, value: Any) -> None:
    if value is not None:
        raise ResultError(
            f"the function returned {type(value).__name__} here but None for the first chunk"
        )


def _store_tuple(plan: Plan, stores: Sequence[Store], outputs: Sequence[Array]) -> Store:
    count = len(stores)

    def store(chunk: int, value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != count:
            parts = as_arrays(plan, value, is_tuple=True)
            raise ResultError(
                f"the function returned {len(parts)} outputs here but {count} for the first chunk"
            )
        kept = [_apart(part, outputs[:number]) for number, part in enumerate(value)]
        for put, part in zip(stores, kept, strict=True):
            put(chunk, part)

    return store


def _apart(part: Any, before: Sequence[Array]) -> Any:
    """A copy of what lies in an output that is written before it: in place, that is an input."""
    is_view = isinstance(part, np.ndarray) and part.base is not None
    if is_view and any(np.may_share_memory(part, output) for output in before):
        return part.copy()
    return part


def _store_array(plan: Plan, output: Array, declared: bool) -> Store:
    dtype, window_of = output.dtype, plan.placement.windows(plan.grid, output.shape)
    # Without the ellipsis the window of a scalar would be a copy, not a view.
    blocks = isinstance(plan.placement, InBlocks) and output.ndim > 0

    def store(chunk: int, value: Any) -> None:
        if type(value) is not np.ndarray:
            value = _arrayed(value, dtype, declared)
        where = window_of(chunk)
        window = output[where] if blocks else output[(*where, ...)]
        if value.shape != window.shape:
            raise ResultError(_wrong_shape(plan, chunk, value, window))
        if value.dtype is dtype or value.dtype == dtype:
            window[...] = value
        else:
            _cast_into(window, _as_array(value), declared)

    return store


def numbers(plan: Plan, outputs: Sequence[Array], is_tuple: bool) -> tuple[Array, set[type]] | None:
    """The one output, flat, and which types may be put there, if it takes one number a chunk."""
    if is_tuple or len(outputs) != 1:
        return None
    return _scalars(plan, outputs[0], plan.dtypes is not None and plan.dtypes[0] is not None)


def _scalars(plan: Plan, output: Array, declared: bool) -> tuple[Array, set[type]] | None:
    """An output that takes one number a chunk, flat, and which types may be put there as they are.

    None if it takes none, or not at the place of the chunk's number.
    """
    if isinstance(plan.placement, InBlocks) or output.ndim != plan.grid.ndim:
        return None
    # A scalar is always of the machine's byte order: for another one the dtypes differ.
    plain = output.dtype.kind in "biufc" and (declared or output.dtype.isnative)
    exact = {output.dtype.type} if plain else set()
    builtin = {np.dtype(float): float, np.dtype(int): int, np.dtype(bool): bool}
    if output.dtype in builtin:
        exact.add(builtin[output.dtype])
    flat = output.reshape(-1)  # an output that we made is contiguous; else a copy: see below
    return (flat, exact) if np.may_share_memory(flat, output) and exact else None


def _store_scalars(scalars: Sequence[tuple[Array, set[type]]], slow: Store) -> Store:
    """Several numbers a chunk."""
    flats, types = zip(*scalars, strict=True)
    count = len(flats)

    def store(chunk: int, value: Any) -> None:
        if type(value) is not tuple or len(value) != count:
            slow(chunk, value)
            return
        try:
            for flat, exact, part in zip(flats, types, value):  # noqa: B905 - as many of each
                if type(part) not in exact:
                    slow(chunk, value)
                    return
                flat[chunk] = part
        except OverflowError:  # a Python int
            slow(chunk, value)

    return store


def _store_scalar(flat: Array, exact: set[type], slow: Store) -> Store:
    """One number a chunk: the common case of rows, without a view."""

    def store(chunk: int, value: Any) -> None:
        if type(value) in exact:
            try:
                flat[chunk] = value
            except OverflowError:  # a Python int
                slow(chunk, value)
        else:
            slow(chunk, value)

    return store


def _arrayed(value: Any, dtype: np.dtype[Any], declared: bool) -> Array:
    """Make an array of what is none; Python's numbers take the declared dtype, as in a ufunc."""
    if isinstance(value, tuple):
        raise ResultError(
            f"the function returned a tuple of {len(value)} where one output is declared, by out= "
            "or dtype= or the first chunk"
        )
    if declared and type(value) in _WEAK and dtype.kind in _KINDS[type(value)]:
        try:
            return np.asarray(value, dtype)
        except OverflowError as error:
            raise ResultError(f"the function returned {value}, out of bounds: {error}") from error
    if value is None:
        raise ResultError("the function returned None where a value is due")
    return _as_array(value)


def _cast_into(window: Array, value: Array, declared: bool) -> None:
    if not declared:
        raise ResultError(
            f"the function returned dtype {value.dtype} here but {window.dtype} for the first "
            f"chunk; pass dtype= (or out=) to have results cast"
        )
    shortened = value.dtype.kind in "SU" and value.dtype.itemsize > _room(value, window)
    written = window.dtype.kind in "SU" and value.dtype.kind not in "SU"  # as digits: all of them
    if shortened or not np.can_cast(value.dtype, window.dtype, "safe" if written else "same_kind"):
        raise ResultError(
            f"the function returned dtype {value.dtype}, which does not cast to {window.dtype} "
            "without loss of kind; cast it in the function, or pass another dtype= or out="
        )
    np.copyto(window, value, casting="same_kind")


def _room(value: Array, window: Array) -> int:
    """Bytes that an element of `window` has for a string of the kind of `value`."""
    size: int = window.dtype.itemsize
    if window.dtype.kind == value.dtype.kind:
        return size
    return size // 4 if value.dtype.kind == "S" else 0


def _wrong_shape(plan: Plan, chunk: int, value: Array, window: Array) -> str:
    if plan.verb == "map_overlap":
        return wrong_overlap(plan, chunk, value.shape)
    blocks = isinstance(plan.placement, InBlocks)
    if blocks and value.ndim == 0:
        return "the function returned a scalar where a block is due; use block_reduce for that"
    said = f"the function returned shape {value.shape} where {window.shape} is due"
    if blocks and value.ndim < window.ndim:
        return f"{said}; name the axes that it drops in drop_axis"
    if blocks and value.ndim > window.ndim:
        return f"{said}; name the axes that it adds in new_axis"
    if blocks:
        return (
            f"{said}; for blocks that change their size pass out_chunks=, with one length a chunk "
            "where they differ"
        )
    return f"{said}; every chunk must return the same shape"


def wrong_overlap(plan: Plan, chunk: int, shape: tuple[int, ...]) -> str:
    """Say what is due of a function under `map_overlap` that returned another shape."""
    due, halo = _chunk_shape(plan, chunk), plan.halo
    if not shape:
        return "the function returned a scalar where a block is due; block_reduce has depth= too"
    if halo is None:
        return (
            f"the function returned shape {shape} where the chunk's, {due}, is due; map_blocks "
            "puts blocks of other shapes together"
        )
    window = tuple(stop - start for start, stop in halo.window(plan.grid, chunk))
    less = tuple(length - sum(depth) for length, depth in zip(window, halo.depth, strict=True))
    small = 'boundary="none" makes windows at the array\'s border smaller'
    sides = zip(halo.depth, halo.boundary, strict=True)
    ends = any(any(depth) and Mode.NONE in boundary for depth, boundary in sides)
    if plan.trim and shape in (due, less):
        more = f" and another boundary, since {small}" if ends else ""
        hint = f", the halo being cut off already; for such a function pass trim=False{more}"
    elif plan.trim:
        hint = f"; it returns the window's shape, or, with trim=False, the chunk's, {due}"
    elif shape == window:
        hint = f", halo and all, where {due} is due; without trim=False it is cut off"
    elif shape == less and ends:
        hint = f", where {due} is due; {small}, so pass another one"
    else:
        hint = f", where {due} is due; with trim=False the function cuts the halo off itself"
    return f"the function returned shape {shape} for a window of shape {window}{hint}"


def _chunk_shape(plan: Plan, chunk: int) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in plan.region(chunk))

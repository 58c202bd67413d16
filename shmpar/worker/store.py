"""Check the results of the user's function, and write them into their windows.

The rules: nothing is broadcast into a window. Without a declared dtype each result must have the
dtype of the first one. With a declared dtype it is cast as a ufunc casts into ``out``. Strings are
never shortened.

The memory of an output that a run allocates is reserved by the workers, per claim and a page before
it is written: the page still lies in the cache then. Pages that are reserved already are mapped,
since a write to a page that is not mapped is a fault.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from reprlib import repr as brief
from typing import Any, Final, Literal

import numpy as np

from shmpar.errors import format_count
from shmpar.grid import Halo, Mode
from shmpar.memory.allocate import LazyPages, map_pages
from shmpar.memory.copying import is_masked, loses
from shmpar.memory.huge import BATCH, KINDS, PAGE
from shmpar.memory.layout import address_of, byte_bounds
from shmpar.memory.segment import Mapping, find_mapping
from shmpar.plan import (
    CAST_RESULTS,
    Announcement,
    InBlocks,
    Output,
    PerItem,
    Plan,
    ResultError,
    describe_shape,
    explain_axes,
    fits_shape,
    window_around,
)
from shmpar.stores.store import Store
from shmpar.worker.environment import exit_if_forked

Array = np.ndarray[Any, Any]
StoreResult = Callable[[int, Any], None]
Use = Callable[[int, Any], Any]
Reserve = Callable[[Sequence[int]], None]
ScalarTarget = tuple[Array, set[type]]
"""An output that takes one number per chunk, flat, and the types that need no cast."""

# Why: Python numbers take the declared dtype if it has one of these kinds, as in a ufunc.
_WEAK_KINDS = {bool: "biufc", int: "iufc", float: "fc", complex: "c"}
_BUILTIN = {np.dtype(float): float, np.dtype(int): int, np.dtype(bool): bool}
_MIN_RESERVED: Final = 1 << 20  # bytes of an output; a smaller one does not gain
_pages: weakref.WeakKeyDictionary[Mapping, LazyPages] = weakref.WeakKeyDictionary()
# The chunks whose windows are reserved and mapped in this process, with the layout of the output.
_ready: weakref.WeakKeyDictionary[Mapping, tuple[Any, bytearray]] = weakref.WeakKeyDictionary()


def as_arrays(plan: Plan, value: Any, is_tuple: bool | None) -> tuple[Array, ...]:
    """Convert a result to one array per output; a tuple has several outputs.

    Raises
    ------
    ResultError
        If the number of outputs is not the declared one, or one of them is no array of values.
    """
    parts = value if isinstance(value, tuple) else (value,)
    if is_tuple is not None and is_tuple != isinstance(value, tuple):
        raise _wrong_kind(value)
    if not parts:
        remedy = "; return None" * isinstance(plan.placement, PerItem)
        raise _returned(f"an empty tuple, which is no output{remedy}")
    if plan.dtypes is not None and len(parts) != len(plan.dtypes):
        due = f"out= or dtype= declares {len(plan.dtypes)}"
        raise _returned(f"{format_count(len(parts), 'output')}, but {due}")
    # Why: a Python int may be too large for NumPy's own choice, but not for the declared dtype.
    pairs = zip(parts, plan.dtypes or (None,) * len(parts), strict=True)
    return tuple(
        [
            _as_array(part) if dtype is None else _convert(part, dtype, declared=True)
            for part, dtype in pairs
        ]
    )


def _returned(text: str) -> ResultError:
    return ResultError(f"the function returned {text}")


def _wrong_kind(value: Any) -> ResultError:
    if not isinstance(value, tuple):
        return _returned(f"{type(value).__name__} where a tuple of outputs is due")
    declared = "one output is declared, by out= or dtype= or the first chunk"
    return _returned(f"a tuple of {len(value)} where {declared}")


def _as_array(value: Any) -> Array:
    if type(value) is not np.ndarray and is_masked(value):
        remedy = "return (values.filled(...), values.mask) as a tuple of two outputs"
        raise _returned(f"a masked array, whose mask would be lost; {remedy}")
    if (lost := loses(value)) is not None:
        raise _returned(f"a {type(value).__name__}, which would lose {lost}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise _returned(f"no array of values: {error}") from error
    if array.dtype.hasobject or array.dtype.kind == "T":
        remedy = "for any objects pass dtype=object, which block_reduce and parallel_map take"
        raise _returned(f"{type(value).__name__}, which is no array of plain values; {remedy}")
    return array


def announce(plan: Plan, chunk: int, value: Any) -> Announcement:
    """Return the shapes and dtypes of the outputs, by the first result."""
    if value is None and isinstance(plan.placement, PerItem) and plan.dtypes is None:
        return Announcement((), is_tuple=False, chunk=chunk)
    if value is None:
        remedy = "only parallel_map, without dtype= or out=, takes functions that return nothing"
        raise _returned(f"None where a value is due; {remedy}")
    arrays = as_arrays(plan, value, plan.is_tuple)
    for array in arrays:
        if plan.verb == "map_overlap":
            due = _placement(plan).lengths(plan.grid, chunk)
            if not fits_shape(array.shape, due):
                raise ResultError(explain_overlap_shape(plan, chunk, array.shape))
    dtypes = plan.dtypes or (None,) * len(arrays)
    outputs = tuple(
        Output(plan.placement.shape(plan.grid, array.shape), dtype or array.dtype)
        for array, dtype in zip(arrays, dtypes, strict=True)
    )
    return Announcement(outputs, is_tuple=isinstance(value, tuple), chunk=chunk)


def trimmed(plan: Plan, halo: Halo, use: Use) -> Use:
    """Return `use` for results from which the halo is removed first."""

    def trim_and_use(chunk: int, value: Any) -> Any:
        core, due = untrimmed(plan, halo, chunk)

        def trim(part: Any) -> Any:
            if part is None:  # Why: announce() and the stores explain a missing result.
                return None
            array = _as_array(part)
            if array.shape != due and not fits_shape(array.shape, due):
                raise ResultError(explain_overlap_shape(plan, chunk, array.shape))
            return array[core]

        return use(chunk, tuple(map(trim, value)) if isinstance(value, tuple) else trim(value))

    return trim_and_use


def untrimmed(
    plan: Plan, halo: Halo, chunk: int
) -> tuple[tuple[slice, ...], tuple[int | None, ...]]:
    """Return the slices that remove the halo of a result, and its lengths with the halo.

    A result has the halo along the axes that it has of the grid; None stands for any length.
    """
    grid, placement = plan.grid, _placement(plan)
    core, window = halo.trim(grid, chunk), halo.window(grid, chunk)
    slices, due = [], []
    for axis, cut in zip(placement.axes, placement.cuts, strict=True):
        if axis is None or cut is None:
            slices.append(slice(None))
            due.append(None if cut is None else cut.size)
            continue
        (start, stop), inner = window[axis], core[axis]
        length = inner.stop - inner.start
        around = stop - start - length
        if cut is not grid.axes[axis]:
            low, high = cut.span(grid.index(chunk)[axis])
            length = high - low
        slices.append(slice(inner.start, inner.start + length))
        due.append(length + around)
    return tuple(slices), tuple(due)


def storer(
    plan: Plan,
    outputs: Sequence[Array | Store],
    is_tuple: bool,
    written: dict[int, Array] | None = None,
) -> tuple[StoreResult, list[ScalarTarget]]:
    """Return the function that checks a chunk's result and writes it into its window.

    Also the outputs that take one number per chunk.

    Parameters
    ----------
    written : dict, optional
        Gets the values that were written to each output outside memory, by its number.
    """
    if not outputs:
        return _store_none, []
    stores, targets = list[StoreResult](), list[ScalarTarget]()
    dtypes = plan.dtypes or (None,) * len(outputs)
    for number, (output, dtype) in enumerate(zip(outputs, dtypes, strict=True)):
        declared = dtype is not None
        if isinstance(output, Store):
            stores.append(_write_outside(plan, output, declared, number, written))
            continue
        stores.append(_store_array(plan, output, declared))
        if (target := _scalar_target(plan, output, declared)) is not None:
            targets.append(target)
    store = _store_tuple(plan, stores, outputs) if is_tuple else stores[0]
    if len(targets) == len(outputs):
        store = _store_scalars(targets, store) if is_tuple else _store_scalar(*targets[0], store)
    return store, targets


def _store_none(_chunk: int, value: Any) -> None:
    if value is not None:
        raise _returned(f"{type(value).__name__} here but None for another chunk")


def _store_array(plan: Plan, output: Array, declared: bool) -> StoreResult:
    dtype, window_of = output.dtype, plan.placement.windows(plan.grid, output.shape)
    # Why: without the ellipsis the window of a scalar would be a copy, not a view.
    blocks = isinstance(plan.placement, InBlocks) and output.ndim > 0

    def store(chunk: int, value: Any) -> None:
        if type(value) is not np.ndarray:
            value = _convert(value, dtype, declared)
        where = window_of(chunk)
        window = output[where] if blocks else output[(*where, ...)]
        if value.shape != window.shape:
            raise ResultError(_explain_shape(plan, chunk, value, window))
        if value.dtype is dtype or value.dtype == dtype:
            window[...] = value
        else:
            _cast_into(window, _as_array(value), declared)

    return store


def _write_outside(
    plan: Plan, output: Store, declared: bool, number: int, written: dict[int, Array] | None
) -> StoreResult:
    """Return the function that writes a result to an output outside memory."""
    dtype, window_of = output.dtype, plan.placement.windows(plan.grid, output.shape)
    like = np.broadcast_to(np.empty((), dtype), output.shape)  # takes the memory of one element

    def store(chunk: int, value: Any) -> None:
        if type(value) is not np.ndarray:
            value = _convert(value, dtype, declared)
        where = window_of(chunk)
        window = like[(*where, ...)]
        if value.shape != window.shape:
            raise ResultError(_explain_shape(plan, chunk, value, window))
        if value.dtype != dtype:
            cast = np.empty(window.shape, dtype)
            _cast_into(cast, _as_array(value), declared)
            value = cast
        # Why: a forked child of the function has no threads that write for it.
        exit_if_forked()
        output[where] = value
        if written is not None:
            written[number] = value

    return store


def _store_tuple(plan: Plan, stores: Sequence[StoreResult], outputs: Sequence[Any]) -> StoreResult:
    def store(chunk: int, value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != len(stores):
            found = len(as_arrays(plan, value, is_tuple=True))
            here = format_count(found, "output")
            raise _returned(f"{here} here but {len(stores)} for another chunk")
        # Why: an output may be an input too, and a function may return a view of its input. A view
        # of an output that is written before it is copied first.
        parts = [
            part.copy() if _is_view_of(part, outputs[:number]) else part
            for number, part in enumerate(value)
        ]
        for put, part in zip(stores, parts, strict=True):
            put(chunk, part)

    return store


def _is_view_of(part: Any, outputs: Sequence[Any]) -> bool:
    is_view = isinstance(part, np.ndarray) and part.base is not None
    memory = [output for output in outputs if isinstance(output, np.ndarray)]
    return is_view and any(np.may_share_memory(part, output) for output in memory)


def _scalar_target(plan: Plan, output: Array, declared: bool) -> ScalarTarget | None:
    if isinstance(plan.placement, InBlocks) or output.ndim != plan.grid.ndim:
        return None
    if not isinstance(output, np.ndarray):
        return None  # Why: the numbers of chunks are not those of the elements of a part.
    # Why: a scalar has native byte order, so for another order the dtypes differ.
    as_it_is = output.dtype.kind in "biufc" and (declared or output.dtype.isnative)
    exact = {output.dtype.type} if as_it_is else set()
    if as_it_is and declared:
        exact.update(_cast_types(output.dtype))
    if output.dtype in _BUILTIN:
        exact.add(_BUILTIN[output.dtype])
    flat = output.reshape(-1)
    # Why: the reshaped array is a copy if the output is not contiguous.
    return (flat, exact) if exact and np.may_share_memory(flat, output) else None


@functools.cache
def _cast_types(dtype: np.dtype[Any]) -> frozenset[type]:
    """Return the types of NumPy's numbers that are cast to a dtype, under the rule of all casts."""
    numbers = {one for one in np.sctypeDict.values() if np.dtype(one).kind in "biufc"}
    return frozenset(one for one in numbers if np.can_cast(np.dtype(one), dtype, "same_kind"))


def _store_scalar(flat: Array, exact: set[type], checked: StoreResult) -> StoreResult:
    """Store a number per chunk without a view."""

    def store(chunk: int, value: Any) -> None:
        if type(value) in exact:
            try:
                flat[chunk] = value
            except OverflowError:  # A Python int may not fit.
                checked(chunk, value)
        else:
            checked(chunk, value)

    return store


def _store_scalars(targets: Sequence[ScalarTarget], checked: StoreResult) -> StoreResult:
    """Store a tuple of numbers per chunk without views."""
    count = len(targets)

    def store(chunk: int, value: Any) -> None:
        if type(value) is tuple and len(value) == count:
            try:
                for (flat, exact), part in zip(targets, value):  # noqa: B905 - equal lengths
                    if type(part) not in exact:
                        break
                    flat[chunk] = part
                else:
                    return
            except OverflowError:  # A Python int may not fit.
                pass
        checked(chunk, value)

    return store


def _convert(value: Any, dtype: np.dtype[Any], declared: bool) -> Array:
    """Convert a result that is not exactly an ndarray."""
    if isinstance(value, tuple):
        raise _wrong_kind(value)
    if declared and dtype.kind in _WEAK_KINDS.get(type(value), ""):
        try:
            return np.asarray(value, dtype)
        except OverflowError as error:
            raise _returned(f"{brief(value)}, out of bounds: {error}") from error
    if value is None:
        raise _returned("None where a value is due")
    return _as_array(value)


def _cast_into(window: Array, value: Array, declared: bool) -> None:
    if not declared:
        first = f"{window.dtype} for another chunk; {CAST_RESULTS}"
        raise _returned(f"dtype {value.dtype} here but {first}")
    # Why: only a safe cast keeps all characters of a string and all digits of a number.
    to_string, from_string = window.dtype.kind in "SU", value.dtype.kind in "SU"
    rule: Literal["safe", "same_kind"] = "safe" if to_string else "same_kind"
    if (from_string and not to_string) or not np.can_cast(value.dtype, window.dtype, rule):
        reason = f"which cannot be cast to {window.dtype} under the rule {rule!r}"
        remedy = "cast it in the function, or pass another dtype= or out="
        raise _returned(f"dtype {value.dtype}, {reason}; {remedy}")
    np.copyto(window, value, casting="same_kind")


def _explain_shape(plan: Plan, chunk: int, value: Array, window: Array) -> str:
    """Return the message for a result that does not have the shape of its window."""
    if plan.verb == "map_overlap":
        return explain_overlap_shape(plan, chunk, value.shape)
    if not isinstance(plan.placement, InBlocks):
        # Why the dtypes: without them the first result has made the output.
        in_out = ", and out= must have it" * (plan.dtypes is not None)
        remedy = f"every chunk must return the same shape{in_out}"
    elif value.ndim != window.ndim:
        return explain_axes(value.shape, window.ndim)
    elif value.size == 1:
        remedy = "for one value per block use block_reduce(f, x, chunks=...)"
    else:
        lengths = "with one length per chunk where they differ"
        remedy = f"for blocks that change their size pass out_chunks=, {lengths}"
    return f"the function returned shape {value.shape} where {window.shape} is due; {remedy}"


def explain_overlap_shape(plan: Plan, chunk: int, shape: tuple[int, ...]) -> str:
    """Return the message for a result of `map_overlap` of another shape than that of its place."""
    placement, halo = _placement(plan), plan.halo
    due = placement.lengths(plan.grid, chunk)
    if not shape:
        return "the function returned a scalar where a block is due; block_reduce has depth= too"
    if len(shape) != len(due):
        return explain_axes(shape, len(due))
    lengths = "for blocks of other lengths pass out_chunks="
    returned = f"the function returned shape {shape}"
    if halo is None:
        return f"{returned} where {describe_shape(due)} is due; {lengths}"
    window, whole = halo.window(plan.grid, chunk), untrimmed(plan, halo, chunk)[1]
    depths = [(0, 0) if k is None else halo.depth[k] for k in placement.axes]
    less = [None if n is None else n - sum(pair) for n, pair in zip(whole, depths, strict=True)]
    small = 'boundary="none" makes windows at the array\'s border smaller'
    sides = zip(halo.depth, halo.boundary, strict=True)
    ends = any(any(depth) and Mode.NONE in boundary for depth, boundary in sides)
    if plan.trim and (fits_shape(shape, due) or fits_shape(shape, less)):
        more = f" and another boundary, since {small}" if ends else ""
        hint = f", the halo being cut off already; for such a function pass trim=False{more}"
    elif plan.trim:
        hint = f"; it must return {describe_shape(whole)}, or, with trim=False, "
        hint += f"{describe_shape(due)}; {lengths}"
    elif fits_shape(shape, whole):
        hint = f", which includes the halo, where {describe_shape(due)} is due; without trim=False "
        hint += "it is cut off"
    elif fits_shape(shape, less) and ends:
        hint = f", where {describe_shape(due)} is due; {small}, so pass another one"
    else:
        hint = f", where {describe_shape(due)} is due; with trim=False the function cuts the halo "
        hint += f"off itself; {lengths}"
    return f"{returned} for a window of shape {tuple(b - a for a, b in window)}{hint}"


def _placement(plan: Plan) -> InBlocks:
    assert isinstance(plan.placement, InBlocks), "results with a halo are placed beside one another"
    return plan.placement


# Memory of the windows


def reserver(plan: Plan, outputs: Sequence[Array], share: float) -> Reserve | None:
    """Return the function that reserves the windows of the chunks of a claim; None if none gains.

    Parameters
    ----------
    share : float
        The part of the pages of a claim that this worker leaves to others at first.

    Notes
    -----
    Cost of a call: two system calls for each 2 MiB that this process has not written to before, and
    one for up to 8 MiB of them. A claim over chunks that an earlier run has written to costs a
    look.
    """
    parts = [
        _reserve_output(plan, output, found, share)
        for output in outputs
        if (found := _shared_mapping(output)) is not None
    ]

    def reserve(chunks: Sequence[int]) -> None:
        for part in parts:
            part(chunks)

    return reserve if parts else None


def band_of_pages(plan: Plan, outputs: Sequence[Array]) -> int:
    """Return the chunks whose windows fill the huge pages that are made at once, at least 1.

    Of several outputs the largest counts, since it has the most pages.
    """
    found = [
        BATCH * plan.chunks // output.nbytes
        for output in outputs
        if (mapping := _shared_mapping(output)) is not None and mapping.segment.unreserved()[1]
    ]
    return max(1, min(found, default=1))


def _shared_mapping(output: Any) -> Mapping | None:
    """Return the mapping of an output that gains from it."""
    if not isinstance(output, np.ndarray) or output.nbytes < _MIN_RESERVED:
        return None
    mapping = find_mapping(address_of(output))
    if mapping is None or mapping.segment.private or mapping.segment.kind not in KINDS:
        return None
    return mapping


def _reserve_output(plan: Plan, output: Array, mapping: Mapping, share: float) -> Reserve:
    window_of, itemsize = plan.placement.windows(plan.grid, output.shape), output.itemsize
    segment, start = mapping.segment, mapping.start
    whole = segment.size // PAGE * PAGE
    if mapping not in _pages:
        _pages[mapping] = LazyPages(start, segment.size)
    pages = _pages[mapping]
    memory = np.ndarray(segment.size, np.uint8, mapping, mapping.lead)
    place = address_of(output), output.shape, output.strides, itemsize
    layout = plan.grid, plan.placement, place
    if mapping not in _ready or _ready[mapping][0] != layout:
        _ready[mapping] = layout, bytearray(plan.chunks)
    ready = _ready[mapping][1]

    def reserve(chunks: Sequence[int]) -> None:
        ends = [(chunks[0], chunks[-1])]
        if chunks[-1] - chunks[0] != len(chunks) - 1:
            # Why: the chunks of a retry lie anywhere, so they have no box of reasonable size.
            ends = [(chunk, chunk) for chunk in chunks]
        for first, last in ends:
            if ready.find(0, first, last + 1) < 0:
                continue
            box = output[window_around(window_of(first), window_of(last), output.shape)]
            low, high = byte_bounds(box.shape, box.strides, itemsize)
            begin = address_of(box) - start
            if segment.reserved and high - low == box.nbytes:
                # Why not by pages: other processes write to the other windows in these.
                map_pages(memory, begin + low, begin + high)
            else:
                for part in pages.missing(begin + low, begin + high, share):
                    if not segment.reserved:
                        made = pages.reserve(segment.fileno(), *part)
                        # Why not in one statement: threads add to it while this one reserves. Why
                        # min: two of them may make the same page.
                        segment.huge_bytes = min(segment.huge_bytes + made, whole)
                    pages.map(memory, *part)
            ready[first : last + 1] = b"\1" * (last + 1 - first)

    return reserve

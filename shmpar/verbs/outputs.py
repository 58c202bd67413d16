"""The outputs of a verb: ``out=`` and ``dtype=``, the placement of blocks, dtypes of ufuncs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from reprlib import repr as brief
from typing import Any, Final, NamedTuple

import numpy as np

from shmpar.errors import format_count
from shmpar.grid import Axis, Grid
from shmpar.grid.axis import axes_tuple, output_axes, per_axis, whole_number
from shmpar.memory.copying import is_masked, loses
from shmpar.memory.layout import address_of, byte_bounds
from shmpar.memory.locate import locate
from shmpar.plan import Announcement, Argument, Blocks, InBlocks, Output, Plan, Rows, Whole
from shmpar.runtime.outputs import Given, NewFile, NpyFile
from shmpar.stores.store import Store, has_axes_of
from shmpar.stores.targets import (
    Target,
    ZarrPath,
    check_one_writer,
    find_target,
    is_handle,
    is_same_store,
)
from shmpar.verbs.arguments import Axes, Inputs
from shmpar.verbs.labels import BlockLabels
from shmpar.worker.environment import in_worker

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]
Dtypes = Sequence[DType | None]


class OutputSpec(NamedTuple):
    """Declaration of the outputs.

    Attributes
    ----------
    given : tuple of (ndarray, Store, NpyFile or ZarrPath) or None
        ``out=``, one per output.
    users : tuple of object or None
        The objects that the call returns for these; None for themselves.
    named : tuple of (dtype or None) or None
        Like `dtypes`, but without those of arrays that exist at a path: a later call finds one
        that the first call has made.
    dtypes : tuple of (dtype or None) or None
        Declared dtypes, one per output.
    is_tuple : bool or None
        A tuple was declared; None: nothing was declared.
    returns_objects : bool
        ``dtype=object`` was declared, or results go into a list.
    as_list : bool
        Results go into a list.
    in_place : bool
        An output is an input.
    """

    given: tuple[Given, ...] | None = None
    dtypes: tuple[DType | None, ...] | None = None
    is_tuple: bool | None = None
    returns_objects: bool = False
    in_place: bool = False
    as_list: bool = False
    users: tuple[Any, ...] | None = None
    named: tuple[DType | None, ...] | None = None


def parse_output(
    verb: str, out: Any, dtype: Any, arrays: Any, *, objects: bool = False, in_place: bool = False
) -> OutputSpec:
    """Read ``out=`` and ``dtype=``; a tuple declares several outputs.

    Parameters
    ----------
    arrays : sequence of ndarray
        The inputs.
    objects : bool
        The verb collects objects with ``dtype=object``.
    in_place : bool
        An output may be an input.

    Raises
    ------
    TypeError, ValueError
        For an output that cannot be written to, or if both disagree.
    """
    dtypes = None if dtype is None else _parse_dtypes(dtype)
    is_tuple = isinstance(dtype if out is None else out, tuple)
    returns_objects = any(one is not None and one.hasobject for one in dtypes or ())
    if returns_objects and not objects:
        raise TypeError(
            f"{verb}: blocks of Python objects cannot be shared; block_reduce and parallel_map "
            "collect objects with dtype=object"
        )
    if returns_objects and (out is not None or dtypes != (np.dtype(object),)):
        raise TypeError(
            f"{verb}: Python objects need dtype=object alone, without out= or another dtype, not "
            f"dtype={brief(dtype)}"
        )
    if out is None:
        return OutputSpec(None, dtypes, is_tuple, returns_objects)
    targets = [_parse_target(verb, part) for part in _entries("out", out)]
    given = tuple([one.array for one in targets])
    declared = dtypes or (None,) * len(given)
    if len(declared) != len(given):
        raise ValueError(
            f"{verb}: out= has {format_count(len(given), 'array')}, and dtype= has "
            f"{format_count(len(declared), 'dtype')}; pass one dtype per array, or none"
        )
    found, named = [], []
    for one, due in zip(targets, declared, strict=True):
        dtype = due if isinstance(one.array, NewFile) else one.array.dtype
        if due is not None and due != dtype:
            raise ValueError(f"{verb}: out= has dtype {dtype}, dtype= says {due}")
        # Why in workers: these map an input a second time.
        if isinstance(one.array, np.ndarray) and (one.user is not None or in_worker()):
            _use_one_mapping(one.array, arrays)
        found.append(dtype)
        named.append(due if one.is_path else dtype)
    return OutputSpec(
        given, tuple(found), is_tuple, in_place=_is_in_place(verb, given, arrays, in_place),
        users=tuple([one.user for one in targets]), named=tuple(named),
    )  # fmt: skip


def _entries(name: str, value: Any) -> tuple[Any, ...]:
    """Return the entries of an argument that has one per output."""
    entries = value if isinstance(value, tuple) else (value,)
    if not entries:
        raise ValueError(f"{name}= is an empty tuple; pass an entry per output")
    return entries


def _parse_dtypes(dtype: Any) -> tuple[DType | None, ...]:
    found = tuple(None if one is None else np.dtype(one) for one in _entries("dtype", dtype))
    for part in found:
        if part is not None and part.subdtype is not None:
            raise ValueError(
                f"dtype={part} adds axes; pass dtype={part.base}, since a result has its own axes"
            )
        if part is not None and part.kind in "SUV" and part.itemsize == 0:
            raise ValueError(
                f"dtype={part.type.__name__} has no length, and values are never shortened; pass "
                f"the length, as in dtype='{part.kind}10'"
            )
    return found


def find_targets(verb: str, out: Any) -> Any:
    """Replace each output outside memory by its `Target`; leave others as they are."""
    if out is None or isinstance(out, np.ndarray | Target):
        return out
    if isinstance(out, tuple):
        return tuple([find_targets(verb, one) for one in out])
    return find_target(verb, out) or out


def read_axes(
    inputs: Inputs, out: Any, drop_axis: Any, new_axis: Any, out_chunks: Any
) -> tuple[Axes, Any, Any]:
    """Return ``drop_axis``, ``new_axis`` and ``out_chunks`` as positions; see to units of outputs.

    Parameters
    ----------
    out : object
        The result of :func:`find_targets`.
    """
    if isinstance(new_axis, Iterator):  # Why: it can be read once.
        new_axis = list(new_axis)
    if isinstance(inputs.labels, BlockLabels):
        drop_axis, new_axis, out_chunks = inputs.labels.placed(drop_axis, new_axis, out_chunks)
    ndim = len(inputs.shape)
    dropped = axes_tuple("drop_axis", drop_axis, ndim)
    if out is not None and out_chunks is None:
        axes = output_axes(ndim, dropped, new_axis)
        parts = out if isinstance(out, tuple) else (out,)
        stores = [one.array for one in parts if isinstance(one, Target)]
        inputs.written = [
            (axes, one) for one in stores if isinstance(one, Store) and one.ndim == len(axes)
        ]
    return dropped, new_axis, out_chunks


def _parse_target(verb: str, out: Any) -> Target:
    if isinstance(out, Target):
        return out
    if type(out) is not np.ndarray and (target := find_target(verb, out)) is not None:
        return target
    if isinstance(out, str | os.PathLike):
        return Target(NpyFile(out, f"{verb}: out={out!r}"), None)
    return Target(_parse_array(verb, out), None)


def _parse_array(verb: str, out: Any) -> Array:
    if not isinstance(out, np.ndarray):
        raise TypeError(
            f"{verb}: out= is an array, a zarr array, the path of a .npy or .zarr, or a tuple of "
            f"these, not {type(out).__name__}"
        )
    if is_masked(out):
        raise TypeError(f"{verb}: out= is a masked array; pass out.data, and out.mask as another")
    if (lost := loses(out)) is not None:
        raise TypeError(f"{verb}: out= of type {type(out).__name__} would lose {lost}")
    if not out.flags.writeable:
        raise ValueError(f"{verb}: out= (shape {out.shape}) is read-only")
    if out.dtype.hasobject or out.dtype.kind == "T":
        raise TypeError(f"{verb}: out= has dtype {out.dtype}, which workers cannot write")
    if out.size and _overlaps_itself(out):
        raise ValueError(
            f"{verb}: out= is broadcast, or made of windows that overlap: several of its elements "
            "are one in memory"
        )
    return out


def _overlaps_itself(array: Array) -> bool:
    """Return whether the step of an axis is less than the span of all axes with smaller steps."""
    span = array.itemsize
    for step, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1 and step < span:
            return True
        span += step * (length - 1)
    return False


def _is_in_place(verb: str, given: Sequence[Given], arrays: Sequence[Any], allowed: bool) -> bool:
    """Return whether an output is an input, which must be allowed.

    Raises
    ------
    ValueError
        If an output shares memory otherwise with an input, or with another output.
    """
    files = [os.path.realpath(one.path) for one in given if isinstance(one, NewFile)]
    if len(set(files)) < len(files):
        raise ValueError(f"{verb}: two outputs are one file")
    outputs = [one for one in given if isinstance(one, np.ndarray | Store)]
    found = False
    for number, output in enumerate(outputs):
        where = getattr(output, "where", f"shape {output.shape}")
        for other in outputs[:number]:
            if shared := _shared(output, other):
                both = "share memory" if shared == _IN_MEMORY else f"are one store ({where})"
                raise ValueError(f"{verb}: two outputs {both}")
        for array in arrays:
            if not (shared := _shared(output, array)):
                continue
            in_memory = shared == _IN_MEMORY
            found = allowed and (_is_same if in_memory else has_axes_of)(output, array)
            if not found:
                shape = f" (shape {array.shape})" if in_memory else ""
                or_same = ", or the very input to work in place" if in_memory and allowed else ""
                raise ValueError(
                    f"{verb}: out= ({where}) {shared} an input{shape}, so chunks would read the "
                    f"results of others; pass another output{or_same}"
                )
    return found


def check_apart(verb: str, outputs: Sequence[Array | Store], held: Iterable[Any]) -> None:
    """Raise ``ValueError`` if an array that the function holds is, or overlaps, an output."""
    for array in held:
        if shared := next(filter(None, (_shared(one, array) for one in outputs)), ""):
            raise ValueError(
                f"{verb}: out= {shared} an array (shape {array.shape}) that the function holds or "
                "gets as an item, so chunks would read the results of others; pass another output, "
                "or a copy to the function"
            )


_IN_MEMORY: Final = "shares memory with"


def _shared(output: Any, other: Any) -> str:
    """Return how an output and another object are the same array, as a verb; empty if not."""
    if not issubclass(type(other), np.ndarray):
        return "is the store of" if is_handle(output, other) else ""
    if isinstance(output, np.ndarray):
        return _IN_MEMORY if _overlap(output, other) else ""
    return "is the store of" if is_same_store(output, other) else ""


def _use_one_mapping(output: Array, arrays: list[Any]) -> None:
    """Replace inputs that are the mapped output by it.

    Why: NumPy does not see that two mappings are the same memory.
    """
    place = locate(output)
    for number, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or place is None:
            continue
        other = locate(array)
        same = array.shape == output.shape and array.strides == output.strides
        if other is None or other.offset != place.offset or not same:
            continue
        if other.segment.identity() == place.segment.identity() and array.dtype == output.dtype:
            arrays[number] = output


def _is_same(one: Any, other: Any) -> bool:
    same_place = address_of(one) == address_of(other) and one.strides == other.strides
    return same_place and one.shape == other.shape and one.dtype == other.dtype


def _overlap(one: Array, other: Array) -> bool:
    """Return whether both share memory, or overlap in memory that is mapped twice."""
    # Why plain views: NumPy's functions cost a shared array a dispatch.
    one, other = one.view(np.ndarray), other.view(np.ndarray)
    try:
        if np.shares_memory(one, other, max_work=10_000):  # type: ignore[arg-type]
            return True
    except np.exceptions.TooHardError:
        return True
    first, second = locate(one), locate(other)
    if first is None or second is None:
        return False
    low, high = byte_bounds(one.shape, one.strides, one.itemsize)
    other_low, other_high = byte_bounds(other.shape, other.strides, other.itemsize)
    shift = second.offset - first.offset
    one_mapping = first.segment == second.segment and address_of(other) - address_of(one) == shift
    if one_mapping:
        return False
    same_file = first.segment.identity() == second.segment.identity()
    return same_file and low < other_high + shift and other_low + shift < high


def check_stores(plan: Plan, given: Sequence[Given]) -> None:
    """Check the outputs outside memory.

    Raises
    ------
    ValueError
        If two chunks would write into one unit, or the function is to write into a window.
    """
    for one in given:
        if isinstance(one, ZarrPath):
            one.plan = plan
        if not isinstance(one, Store | ZarrPath):
            continue
        if plan.pass_out:
            place = one.path if isinstance(one, ZarrPath) else one.where
            raise ValueError(
                f"{plan.verb}: pass_out=True passes a window in memory, but out= ({place}) has "
                "none; return the values"
            )
        if isinstance(one, Store):
            plan.check_shape(one)
            check_one_writer(plan, one.shape, one.unit, one.where.removeprefix("file://"))


def declared_shape(chunks: Any, out: Any) -> tuple[int, ...] | None:
    """Return the shape that ``chunks=`` or ``out=`` gives to a call without an array.

    Examples
    --------
    >>> declared_shape(((4, 4, 2), (3,)), None)
    (10, 3)
    """
    entries = chunks if isinstance(chunks, tuple | list) else ()
    if entries and all(isinstance(lengths, tuple | list) for lengths in entries):
        where = f"chunks={brief(chunks)}"
        return tuple([sum([whole_number(n, where) for n in lengths]) for lengths in entries])
    first = out[0] if isinstance(out, tuple) and out else out
    first = first.array if isinstance(first, Target) else first
    return first.shape if isinstance(first, np.ndarray | Store) and first.ndim else None


def place_blocks(
    grid: Grid, drop: Sequence[int], new_axis: Any, out_chunks: Any, *, exact: bool = False
) -> InBlocks:
    """Make the placement of blocks from ``drop_axis``, ``new_axis`` and ``out_chunks``.

    Parameters
    ----------
    exact : bool
        A block has the length of the chunk along an axis in one chunk too.

    Raises
    ------
    ValueError
        If a dropped axis has several chunks, or `out_chunks` does not fit.
    """
    if not drop and new_axis is None and out_chunks is None:
        return InBlocks.exactly(grid) if exact else InBlocks.like(grid)
    for axis in drop:
        if (count := grid.numblocks[axis]) > 1:
            raise ValueError(
                f"drop_axis: axis {axis} is cut into {count:,} chunks, whose results would fall on "
                f"one another; leave it whole with chunks={{{axis}: -1}}"
            )
    axes = output_axes(grid.ndim, drop, new_axis)
    words = f"an output of {format_count(len(axes), 'axis', 'axes')}"
    entries = per_axis("out_chunks", out_chunks, len(axes), missing=None, array=words)
    cuts = [
        _parse_out_chunks(f"out_chunks, axis {k}", entry, axis, grid, exact=exact)
        for k, (entry, axis) in enumerate(zip(entries, axes, strict=True))
    ]
    return InBlocks(tuple(axes), tuple(cuts))


def _parse_out_chunks(
    where: str, entry: Any, number: int | None, grid: Grid, *, exact: bool
) -> Axis | None:
    axis = Axis.regular(1, 1) if number is None else grid.axes[number]
    if entry is None:
        free = number is None or (axis.count == 1 and not exact)
        return None if free else axis
    if isinstance(entry, str) or not isinstance(entry, Iterable):
        lengths = [whole_number(entry, where)] * axis.count
    else:
        lengths = [whole_number(length, where) for length in entry]
    if len(lengths) != axis.count:
        lacking = f"{format_count(len(lengths), 'length')} for {format_count(axis.count, 'chunk')}"
        raise ValueError(f"{where} has {lacking}")
    if lengths == [0] and number is not None:  # Why: to an Axis this is no chunk.
        raise ValueError(f"{where}: chunk 0 would have 0 elements; pass positive lengths")
    try:
        return Axis.explicit(lengths)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def ufunc_dtypes(
    verb: str, func: Any, inputs: Inputs, declared: Iterable[DType | None] = ()
) -> tuple[DType, ...] | None:
    """Return the dtypes of the results of a ufunc; None if they are not known before the call.

    Raises
    ------
    TypeError
        If a result cannot be cast to the declared dtype.

    Examples
    --------
    >>> from shmpar.verbs.arguments import blocks
    >>> ufunc_dtypes("map_blocks", np.sqrt, blocks("map_blocks", [np.arange(3)]))
    (dtype('float64'),)
    """
    if not isinstance(func, np.ufunc):
        return None
    given = [_dtype_of(argument, inputs) for argument in inputs.arguments]
    if any(one is None for one in given) or len(given) != func.nin:
        return None
    try:
        results = func.resolve_dtypes((*given, *[None] * func.nout))[func.nin :]
    except TypeError:
        return None
    for result, dtype in zip(results, declared, strict=False):
        if dtype is not None and not np.can_cast(result, dtype, "same_kind"):
            raise TypeError(
                f"{verb}: {func.__name__} gives dtype {result}, which cannot be cast to {dtype} "
                "under the rule 'same_kind'; pass another dtype= or out="
            )
    # Why not of matmul and others: the shape of a result is not that of the rows.
    return None if func.signature else tuple(results)


def _dtype_of(argument: Argument, inputs: Inputs) -> Any:
    """Return the dtype of an argument; the type of a Python number, which is weak."""
    if isinstance(argument, Blocks | Rows):
        return inputs.arrays[argument.array].dtype
    value = inputs.values[argument.value] if isinstance(argument, Whole) else None
    return type(value) if type(value) in {int, float, complex} else getattr(value, "dtype", None)


def known_outputs(
    plan: Plan, inputs: Inputs, spec: OutputSpec, results: tuple[DType, ...] | None
) -> Announcement | None:
    """Return the outputs if they are known before the function is called, else None.

    Parameters
    ----------
    results : tuple of dtype or None
        Dtypes of the results of a ufunc.
    """
    if spec.returns_objects:
        return Announcement((Output(plan.grid.numblocks, np.dtype(object)),), is_tuple=False)
    if not plan.chunks:
        return _outputs_without_a_call(plan, inputs, spec, results)
    if spec.dtypes is None:
        return None
    shape = None
    if isinstance(plan.placement, InBlocks) and None not in plan.placement.cuts:
        shape = plan.placement.shape(plan.grid, (0,) * len(plan.placement.cuts))
    outputs = []
    for array, dtype in zip(spec.given or (None,) * len(spec.dtypes), spec.dtypes, strict=True):
        if isinstance(array, np.ndarray | Store):
            plan.check_shape(array)
            outputs.append(Output(array.shape, array.dtype))
        elif shape is not None and dtype is not None:
            outputs.append(Output(shape, dtype))
    if len(outputs) < len(spec.dtypes):
        return None
    return Announcement(tuple(outputs), bool(spec.is_tuple))


def _outputs_without_a_call(
    plan: Plan, inputs: Inputs, spec: OutputSpec, results: tuple[DType, ...] | None
) -> Announcement:
    """Return the outputs of a call without a chunk, whose function is never called.

    Raises
    ------
    ValueError
        If dtypes or shapes are not known, or an output would have elements.
    """
    never = f"{plan.verb}: the input has no elements, so the function is never called"
    dtypes, is_tuple = spec.dtypes or (None,), bool(spec.is_tuple)
    if spec.dtypes is None and results is not None:
        dtypes, is_tuple = results, len(results) > 1
    elif results is not None and len(results) == len(dtypes):
        dtypes = tuple([due or found for due, found in zip(dtypes, results, strict=True)])
    shape = _shape_without_a_call(plan, inputs, is_ufunc=results is not None)
    outputs = []
    for array, dtype in zip(spec.given or (None,) * len(dtypes), dtypes, strict=True):
        if isinstance(array, np.ndarray | Store):
            plan.check_shape(array)
            output = Output(array.shape, array.dtype)
        elif dtype is None:
            remedy = "dtype=, or a tuple of dtypes if it returns several outputs"
            raise ValueError(f"{never} and cannot tell the dtype of its results; pass {remedy}")
        elif shape is None:
            remedy = "out_chunks= for the axes of new_axis, or out="
            remedy = remedy if isinstance(plan.placement, InBlocks) else "out="
            raise ValueError(f"{never} and cannot tell the shape of its results; pass {remedy}")
        else:
            output = Output(shape, dtype)
        if prod(output.shape):
            raise ValueError(
                f"{never}, but its output of shape {output.shape} would have elements; call the "
                "function itself on the whole input"
            )
        outputs.append(output)
    return Announcement(tuple(outputs), is_tuple)


def _shape_without_a_call(plan: Plan, inputs: Inputs, *, is_ufunc: bool) -> tuple[int, ...] | None:
    """Return the shape of the output of a call without a chunk; None if nothing tells it."""
    grid, placement = plan.grid, plan.placement
    if isinstance(placement, InBlocks):
        # Why: along an axis in one chunk a block may have any length, and mostly keeps its own.
        pairs = zip(placement.axes, placement.cuts, strict=True)
        axes = [grid.axes[k] if cut is None and k is not None else cut for k, cut in pairs]
        lengths = [axis.size for axis in axes if axis is not None]
        return tuple(lengths) if len(lengths) == len(axes) else None
    if not is_ufunc:
        return grid.numblocks
    rows = [inputs.arrays[one.array].shape[1:] for one in plan.arguments if isinstance(one, Rows)]
    return (0, *np.broadcast_shapes(*rows)) if len(rows) == len(plan.arguments) else None

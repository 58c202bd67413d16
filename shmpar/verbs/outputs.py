"""``out=`` and ``dtype=``: what the user says of the results, checked before anything starts.

Imports outputs, policy and segment.

Where the blocks of an output lie: ``drop_axis``, ``new_axis``, ``out_chunks``; does it fit.

Imports grid and plan.

What is known of a ufunc before it is called: the dtypes of its results.

Imports the plan, and inputs beside it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.grid import Axis, Grid
from shmpar.grid.axis import per_axis, whole_number
from shmpar.memory.copying import is_masked
from shmpar.memory.locate import locate
from shmpar.memory.segment import byte_bounds
from shmpar.plan import Argument, Blocks, InBlocks, Plan, Rows, Whole
from shmpar.runtime.execution import Policy
from shmpar.runtime.outputs import NpyFile, Outputs, filler
from shmpar.verbs.arguments import Inputs

__all__ = [
    "Targets",
    "axes_tuple",
    "check_casts",
    "check_overlap",
    "check_shape",
    "parse_targets",
    "place_blocks",
    "ufunc_dtypes",
]

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
    mine, theirs = (place.segment.identity() for place in places if place is not None)
    if mine != theirs:
        return False
    (low, high), (other_low, other_high) = (
        [place.offset + end for end in byte_bounds(array.shape, array.strides, array.itemsize)]
        for place, array in zip(places, (one, other), strict=True)
        if place is not None
    )
    return low < other_high and other_low < high


def _share_addresses(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def axes_tuple(name: str, axes: Any, ndim: int) -> tuple[int, ...]:
    """Read an axis or several, counted from either end.

    Examples
    --------
    >>> axes_tuple("drop_axis", [-1, 0], 3)
    (0, 2)
    """
    if axes is None:
        return ()
    found = list(axes) if isinstance(axes, Iterable) else [axes]
    for axis in found:
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"{name} is an axis or a sequence of axes, not {axis!r}")
        if not -ndim <= axis < ndim:
            raise ValueError(f"{name}: axis {axis} is out of bounds for {ndim} axes")
    result = sorted(int(axis) % ndim for axis in found)
    if len(set(result)) != len(result):
        raise ValueError(f"{name}: {axes} names an axis twice")
    return tuple(result)


def place_blocks(grid: Grid, drop: Sequence[int], new_axis: Any, out_chunks: Any) -> InBlocks:
    """Say which axis of the output comes from which of the grid, and how it is cut.

    Raises
    ------
    ValueError
        If a dropped axis is cut, or `out_chunks` does not fit.
    """
    if not drop and new_axis is None and out_chunks is None:
        return InBlocks.like(grid)
    for axis in drop:
        if grid.numblocks[axis] > 1:
            raise ValueError(
                f"drop_axis: axis {axis} is cut into {grid.numblocks[axis]} chunks, whose results "
                f"would fall on one another; leave it whole with chunks={{{axis}: -1}}"
            )
    axes: list[int | None] = [axis for axis in range(grid.ndim) if axis not in drop]
    added = list(new_axis) if isinstance(new_axis, Iterable) else [new_axis]
    for axis in () if new_axis is None else axes_tuple("new_axis", added, len(axes) + len(added)):
        axes.insert(axis, None)
    cuts = [_as_cut(grid, axis) for axis in axes]
    if out_chunks is not None:
        cuts = _declared(grid, axes, cuts, out_chunks)
    return InBlocks(tuple(axes), tuple(cuts))


def _as_cut(grid: Grid, axis: int | None) -> Axis | None:
    """Like the grid where that is cut; where it is not, the result says."""
    return None if axis is None or grid.numblocks[axis] == 1 else grid.axes[axis]


def _declared(
    grid: Grid, axes: Sequence[int | None], cuts: Sequence[Axis | None], out_chunks: Any
) -> list[Axis | None]:
    words = f"an output of {len(axes)} axes"
    entries = per_axis("out_chunks", out_chunks, len(axes), missing=None, array=words)
    blocks = [1 if axis is None else grid.numblocks[axis] for axis in axes]
    return [
        cut if entry is None else _cut(position, entry, count)
        for position, (entry, cut, count) in enumerate(zip(entries, cuts, blocks, strict=True))
    ]


def _cut(position: int, entry: Any, blocks: int) -> Axis:
    where = f"out_chunks, axis {position}"
    if isinstance(entry, str) or not isinstance(entry, Iterable):
        lengths = [whole_number(entry, where)] * blocks
    else:
        lengths = [whole_number(length, where) for length in entry]
    if len(lengths) != blocks:
        raise ValueError(f"{where} has {len(lengths)} lengths for {blocks} chunks")
    try:
        return Axis.explicit(lengths)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_shape(plan: Plan, out: np.ndarray[Any, Any]) -> None:
    """Raise ``ValueError`` if `out` cannot have the shape of the output."""
    placement = plan.placement
    if isinstance(placement, InBlocks):
        fits = out.ndim == len(placement.cuts) and all(
            cut is None or cut.size == length
            for cut, length in zip(placement.cuts, out.shape, strict=True)
        )
        due = tuple("any" if cut is None else cut.size for cut in placement.cuts)
    else:
        lead = plan.grid.numblocks
        fits = out.shape[: len(lead)] == lead
        due = (*lead, "...")
    if not fits:
        raise ValueError(f"{plan.verb}: out= has shape {out.shape}; the results make {due}")


def ufunc_dtypes(func: Callable[..., Any], inputs: Inputs) -> tuple[DType, ...] | None:
    """The dtypes of a ufunc's results; None for what is no ufunc, or says so itself when called.

    Examples
    --------
    >>> from shmpar.verbs.arguments import blocks
    >>> ufunc_dtypes(np.sqrt, blocks("map_blocks", [np.arange(3)]))
    (dtype('float64'),)
    """
    if not isinstance(func, np.ufunc):
        return None
    given = [_dtype(argument, inputs) for argument in inputs.arguments]
    if any(one is None for one in given) or len(given) != func.nin:
        return None
    try:
        found = func.resolve_dtypes((*given, *[None] * func.nout))
    except TypeError:
        return None
    return tuple(found[func.nin :])


def _dtype(argument: Argument, inputs: Inputs) -> Any:
    """Of an argument; Python's numbers are weak, and are their type."""
    match argument:
        case Blocks(number) | Rows(number):
            return inputs.arrays[number].dtype
        case Whole(value):
            held = inputs.values[value]
            kind = type(held)
            return kind if kind in {int, float, complex} else getattr(held, "dtype", None)
    return None


def check_casts(
    verb: str,
    func: Callable[..., Any],
    results: Sequence[DType] | None,
    due: Sequence[DType | None] | None,
) -> None:
    """Raise ``TypeError`` if a ufunc's result does not cast to what is declared."""
    for result, dtype in zip(results or (), due or (), strict=False):
        if dtype is not None and not np.can_cast(result, dtype, "same_kind"):
            raise TypeError(
                f"{verb}: {func.__name__} gives dtype {result}, which does not cast to {dtype} "
                "without loss of kind; pass another dtype= or out="
            )

"""The inputs of a verb, as arrays and arguments of a plan."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any, Final

import numpy as np

from shmpar.errors import format_count
from shmpar.grid import Grid, Halo, Mode
from shmpar.grid.axis import axis_number
from shmpar.grid.grid import STORE_BLOCK_BYTES
from shmpar.grid.halo import parse_boundary, parse_depth
from shmpar.memory.copying import computes_itself, is_masked, loses
from shmpar.memory.limits import free_memory
from shmpar.plan import SMALLER_WINDOW, Argument, Blocks, Items, Rows, Whole
from shmpar.runtime.error_texts import warn_user
from shmpar.stores.recognise import wrap
from shmpar.stores.store import Part, Store
from shmpar.verbs.functions import parameters_of, types_of
from shmpar.verbs.labels import BlockLabels, RowLabels, read_labels, row_labels

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]
Depths = tuple[tuple[int, int], ...]

# Why: reading the free memory takes longer than a call of a verb.
_LARGE_WINDOW: Final = 64 << 20
_FEW_AXES: Final = 4
_NO_HALO: Final[list[Any]] = [(0, 0), (Mode.NONE, Mode.NONE)]


@dataclass(eq=False, repr=False, slots=True)
class Inputs:
    """Inputs of a verb.

    Attributes
    ----------
    arrays : list of (ndarray, Store or Part)
        Arrays that are divided into chunks.
    values : list
        Constants, and sequences of items.
    arguments : list of Argument
        Arguments of the function, in order.
    shape : tuple of int
        Shape of the grid: that of the broadcast arrays, or ``(items,)``.
    written : sequence of (sequence of (int or None), Store)
        Outputs whose units "auto" follows too, with the axes of the grid for their axes.
    labels : BlockLabels, RowLabels or None
        Labels that the result gets.
    """

    arrays: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    written: Sequence[tuple[Sequence[int | None], Store]] = ()
    labels: BlockLabels | RowLabels | None = None

    def numbered(self, **options: Any) -> tuple[Any, ...]:
        """Return values of options, with positions in place of the names of axes."""
        labels = self.labels
        if not isinstance(labels, BlockLabels):
            return tuple(options.values())
        return tuple([labels.numbered(option, given) for option, given in options.items()])

    def add_halos(self, verb: str, depth: Any, boundary: Any) -> Halo | None:
        """Give each block its halo; return the halo of the results, None if no block has any.

        A list has an entry per input, along the axes of that input; anything else holds for the
        axes of the grid. An axis that is not cut arrives whole, without a halo. A result has the
        halo of the input with the most axes, the first of these; along an axis that this input
        does not have, that of the next.

        Raises
        ------
        TypeError, ValueError
            For a wrong entry, or a constant that an input cannot hold.
        """
        depths = self._per_input(verb, "depth", depth, parse_depth)
        sides = self._per_input(verb, "boundary", boundary, parse_boundary)
        found: list[tuple[tuple[int | None, ...], Halo]] = []
        for position, argument in enumerate(self.arguments):
            if isinstance(argument, Blocks):
                pairs = zip(argument.axes, depths[position], sides[position], strict=True)
                own = [_NO_HALO if axis is None else pair for axis, *pair in pairs]
                halo = Halo(tuple([one for one, _ in own]), tuple([one for _, one in own]))
                halo.check_constants(self.arrays[argument.array].dtype)
                found.append((argument.axes, halo))
                self.arguments[position] = argument._replace(halo=halo or None)
        if not any(halo for _, halo in found):
            return None
        along: dict[int | None, Any] = {}
        for axes, halo in sorted(found, key=lambda pair: -len(pair[0])):
            for axis, *side in zip(axes, *halo, strict=True):
                along.setdefault(axis, side)
        return Halo(*zip(*[along[axis] for axis in range(len(self.shape))], strict=True))

    def reach(self) -> Depths:
        """Return the largest depth (before, after) of a halo along each axis of the grid."""
        most = [(0, 0)] * len(self.shape)
        for argument in self.arguments:
            if isinstance(argument, Blocks) and argument.halo is not None:
                for axis, (before, after) in zip(argument.axes, argument.halo.depth, strict=True):
                    if axis is not None:
                        most[axis] = max(most[axis][0], before), max(most[axis][1], after)
        return tuple(most)

    def _per_input(self, verb: str, name: str, given: Any, parse: Callable[..., Any]) -> list[Any]:
        """Read ``depth=`` or ``boundary=``: for each argument a pair per axis of its own."""
        axes = [len(one.axes) if isinstance(one, Blocks) else 0 for one in self.arguments]
        if isinstance(given, list):
            if len(given) != len(axes):
                entries = format_count(len(given), "entry", "entries")
                raise ValueError(
                    f"{verb}: {name}={given!r} is a list of {entries} for "
                    f"{format_count(len(axes), 'input')}; a list has an entry per input, and a "
                    "tuple an entry per axis"
                )
            pairs = zip(given, axes, strict=True)
            return [parse(one, n, f"{name}[{k}]") if n else () for k, (one, n) in enumerate(pairs)]
        # Why: only ints and strings are keys of a cache, since 0.0 is equal to -0.0.
        read = _cached_sides if type(given) in {int, str} else operator.call
        shared = read(parse, given, len(self.shape))
        # Why: inputs broadcast from the last axis.
        return [shared[len(shared) - n :] for n in axes]

    def cut(self, chunks: Any, *, whole: Axes = (), depth: Depths = (), **sizes: Any) -> Grid:
        """Make the grid of the inputs; arguments as in :meth:`shmpar.grid.Grid.cut`."""
        entries = chunks if isinstance(chunks, tuple) else (chunks,)
        # Why: only ints and strings are keys of a cache, since True and 1.0 are equal to 1.
        cut = _cached_cut if {int, str}.issuperset(map(type, entries)) else Grid.cut
        size = max([array.itemsize for array in self.arrays], default=8)
        if (units := self._units()) is not None:
            cut = functools.partial(Grid.cut, units=units)
        return cut(self.shape, chunks, itemsize=size, depth=depth or None, whole=whole, **sizes)

    def _units(self) -> list[int] | None:
        """Return the common unit of all stores along each axis of the grid; None without any."""
        stores: list[tuple[Sequence[int | None], Store]] = [
            (one.axes, self.arrays[one.array])
            for one in self.arguments
            if isinstance(one, Blocks) and isinstance(self.arrays[one.array], Store)
        ]
        stores += self.written
        if not stores:
            return None
        units = [1] * len(self.shape)
        # Why reversed: chunks must follow the units of outputs, and should follow the others.
        for axes, store in reversed(stores):
            lengths = store.unit or (1,) * store.ndim
            for axis, unit in zip(axes, lengths, strict=True):
                if axis is None:
                    continue
                both = math.lcm(units[axis], max(1, unit))
                block = [*map(min, units, self.shape)]
                block[axis] = min(both, self.shape[axis])
                if units[axis] == 1 or math.prod(block) * store.itemsize <= 2 * STORE_BLOCK_BYTES:
                    units[axis] = both
        return units


_cached_cut = functools.lru_cache(maxsize=64)(Grid.cut)


_cached_sides = functools.lru_cache(maxsize=64)(operator.call)


def as_input(value: Any, verb: str) -> Array:
    """Make an array of an argument, or a store of an array outside memory.

    Raises
    ------
    TypeError
        For a masked array, an array with a unit, or an array of Python objects.
    """
    value = from_store(value, verb)
    if type(value) is str:  # Why not isinstance: a string of NumPy is a value.
        raise TypeError(
            f"{verb}: {brief(value)} is text, not an array; pass shmpar.open(path) for the array "
            "in a file, or a keyword of the function in kwargs="
        )
    if isinstance(value, Store | Part):
        _check_values(value, verb)
        return value  # type: ignore[return-value]  # Why: the plan asks no more of an array
    if is_masked(value):
        raise TypeError(
            f"{verb}: a masked array would lose its mask; pass x.data, and x.mask (as "
            "np.ma.getmaskarray(x)) as a second input"
        )
    if (lost := loses(value)) is not None:
        raise TypeError(f"{verb}: an array of type {type(value).__name__} would lose {lost}")
    if computes_itself(value):
        text = (
            f"{verb}: the function gets plain arrays of the bytes of a {type(value).__name__}, "
            "whose own indexing and arithmetic are not used; pass np.asarray(x) to say that this "
            "is meant, or the array to the function in kwargs="
        )
        warn_user(text)
    array = np.asarray(value)
    _check_values(array, verb)
    return array


def from_store(value: Any, verb: str) -> Any:
    """Return the store of an array that lies in one; anything else as it is."""
    # Why first: most inputs are arrays in memory.
    if isinstance(value, np.ndarray):
        return value
    try:
        return wrap(value)
    except TypeError as error:
        raise TypeError(f"{verb}: {error}") from None


def _check_values(array: Any, verb: str) -> None:
    if array.dtype.hasobject or array.dtype.kind == "T":
        own = verb == "parallel_map"
        objects = "a list of the objects, array.tolist()" if own else "a list to parallel_map"
        raise TypeError(
            f"{verb}: an array of dtype {array.dtype} holds pointers into this process; pass "
            f"numbers, fixed-width strings or bytes, or {objects}"
        )


def blocks(
    verb: str, given: Sequence[Any], shape: Callable[[], tuple[int, ...] | None] = lambda: None
) -> Inputs:
    """Read the arguments of a verb that divides arrays into blocks; they broadcast as in NumPy.

    Parameters
    ----------
    shape : callable
        Returns the shape of the grid if there is no array with axes; None without one.

    Raises
    ------
    TypeError
        If there is neither an array nor a shape.
    ValueError
        If the shapes do not broadcast.
    """
    given, labels = read_labels(verb, given)
    pairs = list[tuple[Any, Any]]()  # each value and its array, None for a constant
    for one in given:
        value = from_store(one, verb)
        if isinstance(value, Store) and value.ndim == 0:
            value = value[()]  # Why: a store without axes is a constant.
        pairs.append((value, None if _is_scalar(value) else as_input(value, verb)))
    shapes: list[tuple[int, ...]] = [array.shape for _, array in pairs if array is not None]
    if not shapes and (declared := shape()) is not None:
        shapes = [declared]
    elif not given:
        made = verb == "map_blocks"
        remedy = made * ", or chunks= with the length of every chunk, as in ((4, 4), (6,)), or out="
        raise TypeError(f"{verb}() needs at least one array{remedy}")
    elif not shapes:  # Why: without axes there is one chunk, of the first array.
        pairs[0], shapes = (None, as_input(pairs[0][0], verb)), [()]
    inputs = Inputs(labels=labels)
    try:
        inputs.shape = shapes[0] if len(set(shapes)) == 1 else np.broadcast_shapes(*shapes)
    except ValueError:
        given_shapes, remedy = ", ".join(map(str, shapes)), _meant(verb, [one for one, _ in pairs])
        raise ValueError(
            f"{verb}: inputs of shapes {given_shapes} do not broadcast{remedy}"
        ) from None
    for value, array in pairs:
        if array is None:
            inputs.arguments.append(Whole(len(inputs.values)))
            inputs.values.append(value)
            continue
        axes = range(len(inputs.shape) - array.ndim, len(inputs.shape))
        lengths = zip(axes, array.shape, strict=True)
        cut = [None if n == 1 and inputs.shape[k] != 1 else k for k, n in lengths]
        inputs.arguments.append(Blocks(len(inputs.arrays), tuple(cut)))
        inputs.arrays.append(array)
    return inputs


def _meant(verb: str, given: Sequence[Any]) -> str:
    """Return advice if an argument looks like ``chunks=`` or ``depth=`` without its name."""
    option = "depth" if verb == "map_overlap" else "chunks"
    sizes = (one for one in given[1:] if isinstance(one, tuple | list) and len(one) <= _FEW_AXES)
    for size in sizes:
        if all(isinstance(n, int) for n in size):
            return f"; for {verb}(f, x, {size}) write {option}={size}"
    return ""


def check_windows(verb: str, grid: Grid, inputs: Inputs) -> None:
    """Raise ``ValueError`` if a padded window takes more bytes than there is free memory."""
    longest = [axis.step for axis in grid.axes]
    for argument in inputs.arguments if grid.size else ():
        if not isinstance(argument, Blocks) or argument.halo is None:
            continue
        array, halo = inputs.arrays[argument.array], argument.halo
        lengths = [
            n if k is None else longest[k] for k, n in zip(argument.axes, array.shape, strict=True)
        ]
        window = halo.longest_window(lengths, array.shape)
        nbytes = math.prod(window) * array.itemsize
        # Why: a window that is not padded is a view, and a small one has room.
        if nbytes <= _LARGE_WINDOW or not halo.pads() or nbytes <= (free := free_memory()):
            continue
        raise ValueError(
            f"{verb}: a chunk of shape {tuple(longest)} with its halo of depth {halo.depth} makes "
            f"a window of shape {window}, which takes {nbytes:,} bytes, but {free:,} bytes of "
            f"memory are free; {SMALLER_WINDOW}"
        )


def _is_scalar(value: Any) -> bool:
    # Why: NumPy's functions cost a shared array a dispatch, and a scalar type has ndim too.
    if isinstance(value, np.ndarray):
        return value.ndim == 0
    return isinstance(value, type) or np.ndim(value) == 0


def items(
    verb: str, given: Sequence[Any], axis: int, func: Callable[..., Any] | None = None
) -> Inputs:
    """Read the arguments of a verb that takes rows of arrays, and items of other iterables.

    Raises
    ------
    TypeError
        If an argument is not iterable, or is an array without axes.
    ValueError
        If the arguments differ in length.
    """
    inputs = Inputs()
    lengths, has_axes = [], False
    parts: Any
    for position, value in enumerate(given):
        labels, number = row_labels(verb, value, axis)
        if labels is not None:
            if isinstance(inputs.labels, RowLabels):
                inputs.labels.check(verb, labels)
            inputs.labels = inputs.labels or labels
            has_axes = True
        value = _rows_of_table(from_store(value, verb), axis)  # noqa: PLW2901 - as it is meant
        # Why: a tensor is an array as well, whose iteration would give tensors.
        if isinstance(value, np.ndarray | Store | Part) or hasattr(type(value), "__dlpack__"):
            parts, number = _rows(as_input(value, verb), number, verb)
            inputs.arguments.append(Rows(len(inputs.arrays), number))
            inputs.arrays.append(parts)
            has_axes = True
        else:
            try:
                found = iter(value)  # Why: a sequence may have __getitem__ alone.
            except TypeError as error:
                raise TypeError(
                    f"{verb}: argument {position} is a {type(value).__name__}, which has no items; "
                    f"constants for the function go into kwargs={_named(func, position, value)}"
                ) from error
            parts = value if isinstance(value, range) else list(found)
            inputs.arguments.append(Items(len(inputs.values)))
            inputs.values.append(parts)
        lengths.append(len(parts))
    if not has_axes and axis != 0:
        raise TypeError(
            f"{verb}: axis={axis!r} is an axis of an array, but a {type(given[0]).__name__} gives "
            "its items; pass np.asarray(x), or leave axis= out"
        )
    if len(set(lengths)) > 1:
        differing = " and ".join(map(str, lengths))
        raise ValueError(f"{verb}: the arguments differ in length: {differing}")
    inputs.shape = (lengths[0],)
    return inputs


def _named(func: Callable[..., Any] | None, position: int, value: Any) -> str:
    """Return the dict with the name of the parameter that a value was meant for, as text."""
    parameters = [] if func is None else list(parameters_of(func))
    if position >= len(parameters):
        return ""
    return f"{{{parameters[position]!r}: {brief(value)}}}"


def _rows(array: Any, axis: Any, verb: str) -> tuple[Any, int]:
    """Return the rows of an array along an axis, and the axis counted from the first one."""
    if array.ndim == 0:
        raise TypeError(f"{verb}: an array without axes has no rows")
    number = axis_number(axis, array.ndim, f"{verb}: axis={axis!r}")
    if isinstance(array, Part) and number:
        raise TypeError(f"{verb}: a part of an array has rows along axis 0 alone")
    if isinstance(array, Store):
        return array.by_rows_of(number), number
    return (np.moveaxis(array, number, 0) if number else array), number


def _rows_of_table(value: Any, axis: Any) -> Any:
    """Return the rows of a DataFrame, or the values of a Series; anything else as it is."""
    # Why tables: their iteration would give the names of columns.
    if not isinstance(value, types_of("pandas", "DataFrame", "Series", "Index")):
        return value
    values = value.to_numpy()
    if not values.dtype.hasobject:
        return values
    return list(values if axis in {0, -values.ndim} else np.moveaxis(values, axis, 0))

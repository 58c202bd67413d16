"""What the user passes to a verb, made into arrays and a plan's arguments.

Imports plan and grid.

What the user's function asks for.

Imports named.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shmpar.grid import BLOCK_BYTES, Grid
from shmpar.grid.axis import whole_number
from shmpar.memory.copying import is_masked
from shmpar.pickling.pack import is_named
from shmpar.plan import Argument, Blocks, Items, Rows, Whole

__all__ = [
    "Inputs",
    "as_input",
    "blocks",
    "check_callable",
    "check_signature",
    "cut",
    "entropy",
    "items",
    "special_parameters",
]

Array = np.ndarray[Any, Any]


@dataclass(eq=False, slots=True)
class Inputs:
    """The arguments of a verb.

    Attributes
    ----------
    arrays : list of ndarray
        Those that are cut.
    values : list
        Constants, and sequences of items.
    arguments : list of Argument
        How the function gets them, in order.
    shape : tuple of int
        What they broadcast to; for items ``(items,)``.
    """

    arrays: list[Array] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    shape: tuple[int, ...] = ()

    def add_value(self, value: Any) -> int:
        """Keep a value; return its place."""
        self.values.append(value)
        return len(self.values) - 1

    def add_array(self, array: Array) -> int:
        """Keep an array; return its place."""
        self.arrays.append(array)
        return len(self.arrays) - 1

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the widest array."""
        return max((array.itemsize for array in self.arrays), default=8)


def as_input(value: Any, verb: str) -> Array:
    """Make an array of an argument.

    Raises
    ------
    TypeError
        For a masked array, or one of Python objects.
    """
    if is_masked(value):
        raise TypeError(
            f"{verb}: a masked array would lose its mask; pass x.data, and x.mask (as "
            "np.ma.getmaskarray(x)) as a second input"
        )
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.kind == "T":
        raise TypeError(
            f"{verb}: an array of dtype {array.dtype} holds pointers into this process; pass "
            "numbers, fixed-width strings or bytes (for a list of objects there is parallel_map)"
        )
    return array


def _is_constant(value: Any) -> bool:
    """Whether a block verb hands the argument on as it is."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0
    return value is None or isinstance(value, str | bytes | dict) or np.ndim(value) == 0


def blocks(verb: str, given: Sequence[Any]) -> Inputs:
    """Arguments of a verb that cuts arrays into blocks; they broadcast as NumPy's.

    Raises
    ------
    TypeError
        If there is no array.
    ValueError
        If the shapes do not broadcast.
    """
    if not given:
        raise TypeError(f"{verb}() needs at least one array")
    inputs = Inputs()
    found = [None if _is_constant(value) else as_input(value, verb) for value in given]
    cut = [array for array in found if array is not None]
    if not cut:  # arrays without axes, and constants: one chunk
        found = [as_input(value, verb) if i == 0 else None for i, value in enumerate(given)]
        cut = [array for array in found if array is not None]
    try:
        shapes = {array.shape for array in cut}
        inputs.shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    except ValueError:
        given_shapes = ", ".join(str(array.shape) for array in cut)
        raise ValueError(f"{verb}: inputs of shapes {given_shapes} do not broadcast") from None
    for value, array in zip(given, found, strict=True):
        if array is None:
            inputs.arguments.append(Whole(inputs.add_value(value)))
        else:
            place = inputs.add_array(array)
            inputs.arguments.append(_cut_by_grid(place, array.shape, inputs.shape))
    return inputs


@functools.lru_cache(maxsize=64)
def _cut_by_grid(place: int, shape: tuple[int, ...], whole: tuple[int, ...]) -> Blocks:
    """An input of a shape, whose axes the grid's cut, but for those that are stretched."""
    shift = len(whole) - len(shape)
    axes = [
        None if length == 1 and whole[axis + shift] != 1 else axis + shift
        for axis, length in enumerate(shape)
    ]
    return Blocks(place, tuple(axes))


def items(verb: str, given: Sequence[Any], axis: int) -> Inputs:
    """Arguments of a verb that takes rows of arrays, and items of anything else.

    Raises
    ------
    TypeError
        If one is not iterable, or an array without axes.
    ValueError
        If their lengths differ.
    """
    inputs = Inputs()
    lengths = []
    for position, value in enumerate(given):
        if isinstance(value, np.ndarray):
            rows = _rows(as_input(value, verb), axis, verb)
            inputs.arguments.append(Rows(inputs.add_array(rows)))
            lengths.append(len(rows))
        elif isinstance(value, Iterable):
            held = value if isinstance(value, range) else list(value)
            inputs.arguments.append(Items(inputs.add_value(held)))
            lengths.append(len(held))
        else:
            raise TypeError(
                f"{verb}: argument {position} is a {type(value).__name__}, which has no items; "
                "constants for the function go into kwargs="
            )
    if len(set(lengths)) > 1:
        raise ValueError(f"{verb}: arguments have {lengths} items; they must have equally many")
    inputs.shape = (lengths[0],)
    return inputs


def _rows(array: Array, axis: int, verb: str) -> Array:
    if array.ndim == 0:
        raise TypeError(f"{verb}: an array without axes has no rows")
    axis = whole_number(axis, f"{verb}: axis={axis!r}")
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"{verb}: axis {axis} is out of bounds for an array of {array.ndim} axes")
    return np.moveaxis(array, axis, 0) if axis else array


def cut(
    inputs: Inputs, chunks: Any, *, whole: tuple[int, ...] = (), most: int = BLOCK_BYTES
) -> Grid:
    """Cut what the inputs broadcast to; as :meth:`shmpar.grid.Grid.cut`."""
    exact = chunks if isinstance(chunks, tuple) else (chunks,)
    if all(type(length) is int or type(length) is str for length in exact):
        return _cut(inputs.shape, chunks, inputs.itemsize, whole, most)
    return Grid.cut(inputs.shape, chunks, itemsize=inputs.itemsize, whole=whole, most=most)


@functools.lru_cache(maxsize=64)
def _cut(
    shape: tuple[int, ...], chunks: Any, itemsize: int, whole: tuple[int, ...], most: int
) -> Grid:
    """Keep the grids of calls that are made again and again."""
    return Grid.cut(shape, chunks, itemsize=itemsize, whole=whole, most=most)


_OFFERED = ("block_id", "block_info", "rng")


def check_callable(verb: str, func: Any) -> None:
    """Raise ``TypeError`` if `func` cannot be called."""
    if not callable(func):
        raise TypeError(f"{verb}: the function comes first; {type(func).__name__} is not callable")


def special_parameters(func: Callable[..., Any], keywords: Mapping[str, Any]) -> frozenset[str]:
    """Which of ``block_id``, ``block_info`` and ``rng`` the function has as free parameters.

    Examples
    --------
    >>> sorted(wants(lambda block, rng, block_id=None: block, {"rng": 1}))
    ['block_id']
    """
    names = _parameters(func)
    return frozenset(name for name in _OFFERED if name in names and name not in keywords)


def check_signature(
    verb: str,
    func: Callable[..., Any],
    count: int,
    keywords: Mapping[str, Any],
    wanted: frozenset[str],
) -> None:
    """Raise ``TypeError`` if `func` wants a parameter that nobody passes.

    Cost: nothing to speak of for plain functions, ufuncs and compiled ones that were looked at
    before; 20 to 100 us for others.
    """
    if isinstance(func, np.ufunc) and count != func.nin:
        raise TypeError(
            f"{verb}: {func.__name__} takes {func.nin} arrays, not {count}; where its result goes "
            "is out="
        )
    if not (keywords or wanted) and _takes(func, count):
        return
    try:
        signature = inspect.signature(func)
    except ValueError as error:
        if isinstance(func, functools.partial) and "incorrect arguments" in str(error):
            raise TypeError(f"{verb}: {error}") from None
        return
    except TypeError:  # compiled functions need not have a signature
        return
    try:
        signature.bind(*[None] * count, **{**keywords, **dict.fromkeys(wanted)})
    except TypeError as error:
        blocks = "1 argument" if count == 1 else f"{count} arguments"
        raise TypeError(
            f"{verb}: the function cannot be called with {blocks} and "
            f"kwargs={sorted(keywords)}: {error}; pass what it wants besides in kwargs="
            + (", or out by pass_out=True" if "'out'" in str(error) else "")
        ) from None


def _takes(func: Callable[..., Any], count: int) -> bool:
    """Whether it is seen at once that so many arguments are right."""
    if isinstance(func, np.ufunc):
        return True
    if is_named(func):
        return _takes_named(func, count)
    if not isinstance(func, types.FunctionType) or hasattr(func, "__wrapped__"):
        return False
    most = func.__code__.co_argcount
    return most - len(func.__defaults__ or ()) <= count <= most and not (
        func.__code__.co_kwonlyargcount
    )


@functools.lru_cache(maxsize=256)
def _takes_named(func: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(func).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it need not have a signature
        pass
    return True


def _parameters(func: Callable[..., Any]) -> Collection[str]:
    if is_named(func):
        return _parameters_named(func)
    if isinstance(func, types.FunctionType) and not hasattr(func, "__wrapped__"):
        code = func.__code__
        return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    if isinstance(func, np.ufunc):
        return set()
    names = _signed(func)
    while isinstance(func, functools.partial):
        names -= set(func.keywords)
        func = func.func
    return names


@functools.lru_cache(maxsize=256)
def _parameters_named(func: Callable[..., Any]) -> frozenset[str]:
    return frozenset(_signed(func))


def _signed(func: Callable[..., Any]) -> set[str]:
    """The names of all parameters; none of a compiled function that does not say."""
    try:
        return set(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return set()


def entropy(seed: Any) -> Any:
    """The entropy of a run's random streams; fresh for None."""
    return np.random.SeedSequence(seed).entropy

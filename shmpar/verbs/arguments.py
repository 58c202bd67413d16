"""The inputs of a verb, as arrays and arguments of a plan, and the signature of the function."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from shmpar.grid import BLOCK_BYTES, Grid
from shmpar.grid.axis import axis_number
from shmpar.memory.copying import is_masked
from shmpar.pickling.pack import is_importable
from shmpar.plan import Argument, Blocks, Items, Rows, Whole

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]
Names = frozenset[str]
Depths = tuple[tuple[int, int], ...]


@dataclass(eq=False, slots=True)
class Inputs:
    """Inputs of a verb.

    Attributes
    ----------
    arrays : list of ndarray
        Arrays that are divided into chunks.
    values : list
        Constants, and sequences of items.
    arguments : list of Argument
        Arguments of the function, in order.
    shape : tuple of int
        Shape of the grid: that of the broadcast arrays, or ``(items,)``.
    """

    arrays: list[Array] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    shape: tuple[int, ...] = ()

    def add(self, value: Any, kind: Callable[..., Argument], *fields: Any) -> None:
        """Append an argument of this kind, with the fields that follow its index."""
        store = self.values if kind is Whole or kind is Items else self.arrays
        self.arguments.append(kind(len(store), *fields))
        store.append(value)

    def cut(
        self, chunks: Any, *, whole: Axes = (), depth: Depths = (), most: int = BLOCK_BYTES
    ) -> Grid:
        """Make the grid of the inputs; arguments as in :meth:`shmpar.grid.Grid.cut`."""
        entries = chunks if isinstance(chunks, tuple) else (chunks,)
        # Why: only ints and strings are keys of a cache, since True and 1.0 are equal to 1.
        cut = _cached_cut if all(type(one) in {int, str} for one in entries) else Grid.cut
        size = max([array.itemsize for array in self.arrays], default=8)
        return cut(self.shape, chunks, itemsize=size, depth=depth or None, whole=whole, most=most)


_cached_cut = functools.lru_cache(maxsize=64)(Grid.cut)


def as_input(value: Any, verb: str) -> Array:
    """Make an array of an argument.

    Raises
    ------
    TypeError
        For a masked array, or an array of Python objects.
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


def blocks(verb: str, given: Sequence[Any]) -> Inputs:
    """Read the arguments of a verb that divides arrays into blocks; they broadcast as in NumPy.

    Raises
    ------
    TypeError
        If there is no array.
    ValueError
        If the shapes do not broadcast.
    """
    if not given:
        raise TypeError(f"{verb}() needs at least one array")
    found = [None if _is_scalar(value) else as_input(value, verb) for value in given]
    if all(array is None for array in found):
        found[0] = as_input(given[0], verb)  # Why: without axes there is one chunk, of this array
    shapes = [array.shape for array in found if array is not None]
    inputs = Inputs()
    try:
        inputs.shape = shapes[0] if len(set(shapes)) == 1 else np.broadcast_shapes(*shapes)
    except ValueError:
        given_shapes = ", ".join(map(str, shapes))
        raise ValueError(f"{verb}: inputs of shapes {given_shapes} do not broadcast") from None
    for value, array in zip(given, found, strict=True):
        if array is None:
            inputs.add(value, Whole)
            continue
        axes = range(len(inputs.shape) - array.ndim, len(inputs.shape))
        pairs = zip(axes, array.shape, strict=True)
        cut = [None if n == 1 and inputs.shape[k] != 1 else k for k, n in pairs]
        inputs.add(array, Blocks, tuple(cut))
    return inputs


def _is_scalar(value: Any) -> bool:
    # Why: NumPy's functions cost a shared array a dispatch.
    return value.ndim == 0 if isinstance(value, np.ndarray) else np.ndim(value) == 0


def items(verb: str, given: Sequence[Any], axis: int) -> Inputs:
    """Read the arguments of a verb that takes rows of arrays, and items of other iterables.

    Raises
    ------
    TypeError
        If an argument is not iterable, or is an array without axes.
    ValueError
        If the arguments differ in length.
    """
    inputs = Inputs()
    lengths = []
    for position, value in enumerate(given):
        if isinstance(value, np.ndarray):
            parts: Any = _rows(as_input(value, verb), axis, verb)
            inputs.add(parts, Rows)
        else:
            try:
                found = iter(value)  # Why: a sequence may have __getitem__ alone.
            except TypeError as error:
                raise TypeError(
                    f"{verb}: argument {position} is a {type(value).__name__}, which has no items; "
                    "constants for the function go into kwargs="
                ) from error
            parts = value if isinstance(value, range) else list(found)
            inputs.add(parts, Items)
        lengths.append(len(parts))
    if len(set(lengths)) > 1:
        differing = " and ".join(map(str, lengths))
        raise ValueError(f"{verb}: the arguments differ in length: {differing}")
    inputs.shape = (lengths[0],)
    return inputs


def _rows(array: Array, axis: int, verb: str) -> Array:
    if array.ndim == 0:
        raise TypeError(f"{verb}: an array without axes has no rows")
    axis = axis_number(axis, array.ndim, f"{verb}: axis={axis!r}")
    return np.moveaxis(array, axis, 0) if axis else array


_SPECIAL_PARAMETERS: Final = frozenset({"block_id", "block_info", "rng"})


def special_parameters(func: Callable[..., Any], keywords: Mapping[str, Any]) -> Names:
    """Return those of ``block_id``, ``block_info`` and ``rng`` that are parameters of `func`.

    Examples
    --------
    >>> sorted(special_parameters(lambda block, rng, block_id=None: block, {"rng": 1}))
    ['block_id']
    """
    names: set[str] = set()
    if _is_plain_function(func):
        code = func.__code__
        names.update(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    elif not isinstance(func, np.ufunc):
        with contextlib.suppress(ValueError):  # Why: check_signature() reports this error.
            names.update(getattr(_signature(func), "parameters", ()))
            names = {name for name in names & _SPECIAL_PARAMETERS if _takes_keyword(func, name)}
    while isinstance(func, functools.partial):
        names -= set(func.keywords)
        func = func.func
    return _SPECIAL_PARAMETERS.intersection(names).difference(keywords)


def check_signature(
    verb: str, func: Callable[..., Any], count: int, keywords: Mapping[str, Any], special: Names
) -> None:
    """Raise ``TypeError`` if `func` cannot be called with `count` arguments and these keywords."""
    if isinstance(func, np.ufunc) and count != func.nin:
        raise TypeError(
            f"{verb}: {func.__name__} takes {func.nin} arrays, not {count}; pass the place for "
            "its result as out="
        )
    if not (keywords or special) and _obviously_takes(func, count):
        return
    given = {**keywords, **dict.fromkeys(special)}
    try:
        error = _refusal(_signature(func), count, given)
        if error is not None:
            # Why: a decorator may supply an argument that the function beneath it names. One in C
            # has no signature of its own, and supplies none (np.sum, functools.lru_cache).
            own = _own_signature(func)
            error = error if own is None else _refusal(own, count, given)
    except ValueError as wrong:
        raise TypeError(f"{verb}: {wrong}") from None
    if error is not None:
        arguments = "1 argument" if count == 1 else f"{count} arguments"
        raise TypeError(
            f"{verb}: the function cannot be called with {arguments} and "
            f"kwargs={sorted(keywords)}: {error}; pass its other parameters in kwargs="
            + (", or out by pass_out=True" if "'out'" in str(error) else "")
        )


def _refusal(
    signature: inspect.Signature | None, count: int, keywords: Mapping[str, Any]
) -> TypeError | None:
    """Return the error of a call with `count` arguments and these keywords, None without one."""
    try:
        if signature is not None:
            signature.bind(*[None] * count, **keywords)
    except TypeError as error:
        return error
    return None


def _takes_keyword(func: Callable[..., Any], name: str) -> bool:
    """Return False if a decorator of the function takes no argument of this name."""
    kinds = inspect.Parameter
    signature = _own_signature(func)
    if signature is None:
        return True
    found = signature.parameters.values()
    named = any(one.name == name and one.kind is not kinds.POSITIONAL_ONLY for one in found)
    return named or any(one.kind is kinds.VAR_KEYWORD for one in found)


def _is_plain_function(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and not hasattr(func, "__wrapped__")


def _obviously_takes(func: Any, count: int) -> bool:
    """Return True if `func` takes `count` arguments, as far as that is quick to find out."""
    if isinstance(func, np.ufunc):
        return True
    if not _is_plain_function(func):
        return False
    code, optional = func.__code__, len(func.__defaults__ or ())
    fits = code.co_argcount - optional <= count <= code.co_argcount
    return fits and not code.co_kwonlyargcount


def _signature(func: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a function; None for a compiled function that has none.

    Raises
    ------
    ValueError
        For a :func:`functools.partial` with arguments that its function does not take.
    """
    return _cached_signature(func) if is_importable(func) else _inspected(func)


def _own_signature(func: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of the outermost decorator; as :func:`_signature` otherwise."""
    return _inspected(func, follow_wrapped=False)


def _inspected(
    func: Callable[..., Any], *, follow_wrapped: bool = True
) -> inspect.Signature | None:
    try:
        return inspect.signature(func, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError) as error:
        if isinstance(func, functools.partial) and "incorrect arguments" in str(error):
            raise
        return None


_cached_signature = functools.lru_cache(maxsize=256)(_inspected)

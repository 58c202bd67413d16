"""Functions that make shared arrays, under NumPy's names.

Guarantees
----------
Wrong arguments raise an error before anything is allocated; a failed call leaves nothing behind.
Each function takes ``manager=``: a pool's manager, a SharedMemoryManager of the standard library,
or None for the manager of the interpreter, which closes at exit.
A segment of a SharedMemoryManager is removed by that manager alone.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeAlias, TypeGuard, TypeVar

import numpy as np

from shmpar.arrays.address import ArraySpec, as_dtype, reject_masked, reject_objects
from shmpar.arrays.sharedarray import SharedArray, share_view
from shmpar.errors import SegmentFull, with_keyword_advice
from shmpar.memory import allocate, names
from shmpar.memory.copying import memory_order, write
from shmpar.memory.layout import address_of
from shmpar.memory.limits import ClosedOnError
from shmpar.memory.locate import locate
from shmpar.memory.manager import Manager, own_manager
from shmpar.memory.segment import Array, Location, Segment, known_segment
from shmpar.tracebacks import hide_frames

if TYPE_CHECKING:
    from multiprocessing.managers import SharedMemoryManager

Order = Literal["C", "F"]
LikeOrder = Literal["C", "F", "A", "K"]
Name: TypeAlias = str | None
Owner: TypeAlias = "Manager | SharedMemoryManager | None"
Shared = SharedArray[Any, Any]
P = ParamSpec("P")
R = TypeVar("R")

_ENTRY: Final = re.compile(r"^(\w+)(?: : .+)?\n(?: {4}.+\n)+", re.MULTILINE)
_REFERENCE: Final = re.compile(r"^(.+)\n {4}As for :func:`zeros`\.\n", re.MULTILINE)
_NUMBERS: Final = "biuf"  # kinds of dtypes that a copy casts to each other


def _names_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function whose error for a keyword that it lacks has advice."""
    known = ", ".join(inspect.signature(function).parameters)
    chunks = "pass chunks= to the verb: an array has no chunks of its own"
    return hide_frames(
        with_keyword_advice(
            function, lambda name: chunks if name.startswith("chunk") else f"it takes {known}"
        )
    )


@_names_keywords
def zeros(
    shape: Any, dtype: Any = None, order: Order = "C", *, name: Name = None, manager: Owner = None
) -> Shared:
    """Make a shared array of zeros.

    Parameters
    ----------
    shape : int or sequence of int
        Elements along each axis.
    dtype : dtype, optional
        float64 by default; without Python objects.
    order : {"C", "F"}
        Memory order.
    name : str, optional
        File name of the segment. By default a name is generated when it is first used.
    manager : Manager or SharedMemoryManager, optional
        Releases the memory at the latest when it closes. By default the manager of the
        interpreter.

    Returns
    -------
    SharedArray
        Writable array.

    Raises
    ------
    TypeError
        The dtype holds Python objects, or an argument has the wrong type: a shape that is not an
        integer, a masked array, a pool as the manager.
    ValueError
        The shape, the order or the name is wrong, or the array is too large to address.
    FileExistsError
        The name is taken.
    SegmentFull
        There is no room.

    Notes
    -----
    Cost: one allocation, which the kernel fills with zeros.

    Examples
    --------
    >>> zeros((2, 3), "i4").tolist()
    [[0, 0, 0], [0, 0, 0]]
    """
    spec = ArraySpec.of(shape, dtype)
    return _new(spec, _axes_in_memory(order, len(spec.shape)), name, manager)


@_names_keywords
def empty(
    shape: Any, dtype: Any = None, order: Order = "C", *, name: Name = None, manager: Owner = None
) -> Shared:
    """Make a shared array for values to come; new shared memory reads as zeros.

    Parameters
    ----------
    shape, dtype, order, name, manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        Writable array.

    Raises
    ------
    TypeError, ValueError, FileExistsError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: as :func:`zeros`.

    Examples
    --------
    >>> empty((2, 3), "i4").shape
    (2, 3)
    """
    return zeros(shape, dtype, order, name=name, manager=manager)


@_names_keywords
def ones(
    shape: Any, dtype: Any = None, order: Order = "C", *, name: Name = None, manager: Owner = None
) -> Shared:
    """Make a shared array of ones.

    Parameters
    ----------
    shape, dtype, order, name, manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        Writable array.

    Raises
    ------
    TypeError, ValueError, FileExistsError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: one allocation and one copy.

    Examples
    --------
    >>> ones(3).tolist()
    [1.0, 1.0, 1.0]
    """
    spec = ArraySpec.of(shape, dtype)
    return full(spec.shape, np.ones((), spec.dtype), order=order, name=name, manager=manager)


@_names_keywords
def full(
    shape: Any,
    fill_value: Any,
    dtype: Any = None,
    order: Order = "C",
    *,
    name: Name = None,
    manager: Owner = None,
) -> Shared:
    """Make a shared array of one value, which may broadcast.

    Parameters
    ----------
    shape
        As for :func:`zeros`.
    fill_value : scalar or array_like
        Value of each element; may broadcast.
    dtype : dtype, optional
        By default that of ``fill_value``.
    order, name, manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        Writable array.

    Raises
    ------
    TypeError, ValueError, FileExistsError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: one allocation and one copy.

    Examples
    --------
    >>> full((2, 2), 7).tolist()
    [[7, 7], [7, 7]]
    """
    given = None if dtype is None else as_dtype(dtype)
    # Why apart: the axes of a dtype follow those of the shape.
    base, axes_of_dtype = (None, ()) if given is None else (given.base, given.shape)
    value = _shareable(fill_value, base)
    spec = ArraySpec.of(shape, (value.dtype, axes_of_dtype) if axes_of_dtype else value.dtype)
    axes = _axes_in_memory(order, len(spec.shape))
    return _new(spec, axes, name, manager, np.broadcast_to(value, spec.shape))


@_names_keywords
def zeros_like(
    prototype: Any,
    dtype: Any = None,
    order: LikeOrder = "K",
    *,
    shape: Any = None,
    name: Name = None,
    manager: Owner = None,
) -> Shared:
    """Make a shared array of zeros with the shape, dtype and memory order of another array.

    Parameters
    ----------
    prototype : array_like
        Array whose shape, dtype and memory order are taken.
    dtype : dtype, optional
        Replaces the dtype of ``prototype``.
    order : {"C", "F", "A", "K"}
        Memory order; "A" and "K" follow ``prototype``, as in NumPy.
    shape : int or sequence of int, optional
        Replaces the shape of ``prototype``.
    name, manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        Writable array.

    Raises
    ------
    TypeError, ValueError, FileExistsError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: as :func:`zeros`.

    Examples
    --------
    >>> zeros_like(np.ones((2, 3), "f4", order="F")).flags.f_contiguous
    True
    """
    reject_masked(prototype)
    like = np.asarray(prototype)
    shape = like.shape if shape is None else shape
    spec = ArraySpec.of(shape, like.dtype if dtype is None else dtype)
    return _new(spec, _axes_in_memory(order, len(spec.shape), like), name, manager)


@_names_keywords
def empty_like(
    prototype: Any,
    dtype: Any = None,
    order: LikeOrder = "K",
    *,
    shape: Any = None,
    name: Name = None,
    manager: Owner = None,
) -> Shared:
    """Make a shared array for values to come, with the layout of another array.

    Parameters
    ----------
    prototype : array_like
        Array whose shape, dtype and memory order are taken.
    dtype : dtype, optional
        Replaces the dtype of ``prototype``.
    order : {"C", "F", "A", "K"}
        Memory order; "A" and "K" follow ``prototype``, as in NumPy.
    shape : int or sequence of int, optional
        Replaces the shape of ``prototype``.
    name, manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        Writable array; new shared memory reads as zeros.

    Raises
    ------
    TypeError, ValueError, FileExistsError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: as :func:`zeros`.

    Examples
    --------
    >>> empty_like(np.ones((2, 3), "f4", order="F")).flags.f_contiguous
    True
    """
    return zeros_like(prototype, dtype, order, shape=shape, name=name, manager=manager)


@_names_keywords
def array(values: Any, dtype: Any = None, *, name: Name = None, manager: Owner = None) -> Shared:
    """Copy an array into shared memory.

    Parameters
    ----------
    values : array_like
        Any argument of ``numpy.asarray`` except a masked array.
    dtype : dtype, optional
        By default that of ``values``.
    name, manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        Fresh, writable copy. The memory order is kept (Fortran stays Fortran); gaps are closed.

    Raises
    ------
    TypeError, ValueError, FileExistsError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: one allocation and one copy, which casts; a second copy if a dtype that is no number
    changes.

    Examples
    --------
    >>> a = array([[1, 2], [3, 4]])
    >>> (a * 2).tolist()
    [[2, 4], [6, 8]]
    """
    is_numbers = isinstance(values, np.ndarray) and values.dtype.kind in _NUMBERS
    if dtype is not None and is_numbers and as_dtype(dtype).kind in _NUMBERS:
        # Why: the copy casts, so no other array of the new dtype is made.
        plain, dtype = _shareable(values, None), as_dtype(dtype)
    else:
        plain = _shareable(values, dtype)
        dtype = plain.dtype
    return _new(ArraySpec(plain.shape, dtype), memory_order(plain), name, manager, plain)


@_names_keywords
def asarray(values: Any, dtype: Any = None, *, manager: Owner = None) -> Shared:
    """Share an array, without a copy if it already lies in a segment or in a mapped file.

    Parameters
    ----------
    values : array_like
        Any argument of ``numpy.asarray`` except a masked array.
    dtype : dtype, optional
        By default that of ``values``.
    manager
        As for :func:`zeros`.

    Returns
    -------
    SharedArray
        The given array or a view of it, or a copy if its values lie in other memory. Writes to a
        copy do not reach ``values``.

    Raises
    ------
    TypeError, SegmentFull
        As for :func:`zeros`.

    Notes
    -----
    Cost: as :func:`array`; the location of the memory is looked up, and nothing is copied, if the
    values can already be shared.

    Examples
    --------
    >>> a = zeros(3)
    >>> asarray(a) is a, np.shares_memory(asarray(np.asarray(a)), a)
    (True, True)
    """
    plain = _shareable(values, dtype)
    place = locate(plain)
    if place is None:
        return array(plain, manager=manager)
    if isinstance(values, SharedArray) and plain.dtype == values.dtype and not values.closed:
        return values
    start = _begin(place, plain) if place.segment.divided else 0
    return share_view(place, plain, _own_manager(manager), start=start)


def _begin(place: Location, view: Array) -> int:
    """Return the first byte of the array of which this is a view: the byte of its lock."""
    whole = view
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return place.offset + address_of(whole) - address_of(view)


# Why: help() shows each function's own parameters, although the text stands in zeros alone.
_entries = {found[1]: found[0] for found in _ENTRY.finditer(inspect.cleandoc(zeros.__doc__ or ""))}
for _function in (zeros, empty, ones, full, zeros_like, empty_like, array, asarray):
    _function.__doc__ = _REFERENCE.sub(
        lambda found: "".join(_entries[name] for name in found[1].split(", ")),
        inspect.cleandoc(_function.__doc__ or ""),
    )


def _shareable(values: Any, dtype: Any) -> Array:
    """View or convert values as a plain array that can be shared."""
    reject_masked(values)
    plain: Array = np.asarray(values, None if dtype is None else as_dtype(dtype))
    reject_objects(plain.dtype)
    return plain


def _axes_in_memory(order: LikeOrder, ndim: int, like: Array | None = None) -> list[int]:
    """Return the axes from the slowest in memory to the fastest."""
    known = ("C", "F") if like is None else ("C", "F", "A", "K")
    if order not in known:
        raise ValueError(f"order must be one of {known}, not {order!r}")
    axes = list(range(ndim))
    if like is not None and order == "K" and ndim == like.ndim:
        return memory_order(like)
    if like is not None and order == "A" and like.flags.fnc:  # Fortran and not C-contiguous
        order = "F"
    return axes[::-1] if order == "F" else axes


def _new(
    spec: ArraySpec, axes: list[int], name: Name, manager: Owner, values: Array | None = None
) -> Shared:
    """Allocate an array whose memory runs along ``axes``, of zeros or with a copy of ``values``."""
    dense = None if values is None else values.transpose(axes)
    own = _own_manager(manager)
    if owner := not _is_std_manager(manager):
        place = own.allocate(spec.nbytes, dense, name=name, dtype=spec.dtype)
    else:
        place = Location(_std_allocate(manager, spec, name, dense), 0)
    shape = [spec.shape[axis] for axis in axes]
    made = place.segment.ndarray(place.offset, shape, None, spec.dtype)
    made = made.transpose(sorted(axes, key=axes.__getitem__))
    return share_view(place, made, own, start=place.offset, owner=owner)


def _own_manager(manager: Owner) -> Manager:
    """Return our manager that gives names to arrays; a wrong one is a TypeError."""
    return own_manager(None if _is_std_manager(manager) else manager)


def _is_std_manager(manager: object) -> TypeGuard[SharedMemoryManager]:
    # Why: the import of multiprocessing.managers is slow; its instances exist only after it.
    module = sys.modules.get("multiprocessing.managers")
    return module is not None and isinstance(manager, module.SharedMemoryManager)


def _std_allocate(
    manager: SharedMemoryManager, spec: ArraySpec, name: Name, values: Array | None
) -> Segment:
    """Let the manager make a segment of zeros or of values, and reserve its memory."""
    if name is not None:
        raise ValueError("a SharedMemoryManager chooses the names: drop name= or manager=")
    size = max(1, spec.nbytes)
    made = manager.SharedMemory(size)
    made.close()
    fd, _ = names.open_named(made.name)
    with ClosedOnError(fd):
        try:
            # Why: the standard library reserves nothing; a page without room would be SIGBUS.
            if values is None or not spec.nbytes:
                allocate.fill_zeros(fd, size)
            else:
                write(fd, 0, values, spec.dtype)
        except BaseException as error:
            # Invariant: only the manager removes its segments; the memory is given back here.
            os.ftruncate(fd, 1)
            if not isinstance(error, OSError):
                raise
            raise SegmentFull(f"no room for {size:,} bytes in {allocate.SHM}: {error}") from None
        return known_segment(fd, "shm", made.name)

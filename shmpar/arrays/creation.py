"""Segments that a ``multiprocessing.managers.SharedMemoryManager`` owns.

Imports ``shmpar.errors`` and the segment package.

Guarantees
----------
Their end is the manager's shutdown; this process removes nothing.
Every byte is reserved before it is used: the standard library's own segments are not.

Making shared arrays, under NumPy's names.

Imports NumPy, the segment package, and the demand, lease, sharedarray and stdmanager beside it.

Guarantees
----------
Nothing is allocated for arguments that are wrong, and a failed call leaves nothing behind.
Each function takes ``manager=``: one of ours, a SharedMemoryManager of the standard library, or
None for the interpreter's, which closes at exit.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import numpy as np

from shmpar.arrays.address import Demand, check_dtype, check_input
from shmpar.arrays.sharedarray import Lease, SharedArray, over
from shmpar.errors import SegmentFull
from shmpar.memory import allocate, names
from shmpar.memory.copying import copy_in, memory_order
from shmpar.memory.locate import locate
from shmpar.memory.manager import Manager, default_manager
from shmpar.memory.segment import Location, Segment, remember_segment

if TYPE_CHECKING:
    from multiprocessing.managers import SharedMemoryManager

__all__ = [
    "array",
    "asarray",
    "empty",
    "empty_like",
    "full",
    "ones",
    "zeros",
    "zeros_like",
]


def is_one(manager: object) -> TypeGuard[SharedMemoryManager]:
    """Whether it is a manager of the standard library, without importing that."""
    managers = sys.modules.get("multiprocessing.managers")
    return managers is not None and isinstance(manager, managers.SharedMemoryManager)


def _std_allocate(manager: SharedMemoryManager, nbytes: int, name: str | None) -> Segment:
    """Have the manager make a segment, and reserve it.

    Raises
    ------
    ValueError
        A name was chosen: the manager chooses them.
    SegmentFull
        There is no room.
    """
    if name is not None:
        raise ValueError("a SharedMemoryManager chooses the names: drop name= or manager=")
    size = max(1, nbytes)
    made = manager.SharedMemory(size)
    fd, _ = names.open_named(made.name)
    made.close()
    try:
        allocate.fill_zeros(fd, size)
    except BaseException as error:
        os.ftruncate(fd, 1)  # only the manager may remove it; this gives the memory back
        os.close(fd)
        if isinstance(error, OSError):
            raise SegmentFull(f"no room for {size:,} bytes in {allocate.SHM}: {error}") from None
        raise
    segment = Segment(fd, size, "shm")
    segment.path = made.name
    remember_segment(segment)
    return segment


Order = Literal["C", "F"]
LikeOrder = Literal["C", "F", "A", "K"]
AnyManager: TypeAlias = "Manager | SharedMemoryManager | None"
Shared = SharedArray[Any, Any]


def zeros(
    shape: Any,
    dtype: Any = None,
    order: Order = "C",
    *,
    name: str | None = None,
    manager: AnyManager = None,
) -> Shared:
    """Make a shared array of zeros.

    Parameters
    ----------
    shape : int or sequence of int
        Elements along each axis.
    dtype : dtype, optional
        float64 by default; no Python objects.
    order : {"C", "F"}
        Memory order.
    name : str, optional
        A file name to be found under; by default one is made when it is asked for.
    manager : Manager or SharedMemoryManager, optional
        Who releases it at the latest.

    Raises
    ------
    TypeError, ValueError
        Bad arguments, before anything is allocated.
    FileExistsError
        The name is taken.
    SegmentFull
        There is no room.

    Notes
    -----
    Cost: 30 us and the kernel's zeroing (3.6 GB/s); as many bytes of shared memory as the
    array has.

    Examples
    --------
    >>> zeros((2, 3), "i4").tolist()
    [[0, 0, 0], [0, 0, 0]]
    """
    demand = Demand.of(shape, dtype)
    if order not in {"C", "F"}:
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    axes = range(len(demand.shape))
    return _made(demand, list(axes if order == "C" else reversed(axes)), name, manager)


def empty(
    shape: Any,
    dtype: Any = None,
    order: Order = "C",
    *,
    name: str | None = None,
    manager: AnyManager = None,
) -> Shared:
    """Make a shared array to be filled; new shared memory reads as zeros anyway.

    Parameters, errors and cost are those of :func:`zeros`.

    Examples
    --------
    >>> empty((2, 3)).shape
    (2, 3)
    """
    return zeros(shape, dtype, order, name=name, manager=manager)


def ones(
    shape: Any,
    dtype: Any = None,
    order: Order = "C",
    *,
    name: str | None = None,
    manager: AnyManager = None,
) -> Shared:
    """Make a shared array of ones.

    Parameters, errors and cost are those of :func:`zeros`, and the filling.

    Examples
    --------
    >>> ones(3).tolist()
    [1.0, 1.0, 1.0]
    """
    made = zeros(shape, dtype, order, name=name, manager=manager)
    made.fill(1)
    return made


def full(
    shape: Any,
    fill_value: Any,
    dtype: Any = None,
    order: Order = "C",
    *,
    name: str | None = None,
    manager: AnyManager = None,
) -> Shared:
    """Make a shared array of one value, which may broadcast.

    Parameters, errors and cost are those of :func:`zeros`, and the filling; ``dtype`` is by default
    that of ``fill_value``.

    Examples
    --------
    >>> full((2, 2), 7).tolist()
    [[7, 7], [7, 7]]
    """
    value = np.asarray(fill_value, dtype)
    demand = Demand.of(shape, value.dtype)
    np.broadcast_to(value, demand.shape)  # raises before anything is made
    made = zeros(demand.shape, demand.dtype, order, name=name, manager=manager)
    np.copyto(made.view(np.ndarray), value)
    return made


def zeros_like(
    prototype: Any,
    dtype: Any = None,
    order: LikeOrder = "K",
    *,
    shape: Any = None,
    name: str | None = None,
    manager: AnyManager = None,
) -> Shared:
    """Make a shared array of zeros with another array's shape, dtype and memory order.

    Parameters, errors and cost are those of :func:`zeros`; ``shape`` and ``dtype`` replace those of
    ``prototype``.

    Examples
    --------
    >>> zeros_like(np.ones((2, 3), "f4", order="F")).flags.f_contiguous
    True
    """
    check_input(prototype)
    like = np.asarray(prototype)
    demand = Demand.of(
        like.shape if shape is None else shape, like.dtype if dtype is None else dtype
    )
    return _made(demand, _order_like(like, len(demand.shape), order), name, manager)


def empty_like(
    prototype: Any,
    dtype: Any = None,
    order: LikeOrder = "K",
    *,
    shape: Any = None,
    name: str | None = None,
    manager: AnyManager = None,
) -> Shared:
    """Make a shared array to be filled, with another array's shape, dtype and memory order.

    Parameters, errors and cost are those of :func:`zeros_like`.

    Examples
    --------
    >>> empty_like([1, 2, 3]).dtype
    dtype('int64')
    """
    return zeros_like(prototype, dtype, order, shape=shape, name=name, manager=manager)


def array(
    values: Any, dtype: Any = None, *, name: str | None = None, manager: AnyManager = None
) -> Shared:
    """Copy an array into shared memory.

    Parameters
    ----------
    values : array_like
        What ``numpy.asarray`` takes; no masked array.
    dtype : dtype, optional
        By default that of ``values``.
    name, manager
        As in :func:`zeros`.

    Returns
    -------
    SharedArray
        A fresh, writable copy.  Memory order is kept (Fortran stays Fortran), gaps are closed.

    Raises
    ------
    TypeError
        The dtype holds Python objects, or ``values`` is a masked array.
    FileExistsError, ValueError, SegmentFull
        As in :func:`zeros`.

    Notes
    -----
    Cost: 40 us and one copy (2 GB/s); a second one if the dtype changes.

    Examples
    --------
    >>> a = array([[1, 2], [3, 4]])
    >>> (a * 2).tolist()
    [[2, 4], [6, 8]]
    """
    plain = _input(values, dtype)
    order = memory_order(plain)
    dense = plain if order is None else plain.transpose(order)
    place = _copied(dense, name, manager)
    root = place.segment.ndarray(place.offset, dense.shape, None, dense.dtype)
    return _owned(place, _reordered(root, order), manager)


def asarray(values: Any, dtype: Any = None, *, manager: AnyManager = None) -> Shared:
    """Share an array, without a copy if it lies in a segment or in a mapped file already.

    What is written to the result reaches ``values`` only where nothing was copied.

    Parameters, errors and cost are those of :func:`array`; 10 us where nothing is copied.

    Examples
    --------
    >>> a = zeros(3)
    >>> asarray(a) is a, np.shares_memory(asarray(np.asarray(a)), a)
    (True, True)
    """
    plain = _input(values, dtype)
    place = locate(plain)
    if place is None:
        return array(plain, manager=manager)
    if isinstance(values, SharedArray) and plain.dtype == values.dtype and not values.closed:
        return values
    start = place.offset if place.segment.divided else 0
    return over(plain, Lease(place, plain, _ours(manager), start=start, owner=False))


def _input(values: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Look at anything as a plain array that can be shared."""
    check_input(values)
    if dtype is not None:
        check_dtype(np.dtype(dtype))
    plain = np.asarray(values, dtype)
    check_dtype(plain.dtype)
    return plain


def _order_like(like: np.ndarray[Any, Any], ndim: int, order: LikeOrder) -> list[int]:
    """Axes from the slowest in memory to the fastest."""
    if order not in {"C", "F", "A", "K"}:
        raise ValueError(f"order must be 'C', 'F', 'A' or 'K', not {order!r}")
    fortran = like.flags.f_contiguous and not like.flags.c_contiguous
    if order == "F" or (order == "A" and fortran):
        return list(range(ndim))[::-1]
    same = order == "K" and ndim == like.ndim
    return (memory_order(like) if same else None) or list(range(ndim))


def _made(demand: Demand, order: list[int], name: str | None, manager: AnyManager) -> Shared:
    """Make zeros whose memory runs along ``order``."""
    place = _allocated(demand.nbytes, name, manager)
    dense = [demand.shape[axis] for axis in order]
    root = place.segment.ndarray(place.offset, dense, None, demand.dtype)
    return _owned(place, _reordered(root, order), manager)


def _reordered(root: np.ndarray[Any, Any], order: list[int] | None) -> np.ndarray[Any, Any]:
    """Undo the transposition that made the memory dense."""
    if order is None or order == list(range(root.ndim)):
        return root
    strides = [0] * root.ndim
    shape = [0] * root.ndim
    for position, axis in enumerate(order):
        shape[axis], strides[axis] = root.shape[position], root.strides[position]
    return np.ndarray(tuple(shape), root.dtype, root.base, _offset(root), tuple(strides))


def _offset(root: np.ndarray[Any, Any]) -> int:
    place = locate(root)
    return 0 if place is None else place.offset


def _allocated(nbytes: int, name: str | None, manager: AnyManager) -> Location:
    if is_one(manager):
        return Location(_std_allocate(manager, nbytes, name), 0)
    return _ours(manager).allocate(nbytes, name=name)


def _copied(dense: np.ndarray[Any, Any], name: str | None, manager: AnyManager) -> Location:
    if is_one(manager):
        place = Location(_std_allocate(manager, dense.nbytes, name), 0)
        copy_in(place.segment, 0, dense)
        return place
    return _ours(manager).share(dense, name=name)


def _owned(place: Location, root: np.ndarray[Any, Any], manager: AnyManager) -> Shared:
    """Look at fresh memory as a shared array, which owns it unless another manager does."""
    owner = place.segment.path is None
    return over(root, Lease(place, root, _ours(manager), start=place.offset, owner=owner))


def _ours(manager: AnyManager) -> Manager:
    return manager if isinstance(manager, Manager) else default_manager()

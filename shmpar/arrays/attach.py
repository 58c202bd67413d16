"""Attach to arrays that other processes made.

Guarantees
----------
Everything is checked before anything is mapped; the size of the segment is checked before its use.
Nothing is registered with ``multiprocessing.resource_tracker``, so the exit of a process that only
attached removes nothing.
Attaching twice, or to a segment of this process, maps nothing twice.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from shmpar.arrays.address import Address, ArraySpec, short_repr
from shmpar.arrays.sharedarray import SharedArray, share_view, split_name
from shmpar.errors import SegmentGone
from shmpar.memory import allocate, names
from shmpar.memory.limits import ClosedOnError
from shmpar.memory.manager import Manager, default_manager
from shmpar.memory.segment import Location, Segment, dense_strides, find_segment, known_segment

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory


def attach(
    where: str | dict[str, Any] | SharedMemory,
    shape: Any = None,
    dtype: Any = None,
    *,
    own: bool = False,
    manager: Manager | None = None,
) -> SharedArray[Any, Any]:
    """Attach to an array that another process made.

    Parameters
    ----------
    where : str, dict or SharedMemory
        Name of a segment, ``address`` of an array, or a segment of the standard library.
    shape : int or sequence of int
        Elements along each axis; required unless ``where`` is an address.
    dtype : dtype
        Required unless ``where`` is an address.
    own : bool
        True takes the segment over: its name is removed with this array, or with the manager.
        False removes nothing.
    manager : Manager, optional
        By default the manager of the interpreter.

    Returns
    -------
    SharedArray
        The same memory, in C order unless the address has other strides.

    Raises
    ------
    TypeError
        A name without shape and dtype, or a dtype that holds Python objects.
    ValueError
        The name or the address is not valid, or the segment is too small for the array.
    SegmentGone
        There is no such segment, or it was removed.
    PermissionError
        The segment belongs to another user.
    SegmentFull
        The maker of the segment did not reserve its memory, and there is no room.

    Notes
    -----
    Cost: a few system calls; no copy and no message.

    Examples
    --------
    >>> from shmpar.arrays import zeros
    >>> a = zeros((2, 3))
    >>> attach(a.name, (2, 3), "f8").shape
    (2, 3)
    """
    address = _parse(where, shape, dtype)
    segment = _open_segment(address)
    layout = address.offset, address.shape, address.strides, address.dtype
    array = segment.ndarray(*layout, writable=address.writable)
    manager = manager or default_manager()
    if own:
        manager.own(segment)
    place = Location(segment, address.offset)
    return share_view(place, array, manager, start=address.start, owner=own)


def _parse(where: Any, shape: Any, dtype: Any) -> Address:
    """Check the arguments and return the address that they describe."""
    if isinstance(where, dict):
        if shape is not None or dtype is not None:
            raise TypeError("an address has its own shape and dtype; reshape or view the array")
        return Address.parse(where)
    # Why: the import is slow; an instance exists only after it.
    module = sys.modules.get("multiprocessing.shared_memory")
    name = where.name if module and isinstance(where, module.SharedMemory) else where
    if not isinstance(name, str):
        raise TypeError(
            f"attach() takes a name, an address or a SharedMemory, not {short_repr(where)}"
        )
    if shape is None or dtype is None:
        raise TypeError(
            f"attach({short_repr(name)}) needs the array's shape and dtype, or its address"
        )
    spec = ArraySpec.of(shape, dtype)
    name, start = split_name(name)
    strides = dense_strides(spec.shape, spec.dtype.itemsize)
    size = max(1, start + spec.nbytes)
    return Address(name, size, start, spec.shape, strides, spec.dtype, start=start)


def _open_segment(address: Address) -> Segment:
    """Open the segment, or find it among the open segments of this process."""
    fd, writable = _open_file(address) if address.file else names.open_named(address.name)
    with ClosedOnError(fd):
        found = os.fstat(fd)
        _verify(address, found)
        segment = find_segment((found.st_dev, found.st_ino))
        # Why: a file may have grown since it was attached.
        if segment is None or segment.writable < writable or segment.size < address.size:
            if writable and not address.file and found.st_blocks * 512 < found.st_size:
                # Why: its maker reserved nothing; a write to a page without room is SIGBUS.
                allocate.reserve_range(fd, 0, found.st_size)
            kind = "memfd" if address.name.startswith("/proc/") else "shm"
            kind = "file" if address.file else kind
            return known_segment(fd, kind, address.name, writable=writable)
    os.close(fd)
    return segment


def _open_file(address: Address) -> tuple[int, bool]:
    """Open a mapped file of the user's again, after a check that it is the same file."""
    check = functools.partial(_verify, address)
    shown = short_repr(address.name)
    return names.open_checked(address.name, shown, check, writable=address.writable)


def _verify(address: Address, found: os.stat_result) -> None:
    if address.identity not in {None, (found.st_dev, found.st_ino)}:
        raise SegmentGone(
            f"segment {short_repr(address.name)} was removed; another one has its name now"
        )
    if found.st_size < address.size:
        raise ValueError(
            f"segment {short_repr(address.name)} has {found.st_size:,} bytes; an array of shape "
            f"{short_repr(address.shape)} and dtype {address.dtype} there needs {address.size:,}"
        )

"""Attaching: arrays that another process made.

Imports NumPy, ``shmpar.errors``, the segment package, and the address, lease and sharedarray
beside it.

Guarantees
----------
Everything is checked before anything is mapped, and the segment's size before it is looked at.
Nothing is registered with ``multiprocessing.resource_tracker``, so the end of a process that only
attached takes nothing away.
Attaching twice, or what this process made, maps nothing twice.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from shmpar.arrays import address
from shmpar.arrays.address import Address, shown
from shmpar.arrays.sharedarray import Lease, SharedArray, over, part
from shmpar.errors import SegmentGone
from shmpar.memory import allocate, names
from shmpar.memory.limits import open_with_retry
from shmpar.memory.manager import Manager, default_manager
from shmpar.memory.segment import (
    Location,
    Segment,
    dense_strides,
    find_segment,
    remember_segment,
)

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

__all__ = ["attach"]


def attach(
    where: str | dict[str, Any] | SharedMemory,
    shape: Any = None,
    dtype: Any = None,
    *,
    own: bool = False,
    manager: Manager | None = None,
) -> SharedArray[Any, Any]:
    """Find the array that another process made.

    Parameters
    ----------
    where : str, dict or SharedMemory
        A segment's name, an array's ``address``, or the standard library's handle.
    shape : int or sequence of int
        Elements along each axis; needed unless ``where`` is an address.
    dtype : dtype
        Needed unless ``where`` is an address.
    own : bool
        Take it over: its name is removed with this array, or with the manager.  Otherwise
        nothing is ever removed.
    manager : Manager, optional
        By default the interpreter's.

    Returns
    -------
    SharedArray
        The same memory, C-ordered unless the address says otherwise.

    Raises
    ------
    TypeError
        A name without shape and dtype, or a dtype that holds Python objects.
    ValueError
        The name or address is not one, or the segment is too small for the array.
    SegmentGone
        There is no such segment (any more).
    PermissionError
        It belongs to another user.
    SegmentFull
        It was made elsewhere, without its memory, and there is not enough of that.

    Notes
    -----
    Cost: 30 us; no copy, no message.

    Examples
    --------
    >>> from shmpar.arrays import zeros
    >>> a = zeros((2, 3))
    >>> attach(a.name, (2, 3), "f8").shape
    (2, 3)
    """
    address, named = _address(where, shape, dtype)
    segment = _segment(address, sized=named)
    manager = manager or default_manager()
    root = segment.ndarray(
        address.offset, address.shape, address.strides, address.dtype, writable=address.writable
    )
    if own:
        manager.own(segment)
    place = Location(segment, address.offset)
    return over(root, Lease(place, root, manager, start=address.start, owner=own))


def _address(where: Any, shape: Any, dtype: Any) -> tuple[Address, bool]:
    """Check what was asked for; True if the size of the segment is exactly known."""
    if isinstance(where, dict):
        if shape is not None or dtype is not None:
            raise TypeError("an address has its own shape and dtype; reshape or view the array")
        return Address.parse(where), True
    name = where.name if _is_shared_memory(where) else where
    if not isinstance(name, str):
        raise TypeError(f"attach() takes a name, an address or a SharedMemory, not {shown(where)}")
    if shape is None or dtype is None:
        raise TypeError(f"attach({shown(name)}) needs the array's shape and dtype, or its address")
    wanted = address.Demand.of(shape, dtype)
    name, start = part(name)
    strides = dense_strides(wanted.shape, wanted.dtype.itemsize)
    size = max(1, start + wanted.nbytes)
    return Address(name, size, start, wanted.shape, strides, wanted.dtype, start=start), False


def _is_shared_memory(where: Any) -> bool:
    """Whether it is the standard library's handle, without importing that."""
    module = sys.modules.get("multiprocessing.shared_memory")
    return module is not None and isinstance(where, module.SharedMemory)


def _segment(address: Address, *, sized: bool) -> Segment:
    """Open the segment, or find it among those that are open here."""
    fd, writable = _open_file(address) if address.file else names.open_named(address.name)
    try:
        found = os.fstat(fd)
        _verify(address, found, sized=sized)
        segment = find_segment((found.st_dev, found.st_ino))
        if segment is None or segment.writable < writable:
            if writable and not address.file and found.st_blocks * 512 < found.st_size:
                # Who made it has reserved nothing: a touch of a page that has no room is SIGBUS.
                allocate.reserve_range(fd, 0, found.st_size)
            segment = Segment(fd, found.st_size, _kind(address), writable=writable)
            segment.path = address.name
            remember_segment(segment)
            return segment
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return segment


def _kind(address: Address) -> str:
    if address.file:
        return "file"
    return "memfd" if address.name.startswith("/proc/") else "shm"


def _open_file(address: Address) -> tuple[int, bool]:
    """Open a mapped file of the user's again: only the very one, which the address must name."""
    if address.identity is None or not os.path.isabs(address.name):
        raise ValueError("the address of a file needs its path, device and inode")
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    mode = os.O_RDWR if address.writable else os.O_RDONLY
    try:
        found = os.lstat(address.name)  # before it is opened: a device or a pipe would notice that
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{shown(address.name)} is no regular file")
        _verify(address, found, sized=True)
        return open_with_retry(lambda: os.open(address.name, mode | flags)), address.writable
    except (FileNotFoundError, NotADirectoryError):
        raise SegmentGone(f"the file {shown(address.name)} was removed") from None
    except PermissionError:
        raise
    except OSError as error:  # its path is too long, or leads in circles
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        raise ValueError(f"{shown(address.name)} cannot be opened: {error.strerror}") from None


def _verify(address: Address, found: os.stat_result, *, sized: bool) -> None:
    if address.identity not in {None, (found.st_dev, found.st_ino)}:
        raise SegmentGone(f"segment {address.name!r} was removed; another one has its name now")
    if address.identity is None and address.name.startswith("/proc/") and sized:
        raise ValueError("an address through /proc needs its device and inode")
    if found.st_size < address.size:
        raise ValueError(
            f"segment {address.name!r} has {found.st_size:,} bytes; an array of shape "
            f"{address.shape} and dtype {address.dtype} there needs {address.size:,}"
        )

"""Locate the memory of an array: the segment and the offset at which it lies.

Files that the user has mapped (np.memmap, ``np.load(mmap_mode=)``, ``SharedMemory.buf``) are
recognised too.

Guarantees
----------
The address of an array decides, whatever its Python type and however it was made.
The kernel's table of mappings decides about a file (``/proc/self/maps``), not the attributes of a
Python object: a private mapping is not shared, and neither is a removed or replaced file.
An mmap object gives the same segment as long as it lives.
"""

from __future__ import annotations

import mmap
import os
import re
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from shmpar.memory.layout import address_of, lies_within
from shmpar.memory.limits import ClosedOnError, open_with_retry
from shmpar.memory.names import Identity
from shmpar.memory.segment import Location, Mapping, Segment, find_mapping
from shmpar.memory.system import NO_DESCRIPTORS, shortened

Array = np.ndarray[Any, Any]


def locate(array: Array) -> Location | None:
    """Return the segment and offset of an array; None if no other process can map its memory.

    Parameters
    ----------
    array : ndarray
        Any.

    Returns
    -------
    Location or None
        None for plain memory, for a closed segment, for a private mapping (np.memmap of mode "c")
        and for a file that was removed or replaced.

    Raises
    ------
    SegmentError
        The file was shortened after it was mapped, so reading the array would be SIGBUS.

    Notes
    -----
    Cost: almost none for an array that owns its data, and for an array in a segment.  The first
    call for a file that the user has mapped reads the kernel's table and opens the file.

    Examples
    --------
    >>> locate(np.ones(3)) is None
    True
    """
    found = _segment_of(array)
    if found is None:
        return None
    segment, start = found
    is_file, offset = segment.kind == "file", address_of(array) - start
    if is_file:
        segment.check_whole()
    if lies_within(segment.size, offset, array.shape, array.strides, array.itemsize):
        return Location(segment, offset)
    if is_file:  # Why: it was shortened after it was mapped, and before it was opened again
        raise shortened(f"an array in {segment.path} cannot be used")
    return None


def _segment_of(array: Array) -> tuple[Segment, int] | None:
    """Return the open segment of an array, and the address of the segment's first byte."""
    if array.base is None:
        return None
    root, found = memory_owner(array), None
    if type(root) is Mapping:
        found = root.segment, root.start
    else:
        while isinstance(root, memoryview):
            root = root.obj
        if isinstance(root, mmap.mmap) and not isinstance(root, Mapping):
            found = _user_file(root, array) if array.size else None
        elif (mapping := find_mapping(address_of(array))) is not None:
            found = mapping.segment, mapping.start
    return None if found is None or found[0].closed else found


def describe(array: Any) -> tuple[str, int, int]:
    """Return the kind of memory, the bytes, and those of its segment in huge pages.

    The kind is that of the segment, or of the store that stands for an array, or ``private`` for
    memory of this process.
    """
    if not isinstance(array, np.ndarray):  # a store or a part
        return getattr(array, "kind", "private"), array.nbytes, 0
    found = _segment_of(array)
    if found is None:
        return "private", array.nbytes, 0
    return found[0].kind, array.nbytes, min(found[0].huge_bytes, array.nbytes)


def memory_owner(array: Array) -> Any:
    """Return the owner of the memory of an array, below all arrays."""
    base: Any = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base


class _MappedFile(NamedTuple):
    """The file under an address.

    Attributes
    ----------
    path : str
        Its path, which may lead to another file by now.
    identity : tuple of (int, int) or None
        Its device and inode; None if the platform does not tell them.
    writable : bool
        True if the mapping is writable.
    start : int
        Address at which byte 0 of the file lies, or would lie.
    """

    path: str
    identity: Identity | None
    writable: bool
    start: int


# The segment of the whole file that an mmap object maps, and the address of its byte 0.
_user_files: WeakKeyDictionary[mmap.mmap, tuple[Segment, int] | None] = WeakKeyDictionary()


def _user_file(memory: mmap.mmap, array: Array) -> tuple[Segment, int] | None:
    """Return the segment of a mapped file, or None if other processes cannot map its bytes."""
    try:
        return _user_files[memory]
    except KeyError:
        file = _from_kernel(array)
        segment = file and _open_again(file)
        found = _user_files[memory] = (segment, file.start) if file and segment else None
        return found


# A line about a mapped file: start, end, flags, offset, device, inode, path.
_MAPS_LINE: Final = (
    r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) +(/.*)"
)


def _from_kernel(array: Array) -> _MappedFile | None:
    address = address_of(array)
    try:
        maps = open_with_retry(open, "/proc/self/maps", encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:  # Why: /proc is not mounted
        return _from_memmap(array)
    with maps as lines:
        for line in lines:
            found = re.match(_MAPS_LINE, line)
            if not found or not int(found[1], 16) <= address < int(found[2], 16):
                continue
            start, _, flags, offset, major, minor, inode, path = found.groups()
            if flags[3] != "s" or path.endswith(" (deleted)"):
                return None
            identity = os.makedev(int(major, 16), int(minor, 16)), int(inode)
            origin = int(start, 16) - int(offset, 16)
            return _MappedFile(path.replace("\\012", "\n"), identity, "w" in flags, origin)
    return None


def _from_memmap(array: Array) -> _MappedFile | None:
    """Trust np.memmap, for systems whose kernel does not tell."""
    base: Any = array
    root: Any = None
    while isinstance(base, np.ndarray):
        # Why: a view of a memmap keeps the offset of the memmap, so only the outermost one counts.
        root = base if isinstance(base, np.memmap) else root
        base = base.base
    if root is None or root.filename is None or root.mode == "c":
        return None
    start = address_of(root) - root.offset
    return _MappedFile(os.fspath(root.filename), None, root.mode != "r", start)


def _open_again(file: _MappedFile) -> Segment | None:
    """Open the file by its path; return None if the path leads to another file by now."""
    try:
        fd = open_with_retry(os.open, file.path, os.O_RDWR if file.writable else os.O_RDONLY)
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return None
    with ClosedOnError(fd):
        found = os.fstat(fd)
        if found.st_size and _is_same(file, found):
            # Why: find_segment() must not find it, since an owner that attached could close it.
            segment = Segment(fd, found.st_size, "file", writable=file.writable)
            segment.path = os.path.abspath(file.path)
            return segment
    os.close(fd)
    return None


def _is_same(file: _MappedFile, found: os.stat_result) -> bool:
    if file.identity is None:
        return True
    device, inode = file.identity
    # Why: a layered file system reports an anonymous device, of major number 0.
    layered = 0 in {os.major(device), os.major(found.st_dev)}
    return inode == found.st_ino and (device == found.st_dev or layered)

"""Recognising files that the user has mapped: np.memmap, np.load(mmap_mode=), SharedMemory.buf.

Imports NumPy, and the backing, descriptors, mapping and segment beside it.

Guarantees
----------
What the kernel says decides (``/proc/self/maps``), not what a Python object claims: a private
mapping is none, nor is a file that was removed or replaced since.
One mmap object gives one segment as long as it lives.

Where the bytes of an array lie.

Imports NumPy, and the mapping, mapped and segment beside it.

Guarantees
----------
An array is known by where its bytes lie, whatever its Python type and however it was made.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from shmpar.memory import limits
from shmpar.memory.segment import (
    Backing,
    Location,
    Mapping,
    Segment,
    address_of,
    byte_bounds,
    find_mapping,
    lies_within,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_LINE: Final = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) +(/.*)"
)


class Window(NamedTuple):
    """The part of a file that one mmap object maps.

    Attributes
    ----------
    segment : Segment
        The whole file.
    shift : int
        What turns an address into a byte offset in the file.
    """

    segment: Segment
    shift: int


class _Source(NamedTuple):
    """Which file lies under an address.

    Attributes
    ----------
    path : str
        The file, which may have been replaced.
    device, inode : int or None
        Which one it was; None if the platform does not say.
    writable : bool
        Whether the mapping is.
    shift : int
        What turns an address into a byte offset in the file.
    """

    path: str
    device: int | None
    inode: int | None
    writable: bool
    shift: int


_windows: weakref.WeakKeyDictionary[mmap.mmap, Window | None] = weakref.WeakKeyDictionary()


def of(memory: mmap.mmap, array: np.ndarray[Any, Any]) -> Window | None:
    """Find the file that an mmap object maps, or None if others cannot map the same bytes.

    Parameters
    ----------
    memory : mmap
        Where the bases of ``array`` end.
    array : ndarray
        A view of it.

    Notes
    -----
    Cost: 100 us or so the first time; 1 us again.
    """
    try:
        found = _windows[memory]
    except KeyError:
        found = _windows[memory] = _window(array)
    return found


def _window(array: np.ndarray[Any, Any]) -> Window | None:
    source = _SOURCE(array)
    if source is None:
        return None
    backing = _opened(source)
    return None if backing is None else Window(Segment(backing), source.shift)


def _from_kernel(array: np.ndarray[Any, Any]) -> _Source | None:
    address = address_of(array)
    maps = "/proc/self/maps"
    with limits.open_with_retry(
        lambda: open(maps, encoding="utf-8", errors="surrogateescape")
    ) as lines:
        for line in lines:
            found = _LINE.match(line)
            if found and int(found[1], 16) <= address < int(found[2], 16):
                return _parsed(found)
    return None


def _parsed(found: re.Match[str]) -> _Source | None:
    start, _, flags, offset, major, minor, inode, path = found.groups()
    if flags[3] != "s" or path.endswith(" (deleted)"):
        return None
    return _Source(
        path=path.replace("\\012", "\n"),
        device=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(inode),
        writable="w" in flags,
        shift=int(offset, 16) - int(start, 16),
    )


def _from_memmap(array: np.ndarray[Any, Any]) -> _Source | None:
    """Believe np.memmap, where the kernel cannot be asked; its views keep *its* offset."""
    base: Any = array
    root: Any = None
    while isinstance(base, np.ndarray):
        root = base if isinstance(base, np.memmap) else root
        base = base.base
    if root is None or root.filename is None or root.mode == "c":
        return None
    shift = root.offset - address_of(root)
    return _Source(os.fspath(root.filename), None, None, root.mode != "r", shift)


_SOURCE: Callable[[np.ndarray[Any, Any]], _Source | None]
_SOURCE = _from_kernel if os.path.exists("/proc/self/maps") else _from_memmap


def _opened(source: _Source) -> Backing | None:
    """Open the file again; None if the path now leads to another one."""
    flags = (os.O_RDWR if source.writable else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0)
    try:
        fd = limits.open_with_retry(lambda: os.open(source.path, flags))
    except OSError:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        found = os.fstat(fd)
        if not found.st_size or not _same(source, found):
            return None
        backing = Backing(fd, found.st_size, "file", writable=source.writable)
        stack.pop_all()
    backing.path = os.path.abspath(source.path)
    return backing


def _same(source: _Source, found: os.stat_result) -> bool:
    """Whether it is the same file; layered file systems report an anonymous device (major 0)."""
    if source.inode is None:
        return True
    if source.inode != found.st_ino:
        return False
    devices = (source.device, found.st_dev)
    return devices[0] == devices[1] or any(os.major(d or 0) == 0 for d in devices)


def locate(array: np.ndarray[Any, Any]) -> Location | None:
    """Find the segment in which an array lies; None if no other process can map it.

    Parameters
    ----------
    array : ndarray
        Any.

    Returns
    -------
    Location or None
        None for plain memory, for what was closed, for a private mapping (np.memmap of mode
        "c") and for files that were removed or replaced.

    Notes
    -----
    Cost: 0.1 us for an array that owns its data, 2 us for one in a segment of ours; the first time
    for a mapped file of the user's, 100 us.

    Examples
    --------
    >>> locate(np.ones(3)) is None
    True
    """
    base: Any = array.base
    if base is None:
        return None
    while isinstance(base, np.ndarray):
        base = base.base
    if type(base) is Mapping:
        if base.backing.closed:
            return None
        return Location(Segment(base.backing, base), address_of(array) - base.start)
    memory = _memory(base)
    return (
        _ours(find_mapping(address_of(array)), array) if memory is None else _users(memory, array)
    )


def kind_of(array: np.ndarray[Any, Any]) -> str:
    """Where an array lies, in a word: a segment's kind, or ``private`` for memory of this process.

    Cost: as :func:`locate`, without working out the place.
    """
    base: Any = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    if type(base) is Mapping:
        return base.backing.kind
    place = locate(array)
    return "private" if place is None else place.segment.kind


def _memory(base: Any) -> mmap.mmap | None:
    """Find the mmap behind memoryviews."""
    while isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) and not isinstance(base, Mapping) else None


def _ours(mapping: Mapping | None, array: np.ndarray[Any, Any]) -> Location | None:
    if mapping is None or mapping.backing.closed:
        return None
    return _within(Segment(mapping.backing, mapping), address_of(array) - mapping.start, array)


def _users(memory: mmap.mmap, array: np.ndarray[Any, Any]) -> Location | None:
    window = of(memory, array) if array.size else None
    if window is None or window.segment.closed:
        return None
    return _within(window.segment, address_of(array) + window.shift, array)


def _within(segment: Segment, offset: int, array: np.ndarray[Any, Any]) -> Location | None:
    """Answer only for an array that lies inside as a whole: a file may have been shortened."""
    touched = byte_bounds(array.shape, array.strides, array.itemsize)
    return Location(segment, offset) if lies_within(segment.size, offset, touched) else None

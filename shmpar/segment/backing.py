"""The state of a segment: its file, its name, its mapping and whom to tell of its end.

Imports ``shmpar.errors`` and the mapping, naming, marker and descriptors beside it.

Guarantees
----------
A backing lives as long as a :class:`Segment` or a view of its memory does; then, or at ``close()``,
its name is removed, its descriptor closed and its subscribers called, once.
That end may come inside a finalizer, at any point of any thread: it takes no lock; what must
happen once is popped from a list, which is atomic.
In a forked child the end does nothing: names belong to the parent, and the numbers of its
descriptors may mean other files by then.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import TYPE_CHECKING

from shmpar.errors import SegmentFull, SegmentGone
from shmpar.segment import descriptors, ladder, naming
from shmpar.segment.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmpar.segment.marker import Marker

__all__ = ["Backing", "known"]

_keys = itertools.count(1)
_lock = threading.RLock()  # makes mappings and names; no finalizer takes it
_known: weakref.WeakValueDictionary[naming.Identity, Backing] = weakref.WeakValueDictionary()


class Backing:
    """What all handles and views of one segment share.

    Parameters
    ----------
    fd : int
        Descriptor, taken over.
    size : int
        Bytes, at least 1.
    kind : str
        "shm", "memfd", "tempfile" or "file".
    key : int, optional
        Number of the segment; by default the next one of this interpreter.
    writable, private : bool
        Whether the file may be written; whether writes stay in this process.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_fds",
        "_mapping",
        "_names",
        "_pid",
        "key",
        "kind",
        "path",
        "private",
        "shared",
        "size",
        "writable",
    )

    def __init__(
        self,
        fd: int,
        size: int,
        kind: str,
        *,
        key: int | None = None,
        writable: bool = True,
        private: bool = False,
    ) -> None:
        self._names: list[tuple[str, Marker]] = []  # the marker goes with its last name
        self._callbacks: list[Callable[[int], object]] = []
        self._mapping: weakref.ref[Mapping] | None = None
        self._pid = os.getpid()
        self.key = next(_keys) if key is None else key
        self.size, self.kind = size, kind
        self.writable, self.private = writable, private
        self.shared = False  # whether several arrays lie in it
        self.path: str | None = None  # of a user's mapped file, or of a segment made elsewhere
        self._fds = [fd]  # last: an interrupt before leaves nothing to end
        descriptors.born(id(self))

    @property
    def closed(self) -> bool:
        """Whether it was closed; its memory may still be looked at."""
        return not self._fds

    def fileno(self) -> int:
        """Give the descriptor.

        Raises
        ------
        SegmentGone
            It was closed.
        """
        try:
            return self._fds[0]
        except IndexError:
            raise SegmentGone(
                "the segment was closed (by close(), by leaving its with block, or with its pool): "
                "values that are held stay readable, but it can no longer be shared"
            ) from None

    def identity(self) -> naming.Identity:
        """Device and inode of the file."""
        found = os.fstat(self.fileno())
        return found.st_dev, found.st_ino

    def mapping(self) -> Mapping:
        """Map the whole segment, or give the mapping that lives."""
        found = self._mapping() if self._mapping is not None else None
        return found if found is not None else self._map()

    def _map(self) -> Mapping:
        with _lock:
            found = self._mapping() if self._mapping is not None else None
            if found is None:
                descriptors.fill_standard()
                found = descriptors.opened(lambda: Mapping(self))
                self._mapping = weakref.ref(found)
            return found

    def subscribe(self, callback: Callable[[int], object]) -> None:
        """Have ``callback(key)`` called once at the end; at once if that has been."""
        self._callbacks.append(callback)
        if self.closed:
            self._tell()

    @property
    def name(self) -> str | None:
        """The name by which others find it now, if it has one."""
        if self.path is not None:
            return self.path
        try:
            return self._names[0][0]
        except IndexError:
            return None

    def link(self, marker: Callable[[], Marker], name: str | None = None) -> str:
        """Give the segment a name, listed by a marker before it exists; or say the one it has.

        Where it cannot have one (no file in ``/dev/shm``, or a forked child asks) the name is that
        of the descriptor, which others can open while this process holds it.
        """
        with _lock:
            if self.name is not None:
                return self.name
            fd, identity = self.fileno(), self.identity()
            _known[identity] = self
            if self.kind != "shm" or self._pid != os.getpid():
                return naming.descriptor_name(fd)
            chosen = name or naming.generated()
            try:
                listed = marker()
                listed.record(chosen, identity)
                self._names.append((chosen, listed))  # first: an interrupt may follow the link
                naming.link(fd, chosen)
            except BaseException as error:
                if not naming.leads(chosen, identity):
                    self._names.clear()
                if isinstance(error, OSError) and error.errno in ladder.FULL:
                    raise SegmentFull(
                        f"no room in {ladder.SHM} for a name: {error.strerror}; drop arrays, or "
                        "remove files there that nobody needs (python -m shmpar ls shows ours)"
                    ) from None
                raise
            return chosen

    def own(self, marker: Callable[[], Marker]) -> None:
        """Remove the name at the end, as if it had been made here."""
        with _lock:
            if self.path is not None and "/" not in self.path:
                listed = marker()
                listed.record(self.path, self.identity())
                self._names.append((self.path, listed))
                self.path = None

    def unlink(self) -> None:
        """Remove the name, if it was given here."""
        while self._names and self._pid == os.getpid():
            naming.remove(self._names[0][0], self.identity())
            self._names.pop(0)

    def close(self) -> None:
        """End the sharing: no name, no descriptor; views keep the memory.  Twice is once."""
        if self._pid != os.getpid():
            self._fds.clear()
            return
        try:
            self.unlink()
            fd = self._fds.pop()
        except (IndexError, SegmentGone):  # closed before, or by another thread just now
            return
        os.close(fd)
        descriptors.died(id(self))
        self._tell()

    def _tell(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            callback(self.key)

    def __del__(self) -> None:
        """Close it, if it was made."""
        if hasattr(self, "_fds"):
            self.close()


def known(identity: naming.Identity) -> Backing | None:
    """Find the open segment of this process that is that file."""
    found = _known.get(identity)
    return None if found is None or found.closed else found


def remember(backing: Backing) -> None:
    """Let :func:`known` find a segment that was attached."""
    _known[backing.identity()] = backing


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 (another thread of the parent may have held it)
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

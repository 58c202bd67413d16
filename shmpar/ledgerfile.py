"""A ledger on disk: which chunks of a call are done, for a process that makes the call again.

Imports checksum, errors, interrupts, plan and segment.  The file, in order:

=========  ==========================================================================
bytes      what
=========  ==========================================================================
16         ``shmpar ledger 1`` and a line feed
8, 4       length of the next and its checksum, little-endian
so many    JSON: whose ledger it is, see :class:`Owner`
padding    zeros up to a multiple of 4096
4 each     the checksum of what each chunk has put into the outputs; 0: not done
=========  ==========================================================================

Guarantees
----------
- A chunk's checksum is written after its output. What lies in the outputs counts as done only if
  it still has that checksum, so a ledger never vouches for what was emptied, changed or lost.
- The file appears whole, or not at all; whoever is killed leaves no other behind.
- One run has it at a time. The lock belongs to the open file that workers share, and so it is
  held until the last writer is gone, though its parent was killed.
- Nothing in it is executed or unpickled, and no place in another file is taken from it.
- What was damaged is refused, or computed again. It is no signature: who may write to a ledger
  can have chunks taken for done, as who may write to the outputs can change them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from shmpar.checksum import checksum
from shmpar.interrupts import allowed
from shmpar.segment import Segment, appear
from shmpar.segment.descriptors import opened

__all__ = ["LedgerFile", "Owner"]

Array = np.ndarray[Any, Any]
Windows = Callable[[int], Iterable[Array]]

_MAGIC = b"shmpar ledger 1\n"
_HEAD = struct.Struct("<QI")  # length and checksum
_PAGE = 4096
_MOST = 1 << 20  # bytes of JSON that are read
_SUM = 4  # bytes
_PATIENCE = 2.0  # seconds for the workers of a parent that was killed to be gone


class Owner(NamedTuple):
    """Whose ledger it is.

    Attributes
    ----------
    chunks : int
        How many the call has.
    seed : int, list of int or None
        Entropy of the random streams, if the function is passed one.
    call : dict of str to str
        As :func:`shmpar.identity.identify` gives it.
    """

    chunks: int
    seed: Any
    call: dict[str, str]

    @classmethod
    def parse(cls, text: bytes) -> Owner:
        """Read what a file says; raises ``ValueError`` for anything else than an owner."""
        found = json.loads(text.decode())  # of bytes it would guess the encoding
        match found:
            case {"chunks": int(chunks), "seed": seed, "call": dict(call), **rest} if not rest:
                parts = seed if isinstance(seed, list) else [seed] * (seed is not None)
                plain = all(type(part) is int and part >= 0 for part in parts)
                named = all(isinstance(text, str) for item in call.items() for text in item)
                if chunks >= 0 and type(chunks) is int and plain and named:
                    return cls(chunks, seed, call)
        raise ValueError("it says nothing sensible")

    def differs(self, other: Owner) -> list[str]:
        """Names of the parts of the call in which another one differs."""
        parts = sorted({*self.call, *other.call})
        found = [part for part in parts if self.call.get(part) != other.call.get(part)]
        return found or ["chunks"] * (self.chunks != other.chunks)


class LedgerFile:
    """The ledger of one call, open and locked.

    Attributes
    ----------
    path : str
        Where it lies.
    owner : Owner
        Whose it is.
    sums : ndarray of uint32
        The checksum of each chunk; workers write it.
    """

    def __init__(self, path: str, fd: int, owner: Owner, begin: int) -> None:
        size = begin + _SUM * owner.chunks
        self.path, self.owner = path, owner
        self._segment = Segment.adopt(fd, size, kind="file")
        self.sums = self._segment.ndarray(begin, (owner.chunks,), None, np.dtype("<u4"))

    @classmethod
    def open(cls, path: str, owner: Owner) -> LedgerFile:
        """Open the ledger of a call, or make it.

        Raises
        ------
        ValueError
            If there is a file that is no ledger, or that of another call.
        RuntimeError
            If another run has it.
        SegmentFull
            If there is no room on the disk.
        OSError
            If it cannot be opened or made.
        """
        while True:
            try:
                fd = opened(lambda: os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # another process was quicker
                    _make(path, owner)
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                _lock(fd, path)
                if not _is_at(fd, path):
                    continue  # it was replaced while we waited
                found, begin = _read(fd, path)
                if found.differs(owner) and _is_empty(fd, begin):
                    _make(path, owner, replace=True)
                    continue
                _compare(path, found, owner)
                stack.pop_all()
            return cls(path, fd, found, begin)

    def forget(self) -> int:
        """Have nothing as done; return how many chunks were."""
        done = int(np.count_nonzero(self.sums))
        self.sums[:] = 0
        return done

    def settle(self, windows: Windows) -> int:
        """Forget the chunks whose output is not what was written.

        Parameters
        ----------
        windows : callable
            Gives the chunk's windows in the outputs.

        Returns
        -------
        int
            How many these are.

        Notes
        -----
        Cost: a pass over what is done, at 3 GB/s.
        """
        with allowed():
            lost = [
                chunk
                for chunk in np.flatnonzero(self.sums).tolist()
                if checksum(windows(chunk)) != self.sums[chunk]
            ]
        self.sums[lost] = 0
        return len(lost)

    def pending(self) -> tuple[int, ...]:
        """Numbers of the chunks that are not done."""
        return tuple(np.flatnonzero(self.sums == 0).tolist())

    def lock(self) -> None:
        """Have it again, for a run that goes on; raises ``RuntimeError`` if another has it."""
        _lock(self._segment.fileno(), self.path)

    def unlock(self) -> None:
        """Let another run have it; the last writer is idle."""
        fcntl.flock(self._segment.fileno(), fcntl.LOCK_UN)


def _make(path: str, owner: Owner, *, replace: bool = False) -> None:
    text = json.dumps(owner._asdict()).encode()
    head = _MAGIC + _HEAD.pack(len(text), zlib.crc32(text)) + text
    begin = _begin(len(text))
    with appear(path, begin + _SUM * owner.chunks, replace=replace) as fd:
        os.pwrite(fd, head, 0)


def _is_at(fd: int, path: str) -> bool:
    """Whether a file still has its name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _is_empty(fd: int, begin: int) -> bool:
    """Whether nothing is done; then it does not matter whose it was."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(begin)
        return not any(any(part) for part in iter(lambda: file.read(_MOST), b""))


def _begin(length: int) -> int:
    """Where the checksums begin, behind so many bytes of JSON."""
    return -(-(len(_MAGIC) + _HEAD.size + length) // _PAGE) * _PAGE


def _lock(fd: int, path: str) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
        else:
            return
        if time.monotonic() > until:
            raise RuntimeError(
                f"ledger={path!r} is in use by another run, here or in another process; wait for "
                "it, or pass another ledger="
            )
        with allowed():
            time.sleep(0.01)


def _read(fd: int, path: str) -> tuple[Owner, int]:
    """Whose ledger a file is, and where its checksums begin."""
    try:
        return _parsed(fd)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"ledger={path!r} is no ledger of this library, or was damaged: {error}; pass another "
            "name, or remove it to begin anew"
        ) from None


def _parsed(fd: int) -> tuple[Owner, int]:
    found = os.fstat(fd)
    head = os.pread(fd, len(_MAGIC) + _HEAD.size, 0) if stat.S_ISREG(found.st_mode) else b""
    if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + _HEAD.size:
        raise ValueError("it does not begin as one")
    length, sum_ = _HEAD.unpack(head[len(_MAGIC) :])
    if length > _MOST:
        raise ValueError("it says too much")
    text = os.pread(fd, length, len(head))
    if len(text) < length or zlib.crc32(text) != sum_:
        raise ValueError("its beginning was changed")
    owner, begin = Owner.parse(text), _begin(length)
    if found.st_size != begin + _SUM * owner.chunks:
        raise ValueError(f"it has {found.st_size:,} bytes, and {owner.chunks:,} chunks")
    return owner, begin


def _compare(path: str, found: Owner, owner: Owner) -> None:
    """Raise ``ValueError`` if a ledger belongs to another call."""
    parts = found.differs(owner)
    if parts:
        raise ValueError(
            f"ledger={path!r} belongs to another call, of {found.call.get('verb', '?')} with "
            f"{found.chunks:,} chunks, that differs in: {', '.join(parts)}; pass another ledger=, "
            "or remove it to begin anew"
        )

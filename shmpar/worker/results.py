"""The file of a ledger in which workers record the results of items.

A record, in order:

======  =================================================================
bytes   content
======  =================================================================
8       a mark
16      the key of the item
8, 4    length of the body, and CRC-32 of key and body, little-endian
length  the body: the pickled result
======  =================================================================

Guarantees
----------
- A record is appended as soon as its item is computed, under a lock of the file.
- A process that is killed while it writes leaves a part of a record. A reader skips it: the next
  record begins with a mark, and a body counts only with its checksum.
- The latest record of a key counts.

A result is unpickled when it is read, so the file must come from a trusted place.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from shmpar.memory.limits import open_with_retry
from shmpar.pickling.explain import CheckedPickler
from shmpar.plan import KEY_BYTES, ResultError, ResultsFile

_MARK = b"\x89item\r\n\n"
_HEAD = struct.Struct(f"<8s{KEY_BYTES}sQI")  # mark, key, length of the body, CRC-32
_MOST_BYTES = 1 << 30  # of one system call, which moves less than 2 GiB


def append(file: ResultsFile, chunk: int, value: Any) -> None:
    """Append the result of an item.

    Raises
    ------
    ResultError
        The result cannot be pickled or written.

    Notes
    -----
    Cost: five system calls, and a pickle of the whole result.
    """
    import fcntl  # Why here: not every system has it.

    key, body = file.key(chunk), _pickled(value)
    head = _HEAD.pack(_MARK, key, len(body), zlib.crc32(body, zlib.crc32(key)))
    # Lock: each open file description excludes all others, in threads of one process too.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    try:
        fd = open_with_retry(lambda: os.open(file.path, flags, 0o600))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _write(fd, head, body)
        finally:
            # Why not close() alone: a forked child may share the file description.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
    except OSError as error:
        raise ResultError(
            f"its result cannot be recorded in {file.path!r} ({error}), so a later call would "
            "compute it again; make room there, or pass another ledger="
        ) from error


def _pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    try:
        CheckedPickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:
        raise ResultError(
            f"the function returned a {type(value).__qualname__}, which cannot be pickled, so it "
            f"cannot be recorded for ledger= ({error})"
        ) from error
    return stream.getvalue()


def _write(fd: int, *parts: bytes) -> None:
    """Write all parts; after an error, or an interrupt, nothing of them is left."""
    begin = os.lseek(fd, 0, os.SEEK_END)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(fd, rest[:_MOST_BYTES]) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, begin)
        raise


def read(path: str) -> dict[bytes, bytes]:
    """Return the pickled results of a file by their keys; none if there is no such file.

    Notes
    -----
    Cost: a pass over the file.
    """
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return {}
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = {key: (begin, end) for key, begin, end in _records(content)}
                return {key: content[begin:end] for key, (begin, end) in found.items()}
    except FileNotFoundError:
        return {}


def restore(body: bytes) -> Any:
    """Return a result from its pickle; raise any error of an object that does not load."""
    return pickle.loads(body)


def _records(content: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """Yield the key of each whole record, and the bounds of its body."""
    place, size = content.find(_MARK), len(content)
    while 0 <= place <= size - _HEAD.size:
        _, key, length, crc = _HEAD.unpack_from(content, place)
        begin = place + _HEAD.size
        end = begin + length
        whole = end <= size and zlib.crc32(memoryview(content)[begin:end], zlib.crc32(key)) == crc
        if whole:
            yield key, begin, end
        place = content.find(_MARK, end if whole else place + 1)

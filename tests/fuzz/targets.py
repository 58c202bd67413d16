"""The two fuzz targets, which make an address or a ledger from bytes and use it.

A finding is an exception that is not documented, an open of another file, an access outside of the
segment, or a signal that ends the process.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from shmpar.arrays import attach
from shmpar.arrays import creation as sa
from shmpar.errors import SegmentError
from shmpar.runtime.checkpoint import Header, LedgerFile
from shmpar.worker.verify import checksum

__all__ = ["REFUSALS", "AddressTarget", "LedgerTarget", "touch", "watched_opens"]

REFUSALS = (ValueError, TypeError, SegmentError, PermissionError)
FIELDS = (
    "version", "name", "size", "offset", "shape", "strides", "dtype", "start", "writable",
    "device", "inode", "file",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 4, 8, 31, 32, 33, 95, 96, 97, -8, -32, 4095, 4096, 4097, 2**31, 2**32, 2**62,
    2**63 - 1, 2**63, -(2**63), 2**64, 10**30, -(10**30),
)  # fmt: skip
TEXTS = (
    "", ".", "..", "/", "../x", "a/b", "/etc/passwd", "/proc/self/mem", "/proc/1/fd/0", "\0",
    "a\nb", "/proc/self/fd/0", "x" * 10_000, "<f8", ">i4", "|O", "O", "<U3", "|V0", "<M8[ns]",
    "f8,f8", "|b1", "<c16", "|S96", "<f2", "<f16", "V999999999", "nobody", "\udcff", "mine@8",
)  # fmt: skip
LIKELY = {
    "shape": (0, 1, 2, 3, 4, 6, 12),
    "strides": (0, 8, -8, 16, 32, -32, 1),
    "offset": (0, 8, 32, 64, 88, 95),
    "dtype": ("<f8", "|u1", "<i4", ">i2", "<U2", "|S8", "<c16", "|V12", "|b1", "<M8[s]"),
}
OTHERS = (None, True, False, 1.5, -0.0, math.nan, math.inf, [], {}, [[]], {"names": []}, (1,), b"x")
ALLOWED = re.compile(r"/dev/shm/[^/]*|/dev/shm|/proc/[0-9]+/fd/[0-9]+|/proc/self/.*")


class Choices:
    """Bytes as a sequence of choices; each choice after the last byte is the first value."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def byte(self) -> int:
        return next(self._bytes, 0)

    def of(self, values: Any) -> Any:
        return values[self.byte() % len(values)]

    def number(self) -> int:
        if self.byte() % 3:
            return self.of(NUMBERS)
        raw = bytes(self.byte() for _ in range(1 + self.byte() % 9))
        return int.from_bytes(raw, "little", signed=True)

    def likely(self, field: str) -> Any:
        """Choose a value that is often accepted."""
        if field in {"shape", "strides"}:
            return [self.of(LIKELY[field]) for _ in range(1 + self.byte() % 3)]
        return self.of(LIKELY[field])

    def value(self, depth: int = 0) -> Any:
        kind = self.byte() % 8
        if kind < 3:
            return self.number()
        if kind == 3:
            return self.of(TEXTS)
        if kind == 4 or depth > 3:
            return self.of(OTHERS)
        if kind == 5:
            return [self.number() for _ in range(self.byte() % 5)]
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.byte() % 4)]
        return self.dtype(depth)

    def dtype(self, depth: int) -> Any:
        if self.byte() % 2:
            return {"base": self.value(depth + 1), "shape": self.value(depth + 1)}
        fields = self.byte() % 4
        return {
            "names": [self.of(("a", "b", "c", "", 1)) for _ in range(fields)],
            "formats": [self.value(depth + 1) for _ in range(fields)],
            "offsets": [self.number() for _ in range(fields)],
            "titles": [self.of((None, "t", "a")) for _ in range(fields)],
            "itemsize": self.number(),
            "aligned": self.of((False, True, 1)),
            "record": self.of((False, True, 0)),
        }


class AddressTarget:
    """Change the address of an array of this process, and attach to it."""

    def __init__(self) -> None:
        self.array = sa.array(np.arange(12.0).reshape(3, 4))
        self.good = self.array.address
        self.accepted = 0

    def close(self) -> None:
        self.array.close()

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        changed = dict(self.good)
        for _ in range(1 + choices.byte() % 4):
            field = choices.of(FIELDS)
            if choices.byte() % 16:
                likely = field in LIKELY and choices.byte() % 4
                changed[field] = choices.likely(field) if likely else choices.value()
            else:
                changed.pop(field, None)
        try:
            found = attach(changed)
        except REFUSALS:
            return
        touch(found)
        self.accepted += 1
        assert self.array.nbytes == 96  # no other array may be mapped
        assert found._handle.segment.identity() == (self.good["device"], self.good["inode"])


def touch(array: Any) -> None:
    """Read and write back every element, or the outermost elements of a large array."""
    if 0 in array.shape or not array.dtype.itemsize:
        return
    plain = array.view(np.ndarray)
    plain = plain.view(np.dtype(("V", plain.dtype.itemsize))) if plain.dtype.names else plain
    if plain.size <= 10_000:
        outermost = np.ndindex(plain.shape)
    else:
        outermost = itertools.islice(itertools.product(*[(0, -1)] * plain.ndim), 4096)
    for place in outermost:
        try:
            value = plain[place]
        except (ValueError, SystemError):  # NumPy's errors for bytes that are no text
            continue
        if plain.flags.writeable:
            plain[place] = value


class LedgerTarget:
    """Change a ledger of three chunks, open it, and compare it with the outputs."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="shmpar-fuzz-", dir="/dev/shm")
        self.path = os.path.join(self._folder.name, "ledger")
        self.header = Header(3, [1, 2], {"verb": "map_blocks", "function": "ab" * 16})
        self.outputs = np.arange(6.0).reshape(3, 2)
        made = LedgerFile.open(self.path, self.header)
        made.checksums[:2] = [checksum(self.windows(chunk)) for chunk in (0, 1)]
        del made
        with open(self.path, "rb") as file:
            self.good = file.read()
        self.accepted = 0

    def close(self) -> None:
        self._folder.cleanup()

    def windows(self, chunk: int) -> list[Any]:
        return [self.outputs[chunk]]

    def changed(self, data: bytes) -> bytes:
        """Return the file as the bytes change it; the first byte selects the kind of change."""
        how, rest = data[:1], data[1:]
        kind = how[0] % 6 if how else 0
        if kind == 0:
            return rest
        if kind == 1:  # another header, with its checksum
            text = rest
            head = self.good[:16] + struct.pack("<II", len(text), zlib.crc32(text)) + text
            return head + self.good[-12:]
        whole = bytearray(self.good)
        if kind == 2:
            return bytes(whole[: int.from_bytes(rest[:2], "little")])
        if kind == 3:
            return bytes(whole) + rest
        for low, high, value in zip(rest[::3], rest[1::3], rest[2::3], strict=False):
            place = (low | high << 8) % len(whole) if kind == 4 else len(whole) - 1 - low % 12
            whole[place] = value
        return bytes(whole)

    def __call__(self, data: bytes) -> None:
        with open(self.path, "wb") as file:
            file.write(self.changed(data))
        try:
            found = LedgerFile.open(self.path, self.header)
        except ValueError as error:
            found, message = None, str(error)
        if found is None:
            assert self.path in message, "the error names the file"
            return
        self.accepted += 1
        found.verify(lambda chunks: [checksum(self.windows(chunk)) for chunk in chunks])
        done = [chunk for chunk in range(3) if found.checksums[chunk]]
        assert all(found.checksums[chunk] == checksum(self.windows(chunk)) for chunk in done)
        assert json.dumps(found.header.seed)


@contextmanager
def watched_opens() -> Iterator[list[str]]:
    """Collect each path outside of shared memory that Python opens during the block."""
    wrong: list[str] = []
    on = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        # Why not int: a descriptor is a file that was opened, and seen, before.
        opened = event == "open" and not isinstance(arguments[0], int)
        if on[0] and opened and not ALLOWED.fullmatch(os.fsdecode(str(arguments[0]))):
            wrong.append(str(arguments[0]))
        if on[0] and event in {"pickle.find_class", "exec", "compile", "ctypes.dlopen"}:
            wrong.append(event)

    sys.addaudithook(hook)
    try:
        yield wrong
    finally:
        on[0] = False

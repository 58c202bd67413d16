"""Addresses: all that is needed to find an array again, as plain JSON.

Imports NumPy and the segment package's extent.

Guarantees
----------
Nothing of an address is evaluated or unpickled, so it may come from anywhere, and one made on one
version of Python and NumPy opens on another.
A parsed address is consistent: whatever segment of at least ``size`` bytes it is applied to, the
array lies inside.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmpar.arrays import description
from shmpar.segment import extent

if TYPE_CHECKING:
    import numpy as np

__all__ = ["VERSION", "Address"]

VERSION: Final = 1
_MAX_AXES: Final = 64
_MOST: Final = 2**64 - 1  # inodes have as many


class Address(NamedTuple):
    """Where an array lies, checked.

    Attributes
    ----------
    name : str
        The segment's name.
    size : int
        Its bytes.
    offset : int
        Byte of the element [0, ..., 0].
    shape : tuple of int
        Elements along each axis.
    strides : tuple of int
        Bytes along each axis.
    dtype : dtype
        Without Python objects.
    start : int
        Byte at which the array begins that this is a view of: its lock lies there.
    writable : bool
        Whether the array may be written.
    identity : tuple of (int, int) or None
        Device and inode of the segment.
    file : bool
        Whether the segment is a mapped file of the user's, and its name the path.

    Examples
    --------
    >>> import numpy as np
    >>> a = Address("shmpar_1", 80, 0, (10,), (8,), np.dtype("<f8"))
    >>> Address.parse(a.to_json()) == a
    True
    """

    name: str
    size: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int = 0
    writable: bool = True
    identity: tuple[int, int] | None = None
    file: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give the address as a dict of str, int, bool and lists of them."""
        found: dict[str, Any] = {
            "version": VERSION,
            "name": self.name,
            "size": self.size,
            "offset": self.offset,
            "shape": list(self.shape),
            "strides": list(self.strides),
            "dtype": description.describe(self.dtype),
            "start": self.start,
            "writable": self.writable,
        }
        if self.identity is not None:
            found["device"], found["inode"] = self.identity
        if self.file:
            found["file"] = True
        return found

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Address:
        """Check an address from anywhere.

        Raises
        ------
        ValueError
            It is incomplete, of another version, or describes an array that would reach
            outside of its segment.
        TypeError
            An entry has the wrong type.
        """
        if _entry(given, "version", int) != VERSION:
            raise ValueError(f"address of version {given['version']}, not {VERSION}")
        address = cls(
            name=_entry(given, "name", str),
            size=_entry(given, "size", int),
            offset=_entry(given, "offset", int),
            shape=_numbers(given, "shape"),
            strides=_numbers(given, "strides"),
            dtype=description.rebuild(_entry(given, "dtype", (str, dict))),
            start=_entry({"start": 0, **given}, "start", int),
            writable=_entry({"writable": True, **given}, "writable", bool),
            identity=_identity(given),
            file=_entry({"file": False, **given}, "file", bool),
        )
        address.check()
        return address

    def check(self) -> None:
        """Raise ValueError unless the array lies inside of its segment."""
        if len(self.shape) != len(self.strides):
            raise ValueError(f"address with shape {self.shape} and strides {self.strides}")
        if min(self.shape, default=0) < 0 or not 1 <= self.size <= sys.maxsize:
            raise ValueError(f"address with shape {self.shape} in {self.size} bytes")
        steps = max(map(abs, self.strides), default=0)
        if max(math.prod(self.shape) * self.dtype.itemsize, steps) > sys.maxsize:
            raise ValueError(f"address with shape {self.shape}, strides {self.strides}: too large")
        touched = extent.span(self.shape, self.strides, self.dtype.itemsize)
        if not extent.fits(self.size, self.offset, touched) or not 0 <= self.start <= self.size:
            raise ValueError(
                f"address reaches outside of its segment: bytes {self.offset + touched[0]} to "
                f"{self.offset + touched[1]} of {self.size}"
            )


def _entry(given: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(given, dict):
        raise TypeError(f"an address is a dict, not {type(given).__name__}")
    if key not in given:
        raise ValueError(f"address without {key!r}")
    value = given[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"address with {key} = {description.shown(value)}")
    if isinstance(value, int) and not -_MOST <= value <= _MOST:
        raise ValueError(f"address with {key} = {description.shown(value)}")
    return value


def _numbers(given: dict[str, Any], key: str) -> tuple[int, ...]:
    values = _entry(given, key, (list, tuple))
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in values):
        raise TypeError(f"address with {key} = {description.shown(values)}")
    if len(values) > _MAX_AXES or not all(-_MOST <= n <= _MOST for n in values):
        raise ValueError(f"address with {key} = {description.shown(values)}")
    return tuple(values)


def _identity(given: dict[str, Any]) -> tuple[int, int] | None:
    if "device" not in given and "inode" not in given:
        return None
    return _entry(given, "device", int), _entry(given, "inode", int)

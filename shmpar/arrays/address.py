"""Dtypes as plain JSON, and back.

Imports NumPy.

Guarantees
----------
``dtype_from_json(dtype_to_json(dtype)) == dtype``, with offsets, titles, alignment, byte order and
record type,
or ``dtype_to_json`` raises.
``dtype_from_json`` hands NumPy nothing but type strings of one item and dicts of them.

What array is wanted: shape and dtype, checked before any memory is made.

Imports masked, and the segment package's extent.

Guarantees
----------
Sizes are Python integers: nothing wraps.

Addresses: all that is needed to find an array again, as plain JSON.

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
import operator
import re
import reprlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from shmpar.memory.copying import is_masked
from shmpar.memory.segment import byte_bounds, dense_nbytes, lies_within

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "VERSION",
    "Address",
    "ArraySpec",
    "check_dtype",
    "check_input",
    "dtype_from_json",
    "dtype_to_json",
    "shown",
]

Description = str | dict[str, Any]

_SIMPLE: Final = re.compile(r"[<>|=]([biufcSUV]\d{1,9}|[mM]8(\[\d{0,9}[a-zA-Zμ]{1,7}\])?)")
_DEEPEST: Final = 32
_LONGEST: Final = 200  # characters


def dtype_to_json(dtype: np.dtype[Any]) -> Description:
    """Describe a dtype.

    Raises
    ------
    TypeError
        It holds Python objects, or NumPy could not rebuild it from a description.

    Examples
    --------
    >>> dtype_to_json(np.dtype("<f8"))
    '<f8'
    >>> dtype_to_json(np.dtype([("x", "<i2"), ("y", "<f4", (3,))]))["names"]
    ['x', 'y']
    """
    found = _describe(dtype)
    if dtype.hasobject or dtype_from_json(found) != dtype:
        raise TypeError(f"dtype {dtype!r} has no address: view the array as a builtin dtype first")
    return found


def _describe(dtype: np.dtype[Any]) -> Description:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _describe(base), "shape": list(shape)}
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],  # noqa: PLR2004
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "record": issubclass(dtype.type, np.record),
    }


def dtype_from_json(found: Any, depth: int = 0) -> np.dtype[Any]:
    """Make the dtype that a description describes.

    Raises
    ------
    ValueError, TypeError
        It describes none.
    """
    if depth > _DEEPEST:
        raise ValueError("dtype nested too deeply")
    if isinstance(found, str):
        return _simple(found)
    if not isinstance(found, dict):
        raise TypeError(f"no description of a dtype: {shown(found)}")
    try:
        return _subarray(found, depth) if "base" in found else _structured(found, depth)
    except (KeyError, OverflowError, MemoryError) as error:
        raise ValueError(f"no description of a dtype: {shown(found)}") from error


def _simple(text: str) -> np.dtype[Any]:
    if not _SIMPLE.fullmatch(text):
        raise ValueError(f"no description of a dtype: {shown(text)}")
    dtype: np.dtype[Any] = np.dtype(text)
    return dtype


def _subarray(found: dict[str, Any], depth: int) -> np.dtype[Any]:
    shape = tuple(_counts(found["shape"]))
    return np.dtype((dtype_from_json(found["base"], depth + 1), shape))


def _structured(found: dict[str, Any], depth: int) -> np.dtype[Any]:
    names, titles = found["names"], found["titles"]
    if not all(isinstance(text, str) for text in [*names, *filter(None, titles)]):
        raise TypeError(f"dtype with names {shown(names)}")
    dtype = np.dtype(
        {
            "names": list(names),
            "formats": [dtype_from_json(each, depth + 1) for each in found["formats"]],
            "offsets": _counts(found["offsets"]),
            "titles": list(titles),
            "itemsize": _counts([found["itemsize"]])[0],
        },
        align=found["aligned"] is True,
    )
    return np.dtype((np.record, dtype)) if found["record"] is True else dtype


def _counts(values: Any) -> list[int]:
    """Check a list of numbers of bytes or elements."""
    if not isinstance(values, list):
        raise TypeError(f"dtype with {shown(values)}")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in values):
        raise ValueError(f"dtype with {shown(values)}")
    return values


def shown(value: Any) -> str:
    """What an error says of something that may be of any length and depth."""
    try:
        text = reprlib.repr(value)
    except Exception:  # noqa: BLE001 - a number of too many digits, or an object of the user's
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


_MAX_AXES: Final = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


class ArraySpec(NamedTuple):
    """A shape and a dtype that fit into memory.

    Attributes
    ----------
    shape : tuple of int
        Elements along each axis.
    dtype : dtype
        Without Python objects, of a definite size, no subarray.

    Examples
    --------
    >>> ArraySpec.of(3, "f8").nbytes
    24
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return dense_nbytes(self.shape, self.dtype.itemsize)

    @classmethod
    def of(cls, shape: Any, dtype: Any) -> ArraySpec:
        """Check a user's shape and dtype (None is float64, as NumPy's).

        Raises
        ------
        TypeError
            The shape is no integers, or the dtype is unknown or holds Python objects.
        ValueError
            The shape is negative, has too many axes, or more bytes than can be addressed.
        """
        try:
            described = check_dtype(np.dtype(dtype))
        except SyntaxError:  # NumPy evaluates literals in it
            raise TypeError(f"no dtype: {dtype!r}") from None
        axes = _axes(shape)
        if described.subdtype is not None:  # as NumPy: its axes come last
            described, inner = described.subdtype
            axes += inner
        demand = cls(axes, np.empty(0, described).dtype)  # NumPy sizes "U" and "S"
        demand._check()
        return demand

    def _check(self) -> None:
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape {self.shape} has a negative length")
        if len(self.shape) > _MAX_AXES:
            raise ValueError(f"shape with {len(self.shape)} axes; NumPy has at most {_MAX_AXES}")
        nonzero = [n for n in self.shape if n]
        if dense_nbytes(nonzero, max(1, self.dtype.itemsize)) > sys.maxsize:
            raise ValueError(f"shape {self.shape} of dtype {self.dtype} has more than 2**63 bytes")


def _axes(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, (str, bytes, bool, np.bool_)) or shape is None:
        raise TypeError(f"shape must be an int or a sequence of ints, not {shape!r}")
    if isinstance(shape, Iterable) and getattr(shape, "ndim", 1) > 0:
        return tuple(map(_length, shape))
    return (_length(shape),)


def _length(n: Any) -> int:
    if isinstance(n, (bool, np.bool_)):
        raise TypeError(f"shape must hold ints, not {n!r}")
    try:
        return operator.index(n)
    except TypeError:
        raise TypeError(f"shape must hold ints, not {n!r}") from None


def check_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give back a dtype, or raise TypeError if its values are pointers."""
    if dtype.hasobject:
        raise TypeError(
            f"dtype {dtype} holds Python objects: their addresses mean nothing in another process; "
            "use a numeric, string ('U', 'S'), datetime or structured dtype"
        )
    return dtype


def check_input(values: Any) -> None:
    """Raise TypeError for arrays whose meaning a copy of their bytes would lose."""
    if is_masked(values):
        raise TypeError(
            "a masked array would lose its mask: pass x.filled(...), or x.data and the mask "
            "(numpy.ma.getmaskarray(x)) as a second input"
        )


VERSION: Final = 1
_address_MAX_AXES: Final = 64
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
            "dtype": dtype_to_json(self.dtype),
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
            dtype=dtype_from_json(_entry(given, "dtype", (str, dict))),
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
        touched = byte_bounds(self.shape, self.strides, self.dtype.itemsize)
        if not lies_within(self.size, self.offset, touched) or not 0 <= self.start <= self.size:
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
        raise TypeError(f"address with {key} = {shown(value)}")
    if isinstance(value, int) and not -_MOST <= value <= _MOST:
        raise ValueError(f"address with {key} = {shown(value)}")
    return value


def _numbers(given: dict[str, Any], key: str) -> tuple[int, ...]:
    values = _entry(given, key, (list, tuple))
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in values):
        raise TypeError(f"address with {key} = {shown(values)}")
    if len(values) > _address_MAX_AXES or not all(-_MOST <= n <= _MOST for n in values):
        raise ValueError(f"address with {key} = {shown(values)}")
    return tuple(values)


def _identity(given: dict[str, Any]) -> tuple[int, int] | None:
    if "device" not in given and "inode" not in given:
        return None
    return _entry(given, "device", int), _entry(given, "inode", int)

"""Addresses of arrays as plain JSON, and checks of shapes and dtypes.

Guarantees
----------
An address may come from anywhere: nothing in it is evaluated or unpickled.
Each parsed address is consistent: in a segment of at least ``size`` bytes the array lies inside.
``dtype_from_json(dtype_to_json(dtype)) == dtype`` with offsets, titles, alignment, byte order and
record type, or ``dtype_to_json`` raises an error.
Sizes are Python integers: no product overflows.
"""

from __future__ import annotations

import contextlib
import operator
import re
import reprlib
import sys
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import numpy as np

from shmpar.errors import format_count
from shmpar.memory.copying import is_masked, loses
from shmpar.memory.layout import byte_bounds, dense_nbytes, lies_within

DtypeJson = str | dict[str, Any]

VERSION: Final = 1
_MAX_AXES: Final = 32 if np.__version__.startswith("1.") else 64
_MAX_NUMBER: Final = 2**64 - 1  # inode numbers have 64 bits
_MAX_DEPTH: Final = 32
_MAX_REPR: Final = 200  # characters
_SIMPLE_DTYPE: Final = r"[<>|=]([biufcSUV]\d{1,9}|[mM]8(\[\d{0,9}[a-zA-Zμ]{1,7}\])?)"


def short_repr(value: Any) -> str:
    """Return a repr of bounded length for an error message."""
    try:
        text = reprlib.repr(value)
    except Exception:  # noqa: BLE001 - a number of too many digits, or an object of the user's
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_REPR else text[:_MAX_REPR] + "..."


def reject_objects(dtype: np.dtype[Any]) -> None:
    """Raise TypeError if the values of a dtype are pointers to Python objects."""
    if dtype.hasobject:
        raise TypeError(
            f"dtype {dtype} holds Python objects: their addresses mean nothing in another process; "
            "use a numeric, string ('U', 'S'), datetime or structured dtype"
        )


def reject_masked(values: Any) -> None:
    """Raise TypeError for a masked array, or one with a unit: a copy of its bytes would lose it."""
    if (lost := loses(values)) is not None:
        raise TypeError(f"an array of type {type(values).__name__} would lose {lost}")
    if is_masked(values):
        raise TypeError(
            "a masked array would lose its mask: pass x.filled(...), or x.data and the mask "
            "(numpy.ma.getmaskarray(x)) as a second input"
        )


# Why: numpy.lib.format.dtype_to_descr loses alignment, record types and fields out of order, and
# its counterpart evaluates strings.
def dtype_to_json(dtype: np.dtype[Any]) -> DtypeJson:
    """Return a dtype as JSON: its type string, or the arguments of ``numpy.dtype`` as a dict.

    Raises
    ------
    TypeError
        The dtype holds Python objects, or NumPy could not rebuild it from the JSON.

    Examples
    --------
    >>> dtype_to_json(np.dtype("<f8"))
    '<f8'
    >>> dtype_to_json(np.dtype([("x", "<i2"), ("y", "<f4", (3,))]))["names"]
    ['x', 'y']
    """
    found: DtypeJson = dtype.str
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        found = {"base": dtype_to_json(base), "shape": list(shape)}
    elif dtype.names is not None and dtype.fields is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        found = {
            "names": list(dtype.names),
            "formats": [dtype_to_json(field[0]) for field in fields],
            "offsets": [field[1] for field in fields],
            "titles": [field[2] if len(field) > 2 else None for field in fields],  # noqa: PLR2004
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
            "record": issubclass(dtype.type, np.record),
        }
    if dtype.hasobject or dtype_from_json(found) != dtype:
        raise TypeError(f"dtype {dtype!r} has no address: view the array as a builtin dtype first")
    return found


def dtype_from_json(found: Any, depth: int = 0) -> np.dtype[Any]:
    """Return the dtype that :func:`dtype_to_json` gave as JSON.

    Raises
    ------
    ValueError, TypeError
        The JSON is not a dtype.
    """
    if not isinstance(found, (str, dict)):
        raise TypeError(f"not a dtype: {short_repr(found)}")
    with contextlib.suppress(KeyError, OverflowError, MemoryError):
        if isinstance(found, dict) and depth <= _MAX_DEPTH:
            return _compound_dtype(found, depth + 1)
        # Why: NumPy evaluates literals in other strings and splits them at commas.
        if isinstance(found, str) and re.fullmatch(_SIMPLE_DTYPE, found):
            return np.dtype(found)
    raise ValueError(f"not a dtype, or nested too deeply: {short_repr(found)}")


def _compound_dtype(found: dict[str, Any], depth: int) -> np.dtype[Any]:
    if "base" in found:
        base = dtype_from_json(found["base"], depth)
        return np.dtype((base, _integers(found["shape"], "shape of a dtype")))
    names, titles = found["names"], found["titles"]
    if not all(isinstance(text, str) for text in [*names, *filter(None, titles)]):
        raise TypeError(f"address with names of fields = {short_repr(names)}")
    dtype = np.dtype(
        {
            "names": list(names),
            "formats": [dtype_from_json(each, depth) for each in found["formats"]],
            "offsets": _integers(found["offsets"], "offsets of fields"),
            "titles": list(titles),
            "itemsize": _integers([found["itemsize"]], "itemsize of a dtype")[0],
        },
        align=found["aligned"] is True,
    )
    return np.dtype((np.record, dtype)) if found["record"] is True else dtype


def _integers(values: Any, entry: str, minimum: int = 0) -> tuple[int, ...]:
    """Check an entry of an address that is a list of numbers; a bool is not a number."""
    if not isinstance(values, (list, tuple)) or not all(type(n) is int for n in values):
        raise TypeError(f"address with {entry} = {short_repr(values)}")
    if not all(minimum <= n <= _MAX_NUMBER for n in values):
        raise ValueError(f"address with {entry} = {short_repr(values)}")
    return tuple(values)


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that a user has passed; None is float64 as in NumPy."""
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except SyntaxError:  # NumPy evaluates literals in the string
        raise TypeError(f"not a dtype: {short_repr(dtype)}") from None
    return found


class ArraySpec(NamedTuple):
    """Shape and dtype of an array that fits into memory.

    Attributes
    ----------
    shape : tuple of int
        Elements along each axis.
    dtype : dtype
        Without Python objects, of a definite size, no subarray.

    Examples
    --------
    >>> spec = ArraySpec.of((3, 4), "f8")
    >>> spec.nbytes, spec.strides
    (96, (32, 8))
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return dense_nbytes(self.shape, self.dtype.itemsize)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes along each axis in C order without gaps."""
        lengths, itemsize = [max(n, 1) for n in self.shape], self.dtype.itemsize
        return tuple(dense_nbytes(lengths[axis + 1 :], itemsize) for axis in range(len(lengths)))

    @classmethod
    def of(cls, shape: Any, dtype: Any) -> ArraySpec:
        """Check a shape and a dtype of the user's; None is float64 as in NumPy.

        Raises
        ------
        TypeError
            The shape holds other values than integers, or the dtype is unknown or holds Python
            objects.
        ValueError
            The shape is negative, has too many axes, or more bytes than can be addressed.
        """
        # Why: NumPy sizes "U" and "S", and moves the axes of a subarray into the shape.
        sample = np.empty(0, as_dtype(dtype))
        reject_objects(sample.dtype)
        spec = cls(_axes(shape) + sample.shape[1:], sample.dtype)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise ValueError unless NumPy can make an array of this shape."""
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape {short_repr(self.shape)} has a negative length")
        if len(self.shape) > _MAX_AXES:
            raise ValueError(f"shape with {len(self.shape)} axes; NumPy has at most {_MAX_AXES}")
        # Why: NumPy refuses too large axes beside an axis of length 0 as well.
        if dense_nbytes([n for n in self.shape if n], max(1, self.dtype.itemsize)) > sys.maxsize:
            shown = short_repr(self.shape)
            raise ValueError(f"shape {shown} of dtype {self.dtype} has more than 2**63 bytes")


def _axes(shape: Any) -> tuple[int, ...]:
    is_sequence = isinstance(shape, Iterable) and getattr(shape, "ndim", 1) > 0
    lengths = tuple(shape) if is_sequence else (shape,)
    is_bool = any(isinstance(n, (bool, np.bool_)) for n in lengths)
    # Why: a set has no order of the user's.
    if not is_bool and not isinstance(shape, (bytes, AbstractSet, Mapping)):
        with contextlib.suppress(TypeError):
            return tuple(map(operator.index, lengths))
    raise TypeError(f"shape must be an int or a sequence of ints, not {short_repr(shape)}")


class Address(NamedTuple):
    """Location, shape and dtype of an array in a segment.

    Attributes
    ----------
    name : str
        Name of the segment.
    size : int
        Size of the segment in bytes.
    offset : int
        Byte of the element [0, ..., 0].
    shape : tuple of int
        Elements along each axis.
    strides : tuple of int
        Bytes along each axis.
    dtype : dtype
        Without Python objects.
    start : int
        First byte of the array of which this is a view: the byte of its lock.
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
        """Return the address as a dict of str, int, bool and lists of them."""
        found = {"version": VERSION, **self._asdict(), "dtype": dtype_to_json(self.dtype)}
        found |= {"shape": list(self.shape), "strides": list(self.strides)}
        if (identity := found.pop("identity")) is not None:
            found["device"], found["inode"] = identity
        if not self.file:
            del found["file"]
        return found

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Address:
        """Check an address from anywhere.

        Raises
        ------
        ValueError
            The address is incomplete, of another version, or describes an array that would reach
            outside of its segment.
        TypeError
            An entry has the wrong type.
        """
        given = {"start": 0, "writable": True, "file": False, **given}
        if _entry(given, "version", int) != VERSION:
            raise ValueError(f"address of version {given['version']}, not {VERSION}")
        identity = None
        if "device" in given or "inode" in given:
            identity = _entry(given, "device", int), _entry(given, "inode", int)
        address = cls(
            **{key: _entry(given, key, int) for key in ("size", "offset", "start")},
            **{key: _entry(given, key, bool) for key in ("writable", "file")},
            name=_entry(given, "name", str),
            shape=_integers(_entry(given, "shape", (list, tuple)), "shape"),
            strides=_integers(_entry(given, "strides", (list, tuple)), "strides", -_MAX_NUMBER),
            dtype=dtype_from_json(_entry(given, "dtype", (str, dict))),
            identity=identity,
        )
        address._check()
        return address

    def _check(self) -> None:
        """Raise ValueError unless the array lies inside of its segment."""
        if self.file and not self.name.startswith("/"):
            raise ValueError("the address of a file needs an absolute path")
        if self.identity is None and (self.file or self.name.startswith("/proc/")):
            # Why: another file may have the path, or another segment the descriptor's number.
            raise ValueError("the address of a file or a descriptor needs its device and inode")
        ArraySpec(self.shape, self.dtype).check()
        if len(self.shape) != len(self.strides):
            axes = format_count(len(self.shape), "axis", "axes")
            raise ValueError(f"address with {axes}, {format_count(len(self.strides), 'stride')}")
        if not 1 <= self.size <= sys.maxsize:
            raise ValueError(f"address with a segment of {self.size} bytes")
        if max(map(abs, self.strides), default=0) > sys.maxsize:
            raise ValueError(f"address with too large strides {short_repr(self.strides)}")
        layout = self.shape, self.strides, self.dtype.itemsize
        if not lies_within(self.size, self.offset, *layout) or not 0 <= self.start <= self.size:
            low, high = byte_bounds(*layout)
            raise ValueError(
                f"address reaches outside of its segment: bytes {self.offset + low} to "
                f"{self.offset + high} of {self.size}"
            )


def _entry(given: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """Return an entry of an address if it has the right type; a bool is not a number."""
    if key not in given:
        raise ValueError(f"address without {key!r}")
    value = given[key]
    if kind is int:
        return _integers([value], key, -_MAX_NUMBER)[0]
    if not isinstance(value, kind):
        raise TypeError(f"address with {key} = {short_repr(value)}")
    return value

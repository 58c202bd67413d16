"""Making a parcel of an object: functions by value where needed, arrays by their segments.

Imports diagnosis, namespaces, parcel, plain and unpacking; plan, segment and arrays.
"""

from __future__ import annotations

import io
import sys
import types
from typing import Any

import cloudpickle
import numpy as np

from shmpar.arrays import SharedArray
from shmpar.errors import PlanError, ShmparError
from shmpar.plan import Function
from shmpar.segment import Segment, locate, share
from shmpar.travel.diagnosis import diagnosis
from shmpar.travel.namespaces import globals_of
from shmpar.travel.parcel import Parcel
from shmpar.travel.plain import OF_MODULE, by_reference, kept
from shmpar.travel.unpacking import take
from shmpar.wire import MAX_DESCRIPTORS

__all__ = ["LARGE", "pack", "pack_error", "pack_result"]

LARGE = 64 * 1024  # bytes; a smaller array is cheaper to pickle than to map


class _Namespace:
    """Stands in a pickle for the globals of a module whose functions travel by value."""

    def __init__(self, module: types.ModuleType) -> None:
        held = vars(module)
        self.name = module.__name__
        self.attributes = {name: held[name] for name in OF_MODULE if name in held}

    def __reduce__(self) -> tuple[Any, ...]:
        return globals_of, (self.name, self.attributes)


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions by value where needed and arrays by their segments."""

    def __init__(
        self, file: io.BytesIO, *, importable_only: bool = False, home: bool = False
    ) -> None:
        super().__init__(file, protocol=5)
        self.segments: list[Segment] = []
        self.private: list[bool] = []
        self._importable_only = importable_only
        self._home = home
        self._kept: list[Any] = []  # arrays whose ids are in the pickler's memo must stay alive

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self._reduce_array(obj)
        if isinstance(obj, types.FunctionType):
            self._prepare_function(obj)
        return super().reducer_override(obj)

    def _prepare_function(self, function: types.FunctionType) -> None:
        """Make the functions of one module share one globals dict in the worker."""
        if by_reference(function):
            return
        if self._importable_only:
            raise PlanError(
                f"function {function.__qualname__!r} would travel as bytecode, which the workers' "
                "other version of Python cannot run; put it into a module that both can import"
            )
        module = sys.modules.get(function.__globals__.get("__name__", ""))
        known = id(function.__globals__) in self.globals_ref
        if module is not None and vars(module) is function.__globals__ and not known:
            self.globals_ref[id(function.__globals__)] = _Namespace(module)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        shared = isinstance(array, SharedArray)
        if not shared and (type(array) is not np.ndarray or array.nbytes <= LARGE):
            return NotImplemented
        if array.dtype.hasobject or (self._home and len(self.segments) >= MAX_DESCRIPTORS):
            return NotImplemented
        writable = array.flags.writeable
        # What a plain array of a result lies in may be written by others, and is left to them.
        place = None if self._home and not shared else locate(array)
        if place is None:
            if shared or not _is_plain(array.dtype):
                return NotImplemented
            segment, array = share(array)
            offset = 0
            self._kept.append(array)
        else:
            segment, offset = place.segment, place.offset
        index = self._add(segment, private=not shared and not self._home)
        layout = (offset, array.shape, array.strides, array.dtype, writable)
        start = array._lease.start if isinstance(array, SharedArray) and array._lease else None  # noqa: SLF001
        return take, (index, start, *layout)

    def _add(self, segment: Segment, *, private: bool) -> int:
        for index, known in enumerate(self.segments):
            if known == segment and self.private[index] == private:
                return index
        self.segments.append(segment)
        self.private.append(private)
        return len(self.segments) - 1


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the values are bytes that mean the same in another process."""
    return dtype.kind in "?bBiufcmMSUV"


def pack(value: Any, *, importable_only: bool = False) -> Parcel:
    """Pickle an object for a worker.

    Parameters
    ----------
    value : object
        The function with what it is called with.
    importable_only : bool
        Refuse functions that would travel as bytecode: the worker is another version of Python.

    Raises
    ------
    PlanError
        If something in it does not pickle; the message names it.

    Notes
    -----
    Cost: a plain array of more than 64 KiB is copied into shared memory once.
    """
    try:
        if isinstance(value, Function) and not importable_only:
            body = kept(value, lambda function: _packed(function).body)
            if body is not None:
                return Parcel(body, plain=True)
        return _packed(value, importable_only=importable_only)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(diagnosis(value, error)) from error


def _packed(value: Any, *, importable_only: bool = False) -> Parcel:
    file = io.BytesIO()
    packer = _Packer(file, importable_only=importable_only)
    packer.dump(value)
    return Parcel(file.getvalue(), tuple(packer.segments), tuple(packer.private))


def pack_result(value: Any) -> Parcel:
    """Pickle what a function returned, for the parent: it adopts the segments as its own.

    Raises
    ------
    PlanError
        If something in it does not pickle.
    SegmentFull
        If there is no room for a large array in it.

    Notes
    -----
    Cost: an array of more than 64 KiB is copied once, into shared memory.
    """
    file = io.BytesIO()
    packer = _Packer(file, home=True)
    try:
        packer.dump(value)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(f"a {type(value).__qualname__} does not pickle ({error})") from error
    return Parcel(file.getvalue(), tuple(packer.segments), tuple(packer.private))


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception with all that it holds, in one piece; raises whatever that raises."""
    return cloudpickle.dumps(error, 5)  # type: ignore[no-any-return]

"""Pickle exceptions of workers: of any class, with bounded texts."""

from __future__ import annotations

import copyreg
import io
import pickle
from typing import Any, cast

from shmpar.errors import MOST_OF_EXCEPTION, ShmparError, shortened
from shmpar.pickling.explain import CheckedPickler
from shmpar.pickling.unpack import builtin_base, rebuild_error

_LARGE_ERROR = 64 * 1024


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception with all its attributes; pass on any exception of pickling.

    If the class has its own way of pickling, and that fails, the exception is rebuilt without it.
    If the pickle has more than 64 KiB, each of its texts is cut to 9,000 characters.
    """
    body = _error_body(error, shorten=False)
    return body if len(body) <= _LARGE_ERROR else _error_body(error, shorten=True)


def _error_body(error: BaseException, *, shorten: bool) -> bytes:
    try:
        body = _ErrorPickler.dumps(error, shorten=shorten)
        if issubclass(type(pickle.loads(body)), BaseException):
            return body
    except BaseException:  # noqa: BLE001, S110 - the class is the user's code
        pass
    body = _ErrorPickler.dumps(error, shorten=shorten, rebuild=True)
    pickle.loads(body)
    return body


def _with_short_texts(value: Any) -> Any:
    if isinstance(value, str):
        return shortened(value, MOST_OF_EXCEPTION)
    if type(value) in {tuple, list}:
        return type(value)(map(_with_short_texts, value))
    if type(value) is dict:
        return {key: _with_short_texts(held) for key, held in value.items()}
    return value


class _ErrorPickler(CheckedPickler):
    """Pickles exceptions so that the code of their classes is not run to rebuild them.

    Why: pickle calls the class with ``args``, and then sets attributes. An exception with keyword
    arguments, or one that refuses attributes, does not survive that.

    Parameters
    ----------
    shorten : bool
        Cut long texts.
    rebuild : bool
        Rebuild the exceptions whose classes have their own way of pickling, too.
    """

    def __init__(self, file: io.BytesIO, *, shorten: bool, rebuild: bool) -> None:
        super().__init__(file, protocol=5)
        self._shorten, self._rebuild = shorten, rebuild

    @classmethod
    def dumps(cls, error: BaseException, *, shorten: bool, rebuild: bool = False) -> bytes:
        file = io.BytesIO()
        cls(file, shorten=shorten, rebuild=rebuild).dump(error)
        return file.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if not issubclass(kind, BaseException):
            return super().reducer_override(obj)
        if not self._is_rebuilt(kind, base := builtin_base(kind)):
            if not self._shorten:
                return super().reducer_override(obj)
            build, *parts = obj.__reduce_ex__(5)
            return build, *map(_with_short_texts, parts)
        _, arguments, *state = cast("tuple[Any, ...]", base.__reduce__(obj))
        held = object.__getstate__(obj)
        slots = held[1] if isinstance(held, tuple) else {}
        parts = [arguments, state[0] if state else {}, slots]
        return rebuild_error, (kind, *(map(_with_short_texts, parts) if self._shorten else parts))

    def _is_rebuilt(self, kind: type[BaseException], base: type[BaseException]) -> bool:
        if self._rebuild:
            return kind is not base and not issubclass(kind, ShmparError)
        ways = ("__reduce__", "__reduce_ex__", "__setstate__")
        own = any(getattr(kind, way) is not getattr(base, way) for way in ways)
        return kind is not base and not own and kind not in copyreg.dispatch_table

"""The array functions as methods of a pool, whose memory goes when the pool does.

Imports array and segment.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from shmpar.arrays import creation
from shmpar.arrays.attach import attach
from shmpar.segment import Manager

__all__ = ["Memory"]

P = ParamSpec("P")
R = TypeVar("R")


def _of_pool(function: Callable[P, R]) -> Callable[Concatenate[Memory, P], R]:
    """The function as a method that makes its array under the pool's manager."""

    def method(self: Memory, /, *args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.setdefault("manager", self._memory())
        return function(*args, **kwargs)

    functools.update_wrapper(method, function)
    del method.__wrapped__  # type: ignore[attr-defined]  # its signature lacks self
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    theirs = inspect.signature(function).parameters.values()
    shown = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY) if one.name == "manager" else one
        for one in theirs
    ]
    method.__signature__ = inspect.Signature([own, *shown])  # type: ignore[attr-defined]
    return method


class Memory:
    """Gives a pool the array functions, each with the signature of the module's."""

    def _memory(self) -> Manager:
        raise NotImplementedError

    array = _of_pool(creation.array)
    asarray = _of_pool(creation.asarray)
    empty = _of_pool(creation.empty)
    zeros = _of_pool(creation.zeros)
    ones = _of_pool(creation.ones)
    full = _of_pool(creation.full)
    empty_like = _of_pool(creation.empty_like)
    zeros_like = _of_pool(creation.zeros_like)

    attach = _of_pool(attach)

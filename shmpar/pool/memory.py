"""The array functions as methods of a pool, whose memory goes when the pool does.

Imports array and segment.
"""

from __future__ import annotations

import functools
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

    return functools.wraps(function)(method)


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
